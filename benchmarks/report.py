"""How long does viz/report.py take on large logits files, and how much memory? Three models, written for this and deleted after.

    python benchmarks/report.py                      # 50,000 images of 1,000 classes
    python benchmarks/report.py --images 5000 --classes 100

The targets are 60 s and 2 GB on two cores. The logits are random, with accuracies of about 75 %.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import table

REPORT = Path(__file__).resolve().parents[1] / "viz/report.py"
MODELS = ("CE", "LS", "MaxSup")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000, help="images per model")
    parser.add_argument("--classes", type=int, default=1000, help="number of classes")
    table.add_option(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [write(Path(folder) / f"{name}.pt", seed, args.images, args.classes) for seed, name in enumerate(MODELS)]
        words = ["--input", *files, "--names", *MODELS, "--output", f"{folder}/report"]
        start = time.perf_counter()
        subprocess.run([sys.executable, REPORT, *words], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    columns = [("images", ",.0f"), ("classes", ",.0f"), ("s", ".1f"), ("CPU s", ".1f"), ("peak memory GB", ".2f")]
    row = [args.images, args.classes, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9]
    table.report(f"{len(MODELS)} models; {table.environment(threads=table.CORES)}", columns, [row], args.json)


def write(path: Path, seed: int, images: int, classes: int) -> Path:
    """A logits file in which the target's logit is raised by 4; another, random logit is still the largest now and then."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=torch.Generator().manual_seed(99))  # the same labels for all
    logits = torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += 4
    torch.save({"logits": logits, "labels": labels}, path)
    return path


if __name__ == "__main__":
    main()
