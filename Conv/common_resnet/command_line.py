"""A parser whose options have several spellings: no two of them may contradict, and an unknown one names the nearest."""

import argparse
import difflib
from collections.abc import Sequence
from typing import Any

from errors import InputError


class Parser(argparse.ArgumentParser):
    """argparse's parser with errors of one line, without abbreviations. Raises InputError for every mistake on a command line."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)
        self.spellings: list[str] = []

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            near = difflib.get_close_matches(word, self.spellings, n=1, cutoff=0)
            raise InputError(f"{word}: no such option; the nearest is {near[0]}, and --help lists all")
        vars(found).pop("said", None)
        return found

    def error(self, message: str) -> None:
        raise InputError(message)


class Option(argparse.Action):
    """Stores a value, or the constant of a switch. Raises InputError where another spelling of the option gave another value."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        value = values if self.nargs != 0 else self.const
        said = vars(namespace).setdefault("said", {})
        before, other = said.get(self.dest, (value, option_string))
        if before != value and other != option_string:
            raise InputError(f"{other} {show(before)} and {option_string} {show(value)} contradict: they set one option")
        said[self.dest] = (value, option_string)
        setattr(namespace, self.dest, value)


def show(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def add_option(parser: Parser, group, name: str, *others: str, **options: Any) -> None:
    """Add an option under its name, --with-dashes, and unlisted under its other spellings, --with_underscores among them."""
    if options.pop("switch", False):
        options |= {"nargs": 0, "const": True, "default": False}
    options.setdefault("dest", name.removeprefix("--").replace("-", "_"))
    hidden = [*others]
    hidden += [spelling.replace("-", "_").replace("__", "--", 1) for spelling in (name, *others) if "-" in spelling[2:]]
    group.add_argument(name, action=Option, **options)
    options |= {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
    for spelling in dict.fromkeys(hidden):
        group.add_argument(spelling, action=Option, **options)
    parser.spellings += [name, *others]
