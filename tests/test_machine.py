"""The trainers on limited machines: too little memory, a CPU without bfloat16, fewer usable cores than it has."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT, complains
from subprojects import Subproject
from training import CONV_TRAIN, DEIT, MAIN, PLAIN, options

CONV, SEGMENTATION, TEXT = (Subproject(name) for name in ("Conv/common_resnet", "Tasks/segmentation", "Tasks/text"))


@pytest.mark.parametrize("trainer", ["deit", "conv"])
def test_full_memory_is_one_line_that_names_the_batch(trainer, few, tmp_path):
    """6 GB of address space hold PyTorch and 64 images of 1024 px, but not the outputs of the first layers."""
    words = [MAIN, *PLAIN, "--input-size", 1024, "--model", "vit_tiny_patch16_224", "--mean", 0, 0, 0, "--std", 1, 1, 1]
    if trainer == "conv":
        words = [CONV_TRAIN, "--data", "folder", "--model", "resnet18", "--input-size", 1024, "--num-workers", 0]
        words += ["--mean", 0, 0, 0, "--std", 1, 1, 1, "--device", "cpu"]
    words += ["--data-path", few, "--batch-size", 64, "--epochs", 1, "--output_dir", tmp_path]
    command = ["bash", "-c", 'ulimit -v 6000000 && exec "$@"', "bash", sys.executable, *map(str, words)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    complains(result, "this machine's memory is full at --batch-size 64", "half of it")


def test_a_cpu_without_bfloat16_is_said_to_be_slower(few, tmp_path, monkeypatch):
    cpu = tmp_path / "cpuinfo"
    for subproject in (DEIT, CONV, SEGMENTATION, TEXT):
        module = subproject.load("options")
        monkeypatch.setattr(module, "CPU_INFO", cpu)
        for flags, has_it in (("fpu avx512f", False), ("fpu avx512_bf16", True), ("fpu amx_bf16", True)):
            cpu.write_text(f"flags\t\t: {flags}\n")
            assert module.cpu_has_bf16() == has_it
    cpu.write_text("flags\t\t: fpu avx512f\n")
    args = options(*PLAIN, "--data-path", few, "--amp", "bf16")
    DEIT.load("options").fill_in(args)
    assert any("--amp bf16: this CPU has no bfloat16 instructions" in note for note in args.notes)


def test_convolutions_without_bfloat16_instructions_round_as_with_them(monkeypatch):
    """Results equal float64 on rounded operands, except for few entries where the float32 sum rounds the other way (by 1/128)."""
    precision = CONV.load("precision")
    monkeypatch.setattr(precision, "_lacks_bf16", lambda: True)
    generator = torch.Generator().manual_seed(0)
    shapes = (8, 16, 12, 12), (32, 16, 3, 3), (32,), (8, 32, 6, 6)
    images, weight, bias, gradient = (torch.randn(shape, generator=generator) for shape in shapes)

    def convolve(operands):
        for operand in operands:
            operand.requires_grad_()
        output = F.conv2d(*operands, stride=2, padding=1)
        output.backward(gradient.bfloat16().to(output.dtype))
        return [output.detach(), *(operand.grad for operand in operands)]

    expected = convolve([operand.bfloat16().double() for operand in (images, weight, bias)])
    with precision.autocast("cpu", "bf16"):
        found = convolve([operand.clone() for operand in (images, weight, bias)])
        with torch.autocast("cpu", enabled=False):
            assert F.conv2d(images, weight).dtype == torch.float32
    assert found[0].dtype == torch.bfloat16
    for exact, rounded in zip(expected, found, strict=True):
        exact, rounded = exact.bfloat16().float(), rounded.float()
        assert torch.allclose(rounded, exact, rtol=1 / 128, atol=1e-5) and (rounded != exact).float().mean() < 0.01


def test_workers_are_as_many_as_the_cores_that_the_process_may_use():
    """A process may be allowed fewer cores than the machine has, as under taskset or on a cluster."""
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", "import options; print(options.CORES)"]
    assert subprocess.run(command, cwd=ROOT / "Deit", capture_output=True, text=True).stdout == "1\n"
