"""Conv/common_resnet: models, small images in memory, long tails, data from everywhere; the commands as a user gives them."""

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from PIL import Image
from sklearn.datasets import load_digits

from conftest import ROOT, complains, run
from training import assert_same

CONV = ROOT / "Conv/common_resnet"
sys.path.append(str(CONV))  # behind Deit/, whose modules of the same names are the same files or not imported here

import corruptions  # noqa: E402
import pixels  # noqa: E402
from cifar_resnet import Block, CifarResNet  # noqa: E402
from errors import InputError  # noqa: E402
from longtail import by_shots, long_tailed  # noqa: E402
from networks import create_model, model_facts  # noqa: E402
from order import epoch_order  # noqa: E402
from small_images import SmallImages  # noqa: E402
from superclasses import GROUPINGS, group  # noqa: E402

TRAIN, EVALUATE = CONV / "train.py", CONV / "evaluate.py"
QUICK = "--model resnet8 --num-workers 0 --device cpu".split()


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def load(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=True)


def kill_all(folder):
    """SIGKILL the launcher and every process that it started: all that name the folder on their command line."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)


def torchrun(processes, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return run(*command, TRAIN, *words)


# ----------------------------------------------------------------------------------------------------------- models


def test_cifar_resnets_are_the_papers():
    """Parameters as in Table 6 of He et al. (2016), in millions; keys as public checkpoints have them."""
    for name, millions in {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}.items():
        model = create_model(model_facts(name, 32), 10)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    assert create_model(model_facts("resnet20", 32), 10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    keys = set(CifarResNet(20, 10).state_dict())
    assert {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer3.2.bn2.running_var", "linear.bias"} <= keys
    assert not [key for key in keys if "shortcut" in key or "downsample" in key]


def test_a_block_that_adds_nothing_is_its_shortcut():
    block = Block(4, 8, stride=2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2].relu()) and y[:, :2].abs().sum() + y[:, 6:].abs().sum() == 0


def test_small_images_keep_their_resolution_at_the_entrance():
    for name, stage in (("resnet18", "layer1"), ("mobilenet_v2", "features")):
        for size, side in ((32, {"layer1": 32, "features": 2}), (224, {"layer1": 56, "features": 7})):
            model = create_model(model_facts(name, size), 10).eval()
            inner = torch.nn.Sequential(*list(model.children())[: list(dict(model.named_children())).index(stage) + 1])
            assert inner(torch.zeros(1, 3, size, size)).shape[-1] == side[stage]
            assert model(torch.zeros(1, 3, size, size)).shape == (1, 10)
    with pytest.raises(InputError, match="resnet18"):
        model_facts("resnet81", 32)


# ------------------------------------------------------------------------------------------- small images in memory


def test_augmented_images_are_crops_and_flips_of_their_own():
    """Every image of a batch is one of the (2p + 1)^2 * 2 that torchvision makes of it, and over epochs all of them come."""
    images = torch.randint(256, (12, 6, 6, 3), dtype=torch.uint8)
    data = SmallImages(images, torch.arange(12), list("abcdefghijkl"), [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], "cpu").augment(
        1, True, 0
    )
    candidates = {}
    for row, image in enumerate(images.permute(0, 3, 1, 2)):
        padded = TF.pad(image, [1])
        crops = [TF.crop(padded, y, x, 6, 6) for y in range(3) for x in range(3)]
        crops = [crop for cropped in crops for crop in (cropped, TF.hflip(cropped))]
        candidates[row] = TF.normalize(torch.stack(crops) / 255, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    seen = set()
    for epoch in range(40):
        for batch, labels in data.training_batches(12, seed=0, epoch=epoch):
            assert batch.is_contiguous(memory_format=torch.channels_last) and sorted(labels.tolist()) == list(range(12))
            for image, row in zip(batch, labels.tolist()):
                distance = (candidates[row] - image).abs().amax((1, 2, 3))
                assert distance.min() < 1e-5  # float32: (x - mean) / std and x * scale + shift round differently
                seen.add(int(distance.argmin()))
    assert seen == set(range(18))


def test_cutout_is_a_square_around_a_pixel():
    data = SmallImages(torch.full((64, 8, 8, 3), 255, dtype=torch.uint8), torch.zeros(64), ["a"], [0.5] * 3, [0.5] * 3, "cpu")
    ((batch, _),) = data.augment(0, False, 4).training_batches(64, 0, 0)
    sizes = set()
    for hole in batch[:, 0] == 0:
        rows, columns = hole.any(1).nonzero().squeeze(1), hole.any(0).nonzero().squeeze(1)
        assert hole.sum() == len(rows) * len(columns)  # a rectangle, cut off only by the edges
        for span in (rows, columns):
            assert len(span) == 4 or (2 <= len(span) < 4 and (span[0] == 0 or span[-1] == 7))
        sizes.add(int(hole.sum()))
    assert 16 in sizes and (batch[batch != 0] - 1).abs().max() < 1e-6


def test_an_epoch_is_a_shuffle_of_its_own():
    orders = [epoch_order(103, 10, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert order.shape == (10, 10) and len(order.unique()) == 100 and order.max() < 103
    assert torch.equal(orders[0], epoch_order(103, 10, 0, 0))
    assert all(not torch.equal(a, b) for index, a in enumerate(orders) for b in orders[:index])


# ------------------------------------------------------------------------------------------ long tails, superclasses


def test_long_tails_are_the_published_ones():
    """Class sizes of long-tailed CIFAR-10 (Cui et al. 2019) at imbalance 100 and 50."""
    labels = torch.arange(10).repeat(5000)
    for ratio, sizes in {
        100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
        50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
    }.items():
        rows = long_tailed(labels, 10, ratio)
        assert torch.bincount(labels[rows]).tolist() == sizes and len(rows.unique()) == len(rows)
    shots = by_shots(torch.tensor([8, 3, 1]), torch.tensor([10, 10, 10]), torch.tensor([101, 100, 20]))
    assert shots == {"many": 80.0, "medium": 20.0, "low": None}


def test_groupings_name_every_class_once(tmp_path):
    assert sorted(len(members) for members in GROUPINGS["cifar100"].values()) == [5] * 20
    classes = sorted(name for members in GROUPINGS["cifar100"].values() for name in members)
    table, _, names = group("cifar100", classes, "default")
    assert len(set(classes)) == 100 and names[table[classes.index("maple_tree")]] == "trees"
    for content, match in (
        ('{"a": ["0", "1"], "b": ["1"]}', "twice: 1"),
        ('{"a": ["0"], "b": ["2"]}', "in no group: 1"),
        ('{"a": ["0", "1", "2"]}', "1 groups"),
        ('{"a": "0"}', "wants JSON"),
        ("[", "Expecting"),
    ):
        (tmp_path / "groups.json").write_text(content)
        with pytest.raises(InputError, match=match):
            group("digits", ["0", "1", "2"], str(tmp_path / "groups.json"))
    with pytest.raises(InputError, match="no grouping of its own"):
        group("imagenet", ["0"], "default")


# ----------------------------------------------------------------------------------------------- where images come from


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "ten"
    assert run(ROOT / "data/digits/prepare.py", "--output", folder).returncode == 0
    return folder


def zipped(folder, target, split, order=None, flat=False):
    """The folder's split as an archive in `target`; `order` gives labels by a map, `flat` leaves the class folders away."""
    target.mkdir(exist_ok=True)
    lines = []
    with zipfile.ZipFile(target / f"{split}.zip", "w") as archive:
        for file in sorted((folder / split).rglob("*.png")):
            name = file.name if flat else f"{file.parent.name}/{file.name}"
            archive.write(file, f"{split}/{name}")
            if order:
                lines.append(f"{name}\t{order.index(file.parent.name)}\n")
    if order:
        (target / f"{split}_map.txt").write_text("".join(lines))


