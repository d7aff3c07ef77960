"""viz/measure.py: each number against scikit-learn, torchmetrics, or a plain float64 computation of its definition."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score, top_k_accuracy_score
from sklearn.model_selection import train_test_split
from torchmetrics.classification import MulticlassCalibrationError

import oracles
from subprojects import Subproject

SUBPROJECT = viz = Subproject("viz")
measure = viz.load("measure")
extract = viz.load("logits").extract
models = viz.load("checkpoints.models")
splits = viz.load("metrics.resampling").splits
InputError = viz.load("common.errors").InputError
STRENGTHS = viz.load("common.options").STRENGTHS
GROUPS = {"even": list("02468"), "odd": list("13579")}


def write_checkpoint(path, classes, state=(), **facts):
    """Write a CIFAR ResNet for the digits in the trainers' format; untrained, but its weights separate some classes."""
    torch.manual_seed(0)
    model = models.create("cifar", "resnet8", len(classes), width=8)
    args = {"model": "resnet8", "library": "cifar", "width": 8, "num_classes": len(classes), "input_size": 8, "crop_ratio": 1.0}
    args |= {"interpolation": "bilinear", "mean": [0.3] * 3, "std": [0.4] * 3, "data": "digits", "data_path": None} | facts
    content = {"model": model.state_dict(), "args": args, "classes": list(classes)} | dict(state)
    torch.save(content, path)
    train = extract(path, args["data_path"] and Path(args["data_path"]), "train", features=True)
    x, y = train["features"].double(), train["labels"]
    # The classifier compares features with the class means.
    means = torch.stack([x[y == k].mean(0) for k in range(len(classes))])
    content["model"]["linear.weight"] = (6 * means / x.std()).float()
    content["model"]["linear.bias"] = (-3 * means.square().sum(1) / x.std()).float()
    torch.save(content, path)
    return path


def call(monkeypatch, *words):
    workers = ["--num-workers", "0"] if "--checkpoint" in words else []
    monkeypatch.setattr(sys, "argv", ["measure.py", *map(str, words), "--device", "cpu", *workers])
    measure.main()


def close(ours, expected, **tolerance):
    """Assert that metrics are None where None is expected, and within the tolerance elsewhere."""
    known = {key: value for key, value in expected.items() if value is not None}
    assert {key for key in expected if ours[key] is None} == expected.keys() - known.keys()
    assert {key: ours[key] for key in known} == pytest.approx(known, **tolerance)


def read(path, name):
    return json.loads(path.read_text())["models"][name]["metrics"]


