"""First figures of Conv/common_resnet: two small networks, ten epochs of CIFAR-10, three losses, one seed.

    python results/cifar10_first.py --data-path FOLDER     # runs what is missing, goes on after a kill, then renders

One seed says nothing about which loss is better; it says what the trainer reaches and how long it takes.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import render
import tables

TOP = Path(__file__).resolve().parents[1]
TRAINER = TOP / "Conv/common_resnet"
MODELS = ("--model resnet8 --width 32 --stem-stride 2", "--model resnet20")
LOSSES = ("ce", "ls", "maxsup")
EPOCHS = 10
RECIPE = f"--data cifar10 --epochs {EPOCHS} --warmup-epochs 1 --seed 0"
COLUMNS = [
    ("with", ""),
    ("train top-1 %", ".2f"),
    ("test top-1 %", ".2f"),
    ("test NLL", ".4f"),
    ("test ECE", ".4f"),
    ("min", ".1f"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="First figures on CIFAR-10.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data-path", type=Path, help="CIFAR-10, folder or ZIP form; none: torchvision downloads it")
    parser.add_argument("--data-name", default="CIFAR-10", help="what the table calls the data")
    parser.add_argument("--output", type=Path, default=TOP / "output/cifar10-first", help="folder for checkpoints and logs")
    args = parser.parse_args()
    where = ["--data-path", str(args.data_path.resolve())] if args.data_path else []
    environment = f"`python train.py {RECIPE}` on {args.data_name}; {tables.environment()}"
    rows = []
    for model, loss in itertools.product(MODELS, LOSSES):
        words = f"{model} --loss {loss}"
        last = train(words, where, args.output.resolve() / words.replace("--", "").replace(" ", "-"))
        rows.append(
            [f"`{words}`", *(last[key] for key in ("train_top1", "val_top1", "val_loss", "val_ece")), last["seconds"] / 60]
        )
        tables.report(environment, COLUMNS, rows, tables.TABLES / "cifar10_first.json")
    render.render()


def train(words: str, where: list[str], folder: Path) -> dict:
    """Train one model, or go on with it; the log's line of its last epoch."""
    command = [
        sys.executable,
        "train.py",
        *RECIPE.split(),
        *words.split(),
        *where,
        "--output_dir",
        str(folder),
        "--resume",
        "auto",
    ]
    if (done := subprocess.run(command, cwd=TRAINER)).returncode:
        sys.exit(done.returncode)
    return json.loads((folder / "log.jsonl").read_text().splitlines()[-1])


if __name__ == "__main__":
    main()
