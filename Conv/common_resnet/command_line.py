"""A parser for options with several spellings, which may not contradict; for an unknown option, it names the nearest one."""

import argparse
from collections.abc import Sequence
from typing import Any

import errors
from errors import InputError


class Parser(errors.Parser):
    """A parser for options added by add_option. Raises InputError for every mistake on a command line.

    `said` in the returned namespace contains the options that were typed, including those that repeat a default.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.listed: list[str] = []

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        return super().parse_args(args, argparse.Namespace(said={}) if namespace is None else namespace)

    def spellings(self) -> list[str]:
        return self.listed


class Option(argparse.Action):
    """Stores a value, or a switch's constant. Raises InputError if another spelling of the option gave a different value."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        value = values if self.nargs != 0 else self.const
        before, other = namespace.said.get(self.dest, (value, option_string))
        if before != value and other != option_string:
            raise InputError(f"{other} {show(before)} and {option_string} {show(value)} contradict: they set one option")
        namespace.said[self.dest] = (value, option_string)
        setattr(namespace, self.dest, value)


def show(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def add_option(parser: Parser, group, name: str, *others: str, **options: Any) -> None:
    """Add an option under its name, --with-dashes, and, unlisted in --help, under its others, including --with_underscores."""
    if options.pop("switch", False):
        options |= {"nargs": 0, "const": True, "default": False}
    options.setdefault("dest", name.removeprefix("--").replace("-", "_"))
    hidden = [*others]
    hidden += [spelling.replace("-", "_").replace("__", "--", 1) for spelling in (name, *others) if "-" in spelling[2:]]
    group.add_argument(name, action=Option, **options)
    options |= {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
    for spelling in dict.fromkeys(hidden):
        group.add_argument(spelling, action=Option, **options)
    parser.listed += [name, *others]