def test_every_metric_of_a_checkpoint(tmp_path, monkeypatch):
    """Ten digits; by its checkpoint the model was trained on some rows, a tenth of them with other labels."""
    rows = torch.arange(0, 1400, 2)
    digits = [str(digit) for digit in range(10)]
    own = extract(write_checkpoint(tmp_path / "ten.pth", digits), split="train")["labels"][rows]
    noisy = torch.where(torch.arange(700) % 10 == 0, (own + 1) % 10, own)
    write_checkpoint(tmp_path / "ten.pth", digits, {"training_rows": rows, "training_labels": noisy})
    call(monkeypatch, "--checkpoint", tmp_path / "ten.pth", "--output", tmp_path / "m.json")
    ours = read(tmp_path / "m.json", "ten")

    train, val = (extract(tmp_path / "ten.pth", split=split, features=True) for split in ("train", "val"))
    z, y = val["logits"].double(), val["labels"]
    p, right = z.softmax(1), z.argmax(1) == y
    assert 40 < 100 * right.double().mean() < 99  # so that nothing below is trivial
    msp, predicted = p.amax(1), train["logits"][rows].argmax(1)
    wrong = (~right).numpy()
    order = np.argsort(-msp.numpy(), kind="stable")
    assert len(msp.unique()) == 397  # no ties: risks need no mean over orders
    risk = np.cumsum(wrong[order]) / np.arange(1, 398)
    best = np.cumsum(np.sort(wrong)) / np.arange(1, 398)
    gaps = 0.1 * (z.gather(1, y[:, None]) - z)  # what label smoothing adds, class by class
    expected = {
        "images": 397,
        "train_top1": 100 * (predicted == noisy).double().mean().item(),
        "train_top1_clean": 100 * (predicted == own).double().mean().item(),
        "top1": 100 * right.double().mean().item(),
        "top5": 100 * top_k_accuracy_score(y, z.numpy(), k=5),
        "nll": log_loss(y, p.numpy()),
        "brier": (p - torch.nn.functional.one_hot(y, 10)).square().sum(1).mean().item(),
        "aurc": risk.mean(),
        "excess_aurc": risk.mean() - best.mean(),
        "aurc_max_logit": oracles.aurc(z.amax(1), right),
        "aurc_entropy": oracles.aurc((p * p.log()).sum(1), right),
        "aurc_energy": oracles.aurc(z.logsumexp(1), right),
        "aurc_margin": oracles.aurc(p.topk(2).values @ torch.tensor([1.0, -1.0], dtype=torch.float64), right),
        "coverage_at_risk_1": max(np.flatnonzero(risk <= 0.01), default=-1) / 397 + 1 / 397,
        "coverage_at_risk_0.5": max(np.flatnonzero(risk <= 0.005), default=-1) / 397 + 1 / 397,
        "risk_at_coverage_20": risk[79],  # the first 80 of 397, and the first 318
        "risk_at_coverage_80": risk[317],
        "auroc": roc_auc_score(right, msp),
        "near_zero": (val["logits"].abs() < 0.01).double().mean().item(),
        "regularisation": gaps[gaps > 0].sum().item() / gaps.numel(),
        "error_enhancement": gaps[gaps < 0].sum().item() / gaps.numel(),
        "confidence_right": msp[right].mean().item(),
        "confidence_wrong": msp[~right].mean().item(),
        "transfer": None,
    }
    for split, x, labels in (("train", train["features"][rows], noisy), ("val", val["features"], y)):
        unit = torch.nn.functional.normalize(x.double(), dim=1)
        distance = 1 - unit @ unit.T
        means = [[distance[labels == a][:, labels == b].mean().item() for a in range(10)] for b in range(10)]
        expected[f"d_within_{split}"] = np.trace(means) / 10
        expected[f"r2_{split}"] = 1 - np.trace(means) / 10 / np.mean(means)
    # At equal MSP: bins of 1/20 power of ten of its odds that contain right and wrong predictions, weighted by their samples.
    bins, top = (20 * (msp / (1 - msp)).log10()).floor().long(), z.amax(1)
    both = [b for b in bins.unique() if (right & (bins == b)).any() and (~right & (bins == b)).any()]
    weights = [(bins == b).sum().item() for b in both]
    assert len(both) > 5
    for name, which in (("right", right), ("wrong", ~right)):
        expected[f"max_logit_{name}"] = np.average([top[which & (bins == b)].mean().item() for b in both], weights=weights)
    expected["max_logit_gap"] = expected["max_logit_right"] - expected["max_logit_wrong"]
    # On ten random fifths: fit a temperature, and choose p of the normalised logits or MSP.
    centred = z - z.mean(1, keepdim=True)
    scores = {"msp": msp} | {q: centred.amax(1) / torch.linalg.vector_norm(centred, q, 1) for q in range(1, 11)}
    rows_of = {"temperature": [], "nll": [], "ece": [], "msp": [], "normalised": [], "kept": [], "coverage": []}
    ece = MulticlassCalibrationError(10, n_bins=15, norm="l1")
    for held in torch.from_numpy(splits(397, 0.2, 10, 0)).T:
        found = minimize_scalar(
            lambda t, h=held: torch.nn.functional.cross_entropy(z[h] / math.exp(t), y[h]).item(), bounds=(-4, 4), method="bounded"
        )
        temperature, rest = math.exp(found.x), ~held
        rows_of["temperature"].append(temperature)
        rows_of["nll"].append(log_loss(y[rest], (z[rest] / temperature).softmax(1).numpy(), labels=range(10)))
        rows_of["ece"].append(ece((z[rest] / temperature).softmax(1), y[rest]).item())
        chosen = min(scores, key=lambda q, h=held: oracles.aurc(scores[q][h], right[h]))
        rows_of["kept"].append(chosen == "msp")
        rows_of["msp"].append(oracles.aurc(msp[rest], right[rest]))
        risks = oracles.risk_coverage(scores[chosen][rest], right[rest])
        rows_of["normalised"].append(risks.mean().item())
        rows_of["coverage"].append(max(np.flatnonzero(risks <= 0.01), default=-1) / len(risks) + 1 / len(risks))
    mean = {key: np.mean(values) for key, values in rows_of.items()}
    expected |= {"aurc_split_msp": mean["msp"], "aurc_normalised": mean["normalised"], "normalised_kept_msp": mean["kept"]}
    expected |= {"coverage_at_risk_1_normalised": mean["coverage"]}
    loose = {"temperature": mean["temperature"], "nll_temperature": mean["nll"]}
    assert {key: ours[key] for key in loose} == pytest.approx(loose, rel=1e-4)  # the search above stops at 1e-5 of log T
    # torchmetrics computes in float32.
    assert ours["ece"] == pytest.approx(ece(p, y).item(), abs=1e-6)
    assert ours["ece_temperature"] == pytest.approx(
        mean["ece"], abs=5e-4
    )  # a sample may change its bin with the last digits of T
    assert ours.keys() == expected.keys() | loose.keys() | {"ece", "ece_temperature"}
    # The features are computed in other batches than extract's, with float32 sums in another order.
    close(ours, expected, rel=1e-5, abs=1e-6)


