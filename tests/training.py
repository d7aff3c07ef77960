"""What the tests of training share: its command line in small, what it leaves, and equality to the bit."""

import json
import sys

import torch
from conftest import ROOT, run

from checkpoint import load as load_checkpoint
from options import get_parser

MAIN = ROOT / "Deit/main.py"
# A small ViT: no batch norm, whose statistics would differ between one process and two.
SMALL = "--model test_vit --input-size 32 --recipe-batch 0 --num_workers 0 --device cpu --warmup-epochs 0".split()
PLAIN = [*SMALL, "--no-aug", "--no-repeated-aug", "--drop-path", "0"]


def torchrun(processes, *words, **more):
    """Deit/main.py in several processes under the real torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return run(*command, MAIN, *words, **more)


def options(*words):
    return get_parser().parse_args([str(word) for word in words])


def weights(folder):
    return load_checkpoint(folder / "checkpoint.pth")["model"]


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
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)