def test_the_same_digits_from_everywhere(ten, tmp_path):
    def sums(path, split="val"):
        """Every image's bytes with its class name: what must agree, in whatever order."""
        images, labels, classes = pixels.read("digits", path, split, 8)
        assert images.shape[1:] == (8, 8, 3) and images.dtype == torch.uint8
        return sorted((classes[label], image.numpy().tobytes()) for image, label in zip(images, labels.tolist())), classes

    built_in, classes = sums(None)
    zipped(ten, tmp_path / "plain", "val")
    shuffled = list("3108529764")
    zipped(ten, tmp_path / "mapped", "train", shuffled)
    zipped(ten, tmp_path / "mapped", "val", shuffled, flat=True)
    assert sums(ten) == sums(tmp_path / "plain") == (built_in, classes) and len(built_in) == 397
    assert sums(tmp_path / "mapped") == (built_in, shuffled)
    assert sums(tmp_path / "mapped", "train")[0] == sums(None, "train")[0]


def test_idx_files(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(5, 28, 28), dtype=np.uint8)
    header = bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes()
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(header + images.tobytes())
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 5, 9, 0, 3, 3, 1])
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    found, targets, classes = pixels.read("fashion-mnist", tmp_path, "val", 28)
    assert np.array_equal(found.numpy(), images[..., None].repeat(3, 3)) and targets.tolist() == [9, 0, 3, 3, 1]
    assert classes[9] == "Ankle boot"
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels)[:-9])
    with pytest.raises(InputError, match="labels-idx1-ubyte.gz: damaged"):
        pixels.read("fashion-mnist", tmp_path, "val", 28)


