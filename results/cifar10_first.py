"""First figures of Conv/common_resnet: two small networks, ten epochs of CIFAR-10, three losses, one seed.

    python results/cifar10_first.py --data-path FOLDER     # runs what is missing, goes on after a kill, then renders

One seed says nothing about which loss is better; it says what the trainer reaches and how long it takes.
"""

import argparse
import itertools
import json
import platform
import subprocess
import sys
from pathlib import Path

import torch

import tables

TOP = Path(__file__).resolve().parents[1]
RESULT = TOP / "results/cifar10_first.json"
MODELS = {"small ResNet": "--model resnet8 --width 32 --stem-stride 2", "ResNet-20": "--model resnet20"}
LOSSES = ("ce", "ls", "maxsup")
RUNS = list(itertools.product(MODELS, LOSSES))
RECIPE = "--data cifar10 --epochs 10 --warmup-epochs 1 --seed 0"


def main() -> None:
    from render import render

    parser = argparse.ArgumentParser(
        description="First figures on CIFAR-10.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data-path", type=Path, help="CIFAR-10, folder or ZIP form; none: torchvision downloads it")
    parser.add_argument("--data-name", default="CIFAR-10", help="what the table calls the data")
    parser.add_argument("--output", type=Path, default=TOP / "output/cifar10-first", help="folder for checkpoints and logs")
    args = parser.parse_args()
    runs = []
    for name, loss in RUNS:
        runs.append(train(name, loss, args))
        result = {"data": args.data_name, "recipe": RECIPE, "runs": runs, "versions": versions()}
        tables.write(RESULT, json.dumps(result, indent=1) + "\n")
        render()


def train(name: str, loss: str, args) -> dict:
    """Train one model, or go on with it; returns what the table needs of its last epoch."""
    folder = args.output / f"{name.replace(' ', '-')}-{loss}"
    command = f"{RECIPE} {MODELS[name]} --loss {loss}"
    where = ["--data-path", str(args.data_path.resolve())] if args.data_path else []
    last = last_line(folder)
    if last is None or last["epoch"] < 10:
        words = [*command.split(), *where, "--output_dir", str(folder.resolve()), "--resume", "auto"]
        done = subprocess.run([sys.executable, "train.py", *words], cwd=TOP / "Conv/common_resnet")
        if done.returncode:
            sys.exit(done.returncode)
        last = last_line(folder)
    kept = {key: last[key] for key in ("train_top1", "val_top1", "val_loss", "val_ece", "seconds")}
    return {"model": name, "loss": loss, "command": f"python train.py {command}", **kept}


def last_line(folder: Path) -> dict | None:
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return json.loads(lines[-1]) if lines else None


def versions() -> dict:
    threads = torch.get_num_threads()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {threads} threads",
    }


def markdown(result: dict) -> str:
    lines = [
        "## First figures",
        "",
        f"{result['data']}, 10 epochs, one seed: what the trainer reaches and how long that takes, not which loss is best. The",
        f"machine ({result['versions']['machine']}, shared) did other things too. `python train.py {result['recipe']}` with",
        "",
        "| model | loss | train top-1 % | test top-1 % | test NLL | test ECE | minutes |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for run in result["runs"]:
        lines.append(
            f"| {run['model']}: `{MODELS[run['model']]}` | `{run['loss']}` | {run['train_top1']:.2f} | {run['val_top1']:.2f} | "
            f"{run['val_loss']:.4f} | {run['val_ece']:.4f} | {run['seconds'] / 60:.1f} |"
        )
    done = {(run["model"], run["loss"]) for run in result["runs"]}
    lines += [f"| {name}: `{MODELS[name]}` | `{loss}` | not run yet | | | | |" for name, loss in RUNS if (name, loss) not in done]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
