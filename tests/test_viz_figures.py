"""viz/: Table 1 and Figure 1, linear transfer and Grad-CAM, against brute force and other implementations."""

import json
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conftest import ROOT
from subprojects import Subproject
from training import torchrun

SUBPROJECT = viz = Subproject("viz")
architectures = viz.load("checkpoints.models")
features, gradcam, transfer = viz.load("features"), viz.load("gradcam"), viz.load("transfer")
grad_cam = viz.load("drawing.grad_cam")
linear_transfer, projection = viz.load("metrics.linear_transfer"), viz.load("drawing.projection")
load_checkpoint = viz.load("checkpoints.read").load_checkpoint
InputError = viz.load("common.errors").InputError
extract = viz.load("logits").extract
variation = viz.load("metrics.variation")
feature_variation = variation.feature_variation


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Checkpoints of two CIFAR ResNets for the digits, with random weights, in the trainers' format."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = architectures.create("cifar", "resnet8", 10, width=8)
        args = {"model": "resnet8", "library": "cifar", "width": 8, "num_classes": 10, "input_size": 8, "crop_ratio": 1.0}
        args |= {"interpolation": "bilinear", "mean": [0.3] * 3, "std": [0.4] * 3, "data": "digits", "data_path": None}
        content = {"model": model.state_dict(), "args": args, "classes": [str(digit) for digit in range(10)]}
        torch.save(content, folder / f"{name}.pth")
    return folder


@pytest.fixture
def folder_of_classes(tmp_path):
    """Class folders without train/ and val/ above them."""
    for digit in range(10):
        (tmp_path / f"classes/{digit}").mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 20 * digit, np.uint8)).save(tmp_path / f"classes/{digit}/0.png")
    return tmp_path / "classes"


def call(script, monkeypatch, *words):
    loading = [] if script is gradcam else ["--num-workers", "0"]
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words), *loading, "--device", "cpu"])
    script.main()


def test_table_1_and_figure_1(models, tmp_path, monkeypatch):
    """The command's numbers are those of features held in memory, and the figure has both splits of both models."""
    paths = [models / "one.pth", tmp_path / "two.pth"]
    rows = torch.arange(0, 1400, 3)  # the training images used, with labels of their own
    labels = (torch.arange(len(rows)) + 5) % 10
    state = torch.load(models / "two.pth", weights_only=True)
    torch.save(state | {"training_rows": rows, "training_labels": labels}, paths[1])
    call(features, monkeypatch, "--checkpoint", *paths, "--output", tmp_path, "--classes", "3", "8", "5", "--batch-size", 100)
    table = json.loads((tmp_path / "features.json").read_text())
    assert list(table) == ["one", "two"]
    for split in ("train", "val"):
        content = extract(paths[1], split=split, features=True)
        if split == "train":
            content = {"features": content["features"][rows], "labels": labels}
        held = feature_variation(content["features"], content["labels"])
        assert {key: table["two"][f"{key}_{split}"] for key in held} == pytest.approx(held, abs=1e-6)  # float32 batches differ
    assert f"{table['one']['r2_val']:.4f}" in (tmp_path / "features.md").read_text()
    pixels = matplotlib.image.imread(tmp_path / "projection.png")
    assert min(pixels.shape[:2]) > 700 and pixels.std() > 0.02
    for words, match in {
        ("--classes", "3", "8", "x"): "--classes 3 8 x: name three different ones of 0, 1, 2",
        ("--names", "a"): "--names: 1 for 2",
        ("--batch-size", "0"): "--batch-size 0",
    }.items():
        with pytest.raises(InputError, match=match):
            call(features, monkeypatch, "--checkpoint", *paths, "--output", tmp_path / "bad", *words)


POINTS = """
import sys; sys.path.insert(0, {viz!r})
import features, torch
from drawing import projection
from types import SimpleNamespace
projection.panels = lambda planes: SimpleNamespace(save=lambda path: torch.save(planes["one"]["points"], path))
features.main()
"""