def test_two_classes_and_the_transfer_to_ten(tmp_path, monkeypatch):
    """With two superclasses normalised logits are undefined; the frozen features are tested on the ten digits."""
    write_checkpoint(tmp_path / "a.pth", list(GROUPS), superclasses=GROUPS)
    write_checkpoint(tmp_path / "b.pth", list(GROUPS), superclasses=GROUPS)
    words = ["--checkpoint", tmp_path / "a.pth", tmp_path / "b.pth", "--names", "A", "B", "--output", tmp_path / "m.json"]
    call(monkeypatch, *words, "--transfer")
    ours = read(tmp_path / "m.json", "A")
    assert ours == read(tmp_path / "m.json", "B")
    undefined = ("aurc_split_msp", "aurc_normalised", "normalised_kept_msp", "coverage_at_risk_1_normalised")
    assert all(ours[key] is None for key in undefined) and "train_top1_clean" not in ours
    train, val = (extract(tmp_path / "a.pth", split=split, features=True) for split in ("train", "val"))
    digit = {split: viz.load("images.find").open_images(None, split, "digits").labels for split in ("train", "val")}
    order = torch.randperm(1400, generator=torch.Generator().manual_seed(0)).numpy()
    x, y = train["features"].double().numpy()[order], digit["train"][order]
    fit, held = train_test_split(np.arange(1400), test_size=0.2, random_state=0, stratify=y)

    def accuracy(strength, part, test, labels):
        mean, spread = x[part].mean(0), x[part].std(0)
        head = LogisticRegression(C=strength, max_iter=5000).fit((x[part] - mean) / spread, y[part])
        return 100 * head.score((test - mean) / spread, labels)

    found = [accuracy(strength, fit, x[held], y[held]) for strength in STRENGTHS]
    best = STRENGTHS[int(np.argmax(found))]
    top1 = accuracy(best, np.arange(1400), val["features"].double().numpy(), digit["val"])
    assert ours["transfer"] == pytest.approx(top1, abs=0.51)  # two images of 397: the optimum's last digits
    assert top1 > 60


def test_prefixes_of_file_names(parity, tmp_path, monkeypatch):
    """In a folder of even and odd digits, file names begin with the digit: transfer by prefix is transfer to ten digits."""
    write_checkpoint(tmp_path / "a.pth", ["even", "odd"], data=None, data_path=str(parity))
    words = ["--checkpoint", tmp_path / "a.pth", "--output", tmp_path / "m.json", "--transfer"]
    call(monkeypatch, *words, "--transfer-labels", "prefix")
    by_prefix = read(tmp_path / "m.json", "a")["transfer"]
    call(monkeypatch, *words, "--overwrite")
    assert by_prefix < read(tmp_path / "m.json", "a")["transfer"]  # ten digits are harder than two classes
    images = viz.load("images.find").open_images(parity, "val")
    assert measure.asked_classes(images, "prefix") == [images.name(i).split("/")[1][0] for i in range(397)]
    images.names[3] = b"even/7.png"
    with pytest.raises(InputError, match="7.png has no prefix before a _"):
        measure.asked_classes(images, "prefix")


