"""The command line of main.py."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from errors import InputError, Parser

LOSSES = ("ce", "ls", "ols", "zipf", "logit-penalty", "focal", "maxsup")


@dataclass(frozen=True)
class Source:
    """A published table: its file, its target column, and the share of its rows for training."""

    file: str
    target: str
    train_share: float


SOURCES = {
    "bank": Source("bank-full.csv", "y", 0.2),
    "shoppers": Source("online_shoppers_intention.csv", "Revenue", 0.2),
}


# Smallest and largest valid values.
RANGES = {
    "epochs": (1, 10**6),
    "batch_size": (1, 10**9),
    "lr": (1e-30, 1e30),
    "seed": (0, 2**31),
    "seeds": (1, 10**4),
    "train_share": (1e-6, 1 - 1e-6),
}


def get_parser() -> Parser:
    parser = Parser(
        description="Train the MLP of the selective-classification paper on a table, with MaxSup or a loss it is compared with.",
    )
    group = parser.add_argument_group("loss")
    group.add_argument("--loss", default="maxsup", choices=LOSSES, help="loss to minimise")
    group.add_argument("--alpha", type=float, help="strength in the first epoch; if omitted: the published strength and schedule")
    group.add_argument(
        "--alpha-end", type=float, help="strength in the last epoch, reached linearly; if omitted: a given --alpha is constant"
    )
    group.add_argument(
        "--prior", default="uniform", choices=("uniform", "frequency"), help="what ls smooths towards: 1/K, or class frequencies"
    )

    group = parser.add_argument_group("data")
    group.add_argument("--data", default="digits", metavar="NAME", help=f"{', '.join(SOURCES)}, digits, or a CSV file")
    group.add_argument("--data-path", type=Path, help="CSV file of bank or shoppers")
    group.add_argument("--target", metavar="COLUMN", help="column to predict; if omitted: that of bank or shoppers")
    group.add_argument("--categorical", nargs="+", metavar="COLUMN", help="numeric columns to treat as categories")
    group.add_argument("--drop", nargs="+", metavar="COLUMN", help="columns to omit")
    group.add_argument(
        "--train-share", type=float, help="share of the rows for training; if omitted: 0.2 for bank and shoppers, else 0.8"
    )

    group = parser.add_argument_group("optimisation: Adam")
    group.add_argument("--epochs", type=int, default=10, help="epochs to train")
    group.add_argument("--batch-size", type=int, default=128, help="rows per step")
    group.add_argument("--lr", type=float, default=1e-3, help="constant learning rate")

    group = parser.add_argument_group("run")
    group.add_argument(
        "--output_dir", "--output-dir", type=Path, help="folder for checkpoint and log; if omitted: output/<data>-<loss>"
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run that --output_dir holds")
    group.add_argument("--resume", metavar="auto|PATH", help="continue from a checkpoint; auto: the one in --output_dir")
    group.add_argument("--logits", type=Path, metavar="FILE.pt", help="write logits and labels of the test split to this file")
    group.add_argument("--seed", type=int, default=0, help="seed of split, weights and data order")
    group.add_argument("--seeds", type=int, metavar="N", help="train N seeds, from --seed on, each in its own subfolder")
    group.add_argument("--device", choices=["cuda", "cpu"], default="cpu", help="where to train; a CPU suffices for the MLP")
    return parser


def fill_in(args: argparse.Namespace) -> None:
    """Set the options that depend on others. Raises InputError for the first invalid value."""
    import torch

    for name, (low, high) in RANGES.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"--{name.replace('_', '-')} {value}: must lie between {low:.10g} and {high:.10g}")
    check_loss(args)
    if args.data not in (*SOURCES, "digits"):
        if args.data_path is not None:
            raise InputError(f"--data {args.data}: give the CSV file once, as --data {args.data_path}")
        if not os.path.isfile(args.data):
            known = ", ".join((*SOURCES, "digits"))
            raise InputError(f"--data {args.data}: neither a data set ({known}) nor a file that exists")
        args.data = os.path.abspath(args.data)  # one spelling, so that a resumed run recognises it
    if args.data == "digits" and (args.data_path or args.target or args.categorical or args.drop):
        raise InputError(
            "--data digits comes with scikit-learn: --data-path, --target, --categorical and --drop are for CSV files"
        )
    if args.train_share is None:
        args.train_share = SOURCES[args.data].train_share if args.data in SOURCES else 0.8
    if args.seeds and args.resume not in (None, "auto"):
        raise InputError(f"--resume {args.resume}: with --seeds only --resume auto is possible")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no GPU that PyTorch can use")
    if args.logits is not None and (args.logits.is_dir() or not args.logits.absolute().parent.is_dir()):
        raise InputError(f"--logits {args.logits}: must name a file in a folder that exists")
    if args.logits is not None and args.logits.name in ("checkpoint.pth", "log.jsonl", "summary.json"):
        raise InputError(f"--logits {args.logits}: {args.logits.name} is the name of a run's own file; choose another")
    args.output_dir = args.output_dir or Path("output") / f"{Path(args.data).stem}-{args.loss}"


def check_loss(args: argparse.Namespace) -> None:
    """Raise InputError for options that the loss does not have."""
    if args.loss == "ce" and args.alpha is not None:
        raise InputError(f"--alpha {args.alpha}: cross-entropy has no strength to set")
    if args.alpha_end is not None and args.loss not in ("ls", "maxsup"):
        raise InputError(f"--alpha-end {args.alpha_end}: is for --loss ls and maxsup, not for {args.loss}")
    if args.prior != "uniform" and args.loss != "ls":
        raise InputError(f"--prior {args.prior}: is for --loss ls, not for {args.loss}")
    low, high = (-100 if args.loss == "ls" else 0), (100 if args.loss == "focal" else 1)
    for name in ("alpha", "alpha_end"):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"--{name.replace('_', '-')} {value}: must lie between {low} and {high} for --loss {args.loss}")