def test_processes_share_what_is_drawn(models, tmp_path):
    """Three processes draw the same points as one: all points of the last classes, of which the first process reads none."""
    for split, count in (("train", 4), ("val", 2)):
        for digit in range(10):
            (tmp_path / f"images/{split}/{digit}").mkdir(parents=True)
            for index in np.flatnonzero(load_digits().target == digit)[:count]:
                pixel = np.round(load_digits().images[index] * 255 / 16).astype(np.uint8)
                Image.fromarray(pixel).save(tmp_path / f"images/{split}/{digit}/{index}.png")
    (tmp_path / "points.py").write_text(POINTS.format(viz=str(ROOT / "viz")))
    words = ["--checkpoint", models / "one.pth", "--classes", 7, 8, 9, "--num-workers", 0, "--device", "cpu"]
    drawn = []
    for processes in (1, 3):
        out = tmp_path / str(processes)
        more = ["--data-path", tmp_path / "images", "--output", out]
        result = torchrun(processes, *words, *more, script=tmp_path / "points.py")
        assert result.returncode == 0, result.stderr
        drawn.append(torch.load(out / "projection", weights_only=True))
    for split, count in (("train", 4), ("val", 2)):
        assert [len(points) for points in drawn[0][split]] == [count] * 3
        for one, three in zip(drawn[0][split], drawn[1][split], strict=True):
            torch.testing.assert_close(one, three)


def test_training_and_test_images_are_different_ones(models, folder_of_classes, monkeypatch, tmp_path):
    words = ["--checkpoint", models / "one.pth", "--data-path", folder_of_classes, "--output", tmp_path]
    for script in (features, transfer):
        with pytest.raises(InputError, match="the same images for training and test"):
            call(script, monkeypatch, *words)
    words = ["--checkpoint", models / "one.pth", "--data", "digits", "--output", tmp_path, "--test-split"]
    for split, match in (("tset", "digits has no part tset"), ("train", "--test-split train: .* name another split")):
        with pytest.raises(InputError, match=match):
            call(transfer, monkeypatch, *words, split)


