"""Conv/common_resnet: its commands as a user runs them, killed, resumed, in two processes, and on bad input."""

import contextlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from conftest import ROOT, complains, run
from subprojects import Subproject
from training import CONV, CONV_EVALUATE, CONV_QUICK, CONV_TRAIN, PATIENCE, PLAIN, assert_same, kill_after, load, log, torchrun

SUBPROJECT = conv = Subproject("Conv/common_resnet")
GROUPINGS = conv.load("data.superclasses").GROUPINGS

# -------------------------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "digits"
    result = run(CONV_TRAIN, *CONV_QUICK, "--epochs", 4, "--ema-decay", 0.9, "--output_dir", output)
    assert result.returncode == 0, result.stderr
    return output


def test_the_first_command_learns(digits_run):
    """Chance is 10 %. The checkpoint states what is needed to rebuild the model and to prepare its inputs."""
    last = log(digits_run)[-1]
    assert last["val_top1"] > 75 and last["val_images"] == 397 and last["epoch"] == 4
    facts = load(digits_run)["args"]
    expected = {"model": "resnet8", "library": "cifar", "width": 16, "num_classes": 10, "input_size": 8, "crop_ratio": 1.0}
    expected |= {"data": "digits", "data_path": None, "superclasses": None, "loss": "maxsup", "interpolation": "bilinear"}
    assert {key: facts[key] for key in expected} == expected and load(digits_run)["classes"] == list("0123456789")


def test_evaluation_gives_what_training_logged(digits_run, ten, tmp_path):
    for words, key in (((), "val"), (("--data-path", ten), "val"), (("--ema",), "ema")):
        result = run(CONV_EVALUATE, "--checkpoint", digits_run / "checkpoint.pth", "--output", tmp_path / "r.json", *words)
        assert result.returncode == 0, result.stderr
        clean, last = json.loads((tmp_path / "r.json").read_text())["clean"], log(digits_run)[-1]
        assert clean["top1"] == last[f"{key}_top1"] and clean["nll"] == pytest.approx(last[f"{key}_nll"], abs=1e-5)
        assert f"top-1 {clean['top1']:.2f} %" in result.stdout


