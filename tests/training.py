"""What the tests of training share: small command lines, what a run leaves, and equality to the bit."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from conftest import ROOT, run
from subprojects import Subproject

DEIT = Subproject("Deit")
MAIN = ROOT / "Deit/main.py"
# A small ViT: no batch norm, whose statistics would differ between one process and two.
SMALL = "--model test_vit --input-size 32 --recipe-batch 0 --num_workers 0 --device cpu --warmup-epochs 0".split()
PLAIN = [*SMALL, "--no-aug", "--no-repeated-aug", "--drop-path", "0"]

CONV = ROOT / "Conv/common_resnet"
CONV_TRAIN, CONV_EVALUATE = CONV / "train.py", CONV / "evaluate.py"
CONV_QUICK = "--model resnet8 --num-workers 0 --device cpu".split()


def torchrun(processes, *words, script=MAIN, **more):
    """A trainer in several processes under the real torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return run(*command, script, *words, **more)


def kill_all(folder):
    """SIGKILL the launcher and every process that it started: all that name the folder on their command line."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)


def options(*words):
    return DEIT.load("options").get_parser().parse_args([str(word) for word in words])


def weights(folder):
    return load(folder)["model"]


def load(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=True)


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same(a, b):
    """Two nested structures of tensors and plain values are equal to the bit."""
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
