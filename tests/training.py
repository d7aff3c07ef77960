"""What the tests of training share: small command lines, access to a run's files, and bit-identity."""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from conftest import ROOT, run, warm
from subprojects import Subproject

DEIT = Subproject("Deit")
MAIN = ROOT / "Deit/main.py"
# A small ViT: no batch norm, whose statistics would differ between one process and two.
SMALL = "--model test_vit --input-size 32 --recipe-batch 0 --num_workers 0 --device cpu --warmup-epochs 0".split()
PLAIN = [*SMALL, "--no-aug", "--no-repeated-aug", "--drop-path", "0"]
# Table 9 of Touvron et al. (2021) and, for what it does not list, DeiT's command line.
DEIT_DEFAULTS = {
    "epochs": 300, "batch_size": 64, "opt": "adamw", "lr": 5e-4, "weight_decay": 0.05, "sched": "cosine", "warmup_epochs": 5,
    "warmup_lr": 1e-6, "min_lr": 1e-5, "drop_path": 0.1, "drop": 0.0, "reprob": 0.25, "mixup": 0.8, "cutmix": 1.0,
    "mixup_prob": 1.0, "mixup_switch_prob": 0.5, "mixup_mode": "batch", "aa": "rand-m9-mstd0.5-inc1", "color_jitter": 0.3,
    "train_interpolation": "bicubic", "repeated_aug": True, "model_ema_decay": 0.99996, "momentum": 0.9, "clip_grad": None,
}  # fmt: skip

PATIENCE = 900  # seconds that a busy machine may need before a wait counts as a hang

CONV = ROOT / "Conv/common_resnet"
CONV_TRAIN, CONV_EVALUATE = CONV / "train.py", CONV / "evaluate.py"
CONV_QUICK = "--model resnet8 --num-workers 0 --device cpu".split()


def torchrun(processes, *words, script=MAIN, **more):
    """Run a trainer in several processes under the real torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return run(*command, script, *words, **more)


def kill_all(number):
    """SIGKILL a process and every process that it started."""
    found = [number]
    for parent in found:
        for task in Path(f"/proc/{parent}").glob("task/*/children"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                found += [int(child) for child in task.read_text().split()]
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def kill_after(epochs, folder, *command):
    """Start a trainer, and kill all of its processes when the log in its folder has `epochs` epochs."""
    with open(folder.with_name("printed"), "w") as printed:
        number = warm().start([str(word) for word in command if word != sys.executable], ROOT, printed, printed)
        deadline = time.time() + PATIENCE
        while not (folder / "log.jsonl").exists() or len(log(folder)) < epochs:
            assert Path(f"/proc/{number}").exists() and time.time() < deadline, Path(printed.name).read_text()
            time.sleep(0.01)
        kill_all(number)
        assert warm().wait() == -signal.SIGKILL


def as_process(monkeypatch, distributed, rank, processes):
    """Make a subproject's code act as one of several processes, where it does not communicate with the others."""
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: processes)


def batches_of(monkeypatch, distributed, order, epoch, rank, processes):
    """The batches of an epoch that a trainer's SeededOrder gives to one of several processes."""
    as_process(monkeypatch, distributed, rank, processes)
    order.epoch = epoch
    return list(order)


class Votes(torch.nn.CrossEntropyLoss):
    """Cross-entropy that takes dense logits, as Zipf's label smoothing does, and records what it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, logits, targets, dense_logits):
        self.seen.append((logits.detach().clone(), dense_logits))
        return super().forward(logits, targets)


def options(*words):
    return DEIT.load("options").get_parser().parse_args([str(word) for word in words])


def weights(folder):
    return load(folder)["model"]


def load(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=True)


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same(a, b):
    """Assert that two nested structures of tensors and plain values are bit-identical."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)
