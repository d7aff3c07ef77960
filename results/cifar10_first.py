"""First figures of Conv/common_resnet: two small networks, ten epochs of CIFAR-10, three losses, one seed.

    python results/cifar10_first.py --data-path FOLDER     # runs what is missing, goes on after a kill, then renders

One seed says nothing about which loss is better; it says what the trainer reaches and how long it takes. The time is ten times
the median epoch's: other work on the machine slows some epochs.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch

import render
import tables

TOP = Path(__file__).resolve().parents[1]
TRAINER = TOP / "Conv/common_resnet"
MODELS = ("--model resnet8 --width 32 --stem-stride 2", "--model resnet20")
LOSSES = ("ce", "ls", "maxsup")
EPOCHS = 10
RECIPE = f"--data cifar10 --epochs {EPOCHS} --warmup-epochs 1 --seed 0"
COLUMNS = [("with", ""), ("train top-1 %", ".2f"), ("test top-1 %", ".2f"), ("test NLL", ".4f"), ("test ECE", ".4f")]
COLUMNS += [(f"min, {EPOCHS} median epochs", ".1f")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="First figures on CIFAR-10.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data-path", type=Path, help="CIFAR-10, folder or ZIP form; none: torchvision downloads it")
    parser.add_argument("--data-name", default="CIFAR-10", help="what the table calls the data")
    parser.add_argument("--output", type=Path, default=TOP / "output/cifar10-first", help="folder for checkpoints and logs")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = [*RECIPE.split(), "--device", device, "--resume", "auto"]
    words += ["--data-path", str(args.data_path.resolve())] if args.data_path else []
    rows = []
    for model, loss in itertools.product(MODELS, LOSSES):
        title = f"{model} --loss {loss}"
        lines = train([*words, *title.split()], args.output.resolve() / title.replace("--", "").replace(" ", "-"))
        ends = [0, *(line["seconds"] for line in lines)]
        minutes = EPOCHS * statistics.median(end - start for start, end in itertools.pairwise(ends)) / 60
        rows.append([f"`{title}`", *(lines[-1][key] for key in ("train_top1", "val_top1", "val_loss", "val_ece")), minutes])
        where = f"`python train.py {RECIPE}` on {args.data_name}; {tables.environment(device)}"
        tables.report(where, COLUMNS, rows, tables.TABLES / "cifar10_first.json")
    render.render()


def train(words: list[str], folder: Path) -> list[dict]:
    """Train one model, or go on with it; its log, a dict an epoch."""
    done = subprocess.run([sys.executable, "train.py", *words, "--output_dir", str(folder)], cwd=TRAINER)
    if done.returncode:
        sys.exit(done.returncode)
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
