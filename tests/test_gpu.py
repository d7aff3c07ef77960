"""What only a GPU can show: pytest tests/test_gpu.py -m gpu. Without a GPU all of it is skipped.

GPU_TESTS_ON=cpu runs on the CPU the tests that make sense there, to check the tests themselves.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT, complains, run
from subprojects import Subproject
from training import CONV_TRAIN, DEIT, MAIN, assert_same, load, log, torchrun

DEVICE = os.environ.get("GPU_TESTS_ON", "cuda")
HAS_GPU = torch.cuda.is_available()
CONV = Subproject("Conv/common_resnet")
max_sup_loss = DEIT.load("maxsup_loss").max_sup_loss
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not HAS_GPU, reason="this machine has no GPU that PyTorch can use"),
]
only_on_a_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="has no meaning on a CPU")
DEIT_WORDS = [MAIN, *"--model test_vit --input-size 32 --recipe-batch 0 --num_workers 1 --warmup-epochs 0".split()]
DEIT_WORDS += ["--drop", 0.1, "--clip-grad", 1, "--model-ema-decay", 0.9]
CONV_WORDS = [CONV_TRAIN, *"--data digits --model resnet8 --ema-decay 0.9 --batch-size 100".split()]
MIXED = "--mixup-alpha 0.2 --cutmix-alpha 1".split()


# ------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("kind", ["indices", "probabilities", "pixels"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 2**-7)])
def test_loss_and_gradient_are_those_of_the_cpu(dtype, tolerance, kind):
    """Errors are relative to the largest entry. Both compute bfloat16 in float32, so results may round to neighbours of 2^-7."""
    torch.manual_seed(0)
    shape = (8, 19, 32, 32) if kind == "pixels" else (256, 1000)
    logits = (3 * torch.randn(shape, dtype=torch.float64)).to(dtype)
    targets = torch.randint(shape[1], (shape[0], *shape[2:]))
    targets[0] = -100
    if kind == "probabilities":
        targets = torch.randn(shape).softmax(1).to(dtype)
    found = []
    for device in ("cpu", DEVICE):
        z = logits.to(device).requires_grad_()
        loss = max_sup_loss(z, targets.to(device), 0.1)
        (gradient,) = torch.autograd.grad(loss, z)
        found.append((loss.detach().cpu().double(), gradient.cpu().double()))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * ours.abs().max()


@only_on_a_gpu
@pytest.mark.parametrize("shape", [(256, 1000), (2048, 32_000), (4, 19, 256, 256)])
@pytest.mark.parametrize("amp", [False, True])
def test_the_loss_takes_no_more_memory_than_cross_entropy(shape, amp):
    """The peak of a forward and a backward pass, without logits and targets; values per sample may add 1 %."""
    logits = torch.randn(shape, device="cuda", dtype=torch.bfloat16 if amp else torch.float32, requires_grad=True)
    targets = torch.randint(shape[1], (shape[0], *shape[2:]), device="cuda")

    def peak(loss) -> int:
        logits.grad = None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16, enabled=amp):
            value = loss(logits, targets)
        value.backward()
        return torch.cuda.max_memory_allocated() - before

    peak(max_sup_loss)
    assert peak(max_sup_loss) <= 1.01 * peak(F.cross_entropy) + 2**20


# --------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize(
    "words",
    [
        [*DEIT_WORDS, "--amp", "bf16"],
        [*DEIT_WORDS, "--amp", "fp16"],
        [*DEIT_WORDS, "--amp", "off"],
        [*DEIT_WORDS, "--amp", "bf16", "--compile"],
        [*CONV_WORDS, "--amp", "bf16"],
        [*CONV_WORDS, "--amp", "off", *MIXED],
        [*CONV_WORDS, "--amp", "bf16", "--compile"],  # CUDA graphs
        [CONV_TRAIN, *"--data folder --model resnet18 --input-size 97 --num-workers 1 --amp bf16".split()],  # large images
    ],
    ids="deit-bf16 deit-fp16 deit-off deit-compile conv-bf16 conv-mixed conv-compile conv-large".split(),
)
def test_a_resumed_run_is_that_which_was_not_interrupted(words, few, tmp_path):
    """Bit-identical with --deterministic: an intermediate checkpoint of a run of 6 epochs is resumed in another folder."""
    words = [*words, "--epochs", 6, "--deterministic", "--device", DEVICE]
    words += ["--data-path", few, "--batch-size", 32] if words[0] == MAIN or "folder" in words else []
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, *map(str, words), "--output_dir", str(whole)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not (whole / "checkpoint.pth").exists():
        time.sleep(0.01)
    broken.mkdir()
    with contextlib.suppress(FileNotFoundError):
        shutil.copy(whole / "checkpoint.pth", broken)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    on_the_way = load(broken)["epoch"] + 1
    assert on_the_way < 6, "the run ended before its checkpoint was copied"
    result = run(*words, "--output_dir", broken, "--resume", "auto")
    assert result.returncode == 0, result.stderr
    for key in load(whole).keys() - {"args"}:
        assert_same(load(whole)[key], load(broken)[key])
    assert [line["train_loss"] for line in log(whole)[on_the_way:]] == [line["train_loss"] for line in log(broken)]


@pytest.mark.parametrize("words", [[*DEIT_WORDS, "--batch-size", 32], CONV_WORDS], ids=["deit", "conv"])
def test_compiled_and_mixed_runs_learn_as_others_do(words, few, tmp_path):
    """The mean loss over three epochs is within 2 % of that of an uncompiled float32 run."""
    words = [*words, "--epochs", 3, "--device", DEVICE, *(["--data-path", few] if words[0] == MAIN else [])]
    losses = {}
    for name, more in {"plain": ["--amp", "off"], "bf16": ["--amp", "bf16"], "compiled": ["--amp", "off", "--compile"]}.items():
        result = run(*words, *more, "--output_dir", tmp_path / name)
        assert result.returncode == 0, result.stderr
        losses[name] = sum(line["train_loss"] for line in log(tmp_path / name))
    assert losses == pytest.approx(dict.fromkeys(losses, losses["plain"]), rel=0.02)


@only_on_a_gpu
def test_more_processes_than_gpus_are_one_line(few, tmp_path):
    """NCCL refuses two processes on one GPU, with a message that is hard to understand."""
    words = [*DEIT_WORDS[1:], "--data-path", few, "--output_dir", tmp_path, "--device", "cuda"]
    result = torchrun(torch.cuda.device_count() + 1, *words)
    line = f"finds {torch.cuda.device_count()} GPU(s): start one process per GPU\n"
    assert result.returncode != 0 and result.stderr.count(line) == 1 and 'main.py", line' not in result.stderr, result.stderr


@only_on_a_gpu
@pytest.mark.parametrize("words", [[*DEIT_WORDS, "--batch-size", 64], CONV_WORDS], ids=["deit", "conv"])
def test_a_full_gpu_is_one_line(words, few, tmp_path):
    """PyTorch may use only 2 MB of the GPU's memory here."""
    code = "import runpy, sys, torch; torch.cuda.set_per_process_memory_fraction(2**21 / torch.cuda.mem_get_info()[1]); "
    code += "sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0]); "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [*words, "--output_dir", tmp_path, *(["--data-path", few] if words[0] == MAIN else [])]
    result = subprocess.run([sys.executable, "-c", code, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    complains(result, "the GPU's memory is full at --batch-size", "mixed precision")


def test_measured_on_a_gpu_as_on_a_cpu(tmp_path):
    """viz/measure.py gives the same metrics of float32 logits, and the same transfer, whose optimum is scikit-learn's."""
    result = run(*CONV_WORDS, "--superclasses", "--epochs", 3, "--device", "cpu", "--output_dir", tmp_path)
    assert result.returncode == 0, result.stderr
    found = {}
    for device in ("cpu", DEVICE):
        file = tmp_path / f"{device}.json"
        words = ["--checkpoint", tmp_path / "checkpoint.pth", "--device", device, "--amp", "off", "--output", file]
        result = run(ROOT / "viz/measure.py", *words, "--transfer", "--names", "x")
        assert result.returncode == 0, result.stderr
        found[device] = json.loads(file.read_text())
    ours, theirs = (found[device]["models"]["x"]["metrics"] for device in ("cpu", DEVICE))
    loose = {key: value for key, value in ours.items() if isinstance(value, (int, float))}
    assert {key: theirs[key] for key in loose} == pytest.approx(loose, rel=0.01, abs=1e-3)


# ---------------------------------------------------------------------------------------------------- a single step


class Watched:
    """Batches for training; from the second step to the last but one, no step may wait for the GPU."""

    def __init__(self, data, steps: int):
        self.data, self.steps, self.batch_size = data, steps, 16
        self.device, self.sampler = DEVICE, self

    def __len__(self) -> int:
        return self.steps if self.data is None else self.steps * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        pass

    def __iter__(self):
        images = torch.randn(self.batch_size, 3, 32, 32).to(DEVICE)
        labels = torch.randint(10, (self.batch_size,)).to(DEVICE)
        return self.watched((images, labels) for _ in range(self.steps))

    def training_batches(self, batch: int, seed: int, epoch: int):
        return self.watched(self.data.training_batches(batch, seed, epoch))

    def watched(self, batches):
        for step, batch in enumerate(batches):
            if DEVICE == "cuda":
                torch.cuda.set_sync_debug_mode("error" if 1 <= step < self.steps - 1 else "default")
            yield batch


@pytest.fixture
def no_watch():
    yield
    if HAS_GPU:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("amp", ["bf16", "off"])
def test_no_step_of_deit_waits_for_the_gpu(amp, no_watch):
    """This includes mixup, clipping and a moving average. (fp16 does wait: its gradients decide whether a step is taken.)"""
    from timm.data import Mixup
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    with DEIT.active():
        models, engine = DEIT.load("models"), DEIT.load("engine")
        model = models.create_model("test_vit", 10, 32, 0.1, 0.1).to(DEVICE)
        criterion, scaler = DEIT.load("maxsup_loss").MaxSupLoss(), torch.amp.GradScaler(DEVICE, enabled=False)
        more = {"mixup": Mixup(0.8, 1.0, num_classes=10), "ema": ModelEmaV3(model, 0.9), "clip_grad": 1.0}
        run_ = {"epoch": 0, "epochs": 1, "seed": 0, "device": DEVICE, "amp": amp}
        optimizer = create_optimizer_v2(model, "adamw", lr=1e-4)
        engine.train_one_epoch(model, criterion, Watched(None, 6), optimizer, scaler, **run_, **more)


@pytest.mark.parametrize("mixed", [False, True])
def test_no_step_of_small_images_waits_for_the_gpu(mixed, no_watch):
    with CONV.active():
        small, engine, models, mixing = (CONV.load(name) for name in ("data.small_images", "engine", "models", "mixing"))
        images = torch.randint(256, (96, 32, 32, 3), dtype=torch.uint8)
        data = small.SmallImages(images, torch.randint(10, (96,)), list("abcdefghij"), [0.5] * 3, [0.2] * 3, DEVICE)
        model = models.create_model(models.model_facts("resnet8", 32), 10).to(DEVICE)
        optimizer = CONV.load("optimizer").build_optimizer(model, 0.1, 0.9, 1e-4)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        more = {"mixing": mixing.Mixing(0.2, 1.0, 10, 0)} if mixed else {}
        run_ = {"epoch": 0, "epochs": 1, "batch_size": 16, "seed": 0, "amp": "bf16"}
        batches = Watched(data.augment(4, True, 8), 6)
        criterion = CONV.load("maxsup_loss").MaxSupLoss()
        engine.train_one_epoch(model, criterion, batches, optimizer, scheduler, None, **run_, **more)
