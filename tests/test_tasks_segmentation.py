"""Tasks/segmentation on made-up street scenes: real image files in the layouts of the data sets, models of a million weights."""

import json
import random

import numpy as np
import pytest
import scipy.stats
import timm
import torch
import torch.nn.functional as F
import torchmetrics.classification as oracle
import torchvision
from PIL import Image

from conftest import ROOT, complains, run
from subprojects import Subproject
from training import assert_same, batches_of, kill_after, log, torchrun

SUBPROJECT = seg = Subproject("Tasks/segmentation")
main, options, data, engine = (seg.load(name) for name in ("main", "options", "data", "engine"))
layouts, models, metrics, states = (seg.load(name) for name in ("layouts", "models", "metrics", "states"))
uncertainty_maps = seg.load("uncertainty_maps")
InputError = seg.load("errors").InputError
make_loss = seg.load("maxsup_loss").make_loss

MAIN = ROOT / "Tasks/segmentation/main.py"
MODEL = "deeplabv3plus_test_resnet"
QUICK = f"--data camvid --model {MODEL} --size 48 64 --crop 32 32 --batch-size 4 --device cpu --amp off --lr 0.003".split()
COLOURS = np.array([(230, 30, 30), (30, 230, 30), (30, 30, 230), (128, 128, 128)], np.uint8)  # of classes 0, 1, 2 and of void


def scene(seed: int, height: int = 48, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) of three coloured regions and a grey one, and the class of each pixel, which is 11 in the grey one."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    labels[rng.integers(height // 4, height // 2) :] = 1
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    labels[top : top + height // 3, left : left + width // 3] = 2
    labels[:, -3:] = 3
    return COLOURS[labels], np.where(labels == 3, 11, labels).astype(np.uint8)


def write_scenes(root, counts):
    for split, count in counts.items():
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for index in range(count):
            image, labels = scene(100 * len(split) + index)
            Image.fromarray(image).save(root / split / f"{index}.jpg", quality=95)
            Image.fromarray(labels).save(root / f"{split}annot/{index}.png")
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """12 training, 3 validation and 5 test images in CamVid's layout: 5 is not divisible by two processes."""
    return write_scenes(tmp_path_factory.mktemp("camvid"), {"train": 12, "val": 3, "test": 5})


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    """A finished run of 10 epochs with its logits file."""
    folder = tmp_path_factory.mktemp("run")
    with seg.active():
        go(
            scenes,
            folder,
            "--loss",
            "ce",
            "--epochs",
            10,
            "--eval-every",
            4,
            "--logits",
            folder / "logits.pt",
            "--warmup-steps",
            3,
        )
    return folder


def arguments(*words):
    args = options.get_parser().parse_args([str(word) for word in (*QUICK, *words)])
    options.fill_in(args)
    return args


def go(scenes, folder, *words):
    more = ["--warmup-steps", 0] if "--warmup-steps" not in words else []
    parsed = options.get_parser().parse_args(
        [str(word) for word in (*QUICK, "--data-path", scenes, "--output_dir", folder, *more, *words)]
    )
    main.main(parsed)


# -------------------------------------------------------------------------------------------------------- training


def test_a_run_learns_and_leaves_its_files(scenes, trained):
    lines = log(trained)
    assert [line["epoch"] for line in lines] == list(range(1, 11))
    assert [line["epoch"] for line in lines if "val_miou" in line] == [4, 8, 10]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] / 2
    result = json.loads((trained / "test.json").read_text())
    assert result["images"] == 5 and result["pixels"] == 5 * 48 * 61  # of 64 columns, 3 have no label
    assert result["pixel_accuracy"] > 60  # the largest class has less than 60 % of the pixels
    state = torch.load(trained / "checkpoint.pth", weights_only=True)
    assert state["classes"][:2] == ["sky", "building"] and state["epoch"] == 9
    wanted = {"model": MODEL, "library": "smp", "num_classes": 11, "input_size": [32, 32], "data": "camvid", "size": [48, 64]}
    assert {key: state["args"][key] for key in wanted} == wanted


