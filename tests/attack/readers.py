"""A reader: how its good inputs are made, which of them are damaged and how, and how it is called."""

import argparse
import inspect
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


class Reader(NamedTuple):
    """make(folder) writes good inputs; call(folder) reads them and returns the part of the result that must not change silently.

    targets: the files to damage, one at a time, each with the function that damages it. The target None stands for the words of a
    command line, which are passed as call(folder, words).
    """

    name: str
    make: Callable[[Path], None]
    call: Callable
    targets: list[tuple[str | None, Callable]]


LAST: list[str] = []  # the script and the words of the last command


def called(script: str, module: ModuleType, options: ModuleType | None = None) -> Callable:
    """The main function of a script as call(*words), which stores the words in LAST. options: the module with its parser."""
    takes = inspect.signature(module.main).parameters.keys()

    def call(*words: object) -> None:
        LAST[:] = sys.argv[:] = [script, *map(str, words)]
        given = (options or module).get_parser().parse_args(LAST[1:]) if "args" in takes else LAST[1:]
        module.main(*[given] * len(takes))

    return call


WORDS = ["9" * 5000, "", "²", "\udce9", "a\nb", *"nan inf -1 0 1e999 1000000000 x -- ../.. 0x10 1,2 None".split()]


def of_options(parser: argparse.ArgumentParser, fixed: str) -> Callable:
    """Damage a command line: one to three options of the parser, with values that may be invalid."""
    actions = [action for action in parser._actions if action.option_strings and action.dest not in ("help", "version")]

    def options(_: object, rng: random.Random) -> tuple[str, list[str]]:
        words = fixed.split()
        for action in rng.sample(actions, rng.choice((1, 1, 2, 3))):
            count = {None: 1, "+": 2, "*": 2, "?": 1}.get(action.nargs, action.nargs)
            words.append(rng.choice(action.option_strings))
            words += [rng.choice(WORDS) for _ in range(rng.choice((count, count, count, 0, count + 1)))]
        return f"~{' '.join(words)!r:.200}", words

    return options


def of_parser(module, fixed: str, make: Callable = Path.mkdir) -> Reader:
    """The reader of a trainer's command line, up to the point where the data would be opened."""
    parser = module.get_parser()

    def call(folder, words=()):
        return module.fill_in(parser.parse_args([*fixed.replace("FOLDER", str(folder)).split(), *words]))

    return Reader("options", make, call, [(None, of_options(parser, ""))])