def test_pixels_count_as_samples(tmp_path, monkeypatch):
    """Maps with one labelled pixel give the same as images; larger maps give the same as all their labelled pixels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (300,), generator=generator)
    logits = 2 * torch.randn(300, 5, generator=generator)
    logits[torch.arange(300), labels] += 2
    maps, sparse = logits[:, :, None, None].repeat(1, 1, 1, 2), labels[:, None, None].repeat(1, 1, 2)
    sparse[:, :, 1] = 255
    wide = logits.reshape(30, 10, 5).permute(0, 2, 1).reshape(30, 5, 2, 5)
    files = {"flat": (logits, labels), "maps": (maps, sparse), "wide": (wide, labels.reshape(30, 2, 5))}
    for name, (z, y) in files.items():
        torch.save({"logits": z, "labels": y}, tmp_path / f"{name}.pt")
    call(monkeypatch, "--input", *(tmp_path / f"{name}.pt" for name in files), "--output", tmp_path / "m.json")
    flat, dense, wide = (read(tmp_path / "m.json", name) for name in files)
    close(dense, flat, rel=1e-12)
    assert dense.keys() == flat.keys()
    assert flat["images"] == 300 and wide["images"] == 30 and flat["train_top1"] is None and flat["d_within_val"] is None
    same = ("top1", "nll", "brier", "ece", "aurc", "auroc", "near_zero", "regularisation", "confidence_wrong", "max_logit_gap")
    assert {key: wide[key] for key in same} == pytest.approx({key: flat[key] for key in same}, rel=1e-9)
    assert wide["temperature"] == pytest.approx(flat["temperature"], rel=0.1)  # the splits differ: they are by image


def test_where_a_split_leaves_nothing(tmp_path, monkeypatch):
    """Two images cannot be split. Six maps can, but if only one of them is labelled there is no temperature."""
    logits = torch.randn(6, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.full((6, 2, 4), 255)
    labels[2] = torch.arange(8).reshape(2, 4) % 3
    torch.save({"logits": logits[:2], "labels": labels[2:4] % 3}, tmp_path / "two.pt")
    torch.save({"logits": logits, "labels": labels}, tmp_path / "six.pt")
    with pytest.raises(InputError, match="0.2 of 2 images, the share to hold out, leaves one side of the split empty"):
        call(monkeypatch, "--input", tmp_path / "two.pt", "--output", tmp_path / "m.json")
    call(monkeypatch, "--input", tmp_path / "six.pt", "--output", tmp_path / "m.json")
    found = read(tmp_path / "m.json", "six")
    assert found["temperature"] is None and found["ece_temperature"] is None and 0 <= found["ece"] <= 1


def test_options_that_would_do_nothing_are_refused(tmp_path, monkeypatch):
    for words, match in (
        (("--input", "a.pt", "--transfer"), "--transfer: needs images, so --checkpoint"),
        (("--input", "a.pt", "--mean", 0, 0, 0), "--mean: needs images, so --checkpoint"),
        (("--input", "a.pt", "--amp", "bf16"), "--amp: needs images, so --checkpoint"),
        (("--checkpoint", "a.pth", "--ignore-index", 3), "--ignore-index: goes with --input"),
        (("--checkpoint", "a.pth", "--transfer-labels", "prefix"), "--transfer-labels: goes with --transfer"),
    ):
        with pytest.raises(InputError, match=match):
            call(monkeypatch, *words, "--output", tmp_path / "m.json")


def test_nothing_right_or_nothing_wrong(tmp_path, monkeypatch):
    """Undefined values are null, and the file is valid JSON."""
    logits = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    torch.save({"logits": logits, "labels": logits.argmax(1)}, tmp_path / "right.pt")
    torch.save({"logits": logits, "labels": logits.argmin(1)}, tmp_path / "wrong.pt")
    call(monkeypatch, "--input", tmp_path / "right.pt", tmp_path / "wrong.pt", "--output", tmp_path / "m.json")
    assert "NaN" not in (tmp_path / "m.json").read_text()
    right, wrong = read(tmp_path / "m.json", "right"), read(tmp_path / "m.json", "wrong")
    assert right["auroc"] is None and right["confidence_wrong"] is None and right["max_logit_gap"] is None
    assert wrong["confidence_right"] is None and wrong["top1"] == 0 and right["coverage_at_risk_1"] == 1


def test_bad_input_is_one_line(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "a.pth", list("0123456789"))
    good = torch.load(path, weights_only=True)
    (tmp_path / "mine.json").write_text("[1]")
    for match, output, change in (
        ("mine.json is there already; --overwrite replaces it", "mine.json", {}),
        ("the name of a JSON file ends with .json", "a.pth", {}),
        ("trained on row 1,400 of digits, which has 1,400", "m.json", {"training_rows": torch.tensor([0, 1400])}),
        ("has 3 training labels for 1,400 images", "m.json", {"training_labels": torch.tensor([0, 1, 2])}),
        ("training_labels reach from 0 to 10", "m.json", {"training_labels": torch.tensor([0, 10])}),
        ("training_rows are not whole numbers", "m.json", {"training_rows": torch.tensor([0.5])}),
    ):
        torch.save(good | change, path)
        with pytest.raises(InputError, match=match) as told:
            call(monkeypatch, "--checkpoint", path, "--output", tmp_path / output)
        assert "\n" not in str(told.value)