def test_logits_are_those_of_the_checkpoint(scenes, trained):
    content = torch.load(trained / "logits.pt", weights_only=True)
    assert content["logits"].shape == (5, 11, 24, 32) and content["logits"].dtype == torch.float32
    assert content["labels"].shape == (5, 24, 32) and content["labels"].dtype == torch.int64
    assert content["paths"][0] == "test/0.jpg"
    model = models.create_model(MODEL, 11, [32, 32])
    model.load_state_dict(torch.load(trained / "checkpoint.pth", weights_only=True)["model"])
    for index in (0, 4):
        pixels = np.asarray(Image.open(scenes / f"test/{index}.jpg"), np.float32) / 255
        pixels = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        with torch.no_grad():
            logits = model.eval()(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        # The same weights and pixels; only the order of float32 sums differs, in inputs of size 2 and logits of size 10.
        torch.testing.assert_close(content["logits"][index], logits[0, :, 1::2, 1::2], atol=1e-3, rtol=1e-3)
        truth = np.asarray(Image.open(scenes / f"testannot/{index}.png"))[1::2, 1::2].astype(np.int64)
        assert np.array_equal(content["labels"][index], np.where(truth == 11, 255, truth))


def test_killed_and_resumed_is_the_same_to_the_bit(scenes, tmp_path):
    words = [*QUICK, "--data-path", scenes, "--loss", "maxsup", "--epochs", 6, "--warmup-steps", 2, "--eval-every", 6]
    kill_after(2, tmp_path / "killed", MAIN, *words, "--output_dir", tmp_path / "killed")
    kept = torch.load(tmp_path / "killed/checkpoint.pth", weights_only=True)["epoch"] + 1
    assert 1 <= kept < 6
    go(scenes, tmp_path / "killed", "--loss", "maxsup", "--epochs", 6, "--warmup-steps", 2, "--eval-every", 6, "--resume", "auto")
    go(scenes, tmp_path / "whole", "--loss", "maxsup", "--epochs", 6, "--warmup-steps", 2, "--eval-every", 6)
    states = [torch.load(tmp_path / name / "checkpoint.pth", weights_only=True) for name in ("killed", "whole")]
    for key in ("model", "optimizer", "lr_scheduler", "loss", "epoch", "rng", "classes"):
        assert_same(states[0][key], states[1][key])
    losses = [[line["train_loss"] for line in log(tmp_path / name)] for name in ("killed", "whole")]
    assert len(losses[0]) == 6 and losses[0] == losses[1]
    assert (tmp_path / "killed/test.json").read_text() == (tmp_path / "whole/test.json").read_text()
    lines, steps = log(tmp_path / "whole"), states[1]["args"]["steps"]
    assert [round(line["alpha"], 4) for line in lines] == [0.1, 0.12, 0.14, 0.16, 0.18, 0.2]
    highest, power = states[1]["args"]["lr"], states[1]["args"]["power"]
    expected = [highest * (1 - (epoch * steps // 6 - 1) / steps) ** power for epoch in range(1, 7)]  # at each epoch's last step
    assert steps > 12 and [line["lr"] for line in lines] == pytest.approx(expected)


def test_two_processes_count_every_image_once(scenes, trained, tmp_path):
    """Two processes measure a finished run again, with the same metrics and logits."""
    before = json.loads((trained / "test.json").read_text())
    words = [*QUICK, "--data-path", scenes, "--output_dir", trained, "--loss", "ce", "--epochs", 10, "--warmup-steps", 3]
    words += ["--resume", "auto", "--logits", tmp_path / "two.pt"]
    result = torchrun(2, *words, script=MAIN)
    assert result.returncode == 0, result.stderr
    assert "all done already" in result.stdout
    after = json.loads((trained / "test.json").read_text())
    for key, value in before.items():
        assert after[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key
    one, two = (torch.load(path, weights_only=True) for path in (trained / "logits.pt", tmp_path / "two.pt"))
    assert torch.equal(one["labels"], two["labels"])
    torch.testing.assert_close(one["logits"], two["logits"])


def test_two_processes_train_an_encoder_of_which_some_parameters_are_not_used(scenes, tmp_path):
    words = [*QUICK, "--data-path", scenes, "--output_dir", tmp_path, "--epochs", 2, "--warmup-steps", 1]
    result = torchrun(2, *words, "--model", "deeplabv3plus_efficientnet-b0", script=MAIN)
    assert result.returncode == 0 and "Warning" not in result.stderr, result.stderr
    assert [line["epoch"] for line in log(tmp_path)] == [1, 2]


def test_two_processes_train_on_what_one_trains_on(monkeypatch):
    """They alternate within each global batch, with the same augmentation seeds; their shares are disjoint."""
    order = data.SeededOrder(30, 8, 3)
    for epoch in (0, 4):
        whole, *halves = (batches_of(monkeypatch, data.distributed, order, epoch, *who) for who in ((0, 1), (0, 2), (1, 2)))
        assert len(whole) == 3 and len({index for batch in whole for index, _ in batch}) == 24
        assert [[pair for both in zip(a, b, strict=True) for pair in both] for a, b in zip(*halves, strict=True)] == whole


GRADIENTS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import distributed
from engine import pixel_loss
from maxsup_loss import make_loss

distributed.start("cpu")
torch.manual_seed(0)
images, labels = torch.randn(6, 3, 5, 5), torch.randint(0, 4, (6, 5, 5), dtype=torch.uint8)
labels[:2], labels[2, 1:] = 255, 255  # the two processes have 5 and 75 labelled pixels
criterion = make_loss("maxsup", 4, alpha=0.3, ignore_index=255)
alone = torch.nn.Conv2d(3, 4, 1)
shared = torch.nn.parallel.DistributedDataParallel(alone)
rows = slice(3 * distributed.rank(), 3 * distributed.rank() + 3)
pixel_loss(criterion, (shared(images[rows]),), labels[rows], 0.4).backward()
found, alone.weight.grad = alone.weight.grad.clone(), None
criterion(alone(images), labels.long()).backward()
torch.testing.assert_close(found, alone.weight.grad)
"""


def test_the_gradient_is_the_mean_over_all_pixels_of_all_processes(tmp_path):
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    result = torchrun(2, ROOT / "Tasks/segmentation", script=tmp_path / "gradients.py")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["ce", "ls", "focal", "logit-penalty", "maxsup"])
def test_pixels_without_a_label_count_in_no_loss(name, monkeypatch):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 6, 7, requires_grad=True), torch.randint(0, 5, (2, 6, 7), dtype=torch.uint8)
    labels[0, :2] = 255
    loss = engine.pixel_loss(make_loss(name, 5, ignore_index=255), (logits,), labels, 0.4)
    loss.backward()
    assert logits.grad[0, :, :2].abs().max() == 0 and logits.grad[0, :, 2:].abs().min() > 0
    kept = labels != 255
    rows = logits.detach().movedim(1, -1)[kept]
    assert loss.item() == pytest.approx(make_loss(name, 5)(rows, labels[kept].long()).item(), rel=1e-5)  # float32 sums
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    gradient, logits.grad = logits.grad, None
    again = engine.pixel_loss(make_loss(name, 5, ignore_index=255), (logits,), labels, 0.4)
    again.backward()
    torch.testing.assert_close((again, logits.grad), (loss, gradient))
    nothing = engine.pixel_loss(make_loss(name, 5, ignore_index=255), (logits,), labels * 0 + 255, 0.4)
    assert nothing.item() == 0


def test_the_auxiliary_head_counts_by_its_weight():
    torch.manual_seed(0)
    own, other = torch.randn(2, 2, 5, 4, 4)
    labels = torch.randint(5, (2, 4, 4), dtype=torch.uint8)
    expected = F.cross_entropy(own, labels.long()) + 0.4 * F.cross_entropy(other, labels.long())
    assert engine.pixel_loss(torch.nn.CrossEntropyLoss(), (own, other), labels, 0.4).item() == pytest.approx(expected.item())


def test_rates_are_polynomial_with_a_linear_start():
    args = arguments("--data-path", "x", "--warmup-steps", 9, "--steps", 100, "--power", 0.9)
    rates = [options.rate(step, args) for step in range(101)]
    assert rates[0] == 0.1 and rates[50] == pytest.approx(0.5**0.9) and rates[100] == 0
    assert all(later < earlier for earlier, later in zip(rates[9:], rates[10:], strict=False))


def test_recipes_are_the_published_ones():
    """They are those of the configuration files that options.py names."""
    names = ("crop", "steps", "batch_size", "opt", "lr", "weight_decay", "power", "warmup_steps", "drop_path")
    found = {data: [getattr(options.RECIPES[data], name) for name in names] for data in ("cityscapes", "ade20k")}
    assert found["cityscapes"] == [[512, 512], 30_000, 16, "sgd", 0.01, 1e-4, 1.0, 0, 0.0]
    assert found["ade20k"] == [[512, 512], 160_000, 16, "adamw", 6e-5, 0.01, 1.0, 1500, 0.1]


@pytest.mark.parametrize("name, kind", [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_norms_biases_and_positions_do_not_decay(name, kind):
    words = ["--data-path", "x", "--optimizer", name, "--weight-decay", 0.3, "--lr", 0.2]
    words += ["--momentum", 0.7] if name == "sgd" else []
    args = arguments(*words, "--model", "upernet_test_vit")
    model = models.create_model(args.model, 7, [64, 64])
    optimizer = main.build_optimizer(model, args)
    assert type(optimizer) is kind and optimizer.param_groups[0].get("momentum", 0.7) == 0.7
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    free = {name for name, p in model.named_parameters() if decays[id(p)] == 0}
    positions = ("pos_embed", "cls_token")
    assert free == {name for name, p in model.named_parameters() if p.ndim == 1 or name.endswith(positions)}
    assert set(decays.values()) == {0, 0.3} and any(name.endswith(positions) for name in free)
    assert {group["lr"] for group in optimizer.param_groups} == {0.2}


# ------------------------------------------------------------------------------------------------ metrics and windows


def test_metrics_agree_with_torchmetrics():
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(3, 6, 20, 30), torch.randint(0, 5, (3, 20, 30), dtype=torch.uint8)
    logits[:, 5] = -20  # a class that occurs nowhere
    logits.scatter_add_(1, labels[:, None].long(), torch.full((3, 1, 20, 30), 2.0))
    labels[1, 5:9] = 255
    ours = metrics.PixelMetrics(6, "cpu")
    for image, truth in zip(logits, labels, strict=True):
        ours.update(image[None], truth[None])
    found = ours.compute()
    options = {"num_classes": 6, "ignore_index": 255}
    target, probabilities = labels.long(), logits.softmax(1)
    wanted = {
        "miou": 100 * oracle.MulticlassJaccardIndex(average="macro", **options)(probabilities, target),
        "pixel_accuracy": 100 * oracle.MulticlassAccuracy(average="micro", **options)(probabilities, target),
        "ece": oracle.MulticlassCalibrationError(n_bins=15, norm="l1", **options)(probabilities, target),
        "nll": F.cross_entropy(logits, target, ignore_index=255),
    }
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value.item(), rel=1e-5), key  # torchmetrics sums in float32
    assert found["iou"][5] is None and found["pixels"] == (labels != 255).sum() and found["images"] == 3


def test_a_finite_nll_of_any_size_is_summed():
    """The logits are within the range of float32, but the sum over an image is not."""
    logits = torch.zeros(1, 2, 100, 100)
    logits[:, 1] = 1e38
    ours = metrics.PixelMetrics(2, "cpu")
    ours.update(logits, torch.zeros(1, 100, 100, dtype=torch.uint8))
    assert ours.compute()["nll"] == pytest.approx(1e38, rel=1e-6)


def test_windows_cover_the_image_and_agree_where_they_overlap():
    torch.manual_seed(0)
    pointwise, image = torch.nn.Conv2d(3, 4, 1), torch.randn(1, 3, 37, 50)
    with torch.no_grad():
        torch.testing.assert_close(engine.sliding(pointwise, image, [16, 20], [10, 13]), pointwise(image))
        wide = torch.nn.Conv2d(3, 4, 3, padding=1)
        assert torch.equal(engine.sliding(wide, image, [64, 64], [32, 32]), wide(image))
        corner = engine.sliding(wide, image, [20, 20], [20, 20])
        torch.testing.assert_close(corner[..., :10, :10], wide(image)[..., :10, :10])
        assert not torch.allclose(corner, wide(image), atol=1e-3)  # windows end inside the image


def test_evaluation_compares_at_the_size_of_the_labels():
    args = arguments("--data-path", "x", "--predict", "sliding", "--window", 16, 16, "--window-stride", 16, 16)
    with torch.no_grad():
        logits = engine.predict(torch.nn.Conv2d(3, 4, 1), torch.randn(1, 3, 20, 30), (40, 61), args)
    assert logits.shape == (1, 4, 40, 61)


# ------------------------------------------------------------------------------------------------------------- data


def test_augmentation_is_a_function_of_the_seed_and_moves_image_and_labels_alike(scenes):
    args = arguments("--data-path", scenes, "--jitter", 0.2, "--crop", 64, 48)
    images = data.Images(args, "train")
    first, again, other = images[3, 7], images[3, 7], images[3, 8]
    assert_same(first, again)
    assert not torch.equal(first[0], other[0])
    shares, flipped = [], 0
    for seed in range(30):
        image, labels = (x.numpy() for x in images[3, seed])
        assert image.shape == (64, 48, 3) and labels.shape == (64, 48) and set(np.unique(labels)) <= {0, 1, 2, 255}
        for label in range(3):  # the largest channel identifies a region
            inside = image[labels == label]
            shares.append((inside.argmax(1) == label).mean() if len(inside) else 1)
        padding = (image == [124, 116, 104]).all(2)
        assert (labels[padding] == 255).all()
        flipped += np.flatnonzero((labels == 255).all(0) & ~padding.all(0))[:1].tolist() == [0]
    assert min(shares) > 0.8 and np.mean(shares) > 0.95 and flipped  # colours mix at borders
    order = data.SeededOrder(12, 4, seed=5)
    epochs = []
    for order.epoch in (0, 1, 0):
        epochs.append(list(order))
    assert epochs[0] == epochs[2] != epochs[1]
    assert sorted(index for batch in epochs[0] for index, _ in batch) == list(range(12))


def test_a_crop_of_one_class_is_drawn_again():
    labels = np.zeros((100, 100), np.uint8)
    labels[:, 80:] = 1
    pair = Image.new("RGB", (100, 100)), Image.fromarray(labels)
    shares = {}
    for limit in (1.0, 0.75):
        args = arguments("--data-path", "x", "--scale", 1, 1, "--crop", 40, 40, "--max-class-share", limit)
        args.size = None
        crops = [data.augment(*pair, args, random.Random(seed))[1] for seed in range(60)]
        shares[limit] = np.mean([np.bincount(np.asarray(crop).ravel()).max() / 1600 for crop in crops])
    assert shares[0.75] < 0.8 < shares[1.0]


def write(path, content, form=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(content).save(path, form)


def test_cityscapes_and_ade20k_in_their_layouts(tmp_path):
    ids = np.array([[0, 7, 8], [33, 24, 29]], np.uint8)
    for city, split in (("aachen", "train"), ("bonn", "val")):
        write(tmp_path / f"c/leftImg8bit/{split}/{city}/{city}_0_1_leftImg8bit.png", np.zeros((2, 3, 3), np.uint8))
        write(tmp_path / f"c/gtFine/{split}/{city}/{city}_0_1_gtFine_labelIds.png", ids)
        write(tmp_path / f"c/gtFine/{split}/{city}/{city}_0_1_gtFine_instanceIds.png", ids)
    for split in ("training", "validation"):
        write(tmp_path / f"a/images/{split}/1.jpg", np.zeros((2, 3, 3), np.uint8))
        write(tmp_path / f"a/annotations/{split}/1.png", np.array([[0, 1, 2], [150, 3, 0]], np.uint8))
    (tmp_path / "a/objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.15\t1\t1\t1\twall\n2\t.1\t1\t1\t1\tsky, x\n"
    )
    wanted = {"c": [[255, 0, 1], [18, 11, 255]], "a": [[255, 0, 1], [149, 2, 255]]}
    for name, kind in (("c", "cityscapes"), ("a", "ade20k")):
        args = arguments("--data", kind, "--data-path", tmp_path / name)
        for split in ("train", "val", "test"):
            images = data.Images(args, split)
            assert np.asarray(images.read(0)[1]).tolist() == wanted[name]
    assert images.classes[:3] == ["wall", "sky", "class 3"] and len(images.classes) == 150
    args.size, args.shorter_side = None, 32
    image, labels = data.Images(args, "val")[0, 0]
    assert image.shape == (32, 48, 3) and labels.shape == (2, 3)  # labels keep their size


def test_class_frequencies_are_those_of_the_training_pixels(scenes):
    truth = np.concatenate([np.asarray(Image.open(path)).ravel() for path in sorted((scenes / "trainannot").iterdir())])
    found = data.class_frequencies(data.Images(arguments("--data-path", scenes), "train"))
    np.testing.assert_allclose(found, np.bincount(truth[truth != 11], minlength=11) / (truth != 11).sum(), rtol=1e-6)


def bad(kind, root):
    """Damage a small data set in one way."""
    image, labels = scene(1)
    label_file = root / "trainannot/1.png"
    if kind == "missing annotation":
        label_file.unlink()
    elif kind == "missing image":
        (root / "test/2.jpg").unlink()
    elif kind == "value":
        labels[5, 5] = 12
        Image.fromarray(labels).save(label_file)
    elif kind == "size":
        Image.fromarray(labels[:-1]).save(label_file)
    elif kind == "rgb":
        Image.fromarray(image).save(label_file)
    elif kind == "deep":
        Image.fromarray(labels.astype(np.uint16)).save(label_file)
    elif kind == "torn image":
        (root / "train/1.jpg").write_bytes((root / "train/1.jpg").read_bytes()[:300])
    elif kind == "torn annotation":
        label_file.write_bytes(b"no image")
    elif kind == "twice":
        Image.fromarray(image).save(root / "train/1.png")
    elif kind == "no folder":
        (root / "valannot").rename(root / "elsewhere")
    elif kind == "empty":
        for path in (root / "val").iterdir():
            path.unlink()


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing annotation", r"train/1.jpg: its annotation .*trainannot/1.png is missing"),
        ("missing image", r"testannot/2.png: its image .*test/2.png is missing"),
        ("value", r"trainannot/1.png: holds the value 12, which is not a class of camvid"),
        ("size", r"trainannot/1.png: 64 x 47 pixels, but its image .*train/1.jpg has 64 x 48"),
        ("rgb", r"trainannot/1.png: an image in mode RGB"),
        ("deep", r"trainannot/1.png: an image in mode I"),
        ("torn image", r"train/1.jpg: does not decode"),
        ("torn annotation", r"trainannot/1.png: does not decode"),
        ("twice", r"train/1.png: another image has the same name|train/1.jpg: another image has the same name"),
        ("no folder", r"valannot: no such folder; see data/camvid/README.md"),
        ("empty", r"val: holds no image named \*.png or \*.jpg"),
    ],
)
def test_bad_files_are_named(tmp_path, kind, message):
    root = write_scenes(tmp_path / "data", {"train": 4, "val": 1, "test": 3})
    bad(kind, root)
    with pytest.raises(InputError, match=message) as found:
        go(root, tmp_path / "run", "--loss", "ce", "--steps", 1)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "words, message",
    [
        ("--loss zipf", "--loss zipf: defined for one label per image"),
        ("--loss ce --alpha 0.1", "--alpha 0.1: cross-entropy has no strength"),
        ("--loss maxsup --alpha -0.1", "--alpha -0.1: must lie between 0 and 1"),
        ("--loss maxsup --prior frequency", "--prior frequency: for --loss ls"),
        ("--model resnet18", "--model resnet18: must begin with a decoder"),
        ("--model upernet_deit_smal", "no backbone 'deit_smal'; near names: deit_small"),
        ("--model deeplabv3plus_deit_tiny", "upernet_deit_tiny_patch16_224 takes this one"),
        ("--batch-size 13", "12 training images are fewer than --batch-size 13"),
        ("--batch-size 1", "batch norm needs 2 crops per process"),
        ("--crop 8 8", "--crop 8: must lie between 16"),
        ("--scale 2 1", "--scale 2.0 1.0: the lower end comes first"),
        ("--lr nan", "--lr nan: must lie between"),
        ("--lr 1e9", "the loss is nan in epoch 1, step"),
        ("--epochs 3 --steps 7", "give one of them"),
        ("--optimizer adamw --momentum 0.5", "--momentum 0.5: for --opt sgd, not adamw"),
        ("--logits-stride 4", "--logits-stride: for --logits"),
        ("--shorter-side 50", "--size and --shorter-side"),
        ("--warmup-steps 5", "--warmup-steps 5: a run of 3 steps needs a shorter warm-up"),
        ("--predict sliding --window 32 32 --window-stride 40 40", "would leave gaps"),
        ("--logits nowhere/a.pt", "must name a file in a folder that exists"),
        ("--init missing.pth", "missing.pth: no such checkpoint"),
        ("--resume missing.pth", "missing.pth: no such checkpoint"),
        ("--sync-bn", "on GPUs only"),
        ("--drop-path 0.1", "--drop-path 0.1: for vision transformers, not for deeplabv3plus_test_resnet"),
        ("--aux-weight 0.4", "--aux-weight 0.4: for vision transformers"),
        ("--window 32 32", "--window and --window-stride: for --predict sliding"),
    ],
)
def test_wrong_options_are_one_line(scenes, tmp_path, words, message):
    steps = [] if "--steps" in words else ["--steps", 3]
    with pytest.raises(InputError, match=message) as found:
        go(scenes, tmp_path / "run", *steps, *words.split())
    assert "\n" not in str(found.value)


def test_an_error_in_a_loading_process_is_one_line(tmp_path):
    root = write_scenes(tmp_path / "data", {"train": 4, "val": 1, "test": 3})
    bad("value", root)
    words = [*QUICK, "--data-path", root, "--output_dir", tmp_path / "run", "--steps", 3, "--warmup-steps", 0, "--num-workers", 1]
    complains(run(MAIN, *words), "trainannot/1.png: holds the value 12, which is not a class of camvid")


def test_another_run_is_neither_resumed_nor_lost(scenes, trained, tmp_path, capsys):
    own = trained / "checkpoint.pth"
    with pytest.raises(InputError, match="holds a run already: --resume auto goes on with it, --overwrite replaces it"):
        go(scenes, trained, "--loss", "ce")
    with pytest.raises(InputError, match="a run with --loss ce, not ls"):
        go(scenes, tmp_path / "a", "--resume", own, "--loss", "ls", "--steps", 3)
    with pytest.raises(InputError, match="has 10 epochs already, more than the 1 requested"):
        go(scenes, tmp_path / "b", "--resume", own, "--loss", "ce", "--steps", 3, "--init", "other.pth")
    assert f"note: --init has no effect: {own} has the weights" in capsys.readouterr().out
    (tmp_path / "torn.pth").write_bytes(own.read_bytes()[:-2000])
    with pytest.raises(InputError, match="torn.pth: damaged"):
        go(scenes, tmp_path / "c", "--resume", tmp_path / "torn.pth", "--loss", "ce", "--steps", 3)
    fewer = write_scenes(tmp_path / "fewer", {"train": 8, "val": 3, "test": 5})
    with pytest.raises(InputError, match="trained on other images than .*fewer holds now"):
        go(fewer, tmp_path / "d", "--resume", own, "--loss", "ce", "--epochs", 20)
    go(scenes, tmp_path / "e", "--loss", "ce", "--steps", 4)  # an epoch has 3 steps
    with pytest.raises(InputError, match="ended after 4 steps, within its epoch 2; resuming needs whole epochs of 3 steps"):
        go(scenes, tmp_path / "e", "--loss", "ce", "--steps", 6, "--resume", "auto")


def test_logits_larger_than_memory_are_refused_before_training(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(main, "LARGEST_LOGITS", 10**5)
    with pytest.raises(InputError, match="--logits-stride 3 is the least that fits"):
        go(scenes, tmp_path / "run", "--steps", 3, "--logits", tmp_path / "a.pt", "--logits-stride", 1)
    with pytest.raises(InputError, match="--logits-stride 96: keeps no pixel of images of 48 x 64"):
        go(scenes, tmp_path / "run", "--steps", 3, "--logits", tmp_path / "a.pt", "--logits-stride", 96)


# ----------------------------------------------------------------------------------------------------------- models


def test_a_transformer_gives_four_scales_and_takes_any_size():
    model = models.create_model("upernet_test_vit", 7, [64, 64], drop_path=0.1)
    sizes = [tuple(x.shape[1:]) for x in model.encoder(torch.zeros(2, 3, 64, 96))[2:]]
    assert sizes == [(64, 16, 24), (64, 8, 12), (64, 4, 6), (64, 2, 3)]
    logits, auxiliary = model.train()(torch.zeros(2, 3, 50, 70))
    assert logits.shape == auxiliary.shape == (2, 7, 50, 70)
    assert model.eval()(torch.zeros(1, 3, 33, 41)).shape == (1, 7, 33, 41)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("upernet_vit_small_patch8_224", "its patches have \\(8, 8\\) pixels, not 16 x 16"),
        ("upernet_swin_tiny_patch4_window7_224", "cannot be built .*doesn't match model"),
    ],
)
def test_backbones_that_cannot_take_any_image_are_refused(name, reason):
    with pytest.raises(InputError, match=reason):
        models.create_model(name, 7, [64, 64])


def test_embeddings_of_the_patches_alone_are_resampled(tmp_path):
    """DeiT-III has no position embedding for its class token; here a grid of 4 x 4 is resampled to 8 x 8."""
    classifier = timm.create_model("test_vit", num_classes=10, img_size=64, no_embed_class=True)
    torch.save({"model": classifier.state_dict(), "args": {}}, tmp_path / "deit3.pth")
    model = models.create_model("upernet_test_vit", 7, [64, 64])
    backbone = timm.create_model("test_vit", num_classes=0, img_size=128, no_embed_class=True)
    model.encoder.vit.model = backbone
    models.start_from(tmp_path / "deit3.pth", model)
    grid = classifier.pos_embed.view(1, 4, 4, -1).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (8, 8), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(backbone.pos_embed, expected)


def test_a_transformer_starts_from_a_checkpoint_of_deit(tmp_path):
    torch.manual_seed(0)
    classifier = timm.create_model("test_vit", num_classes=10, img_size=64).eval()
    path = tmp_path / "deit.pth"
    torch.save({"model": classifier.state_dict(), "args": {"model": "test_vit"}}, path)
    model = models.create_model("upernet_test_vit", 7, [64, 64]).eval()
    said = models.start_from(path, model)
    assert "tensors taken; left out: " in said and "head.weight" in said
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        taken = models.backbone_of(model)
        depth = len(taken.blocks) - 1
        ours = model.encoder.vit(image)[-1]
        theirs = classifier.forward_intermediates(image, indices=[depth], intermediates_only=True)[0]
        torch.testing.assert_close(ours, theirs)
        larger = models.create_model("upernet_test_vit", 7, [96, 96]).eval()
        models.start_from(path, larger)
        # Position embeddings are resampled to a finer grid; that of the class token stays.
        assert torch.equal(models.backbone_of(larger).pos_embed[:, 0], classifier.pos_embed[:, 0])
        assert models.backbone_of(larger).pos_embed.shape[1] == 37


def test_a_convnet_starts_from_a_checkpoint_of_torchvision(tmp_path):
    torch.manual_seed(0)
    classifier = torchvision.models.resnet18(num_classes=5).eval()
    torch.save({"model": classifier.state_dict()}, tmp_path / "conv.pth")
    model = models.create_model("deeplabv3plus_resnet18", 7, [64, 64]).eval()
    said = models.start_from(tmp_path / "conv.pth", model)
    assert "120 of 122 tensors taken; left out: fc.bias, fc.weight" in said
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        theirs = classifier.maxpool(classifier.relu(classifier.bn1(classifier.conv1(image))))
        torch.testing.assert_close(model.encoder(image)[3], classifier.layer2(classifier.layer1(theirs)))
    weights = classifier.state_dict()
    del weights["layer4.1.conv2.weight"]
    torch.save({"model": weights}, tmp_path / "part.pth")
    with pytest.raises(InputError, match="part.pth: .*layer4.1.conv2.weight is missing"):
        models.start_from(tmp_path / "part.pth", model)


# ------------------------------------------------------------------------------------------------------------- maps


def test_maps_of_uncertainty(scenes, trained, tmp_path):
    figure = tmp_path / "maps.png"
    own = trained / "checkpoint.pth"
    words = ["--checkpoint", own, own, "--names", "A", "B", "--data-path", scenes, "--image", "3.jpg", "--output", figure]
    args = uncertainty_maps.get_maps_parser().parse_args([str(word) for word in words])
    uncertainty_maps.main(args)
    with Image.open(figure) as image:
        assert image.width > 900 and len(image.convert("RGB").getcolors(10**6)) > 100
    with pytest.raises(InputError, match="--overwrite replaces it"):
        uncertainty_maps.main(args)
    args.overwrite, args.image = True, "9"
    with pytest.raises(InputError, match="the test images have the numbers 0 to 4"):
        uncertainty_maps.main(args)
    maps = uncertainty_maps.maps_of(states.read(own), own, args.__class__(**vars(args) | {"image": "0"}))
    truth = np.asarray(Image.open(scenes / "testannot/0.png"))
    assert np.array_equal(maps["truth"], np.where(truth == 11, 255, truth))
    assert np.array_equal(maps["errors"], (maps["prediction"] != truth) & (truth != 11))
    logits = torch.load(trained / "logits.pt")["logits"][0].double()  # of every second row and column, from the second on
    assert np.array_equal(maps["prediction"][1::2, 1::2], logits.argmax(0))
    labelled = truth[1::2, 1::2] != 11
    confidence, uncertainty = logits.softmax(0).amax(0).numpy(), maps["uncertainty"][1::2, 1::2]
    assert scipy.stats.spearmanr(confidence[labelled], uncertainty[labelled]).statistic < -0.9999  # float32 makes ties
    blank = write_scenes(tmp_path / "blank", {"train": 1, "val": 1, "test": 1})
    Image.new("L", (64, 48), 11).save(blank / "testannot/0.png")
    with pytest.raises(InputError, match="--image 0: no pixel of it has a label"):
        uncertainty_maps.maps_of(states.read(own), own, args.__class__(**vars(args) | {"image": "0", "data_path": blank}))
    foreign = {"model": {}, "args": {"model": "resnet18"}}
    with pytest.raises(InputError, match="not a checkpoint of main.py"):
        uncertainty_maps.maps_of(foreign, own, args)


def test_images_are_found_by_number_and_by_name(tmp_path):
    images = data.Images(arguments("--data-path", write_scenes(tmp_path, {"train": 4, "val": 1, "test": 3})), "test")
    (tmp_path / "test/2.jpg").rename(tmp_path / "test/002.jpg")
    images.pairs[2] = (tmp_path / "test/002.jpg", images.pairs[2][1])
    assert [uncertainty_maps.find_image(images, which) for which in ("1", "002", "0.jp")] == [1, 2, 0]


def test_ranks_are_those_of_scipy():
    torch.manual_seed(0)
    confidence, labelled = torch.rand(9, 11).mul(20).round().div(20), torch.rand(9, 11) > 0.2
    found = uncertainty_maps.rank_of_uncertainty(confidence, labelled)
    assert found[~labelled].isnan().all()
    wanted = (scipy.stats.rankdata(-confidence[labelled].numpy()) - 1) / (labelled.sum().item() - 1)
    np.testing.assert_allclose(found[labelled], wanted, atol=1e-12)


def test_prepare_counts_and_names(tmp_path):
    root = write_scenes(tmp_path / "data", {"train": 4, "val": 1, "test": 3})
    complains(run(ROOT / "data/camvid/prepare.py", "--root", root), "train: 4 images, not 367; unpack the archive again")
    (root / "trainannot/2.png").unlink()
    complains(run(ROOT / "data/camvid/prepare.py", "--root", root), "train/2.jpg: its annotation", "is missing")