def test_projection_keeps_distances_in_the_plane():
    """Points in the plane keep their distances, components off the plane are dropped, and the templates are the corners."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(3, 7, generator=generator)
    unit = torch.nn.functional.normalize(weights.double(), dim=1)
    mix = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    inside = (mix / mix.sum(1, keepdim=True)) @ unit
    off = torch.randn(7, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.stack([unit[1] - unit[0], unit[2] - unit[0]], 1))[0]
    off -= basis @ (basis.T @ off)
    points, corners = projection.project(weights, [inside, inside + off])
    torch.testing.assert_close(torch.cdist(points[0], points[0]), torch.cdist(inside, inside))
    torch.testing.assert_close(points[1], points[0])
    torch.testing.assert_close(torch.cdist(points[0], corners), torch.cdist(inside, unit))
    assert corners.sum(0).abs().max() < 1e-12 and corners[2, 1] > 0 and corners[1, 0] > corners[0, 0]


def test_transfer_chooses_on_training_images_alone(tmp_path):
    """False test labels change the test accuracy and nothing else; the features of planted classes are separated."""
    generator = torch.Generator().manual_seed(0)
    y, y_test = torch.arange(400) % 4, torch.arange(100) % 4
    centres = 4 * torch.randn(4, 12, generator=generator)
    x, x_test = (centres[labels] + torch.randn(len(labels), 12, generator=generator) for labels in (y, y_test))
    x[:, 3] = x_test[:, 3] = 7.0  # a constant column
    names, names_test = [str(k) for k in y.tolist()], [str(k) for k in y_test.tolist()]
    found = linear_transfer.transfer(x, names, x_test, names_test, [1e-4, 1e-2, 1.0])
    assert found["test_top1"] > 97
    lying = linear_transfer.transfer(x, names, x_test, names_test[1:] + names_test[:1], [1e-4, 1e-2, 1.0])
    assert lying["C"] == found["C"] and lying["held_out_top1"] == found["held_out_top1"] and lying["test_top1"] < 30
    for classes, match in ((["4"] * 100, "classes that the training images lack: 4"), (names_test, "too few training images")):
        with pytest.raises(InputError, match=match):
            linear_transfer.transfer(x[:5], names[:5], x_test, classes, [1.0])


def test_transfer_takes_some_of_many_images_and_two_of_each_class(monkeypatch):
    """As in measure.py: 60 of 120 images, of two classes, and two images of a third class that these lack."""
    labels, order = torch.arange(120) % 2, torch.randperm(120, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(linear_transfer, "TRANSFER_IMAGES", 60)
    assert linear_transfer.drawn(labels.tolist()).equal(order[:60])
    labels[order[-3:]] = 2
    rows = linear_transfer.drawn(labels.tolist())
    assert rows.equal(torch.cat([order[:60], order[-3:-1]])) and labels[rows].bincount().min() == 2


def test_features_that_are_all_one(models, tmp_path, monkeypatch, capsys):
    """R2 is then undefined: null in the file, a dash in the tables. Notes on the images are printed."""
    for split in ("train", "val"):
        for digit in range(10):
            (tmp_path / f"data/{split}/{digit}").mkdir(parents=True)
            Image.new("L", (8, 8), 100).save(tmp_path / f"data/{split}/{digit}/0.png")
        (tmp_path / f"data/{split}/0/notes.txt").write_text("no image")
    words = ["--checkpoint", models / "one.pth", "--data-path", tmp_path / "data", "--output", tmp_path]
    call(features, monkeypatch, *words)
    (row,) = json.loads((tmp_path / "features.json").read_text()).values()
    out = capsys.readouterr().out
    assert row["r2_train"] is row["r2_val"] is None and row["d_within_val"] == pytest.approx(0, abs=1e-6)
    assert "– |" in (tmp_path / "features.md").read_text() and "–" in out
    for split in ("train", "val"):
        assert f"{split}: 1 files are not images and are ignored (0/notes.txt)" in out
    with pytest.raises(InputError, match="too few training images"):
        call(transfer, monkeypatch, *words)
    assert capsys.readouterr().out.count("are ignored") == 2


def test_transfer_against_scikit_learn_where_the_test_images_differ():
    """Features are standardised by the training images, whose mean and spread differ from those of the test images. The strength
    chosen is the best on the held-out fifth, though not on the test images."""
    numbers = np.random.default_rng(0)
    y, y_test = numbers.integers(3, size=150), numbers.integers(3, size=300)
    centres = numbers.normal(size=(3, 30))
    x, x_test = (0.5 * centres[labels] + 2 * numbers.normal(size=(len(labels), 30)) + 3 for labels in (y, y_test))
    x, x_test = x * np.geomspace(0.1, 10, 30), (1.5 * x_test + 2) * np.geomspace(0.1, 10, 30)
    strengths = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
    fitting, held = train_test_split(np.arange(150), test_size=0.2, random_state=0, stratify=y)

    def score(strength, rows, others, targets):
        head = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-8, max_iter=5000))
        return 100 * head.fit(x[rows], y[rows]).score(others, targets)

    on_held = {strength: score(strength, fitting, x[held], y[held]) for strength in strengths}
    on_test = {strength: score(strength, slice(None), x_test, y_test) for strength in strengths}
    names, names_test = [str(k) for k in y], [str(k) for k in y_test]
    found = linear_transfer.transfer(torch.from_numpy(x), names, torch.from_numpy(x_test), names_test, strengths)
    assert found["C"] == max(on_held, key=on_held.get) != max(on_test, key=on_test.get)
    assert strengths[0] < found["C"] < strengths[-1]
    assert found["held_out_top1_of_each_C"] == pytest.approx({str(key): value for key, value in on_held.items()})
    assert found["test_top1"] == pytest.approx(on_test[found["C"]])


def test_transfer_command(models, tmp_path, monkeypatch):
    """With random weights, the accuracy is scikit-learn's own at the chosen strength, on features extracted here."""
    words = ["--data", "digits", "--output", tmp_path, "--strengths", 0.01, 1]
    call(transfer, monkeypatch, "--checkpoint", models / "one.pth", *words)
    row = json.loads((tmp_path / "transfer.json").read_text())["one"]
    train, val = (
        extract(models / "one.pth", split=split, features=True)["features"].double().numpy() for split in ("train", "val")
    )
    mean, deviation = train.mean(0), train.std(0)
    digits = load_digits().target
    head = LogisticRegression(C=row["C"], tol=1e-6, max_iter=5000).fit((train - mean) / deviation, digits[:1400])
    # Two images of 397 may change class with the last digits of the features and of the optimum.
    assert row["test_top1"] == pytest.approx(100 * head.score((val - mean) / deviation, digits[1400:]), abs=0.51)
    assert row["train_images"] == 1400 and row["test_images"] == 397
    with pytest.raises(InputError, match="transfer to what"):
        call(transfer, monkeypatch, "--checkpoint", models / "one.pth", "--output", tmp_path)
    with pytest.raises(InputError, match="--strengths 0: a number from"):
        call(transfer, monkeypatch, "--checkpoint", models / "one.pth", *words[:-2], 0)


