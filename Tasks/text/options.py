"""The command line of main.py."""

import argparse
import os
from pathlib import Path

from errors import InputError, Parser

CPU_INFO = Path("/proc/cpuinfo")
LOSSES = ("ce", "ls", "ols", "zipf", "logit-penalty", "focal", "maxsup")
DATA = {"imdb": "lstm", "text": "lstm-lm"}  # the model for each --data
# Smallest and largest valid values.
RANGES = {
    "epochs": (1, 10**6),
    "batch_size": (1, 10**6),
    "lr": (1e-30, 1e30),
    "seed": (0, 2**31),
    "seeds": (1, 10**4),
    "max_tokens": (1, 10**5),
    "vocabulary": (10, 10**7),
    "embedding_size": (1, 10**5),
    "hidden_size": (2, 10**5),
    "eval_every": (1, 10**6),
}


def get_parser() -> Parser:
    parser = Parser(
        description="Train an LSTM on texts, with MaxSup or a loss it is compared with.",
    )
    group = parser.add_argument_group("loss and model")
    group.add_argument("--loss", default="maxsup", choices=LOSSES, help="loss to minimise")
    group.add_argument("--alpha", type=float, help="strength in the first epoch; if omitted: the published strength and schedule")
    group.add_argument(
        "--alpha-end", type=float, help="strength in the last epoch, reached linearly; if omitted: a given --alpha is constant"
    )
    group.add_argument(
        "--prior", default="uniform", choices=("uniform", "frequency"), help="what ls smooths towards: 1/K, or class frequencies"
    )
    group.add_argument("--model", choices=DATA.values(), help="classifier or language model; if omitted: the one for --data")
    group.add_argument("--embedding-size", type=int, default=300, help="dimensions of the word embeddings")
    group.add_argument("--hidden-size", type=int, default=256, help="units of the LSTM")
    group.add_argument(
        "--embeddings", type=Path, metavar="FILE", help="GloVe file with the initial embeddings; if omitted: random"
    )

    group = parser.add_argument_group("data")
    group.add_argument("--data", default="imdb", choices=DATA, help="labelled texts in folders, or running text")
    group.add_argument(
        "--data-path", type=Path, help="imdb: folder with train/<class>/*.txt and test/<class>/*.txt; text: file or folder"
    )
    group.add_argument("--max-tokens", type=int, help="tokens per text (imdb) or window (text); if omitted: 256 or 64")
    group.add_argument(
        "--vocabulary",
        type=int,
        help="entries: the most frequent words and 3 special tokens; if omitted: 20000 (imdb) or 10000 (text)",
    )

    group = parser.add_argument_group("optimisation: Adam")
    group.add_argument("--epochs", type=int, default=10, help="epochs to train")
    group.add_argument("--batch-size", type=int, default=64, help="texts or windows per step")
    group.add_argument("--lr", type=float, default=1e-3, help="constant learning rate")

    group = parser.add_argument_group("run")
    group.add_argument(
        "--output_dir", "--output-dir", type=Path, help="folder for checkpoint and log; if omitted: output/<data>-<model>-<loss>"
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run that --output_dir holds")
    group.add_argument("--resume", metavar="auto|PATH", help="continue from a checkpoint; auto: the one in --output_dir")
    group.add_argument("--logits", type=Path, metavar="FILE.pt", help="write logits and labels of the test split to this file")
    group.add_argument("--eval-every", type=int, default=1, metavar="N", help="evaluate every N epochs, and after the last")
    group.add_argument("--seed", type=int, default=0, help="seed of weights and data order")
    group.add_argument("--seeds", type=int, metavar="N", help="train N seeds, from --seed on, each in its own subfolder")
    group.add_argument("--device", choices=["cuda", "cpu"], help="if omitted: cuda on machines with a GPU, else cpu")
    help_ = "mixed precision in training; if omitted: bf16 on GPUs that have it, else off"
    group.add_argument("--amp", choices=["bf16", "off"], help=help_)
    return parser


def fill_in(args: argparse.Namespace) -> None:
    """Set the options that depend on others. Raises InputError for the first invalid value."""
    import torch

    args.model = args.model or DATA[args.data]
    if args.model != DATA[args.data]:
        raise InputError(f"--model {args.model}: does not read --data {args.data}; {DATA[args.data]} does")
    if args.max_tokens is None:
        args.max_tokens = 256 if args.data == "imdb" else 64
    if args.vocabulary is None:
        args.vocabulary = 20_000 if args.data == "imdb" else 10_000
    for name, (low, high) in RANGES.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"--{name.replace('_', '-')} {value}: must lie between {low:.10g} and {high:.10g}")
    check_loss(args)
    if args.data_path is None:
        what = "IMDB's folder aclImdb; data/imdb/README.md has the source" if args.data == "imdb" else "a text file or a folder"
        raise InputError(f"--data {args.data}: needs --data-path, {what}")
    if not os.path.exists(args.data_path):
        raise InputError(f"--data-path {args.data_path}: no such file or folder")
    if args.seeds and args.resume not in (None, "auto"):
        raise InputError(f"--resume {args.resume}: with --seeds only --resume auto is possible")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no GPU that PyTorch can use")
    native = args.device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    args.amp = args.amp or ("bf16" if native else "off")
    if args.logits is not None and (args.logits.is_dir() or not args.logits.absolute().parent.is_dir()):
        raise InputError(f"--logits {args.logits}: must name a file in a folder that exists")
    if args.logits is not None and args.logits.name in ("checkpoint.pth", "log.jsonl", "summary.json"):
        raise InputError(f"--logits {args.logits}: {args.logits.name} is the name of a run's own file; choose another")
    args.output_dir = args.output_dir or Path("output") / f"{args.data}-{args.model}-{args.loss}"


def cpu_has_bf16() -> bool:
    """Whether this CPU has bfloat16 instructions, according to Linux; with only AVX2, PyTorch's LSTM fails in bfloat16."""
    return not CPU_INFO.exists() or not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(CPU_INFO.read_text().split())


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
