"""Spellings of options: other projects' names for them, and one-line errors that name the nearest option.

SPELLINGS maps other names to options of main.py. UNNEEDED are DeiT's options that have no effect here, with what the run says
about each. REFUSED are those that end the run, with the reason. settle() translates DeiT's options for a loss or an augmentation.
"""

import argparse
import sys

import errors
from errors import InputError

# Dashes and underscores are interchangeable; variants that differ only in them are not listed.
SPELLINGS = {
    "-b": "--batch-size",
    "-j": "--num_workers",
    "--workers": "--num_workers",
    "--wd": "--weight-decay",
    "--dr": "--decay-rate",
    "--label-smoothing": "--smoothing",
    "--mixup-alpha": "--mixup",
    "--cutmix-alpha": "--cutmix",
    "--test-only": "--eval",
    # Conv/common_resnet's
    "--init": "--finetune",
    "--clip-grad-norm": "--clip-grad",
    "--crop-ratio": "--eval-crop-ratio",
    "--random-erase": "--reprob",
    "--ema-decay": "--model-ema-decay",
}
# DeiT's options without an effect: the number of values that each takes, and the reason.
UNNEEDED = {
    "--dist_url": (1, "torchrun's variables say where the processes meet"),
    "--world_size": (1, "torchrun's --nproc-per-node and --nnodes set the number of processes"),
    "--distributed": (0, "a run under torchrun is distributed, any other is not"),
    "--cooldown-epochs": (1, "--epochs is the length of a run, which DeiT's own loop does not extend either"),
    "--patience-epochs": (1, "only the plateau schedule reads it, which needs a metric that DeiT's loop does not give"),
    "--resplit": (0, "it needs several augmentation splits, which DeiT does not make either"),
}
REFUSED = {"--cosub": "co-training of two submodels (DeiT III) is defined only for binary cross-entropy; it is not built here"}


class Parser(errors.Parser):
    """A parser that knows the spellings above. The namespace gets `notes`: a line for each given option that has no effect."""

    def parse_known_args(self, args=None, namespace=None):
        words = self._translate(sys.argv[1:] if args is None else args)
        namespace, unknown = super().parse_known_args(words, namespace)
        namespace.notes = getattr(namespace, "notes", [])
        return namespace, unknown

    def spellings(self) -> list[str]:
        return [*super().spellings(), *SPELLINGS]

    def _translate(self, words: list[str]) -> list[str]:
        """Replace each option by its declared spelling. Of several spellings of one option, the last counts, as in argparse."""
        declared = {name.replace("_", "-"): name for name in self._option_string_actions}
        spellings = {
            name.replace("_", "-"): target for name, target in SPELLINGS.items() if target in self._option_string_actions
        }
        translated = []
        for word in words:
            flag, equals, value = word.partition("=")
            key = flag.replace("_", "-")
            if not flag.startswith("-") or (key not in declared and key not in spellings):
                translated.append(word)
                continue
            translated.append((declared.get(key) or spellings[key]) + equals + value)
        return translated


class _Unneeded(argparse.Action):
    def __call__(self, parser, namespace, values, option=None):
        namespace.notes = [*getattr(namespace, "notes", []), f"{option} has no effect: {UNNEEDED[option][1]}"]


class _Refused(argparse.Action):
    def __call__(self, parser, namespace, values, option=None):
        raise InputError(f"{option}: {REFUSED[option]}")


def add_unneeded(parser: argparse.ArgumentParser) -> None:
    """Declare the options of UNNEEDED and REFUSED."""
    group = parser.add_argument_group("options of DeiT that have no effect here, or are refused; a run says why")
    for name, (count, reason) in UNNEEDED.items():
        how = {"nargs": 0} if not count else {"metavar": "X"}
        group.add_argument(name, action=_Unneeded, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, help=reason, **how)
    for name, reason in REFUSED.items():
        group.add_argument(name, action=_Refused, nargs=0, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, help=reason)


def settle(args: argparse.Namespace) -> None:
    """Replace --smoothing, --bce-loss and --ThreeAugment by the options they stand for. Raises InputError for contradictions.

    Adds the lines that a run should print about this to args.notes.
    """
    smoothing = args.smoothing
    if smoothing == 0 and args.loss == "maxsup":  # MaxSup without smoothing: the MaxSup repository's script gives both
        smoothing = None
    if smoothing is not None:
        if not 0 <= smoothing < 1:
            raise InputError(f"--smoothing {smoothing}: must lie between 0 and 1")
        loss, alpha = ("ls", smoothing) if smoothing else ("ce", None)
        if args.bce_loss and smoothing:
            raise InputError(f"--bce-loss and --smoothing {smoothing:g}: binary targets are not smoothed; give --smoothing 0")
        for name, ours, theirs in (("loss", args.loss, loss), ("alpha", args.alpha, alpha)):
            if ours is not None and ours != theirs:
                means = f"--loss {loss}" + (f" --alpha {alpha:g}" if alpha else "")
                raise InputError(f"--smoothing {smoothing:g} and --{name} {ours}: the first means {means}; give one of them")
        if not (smoothing or args.loss or args.bce_loss):
            args.notes.append("--smoothing 0 is --loss ce; for MaxSup, omit it or add --loss maxsup")
        if not args.bce_loss:
            args.loss, args.alpha = loss, alpha
    if args.bce_loss:
        for name, value in (("loss", args.loss), ("alpha", args.alpha)):
            if value not in (None, "bce"):
                raise InputError(f"--bce-loss and --{name} {value}: the first means --loss bce, which has no strength; give one")
        args.loss = "bce"
    args.loss = args.loss or "maxsup"
    if args.model == "our_patch16_224":
        args.model = "deit_small_patch16_224"
        args.notes.append("--model our_patch16_224, the MaxSup repository's name, is deit_small_patch16_224")
    if args.ThreeAugment:
        args.notes.append(f"--ThreeAugment takes the place of --aa {args.aa} and, as in DeiT, of --reprob {args.reprob:g}")
        args.aa, args.reprob = "3a", 0.0
    if args.cutmix_minmax and args.cutmix <= 0:
        args.notes.append("--cutmix-minmax turns cutmix on, as in DeiT")
    for name in ("smoothing", "bce_loss", "ThreeAugment"):
        delattr(args, name)