def test_bad_data(ten, tmp_path):
    def refused(match, path, data="digits", size=8):
        with pytest.raises(InputError, match=match) as error:
            pixels.read(data, path, "val", size)
        assert "\n" not in str(error.value)

    refused("no such folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("holds neither", tmp_path / "empty")
    refused(r"0/0_\d+.png has 8x8 pixels, not 28x28", ten, "fashion-mnist", 28)
    zipped(ten, tmp_path / "stray", "val", flat=True)
    refused("lies in no class folder", tmp_path / "stray")
    (tmp_path / "stray/val_map.txt").write_text("0_1402.png 0\n")
    refused("val_map.txt, line 1", tmp_path / "stray")
    (tmp_path / "stray/val_map.txt").write_text("0_1402.png\t0\n")
    refused("has no line for", tmp_path / "stray")
    content = (tmp_path / "stray/val.zip").read_bytes()
    (tmp_path / "stray/val.zip").write_bytes(content[:-40])
    refused("val.zip: damaged", tmp_path / "stray")
    shutil.copytree(ten / "val", tmp_path / "broken/val")
    (tmp_path / "broken/val/4/4_1404.png").write_bytes(b"not a picture")
    refused("4_1404.png does not decode", tmp_path / "broken")


# -------------------------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "digits"
    result = run(TRAIN, *QUICK, "--epochs", 4, "--ema-decay", 0.9, "--output_dir", output)
    assert result.returncode == 0, result.stderr
    return output


def test_the_first_command_learns(digits_run):
    """Chance is 10 %; the checkpoint says what it takes to rebuild and feed the model."""
    last = log(digits_run)[-1]
    assert last["val_top1"] > 75 and last["val_images"] == 397 and last["epoch"] == 4
    facts = load(digits_run)["args"]
    expected = {"model": "resnet8", "library": "cifar", "width": 16, "num_classes": 10, "input_size": 8, "crop_ratio": 1.0}
    expected |= {"data": "digits", "data_path": None, "superclasses": None, "loss": "maxsup", "interpolation": "bilinear"}
    assert {key: facts[key] for key in expected} == expected and load(digits_run)["classes"] == list("0123456789")


def test_evaluation_gives_what_training_logged(digits_run, ten, tmp_path):
    for words, key in (((), "val"), (("--data-path", ten), "val"), (("--ema",), "ema")):
        result = run(EVALUATE, "--checkpoint", digits_run / "checkpoint.pth", "--output", tmp_path / "r.json", *words)
        assert result.returncode == 0, result.stderr
        clean, last = json.loads((tmp_path / "r.json").read_text())["clean"], log(digits_run)[-1]
        assert clean["top1"] == last[f"{key}_top1"] and clean["loss"] == pytest.approx(last[f"{key}_loss"], abs=1e-5)
        assert f"error {100 - clean['top1']:.2f} %" in result.stdout


def test_weights_from_elsewhere(digits_run, tmp_path):
    """A bare state dict under DataParallel's prefix, without batch norm's counters, as old files are."""
    weights = {f"module.{key}": value for key, value in load(digits_run)["model"].items() if "num_batches" not in key}
    torch.save({"state_dict": weights, "best_prec1": 1.0}, tmp_path / "foreign.th")
    words = ["--checkpoint", tmp_path / "foreign.th", "--data", "digits", "--mean", *[0.305] * 3, "--std", *[0.376] * 3]
    result = run(EVALUATE, *words, "--model", "resnet8", "--output", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["clean"]["top1"] == log(digits_run)[-1]["val_top1"], result.stderr
    complains(run(EVALUATE, *words, "--model", "resnet14"), "foreign.th", "layer1.1.conv1.weight is missing")
    complains(run(EVALUATE, "--checkpoint", tmp_path / "foreign.th"), "does not say what it is", "--model")


@pytest.mark.parametrize(("processes", "loss"), [(1, "ols"), (2, "zipf")])
def test_killed_and_resumed_ends_bit_identical(processes, loss, tmp_path):
    """SIGKILL in the middle of training, twice; the moving average and the loss's own state go on too."""
    words = [
        *QUICK,
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
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", TRAIN, *words]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = run(*command, "--output_dir", whole)
    assert result.returncode == 0, result.stderr
    for epoch in (2, 6):
        child = subprocess.Popen(
            [str(word) for word in [*command, "--output_dir", broken, "--resume", "auto"]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.time() + 120
        while not (broken / "log.jsonl").exists() or len(log(broken)) < epoch:
            assert child.poll() is None and time.time() < deadline
            time.sleep(0.01)
        kill_all(broken)
        child.wait()
        assert load(broken)["epoch"] + 1 < 12, "the run ended before it could be killed"
    result = run(*command, "--output_dir", broken, "--resume", "auto")
    assert result.returncode == 0 and "resuming" in result.stdout, result.stderr
    for key in ("model", "model_ema", "optimizer", "loss", "lr_scheduler"):
        assert_same(load(whole)[key], load(broken)[key])
    assert [line["train_loss"] for line in log(broken)] == [line["train_loss"] for line in log(whole)]


def test_two_processes_equal_one(tmp_path):
    """28 steps with batch norm over all processes; the rate is small because training enlarges float32's rounding."""
    words = [*QUICK, "--epochs", 2, "--batch-size", 100, "--sync-bn", "--lr", 1e-3]
    for processes in (1, 2):
        result = torchrun(processes, *words, "--output_dir", tmp_path / str(processes))
        assert result.returncode == 0, result.stderr
    for one, two in zip(log(tmp_path / "1"), log(tmp_path / "2"), strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], abs=1e-5) and one["val_images"] == two["val_images"] == 397
        assert one["val_loss"] == pytest.approx(two["val_loss"], abs=1e-4) and one["train_top1"] == two["train_top1"]


SYNCED = """
import sys; sys.path.insert(0, {conv!r})
import torch, torch.distributed as dist
from cifar_resnet import CifarResNet
from networks import sync_batch_norm
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
pairs = zip(whole.state_dict().values(), part.state_dict().values())
print("difference", max((a - b).abs().max().item() for a, b in pairs))
dist.destroy_process_group()
"""


def test_batch_norm_over_two_processes_is_that_of_the_whole_batch(tmp_path):
    """In float64, against nn.BatchNorm2d on the joint batch: weights, running statistics, through three steps."""
    (tmp_path / "synced.py").write_text(SYNCED.format(conv=str(CONV)))
    result = run(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path / "synced.py")
    differences = [float(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("difference")]
    assert len(differences) == 2 and max(differences) < 1e-12, result.stderr


def test_same_seed_same_weights_another_seed_others(tmp_path):
    words = [*QUICK, "--epochs", 1, "--holdout", 0.2]
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run(TRAIN, *words, "--seed", seed, "--output_dir", tmp_path / name).returncode == 0
    a, b, c = (load(tmp_path / name)["model"] for name in "abc")
    assert_same(a, b)
    assert not torch.equal(a["linear.weight"], c["linear.weight"]) and log(tmp_path / "a")[0]["val_images"] == 280


def test_a_long_tail_and_coarse_labels(tmp_path):
    words = [*QUICK, "--epochs", 1, "--output_dir", tmp_path / "tail", "--loss", "focal", "--imbalance-ratio", 10]
    result = run(TRAIN, *words)
    assert result.returncode == 0, result.stderr
    counts = load(tmp_path / "tail")["args"]["training_images"]
    smallest = np.bincount(load_digits().target[:1400]).min()
    assert counts == [int(smallest * 10 ** (-k / 9) + 1e-9) for k in range(10)] and counts[-1] == smallest // 10
    last = log(tmp_path / "tail")[-1]
    assert last["val_low"] is not None and "medium" in result.stdout
    result = run(TRAIN, *QUICK, "--epochs", 1, "--superclasses", "--output_dir", tmp_path / "coarse")
    assert result.returncode == 0, result.stderr
    state = load(tmp_path / "coarse")
    assert state["classes"] == ["even", "odd"] and state["args"]["superclasses"] == GROUPINGS["digits"]
    result = run(EVALUATE, "--checkpoint", tmp_path / "coarse/checkpoint.pth")
    assert f"error {100 - log(tmp_path / 'coarse')[-1]['val_top1']:.2f} %" in result.stdout


def jpeg(value: int) -> bytes:
    image = np.random.default_rng(value).integers(256, size=(90, 110, 3), dtype=np.uint8)
    Image.fromarray(image).save(file := io.BytesIO(), "JPEG")
    return file.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def cub(path, names=("001.Albatross/A_1.jpg", "001.Albatross/A_2.jpg", "002.Auk/B_1.jpg", "002.Auk/B_2.jpg")):
    with tarfile.open(path, "w:gz") as archive:
        for number, name in enumerate(names):
            add(archive, f"CUB_200_2011/images/{name}", jpeg(number))
        add(archive, "CUB_200_2011/images.txt", "".join(f"{n} {name}\n" for n, name in enumerate(names, 1)).encode())
        add(archive, "CUB_200_2011/train_test_split.txt", "".join(f"{n} {n % 2}\n" for n in range(1, len(names) + 1)).encode())


def test_birds(tmp_path):
    """From an archive of the official form to a training run of large images, in loading processes, killed and all."""
    cub(tmp_path / "CUB_200_2011.tgz")
    prepare = [ROOT / "data/cub/prepare.py", "--archive", tmp_path / "CUB_200_2011.tgz", "--root", tmp_path / "cub"]
    result = run(*prepare)
    assert result.returncode == 0 and "2 training and 2 validation images" in result.stdout, result.stderr
    assert sorted(str(file.relative_to(tmp_path / "cub")) for file in (tmp_path / "cub").rglob("*.jpg")) == [
        "train/001.Albatross/A_1.jpg", "train/002.Auk/B_1.jpg", "val/001.Albatross/A_2.jpg", "val/002.Auk/B_2.jpg",
    ]  # fmt: skip
    assert (tmp_path / "cub/train/002.Auk/B_1.jpg").read_bytes() == jpeg(2)
    complains(run(*prepare), "holds images already")
    words = "--data cub --model resnet18 --epochs 1 --batch-size 2 --input-size 72 --device cpu".split()
    words += ["--data-path", tmp_path / "cub", "--loss", "maxsup"]
    runs = []
    for workers in (0, 1):
        result = run(TRAIN, *words, "--num-workers", workers, "--output_dir", tmp_path / str(workers))
        assert result.returncode == 0, result.stderr
        runs.append(load(tmp_path / str(workers)))
    assert_same(runs[0]["model"], runs[1]["model"])  # augmentation is a function of the seed, not of who loads
    assert runs[0]["args"]["crop_ratio"] == 0.875 and runs[0]["classes"] == ["001.Albatross", "002.Auk"]
    result = run(EVALUATE, "--checkpoint", tmp_path / "0/checkpoint.pth", "--num-workers", 0)
    assert f"error {100 - log(tmp_path / '0')[0]['val_top1']:.2f} %" in result.stdout, result.stderr
    fine = [*words, "--init", tmp_path / "0/checkpoint.pth", "--output_dir", tmp_path / "fine", "--num-workers", 0]
    assert "starting from" in run(TRAIN, *fine).stdout


def test_bad_bird_archives(tmp_path):
    prepare = ROOT / "data/cub/prepare.py"

    def refused(*pieces):
        complains(run(prepare, "--archive", tmp_path / "a.tgz", "--root", tmp_path / "out"), *pieces)
        assert not list((tmp_path / "out").rglob("*")) if (tmp_path / "out").exists() else True

    refused("a.tgz", "no such file")
    (tmp_path / "a.tgz").write_bytes(b"nothing")
    refused("a.tgz", "damaged")
    cub(tmp_path / "a.tgz", ("001.A/../../../evil.jpg", "b/c.jpg"))
    refused("evil.jpg", "not a path that an image may have")
    cub(tmp_path / "a.tgz")
    content = (tmp_path / "a.tgz").read_bytes()
    (tmp_path / "a.tgz").write_bytes(content[: len(content) // 2])
    refused("a.tgz", "damaged")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        add(archive, "CUB_200_2011/images.txt", b"1 a/b.jpg\n")
    refused("train_test_split.txt")


def test_cars(tmp_path):
    names = np.array(["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"], dtype=object)

    def annotations(prefix, classes):
        rows = [(f"{prefix}{n:05}.jpg", label) for n, label in enumerate(classes, 1)]
        table = np.array(rows, dtype=[("fname", object), ("class", object)])
        scipy.io.savemat(file := io.BytesIO(), {"annotations": table})
        return file.getvalue()

    scipy.io.savemat(meta := io.BytesIO(), {"class_names": names})
    with tarfile.open(tmp_path / "car_devkit.tgz", "w:gz") as archive:
        add(archive, "devkit/cars_meta.mat", meta.getvalue())
        add(archive, "devkit/cars_train_annos.mat", annotations("", [2, 1, 2]))
    (tmp_path / "cars_test_annos_withlabels.mat").write_bytes(annotations("", [1, 2]))
    for name, count in (("cars_train", 3), ("cars_test", 2)):
        with tarfile.open(tmp_path / f"{name}.tgz", "w:gz") as archive:
            for number in range(1, count + 1):
                add(archive, f"{name}/{number:05}.jpg", jpeg(number))
    prepare = [ROOT / "data/cars/prepare.py", "--archives", tmp_path, "--root", tmp_path / "cars"]
    result = run(*prepare)
    assert result.returncode == 0 and "3 training and 2 validation images" in result.stdout, result.stderr
    assert sorted(str(file.relative_to(tmp_path / "cars/train")) for file in (tmp_path / "cars/train").rglob("*.jpg")) == [
        "AM General Hummer SUV 2000/00002.jpg",
        "Ram C-V Cargo Van Minivan 2012/00001.jpg",
        "Ram C-V Cargo Van Minivan 2012/00003.jpg",
    ]
    words = ["--data", "cars", "--data-path", tmp_path / "cars", "--epochs", 1, "--batch-size", 2, "--input-size", 72]
    result = run(
        TRAIN, *words, "--model", "mobilenet_v2", "--num-workers", 0, "--device", "cpu", "--output_dir", tmp_path / "run"
    )
    assert result.returncode == 0 and len(log(tmp_path / "run")) == 1, result.stderr
    (tmp_path / "cars_test_annos_withlabels.mat").write_bytes(b"x")
    shutil.rmtree(tmp_path / "cars")
    complains(run(*prepare), "cars_test_annos_withlabels.mat", "damaged")


# -------------------------------------------------------------------------------------------------- corruptions


@pytest.fixture(scope="module")
def cifar_like(tmp_path_factory):
    """40 training and 30 test images of 32 px in 10 classes, as archives, and a model trained on them for an epoch."""
    folder = tmp_path_factory.mktemp("cifar")
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for label, name in enumerate(sorted(sum(GROUPINGS["cifar10"].values(), []))):
                for number in range(count):
                    pixel = random.integers(0, 256, (32, 32, 3)) // 4 + 19 * label
                    Image.fromarray(pixel.astype(np.uint8)).save(file := io.BytesIO(), "PNG")
                    archive.writestr(f"{split}/{name}/{number}.png", file.getvalue())
    words = ["--data", "cifar10", "--data-path", folder, "--batch-size", 20, "--epochs", 1, "--output_dir", folder / "run"]
    assert run(TRAIN, *QUICK, *words, "--warmup-epochs", 0).returncode == 0
    return folder


def test_published_corruptions(cifar_like, tmp_path):
    """Arrays of which one is brighter by severity and the others are clean: each severity equals a forward pass made here."""
    images, labels, classes = pixels.read("cifar10", cifar_like, "val", 32)
    five = np.concatenate([images.numpy()] * 5)
    brighter = np.concatenate([np.clip(images.numpy().astype(int) + 20 * s, 0, 255).astype(np.uint8) for s in range(1, 6)])
    for name in corruptions.NAMES:
        np.save(tmp_path / f"{name}.npy", brighter if name == "brightness" else five)
    np.save(tmp_path / "labels.npy", np.tile(labels.numpy(), 5))
    words = ["--checkpoint", cifar_like / "run/checkpoint.pth", "--corruptions", tmp_path, "--output", tmp_path / "r.json"]
    result = run(EVALUATE, *words)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    state = load(cifar_like / "run")
    model = create_model(state["args"], 10)
    model.load_state_dict(state["model"])
    for severity in range(5):
        rows = torch.from_numpy(brighter[30 * severity : 30 * (severity + 1)]).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            logits = model.eval()(TF.normalize(rows, state["args"]["mean"], state["args"]["std"]))
        expected = found["corruptions"]["brightness"][severity]
        assert expected["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
        assert expected["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-4)
        assert found["corruptions"]["fog"][severity]["loss"] == pytest.approx(found["clean"]["loss"], abs=1e-6)
    every = [metrics["top1"] for severities in found["corruptions"].values() for metrics in severities]
    assert len(every) == 75 and found["corrupted"]["top1"] == pytest.approx(sum(every) / 75)
    assert len(re.findall(r"^\w+ +error", result.stdout, re.M)) == 16

    np.save(tmp_path / "snow.npy", five[:10])
    complains(run(EVALUATE, *words), "snow.npy", "(150, 32, 32, 3)")
    (tmp_path / "fog.npy").write_bytes(b"x")
    complains(run(EVALUATE, *words), "fog.npy", "damaged")
    (tmp_path / "frost.npy").unlink()
    complains(run(EVALUATE, *words), "frost.npy", "no such file")


def test_generated_corruptions_are_seeded_and_grow():
    pytest.importorskip("imagecorruptions", reason="pip install --no-deps imagecorruptions-imaug==1.1.5")
    images = torch.from_numpy(np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8))
    made = {}
    for _ in range(2):
        for name, severity, corrupted, labels in corruptions.generated(images, torch.tensor([0, 1])):
            assert corrupted.shape == images.shape and corrupted.dtype == torch.uint8 and labels.tolist() == [0, 1]
            assert torch.equal(made.setdefault((name, severity), corrupted), corrupted)
    assert len(made) == 75
    change = {key: (value.float() - images.float()).abs().mean().item() for key, value in made.items()}
    for name in ("gaussian_noise", "contrast", "defocus_blur"):
        assert 0 < change[name, 1] < change[name, 5]
    with pytest.raises(InputError, match="from 32x32 on"):
        next(corruptions.generated(images[:, :28, :28], torch.zeros(2)))


# ------------------------------------------------------------------------------------- bad input: one line, no traceback


ATTEMPTS = """
import json, sys
from evaluate import InputError, main as evaluate
from train import get_parser, main as train
def attempt(script, words):
    try:
        sys.argv = [script, *words]
        train(get_parser().parse_args()) if script == "train.py" else evaluate()
    except InputError as error:
        return str(error)
print("MESSAGES" + json.dumps([attempt(*one) for one in json.load(sys.stdin)]))
"""


def test_options_that_mean_nothing(tmp_path, digits_run):
    """The messages; that each is printed as one line, without a traceback, is looked at for two of them."""
    wanted = []

    def refused(words, *pieces, script="train.py"):
        quick = [*QUICK, "--output_dir", str(tmp_path / "run")] if script == "train.py" else []
        wanted.append((script, [*quick, *words.split()], pieces))

    refused("--model resnet22", "--model resnet22", "resnet20")
    refused("--epochs 0", "--epochs 0", "1")
    refused("--lr nan", "--lr nan")
    refused("--batch-size 2000", "1400 training images", "--batch-size")
    refused("--width 32 --model resnet18", "--width", "CIFAR ResNets")
    refused("--loss ce --alpha-end 0.2", "no schedule")
    refused("--data imagenet", "--data-path")
    refused("--data cub --data-path nowhere", "nowhere/train", "train/<class>/<image>")
    refused("--data cifar10 --data-path nowhere", "nowhere: no such folder")
    refused("--input-size 32", "--input-size 32", "8 px")
    refused("--imbalance-ratio 0.5", "--imbalance-ratio 0.5")
    refused("--holdout 1", "--holdout 1")
    refused("--cutout 9", "--cutout 9", "8 pixels")
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

    attempts = json.dumps([(script, words) for script, words, _ in wanted])
    result = subprocess.run(
        [sys.executable, "-c", ATTEMPTS], cwd=CONV, input=attempts, capture_output=True, text=True, timeout=300
    )
    messages = json.loads(result.stdout.split("MESSAGES")[1])
    for (_, words, pieces), message in zip(wanted, messages, strict=True):
        assert message and "\n" not in message and all(piece in message for piece in pieces), (words, pieces, message)
    complains(run(TRAIN, *QUICK, "--epochs", 0), "--epochs 0")
    complains(run(EVALUATE, "--checkpoint", tmp_path / "evil.pth"), "refused")
