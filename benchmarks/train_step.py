"""How fast is a training step compared with those of timm's train.py and torchvision's reference script? Images/s and memory.

    python benchmarks/train_step.py                                        # on the GPU if there is one, else on the CPU
    python benchmarks/train_step.py --models resnet20 --steps 100 --rounds 9

Ours is train_one_epoch of the model's trainer: Deit/ for DeiT-Small, Conv/common_resnet/ for ConvNets. The wheels of timm and
torchvision do not include their scripts, so their loops are written out here with the scripts' defaults: each waits for the loss
after every step, and torchvision's computes the accuracy, too. All three loops take turns on the same batches, which are already
on the device, with the same weights, optimiser, memory format and mixed precision. Each model has a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, accuracy
from torch import Tensor, nn

import table

TOP = Path(__file__).resolve().parents[1]


class Case(NamedTuple):
    """A model: its trainer's folder, name there, side of its images, classes; images per step on a GPU and on a CPU."""

    trainer: str
    model: str
    side: int
    classes: int
    batches: tuple[int, int]


CASES = {
    "deit_small": Case("Deit", "deit_small_patch16_224", 224, 1000, (256, 8)),
    "resnet50": Case("Conv/common_resnet", "resnet50", 224, 1000, (256, 8)),
    "mobilenet_v2": Case("Conv/common_resnet", "mobilenet_v2", 224, 1000, (256, 8)),
    "resnet18": Case("Conv/common_resnet", "resnet18", 32, 10, (128, 32)),
    "resnet20": Case("Conv/common_resnet", "resnet20", 32, 10, (128, 128)),
    "resnet32": Case("Conv/common_resnet", "resnet32", 32, 10, (256, 128)),
    "tiny_vit": Case("Deit", "test_vit", 32, 10, (8, 8)),  # these two: to try the script
    "tiny_resnet": Case("Conv/common_resnet", "resnet8", 8, 10, (8, 8)),
}
LOOPS = ("timm", "torchvision", "ours")
COLUMNS = [
    ("model", ""),
    ("mode", ""),
    ("loss", ""),
    ("loop", ""),
    ("batch", "d"),
    ("images/s", ",.0f"),
    ("speed / timm's loop", ".3f"),
]
COLUMNS += [("speed / torchvision's loop", ".3f"), ("time / same loop with cross-entropy", ".3f"), ("peak memory MiB", ",.0f")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CASES)[:-2], choices=CASES, metavar="MODEL", help=" ".join(CASES))
    parser.add_argument("--steps", type=int, default=20, help="steps per round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per loop, interleaved, after one for warm-up")
    parser.add_argument("--batch-size", type=int, help="images per step; if omitted: by model")
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=("eager", "compiled"), help="modes to time")
    parser.add_argument("--amp", default="bf16", choices=("bf16", "off"), help="mixed precision")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # where the process of one model writes its rows
    table.add_option(parser)
    args = parser.parse_args()
    if args.rows:
        return args.rows.write_text(json.dumps(measure(args.models[0], args)))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            file = Path(folder) / name
            words = ["--models", name, "--rows", file, "--steps", args.steps, "--rounds", args.rounds, "--amp", args.amp]
            words += ["--device", args.device, "--modes", *args.modes]
            words += ["--batch-size", args.batch_size] if args.batch_size else []
            environment = os.environ | {"TQDM_DISABLE": "1"}
            if subprocess.run([sys.executable, __file__, *map(str, words)], env=environment).returncode:
                sys.exit(f"error: {name} failed; see above")
            rows += json.loads(file.read_text())
    where = f"{args.steps} steps, {args.amp}, medians of {args.rounds} interleaved rounds; {table.environment(args.device)}"
    table.report(f"{where}, timm {timm.__version__}", COLUMNS, rows, args.json)