def test_grad_cam_by_hand(models, tmp_path):
    """Weights are the gradients' means over pixels; the map is the weighted sum of feature maps, without negative values."""
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    checkpoint = load_checkpoint(models / "one.pth", input_size=16)
    (panel,) = grad_cam.explain_all(checkpoint, [picture], "7", "cpu", "one")
    model = grad_cam.build_model(checkpoint)
    shown = grad_cam.normalise(grad_cam.transform(checkpoint.facts)(picture)[None], checkpoint.facts)
    kept = []
    model.layer3.register_forward_hook(lambda layer, inputs, output: kept.append(output))
    logits = model(shown)
    (gradient,) = torch.autograd.grad(logits[0, 7], kept[0])
    heat = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()[0].detach().numpy()
    heat = (heat - heat.min()) / (1e-7 + heat.max() - heat.min())
    assert heat.shape == (4, 4) and panel["heat"].shape == (16, 16)
    # The library scales the 4 x 4 map up; the centres of its tiles, of 4 x 4 pixels each, are compared.
    tiles = panel["heat"].reshape(4, 4, 4, 4)[:, 1:3, :, 1:3].mean((1, 3))
    assert np.corrcoef(tiles.ravel(), heat.ravel())[0, 1] > 0.97
    top = logits.softmax(1).max(1)
    assert f"{top.indices.item()}: {100 * top.values.item():.1f} %" in panel["words"]
    assert "map of 7" in panel["words"]


@pytest.mark.parametrize(
    "library, name, size", [("timm", "test_vit", 160), ("timm", "test_convnext", 160), ("torchvision", "swin_t", 64)]
)
def test_grad_cam_finds_a_layer(library, name, size):
    """Transformers, including hierarchical ones, and ConvNets give a spatial map of the image."""
    model = architectures.create(library, name, 5)
    layer, to_map = grad_cam.layer_of_maps(model, size, "cpu")
    kept = []
    layer.register_forward_hook(lambda layer, inputs, output: kept.append(output))
    with torch.inference_mode():
        model(torch.randn(2, 3, size, size))
    maps = to_map(kept[0]) if to_map else kept[0]
    assert maps.ndim == 4 and maps.shape[0] == 2 and maps.shape[2] == maps.shape[3] > 1


def test_grad_cam_command(models, tmp_path, monkeypatch):
    from PIL import Image

    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(tmp_path / "grey.png")
    paths = [models / "one.pth", models / "two.pth"]
    words = ["--checkpoint", *paths, "--images", tmp_path / "grey.png", "--output", tmp_path / "cam.png"]
    call(gradcam, monkeypatch, *words)
    pixels = matplotlib.image.imread(tmp_path / "cam.png")
    assert pixels.shape[1] > 800 and pixels.std() > 0.05
    (tmp_path / "text.png").write_text("no picture")
    for match, change in {
        "cam.png is there already": [],
        "ends with .png or .pdf": ["--output", tmp_path / "cam.jpg"],
        "--target 12: no class of .*one.pth; 0, 1, 2, 3, 4, ... or a label, 0 to 9": ["--target", "12", "--overwrite"],
        "--target 999.*: no class of": ["--target", "9" * 5000, "--overwrite"],
        "grey.png is one of the files to read": ["--overwrite", "--output", tmp_path / "grey.png"],
        "text.png: does not decode": ["--overwrite", "--images", tmp_path / "text.png"],
        "none.png: no such file": ["--overwrite", "--images", tmp_path / "none.png"],
    }.items():
        with pytest.raises(InputError, match=match):
            call(gradcam, monkeypatch, *words, *change)