def test_weights_from_elsewhere(digits_run, tmp_path):
    """A state dict with DataParallel's prefix and without batch norm's counters, as in old files."""
    weights = {f"module.{key}": value for key, value in load(digits_run)["model"].items() if "num_batches" not in key}
    torch.save({"state_dict": weights, "best_prec1": 1.0}, tmp_path / "foreign.th")
    words = ["--checkpoint", tmp_path / "foreign.th", "--data", "digits", "--mean", *[0.305] * 3, "--std", *[0.376] * 3]
    result = run(CONV_EVALUATE, *words, "--model", "resnet8", "--output", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["clean"]["top1"] == log(digits_run)[-1]["val_top1"], result.stderr
    complains(run(CONV_EVALUATE, *words, "--model", "resnet14"), "foreign.th", "layer1.1.conv1.weight is missing")
    complains(run(CONV_EVALUATE, "--checkpoint", tmp_path / "foreign.th"), "does not say what it is", "--model")
    said = {"model": "resnet8", "num_classes": 10, "input_size": 8, "crop_ratio": 1.0, "interpolation": "area"}
    said |= {"mean": [0.305] * 3, "std": [0.376] * 3}  # as another trainer of this project writes them
    torch.save({"model": weights, "args": said}, tmp_path / "said.th")
    words = ["--checkpoint", tmp_path / "said.th", "--output", tmp_path / "r.json"]
    result = run(CONV_EVALUATE, *words, "--data", "digits")
    assert json.loads((tmp_path / "r.json").read_text())["clean"]["top1"] == log(digits_run)[-1]["val_top1"], result.stderr
    assert "says area interpolation" in result.stdout
    complains(run(CONV_EVALUATE, *words), "is of resnet8; give --model and --data")
    words = ["--checkpoint", tmp_path / "foreign.th", "--data", "digits"]
    weights |= {f"module.linear.{kind}": torch.cat([weights[f"module.linear.{kind}"]] * 2) for kind in ("weight", "bias")}
    torch.save(weights, tmp_path / "foreign.th")  # it is unknown which of its 20 classes are the digits
    complains(run(CONV_EVALUATE, *words, "--model", "resnet8"), "digits: 10 classes, the model has 20")


@pytest.mark.parametrize(("processes", "loss"), [(1, "ols"), (2, "zipf")])
def test_killed_and_resumed_ends_bit_identical(processes, loss, tmp_path):
    """SIGKILL in the middle of training, twice; the moving average and the loss's state are resumed too."""
    words = [
        *CONV_QUICK,
        "--epochs",
        12,
        "--loss",
        loss,
        "--ema-decay",
        0.9,
        "--batch-size",
        100,
        "--imbalance-ratio",
        2,
        "--cutout",
        2,
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", CONV_TRAIN, *words]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = run(*command, "--output_dir", whole)
    assert result.returncode == 0, result.stderr
    for epoch in (2, 6):
        kill_after(epoch, broken, *command, "--output_dir", broken, "--resume", "auto")
        assert load(broken)["epoch"] + 1 < 12, "the run ended before it could be killed"
    result = run(*command, "--output_dir", broken, "--resume", "auto")
    assert result.returncode == 0 and "resuming" in result.stdout, result.stderr
    for key in ("model", "model_ema", "optimizer", "loss", "lr_scheduler"):
        assert_same(load(whole)[key], load(broken)[key])
    assert [line["train_loss"] for line in log(broken)] == [line["train_loss"] for line in log(whole)]


def test_a_resumed_run_follows_the_command_line(tmp_path):
    """With half the batch and half the rate for the last 2 of 4 epochs, the cosine follows the epochs, not the steps made."""
    words = [*CONV_QUICK, "--warmup-epochs", 0, "--output_dir", tmp_path, "--resume", "auto"]
    assert run(CONV_TRAIN, *words, "--epochs", 2, "--batch-size", 100, "--lr", 0.1).returncode == 0
    with open(tmp_path / "log.jsonl", "a") as file:  # as kills between log and checkpoint, and within a line, leave it
        file.write('{"epoch": 3, "lr": 7}\n{"epo')
    result = run(CONV_TRAIN, *words, "--epochs", 4, "--batch-size", 50, "--lr", 0.05)
    assert "warning: lr was 0.1" in result.stdout and "warning: batch_size was 100" in result.stdout, result.stderr
    expected = [0.05 * (1 + math.cos(math.pi * step / 28)) for step in (13, 27)]  # at the last step of each epoch
    expected += [0.025 * (1 + math.cos(math.pi * step / 112)) for step in (83, 111)]
    assert [line["lr"] for line in log(tmp_path)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("script", ["Conv/common_resnet/train.py", "Deit/main.py"])
def test_a_replaced_run_is_gone(script, few, tmp_path):
    """If a run with --overwrite ends in its first epoch, --resume auto must not continue the run that it replaced."""
    words = [*CONV_QUICK] if "Conv" in script else [*PLAIN, "--data-path", few, "--opt", "sgd", "--unscale-lr"]
    words += ["--warmup-epochs", 0, "--output_dir", tmp_path, "--epochs"]
    assert run(ROOT / script, *words, 1).returncode == 0
    complains(run(ROOT / script, *words, 3, "--overwrite", "--lr", "1e9"), "the last checkpoint is good")
    assert not (tmp_path / "checkpoint.pth").exists() and log(tmp_path) == []
    assert "starting fresh" in run(ROOT / script, *words, 1, "--resume", "auto").stdout and len(log(tmp_path)) == 1


@pytest.mark.parametrize("script", ["Conv/common_resnet/train.py", "Deit/main.py"])
def test_loading_processes_end_with_a_killed_run(script, few, tmp_path):
    """Only the trainer gets SIGKILL, so it cannot tell its workers to end."""
    words = ["--data", "cub", "--model", "resnet18"] if "Conv" in script else [*PLAIN]
    words += ["--data-path", few, "--input-size", 32, "--epochs", 1000, "--batch-size", 16, "--device", "cpu", "--lr", 1e-6]
    words += ["--num-workers" if "Conv" in script else "--num_workers", 2, "--output_dir", tmp_path]
    command = [sys.executable, ROOT / script, *words]
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + PATIENCE
    while not (tmp_path / "log.jsonl").exists() or not log(tmp_path):
        assert child.poll() is None and time.time() < deadline
        time.sleep(0.05)
    assert len(session(child.pid)) > 3  # the trainer, the forkserver and at least two workers
    child.kill()
    child.wait()
    deadline = time.time() + 60
    while session(child.pid):
        assert time.time() < deadline, session(child.pid)
        time.sleep(0.1)


def session(number: int) -> list[str]:
    """The command lines of all processes in a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ProcessLookupError):
            state = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(state[3]) == number and state[0] != "Z":
                found.append((entry / "cmdline").read_text())
    return found


def test_two_processes_equal_one(tmp_path):
    """28 steps with batch norm synchronised over the processes; the rate is small because training amplifies float32 rounding."""
    words = [*CONV_QUICK, "--epochs", 2, "--batch-size", 100, "--sync-bn", "--lr", 1e-3]
    for processes in (1, 2):
        result = torchrun(processes, *words, "--output_dir", tmp_path / str(processes), script=CONV_TRAIN)
        assert result.returncode == 0, result.stderr
    for one, two in zip(log(tmp_path / "1"), log(tmp_path / "2"), strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], abs=1e-5) and one["val_images"] == two["val_images"] == 397
        assert one["val_nll"] == pytest.approx(two["val_nll"], abs=1e-4) and one["train_top1"] == two["train_top1"]


SYNCED = """
import sys; sys.path.insert(0, {conv!r})
import torch, torch.distributed as dist
from cifar_resnet import CifarResNet
from models import sync_batch_norm
dist.init_process_group("gloo")
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
whole, part = CifarResNet(8, 10), CifarResNet(8, 10)
part.load_state_dict(whole.state_dict())
shared = torch.nn.parallel.DistributedDataParallel(sync_batch_norm(part, "cpu"))
images, labels, rows = torch.randn(20, 3, 8, 8), torch.randint(10, (20,)), slice(10 * dist.get_rank(), 10 * dist.get_rank() + 10)
for step in range(3):
    for model, x, y in ((whole, images, labels), (shared, images[rows], labels[rows])):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
pairs = zip(whole.state_dict().values(), part.state_dict().values(), strict=True)
difference = max((a - b).abs().max().item() for a, b in pairs)
with torch.autocast("cpu", torch.bfloat16):
    assert shared.module.float()(images[rows].float()).isfinite().all()
open({folder!r} + f"/{{dist.get_rank()}}.txt", "w").write(str(difference))
dist.destroy_process_group()
"""


def test_batch_norm_over_two_processes_is_that_of_the_whole_batch(tmp_path):
    """In float64, weights and running statistics over three steps equal those of nn.BatchNorm2d on the whole batch."""
    (tmp_path / "synced.py").write_text(SYNCED.format(conv=str(CONV), folder=str(tmp_path)))
    result = torchrun(2, script=tmp_path / "synced.py")
    assert result.returncode == 0, result.stderr
    assert max(float((tmp_path / f"{rank}.txt").read_text()) for rank in (0, 1)) < 1e-12


def test_same_seed_same_weights_another_seed_others(tmp_path):
    words = [*CONV_QUICK, "--epochs", 1, "--holdout", 0.2]
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run(CONV_TRAIN, *words, "--seed", seed, "--output_dir", tmp_path / name).returncode == 0
    a, b, c = (load(tmp_path / name)["model"] for name in "abc")
    assert_same(a, b)
    assert not torch.equal(a["linear.weight"], c["linear.weight"]) and log(tmp_path / "a")[0]["val_images"] == 280


def test_a_long_tail_and_coarse_labels(tmp_path):
    words = [*CONV_QUICK, "--epochs", 1, "--output_dir", tmp_path / "tail", "--loss", "focal", "--imbalance-ratio", 10]
    result = run(CONV_TRAIN, *words)
    assert result.returncode == 0, result.stderr
    counts = load(tmp_path / "tail")["args"]["training_images"]
    smallest = np.bincount(load_digits().target[:1400]).min()
    assert counts == [int(smallest * 10 ** (-k / 9) + 1e-9) for k in range(10)] and counts[-1] == smallest // 10
    last = log(tmp_path / "tail")[-1]
    assert last["val_low"] is not None and "medium" in result.stdout
    result = run(CONV_TRAIN, *CONV_QUICK, "--epochs", 1, "--superclasses", "--output_dir", tmp_path / "coarse")
    assert result.returncode == 0, result.stderr
    state = load(tmp_path / "coarse")
    assert state["classes"] == ["even", "odd"] and state["args"]["superclasses"] == GROUPINGS["digits"]
    result = run(CONV_EVALUATE, "--checkpoint", tmp_path / "coarse/checkpoint.pth")
    assert f"top-1 {log(tmp_path / 'coarse')[-1]['val_top1']:.2f} %" in result.stdout


# ------------------------------------------------------------------------------------- bad input: one line, no traceback


ATTEMPTS = """
import json, sys
from evaluate import InputError, get_parser as evaluate_parser, main as evaluate
from train import get_parser, main as train
def attempt(script, words):
    try:
        sys.argv = [script, *words]
        train(get_parser().parse_args()) if script == "train.py" else evaluate(evaluate_parser().parse_args())
    except InputError as error:
        return str(error)
print("MESSAGES" + json.dumps([attempt(*one) for one in json.load(sys.stdin)]))
"""


def test_options_that_mean_nothing(tmp_path, digits_run):
    """Each is refused with its message; two are also run as commands, which print one line and no traceback."""
    wanted = []

    def refused(words, *pieces, script="train.py"):
        quick = [*CONV_QUICK, "--output_dir", str(tmp_path / "run")] if script == "train.py" else []
        wanted.append((script, [*quick, *words.split()], pieces))

    refused("--model resnet22", "--model resnet22", "resnet20")
    refused("--epochs 0", "--epochs 0", "1")
    refused("--lr nan", "--lr nan")
    refused("--batch-size 2000", "1400 training images", "--batch-size")
    refused("--width 32 --model resnet18", "--width", "CIFAR ResNets")
    refused("--loss ce --alpha-end 0.2", "--alpha-end 0.2: for --loss ls and maxsup, not for ce")
    refused("--data imagenet", "--data-path")
    refused("--data cub --data-path nowhere", "nowhere/train", "train/<class>/<image>")
    refused("--data cifar10 --data-path nowhere", "nowhere: no such folder")
    refused("--input-size 32", "--input-size 32", "8 px")
    refused("--imbalance-ratio 0.5", "--imbalance-ratio 0.5")
    refused("--holdout 1", "--holdout 1")
    refused("--holdout 0.0001", "no image of 1400")
    refused("--width 5", "--width 5", "even")
    refused("--weight-decay -1", "--weight-decay -1")
    refused("--loss ce --alpha 0.3", "--alpha 0.3", "cross-entropy")
    refused("--epochs 3 --warmup-epochs 3", "--warmup-epochs 3")
    refused("--cutout 9", "--cutout 9", "8 pixels")
    refused("--cutout 9 --data cub --data-path nowhere", "small images, not for cub")
    refused("--sched step", "--decay-epochs has to name epochs before 30")
    refused("--sched step --decay-epochs 30", "--decay-epochs has to name epochs before 30")
    refused("--decay-epochs 3", "for --sched step, not cosine")
    refused("--init imagenet", "weights for large images")
    refused("--init nowhere.pth", "nowhere.pth: no such checkpoint")
    refused("--superclasses nowhere.json", "nowhere.json", "No such file")
    refused("--resume nowhere.pth", "nowhere.pth: no such checkpoint")
    refused("--lr 1e9 --epochs 2", "nothing of this epoch")
    again = f"--epochs 4 --ema-decay 0.9 --output_dir {digits_run} "
    refused(again, "holds a run already", "--resume auto")
    refused(again + "--resume auto --width 8", "--width 16, not 8")
    refused(again + "--resume auto --loss ls", "--loss maxsup, not ls")
    refused(again + "--resume auto --superclasses", "other classes")
    refused(again + "--resume auto --epochs 3", "4 epochs already")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "evil.pth")
    (tmp_path / "torn.pth").write_bytes((digits_run / "checkpoint.pth").read_bytes()[:-3000])
    refused(f"--resume {tmp_path / 'evil.pth'}", "refused", "nothing in it was run")
    for name, pieces in {
        "evil": ("refused",),
        "torn": ("torn.pth", "damaged"),
        "none": ("none.pth", "no such checkpoint"),
    }.items():
        refused(f"--checkpoint {tmp_path / name}.pth", *pieces, script="evaluate.py")
    own = f"--checkpoint {digits_run / 'checkpoint.pth'} "
    refused(own + "--corruptions", "from 32x32 on", script="evaluate.py")
    refused(own + "--data cifar10 --data-path x", "x: no such", script="evaluate.py")
    refused(own + "--batch-size 0", "--batch-size 0", script="evaluate.py")
    refused(own + "--data imagenet", "--data imagenet needs --data-path", script="evaluate.py")

    state = load(digits_run)
    odd = {
        "num_classes": 10**12,
        "width": [16],
        "std": [0.1, float("nan"), 0.1],
        "model": "foo",
        "data": ["digits"],
        "data_path": 5,
    }
    for name, value in (odd | {"superclasses": {"a": 3}, "library": "timm", "input_size": "8"}).items():
        torch.save(state | {"args": state["args"] | {name: value}}, tmp_path / f"odd_{name}.pth")
        refused(f"--checkpoint {tmp_path / f'odd_{name}.pth'}", f"odd_{name}.pth", script="evaluate.py")
    ruined = {key: value * float("nan") if value.is_floating_point() else value for key, value in state["model"].items()}
    torch.save(state | {"model": ruined}, tmp_path / "ruined.pth")
    refused(f"--checkpoint {tmp_path / 'ruined.pth'}", "numbers that are not finite", script="evaluate.py")
    refused(own + f"--output {tmp_path / 'nowhere/r.json'}", "--output", "a folder that exists", script="evaluate.py")

    attempts = json.dumps([(script, words) for script, words, _ in wanted])
    result = subprocess.run(
        [sys.executable, "-c", ATTEMPTS], cwd=CONV, input=attempts, capture_output=True, text=True, timeout=300
    )
    messages = json.loads(result.stdout.split("MESSAGES")[1])
    for (_, words, pieces), message in zip(wanted, messages, strict=True):
        assert message and "\n" not in message and all(piece in message for piece in pieces), (words, pieces, message)
    complains(run(CONV_TRAIN, *CONV_QUICK, "--epochs", 0), "--epochs 0")
    complains(run(CONV_EVALUATE, "--checkpoint", tmp_path / "evil.pth"), "refused")