def measure(name: str, args) -> list[list]:
    """The rows of one model."""
    case, on_gpu = CASES[name], args.device == "cuda"
    sys.path.insert(0, str(TOP / case.trainer))
    from maxsup_loss import MaxSupLoss

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # as all three scripts set it
    torch.set_float32_matmul_precision("high")
    batch = args.batch_size or case.batches[0 if on_gpu else 1]
    layout = torch.contiguous_format if case.trainer == "Deit" else torch.channels_last
    model, ours = (deit if case.trainer == "Deit" else conv)(case, args)
    model.to(args.device, memory_format=layout)
    batches = [
        (torch.randn(batch, 3, case.side, case.side, device=args.device).contiguous(memory_format=layout), labels)
        for labels in torch.randint(case.classes, (4, batch), device=args.device)
    ]
    data = InMemory(batches, batch, args.steps, args.device, case.trainer == "Deit")
    losses = {"cross-entropy": nn.CrossEntropyLoss(), "MaxSup": MaxSupLoss()}
    loops = dict(zip(LOOPS, (timm_epoch, torchvision_epoch, ours), strict=True))
    wrapped = {(loop, mode): ours.wrap(mode) if loop == "ours" else model for loop in LOOPS for mode in args.modes}
    if "compiled" in args.modes:
        wrapped["timm", "compiled"] = wrapped["torchvision", "compiled"] = torch.compile(model)
    runs = [(mode, loss, loop) for mode in args.modes for loss in losses for loop in LOOPS]
    times, memory = {run: [] for run in runs}, dict.fromkeys(runs)
    for round_ in range(args.rounds + 1):
        for run in runs:
            mode, loss, loop = run
            ours.optimizer.zero_grad()
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            loops[loop](wrapped[loop, mode], losses[loss], data, ours.optimizer, args)
            if on_gpu:
                torch.cuda.synchronize()
                memory[run] = (torch.cuda.max_memory_allocated() - before) / 2**20
            if round_:
                times[run].append(time.perf_counter() - start)
    seconds = {run: statistics.median(values) for run, values in times.items()}
    rows = []
    for run in runs:
        mode, loss, loop = run
        rivals = [seconds[mode, loss, rival] / seconds[run] for rival in LOOPS[:2]]
        cost = seconds[run] / seconds[mode, "cross-entropy", loop]
        rows.append([name, mode, loss, loop, batch, args.steps * batch / seconds[run], *rivals, cost, memory[run]])
    return rows


class InMemory:
    """The same batches in turn: a loader for Deit/, whose length is in batches, and images for Conv/common_resnet/."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]], batch_size: int, steps: int, device: str, is_loader: bool):
        self.batches, self.batch_size, self.steps, self.device = batches, batch_size, steps, device
        self.sampler = SimpleNamespace(set_epoch=lambda epoch: None)
        self.length = steps if is_loader else steps * batch_size

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batches[step % len(self.batches)] for step in range(self.steps))

    def training_batches(self, batch: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self)


class Ours(NamedTuple):
    """epoch(model, criterion, data, optimizer, args) of a trainer, its optimiser, and wrap("eager" or "compiled")."""

    epoch: Callable
    optimizer: torch.optim.Optimizer
    wrap: Callable[[str], nn.Module]

    def __call__(self, *words) -> None:
        self.epoch(*words)


def deit(case: Case, args) -> tuple[nn.Module, Ours]:
    from engine import train_one_epoch
    from models import create_model, wrap

    model = create_model(case.model, case.classes, case.side, drop=0.0, drop_path=0.1).to(args.device)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-5, weight_decay=0.05)
    scaler = torch.amp.GradScaler(args.device, enabled=False)

    def epoch(model: nn.Module, criterion: nn.Module, data: InMemory, optimizer: torch.optim.Optimizer, args) -> None:
        run = {"epoch": 0, "epochs": 1, "seed": 0, "device": args.device, "amp": args.amp}
        train_one_epoch(model, criterion, data, optimizer, scaler, **run)

    return model, Ours(epoch, optimizer, lambda mode: wrap(model, False, mode == "compiled", args.device))


def conv(case: Case, args) -> tuple[nn.Module, Ours]:
    from engine import train_one_epoch
    from models import create_model, model_facts, wrap
    from optimizer import build_optimizer

    model = create_model(model_facts(case.model, case.side), case.classes).to(args.device)
    optimizer = build_optimizer(model, 1e-4, 0.9, 1e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    def epoch(model: nn.Module, criterion: nn.Module, data: InMemory, optimizer: torch.optim.Optimizer, args) -> None:
        run = {"epoch": 0, "epochs": 1, "batch_size": data.batch_size, "seed": 0, "amp": args.amp}
        train_one_epoch(model, criterion, data, optimizer, scheduler, None, **run)

    small = case.side <= 64
    return model, Ours(epoch, optimizer, lambda mode: wrap(model, False, mode == "compiled", args.device, small))


def timm_epoch(model: nn.Module, criterion: nn.Module, data: InMemory, optimizer: torch.optim.Optimizer, args) -> None:
    """timm's train.py, without its optional features: gradient accumulation, clipping, an average of the weights."""
    losses = AverageMeter()
    model.train()
    optimizer.zero_grad()
    for images, targets in data:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.amp == "bf16"):
            loss = criterion(model(images), targets)
        loss.backward()
        optimizer.step()
        losses.update(loss.item(), len(images))
        optimizer.zero_grad()


def torchvision_epoch(model: nn.Module, criterion: nn.Module, data: InMemory, optimizer: torch.optim.Optimizer, args) -> None:
    """torchvision's references/classification/train.py, with bfloat16 instead of float16 and a scaler."""
    losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    model.train()
    for images, targets in data:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.amp == "bf16"):
            output = model(images)
            loss = criterion(output, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right1, right5 = accuracy(output, targets, topk=(1, 5))
        losses.update(loss.item(), len(images))
        top1.update(right1.item(), len(images))
        top5.update(right5.item(), len(images))


if __name__ == "__main__":
    main()
