"""How fast is MaxSup compared with cross-entropy? Forward + backward and peak memory, rivals interleaved in one run.

    python benchmarks/loss.py                  # on the GPU if there is one, else on one CPU thread
    python benchmarks/loss.py --shapes 256x1000 8192x128256:amp

Rivals: F.cross_entropy, the same with label_smoothing=0.1, our formula by autograd, and the original code's (topk, mean); with
--compile, the default on a GPU, also cross-entropy and MaxSup compiled. The last row is the least that any loss could take: one
read and one write of the logits for the forward pass, and the same for the backward pass. Times depend on how much fresh memory
is touched, so each round runs every rival once, and the table shows medians and ratios.
"""

import argparse
import ctypes
import re
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
LARGE = ["256x1000:amp", "8x19x512x512:amp", "4096x32000:amp", "8192x128256:amp", "8192x128256:bf16"]  # further ones on a GPU
RIVALS = {
    "cross-entropy": lambda z, y: F.cross_entropy(z, y),
    "MaxSup, ours": lambda z, y: max_sup_loss(z, y, 0.1),
    "MaxSup, ours from the formula": lambda z, y: max_sup_from_formula(z, y, 0.1).mean(),
    "label smoothing": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "MaxSup, original's formula": lambda z, y: (
        F.cross_entropy(z, y) + 0.1 * (z.topk(1, dim=1).values.squeeze(1) - z.mean(1)).mean()
    ),
}
COMPILED = {"cross-entropy": "cross-entropy, compiled", "MaxSup, ours": "MaxSup, ours compiled"}
TRAFFIC = "memory traffic alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    on_gpu = torch.cuda.is_available()
    form = "logits; NxKxHxW: of pixels; float32, with :bf16 bfloat16, with :amp bfloat16 under autocast; if omitted: by device"
    parser.add_argument("--shapes", type=shape_of, nargs="+", metavar="NxK", help=form)
    parser.add_argument("--seconds", type=float, default=20, help="seconds per shape")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu", help="cuda or cpu")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=on_gpu, help="also time compiled losses")
    table.add_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = [("logits", ""), ("loss", ""), ("median ms", ".3f"), ("time / cross-entropy", ".2f"), ("peak memory MiB", ".0f")]
    columns.append(("memory / cross-entropy", ".2f"))
    rows = []
    for shape in args.shapes or SHAPES + (LARGE if args.device == "cuda" else []):
        size, _, kind = shape.partition(":")
        samples, classes, *pixels = map(int, size.split("x"))
        dtype = torch.bfloat16 if kind else torch.float32
        logits = torch.randn(samples, classes, *pixels, device=args.device, dtype=dtype, requires_grad=True)
        targets = torch.randint(classes, (samples, *pixels), device=args.device)
        rivals = dict(RIVALS)
        if args.compile:
            torch.compiler.reset()
            rivals |= {title: torch.compile(RIVALS[name], dynamic=False) for name, title in COMPILED.items()}
        rivals[TRAFFIC] = two_copies
        with torch.autocast(args.device, torch.bfloat16, enabled=kind == "amp"):
            times = measure_times(rivals, logits, targets, args.seconds, shape)
            memory = {name: measure_memory(loss, logits, targets) for name, loss in rivals.items()}
        for name in rivals:
            peak, base = memory[name], max(memory["cross-entropy"], 1)
            rows.append([shape, name, 1e3 * times[name], times[name] / times["cross-entropy"], peak / 2**20, peak / base])
    table.report(f"forward + backward; {table.environment(args.device, args.threads)}", columns, rows, args.json)


def shape_of(text: str) -> str:
    """For argparse."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+(:bf16|:amp)?", text):
        raise argparse.ArgumentTypeError(f"{text} is not like 256x1000, 8x19x512x512 or 256x1000:bf16")
    return text


def two_copies(logits: torch.Tensor, targets: torch.Tensor) -> None:
    """Moves as many bytes as a forward and a backward pass that each read, and write, one tensor of the logits' size."""
    logits.grad = logits.detach().clone().clone()


def step(loss, logits: torch.Tensor, targets: torch.Tensor) -> None:
    logits.grad = None
    value = loss(logits, targets)
    if value is not None:
        value.backward()
    if logits.is_cuda:
        torch.cuda.synchronize()


def measure_times(rivals: dict, logits: torch.Tensor, targets: torch.Tensor, seconds: float, title: str) -> dict[str, float]:
    """Median seconds of each rival over as many interleaved rounds as fit the time, at least 5."""
    times = {name: [] for name in rivals}
    for loss in rivals.values():
        step(loss, logits, targets)
    end, rounds = time.perf_counter() + seconds, 0
    with tqdm(total=round(seconds), desc=title, unit="s", leave=False, disable=None) as bar:
        while rounds < 5 or time.perf_counter() < end:
            for name, loss in rivals.items():
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
