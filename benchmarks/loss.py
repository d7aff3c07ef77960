"""How fast is MaxSup compared with cross-entropy? Forward + backward and peak memory, rivals interleaved in one run.

    python benchmarks/loss.py                  # on the GPU where there is one, else on one CPU thread
    python benchmarks/loss.py --shapes 256x1000

Rivals: F.cross_entropy, the same with label_smoothing=0.1, the formula by autograd, and that of the original code (topk, mean).
Times depend on fresh memory being touched, so each round runs every rival once, and the table shows medians and ratios.
"""

import argparse
import ctypes
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Deit"))
from maxsup_loss import max_sup_from_formula, max_sup_loss

SHAPES = ["256x1000", "1024x1000", "256x21841", "512x128256", "8x19x512x512"]  # the last: pixels
RIVALS = {
    "cross-entropy": lambda z, y: F.cross_entropy(z, y),
    "MaxSup, ours": lambda z, y: max_sup_loss(z, y, 0.1),
    "MaxSup, ours from the formula": lambda z, y: max_sup_from_formula(z, y, 0.1).mean(),
    "label smoothing": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "MaxSup, original's formula": lambda z, y: (
        F.cross_entropy(z, y) + 0.1 * (z.topk(1, dim=1).values.squeeze(1) - z.mean(1)).mean()
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", default=SHAPES, metavar="NxK", help="logits to measure, float32; NxKxHxW: of pixels"
    )
    parser.add_argument("--seconds", type=float, default=20, help="time for each shape")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    table.add_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = [("logits", ""), ("loss", ""), ("median ms", ".2f"), ("time / cross-entropy", ".2f"), ("peak memory MB", ".0f")]
    columns.append(("memory / cross-entropy", ".2f"))
    rows = []
    for shape in args.shapes:
        samples, classes, *pixels = map(int, shape.split("x"))
        logits = torch.randn(samples, classes, *pixels, device=args.device, requires_grad=True)
        targets = torch.randint(classes, (samples, *pixels), device=args.device)
        times = measure_times(logits, targets, args.seconds, shape)
        memory = {name: measure_memory(loss, logits, targets) for name, loss in RIVALS.items()}
        for name in RIVALS:
            peak, base = memory[name], max(memory["cross-entropy"], 1)
            rows.append([shape, name, 1e3 * times[name], times[name] / times["cross-entropy"], peak / 2**20, peak / base])
    where = f"forward + backward, float32; {table.environment(args.device, args.threads)}"
    table.report(where, columns, rows, args.json)


def step(loss, logits: torch.Tensor, targets: torch.Tensor) -> None:
    logits.grad = None
    loss(logits, targets).backward()
    if logits.is_cuda:
        torch.cuda.synchronize()


def measure_times(logits: torch.Tensor, targets: torch.Tensor, seconds: float, title: str) -> dict[str, float]:
    """Median seconds of each rival over as many interleaved rounds as fit the time, at least 5."""
    times = {name: [] for name in RIVALS}
    for loss in RIVALS.values():
        step(loss, logits, targets)
    end, rounds = time.perf_counter() + seconds, 0
    with tqdm(total=round(seconds), desc=title, unit="s", leave=False, disable=None) as bar:
        while rounds < 5 or time.perf_counter() < end:
            for name, loss in RIVALS.items():
                start = time.perf_counter()
                step(loss, logits, targets)
                times[name].append(time.perf_counter() - start)
            rounds += 1
            bar.update(min(round(seconds - (end - time.perf_counter())), bar.total) - bar.n)
    return {name: statistics.median(values) for name, values in times.items()}


def measure_memory(loss, logits: torch.Tensor, targets: torch.Tensor) -> int:
    """Bytes that one step needs at its peak beyond logits and targets (Linux: from the process's high-water mark)."""
    logits.grad = None
    if logits.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(loss, logits, targets)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_status("VmRSS")
    step(loss, logits, targets)
    return memory_status("VmHWM") - before


def memory_status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
