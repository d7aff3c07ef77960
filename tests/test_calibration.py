"""viz/calibration.py against scikit-learn, torchmetrics and a planted temperature; viz/suppression.py against autograd."""

import itertools
import json
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.classification import MulticlassCalibrationError

import oracles
from conftest import ROOT, complains, run
from subprojects import Subproject

SUBPROJECT = viz = Subproject("viz")
calibration, suppression = viz.load("calibration"), viz.load("suppression")
calibrate, rankings_at = viz.load("metrics.calibration").calibrate, viz.load("metrics.calibration").rankings_at
gradients = viz.load("drawing.suppression")
splits = viz.load("metrics.resampling").splits
BINS = viz.load("metrics.calibration_error").BINS
temperatures = viz.load("metrics.temperature")
COLDEST, HOTTEST, fit_temperature = temperatures.COLDEST, temperatures.HOTTEST, temperatures.fit_temperature
InputError = viz.load("common.errors").InputError
even_logits, gradient = gradients.even_logits, gradients.gradient
losses = Subproject("Deit").load("maxsup_loss")
LabelSmoothingLoss, LogitPenaltyLoss, MaxSupLoss = losses.LabelSmoothingLoss, losses.LogitPenaltyLoss, losses.MaxSupLoss


def measure(logits, labels, index, temperature, score):
    """The metrics and the AURC of each ranking for some rows at a temperature; and the bins of the reliability diagram."""
    found, bins = temperatures.at_temperature(logits, labels, index, temperature)
    return found | rankings_at(logits, labels, index, temperature, score), bins


def sample(n=2000, classes=6, temperature=1.0, seed=0):
    """Labels drawn from the softmax of logits, and these logits multiplied by `temperature`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return temperature * logits, labels


def everything(labels):
    return torch.arange(len(labels))


# ---------------------------------------------------------------------------------------------------- temperature


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_a_planted_temperature_is_found(temperature):
    logits, labels = sample(20_000, temperature=temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)  # 1 / sqrt(20,000) is 0.7 %


def test_the_temperature_is_the_minimum_of_the_nll():
    logits, labels = sample(500, temperature=1.7)
    index = torch.arange(0, 500, 3)  # only some rows
    best = fit_temperature(logits, labels, index)
    z, y = logits[index].double().requires_grad_(), labels[index]
    t = torch.tensor(best, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(F.cross_entropy(z / t, y), t)
    assert slope.item() == pytest.approx(0, abs=1e-8)
    nll = {factor: F.cross_entropy(z / (best * factor), y).item() for factor in (0.1, 0.9, 0.99, 1, 1.01, 1.1, 10)}
    assert min(nll, key=nll.get) == 1


def test_a_temperature_without_a_minimum_ends_with_the_range():
    logits, _ = sample(200)
    assert fit_temperature(logits, logits.argmax(1)) == COLDEST  # all are right: colder is always better
    assert fit_temperature(logits, logits.argmin(1)) == HOTTEST
    assert fit_temperature(torch.zeros(200, 6), logits.argmax(1)) == HOTTEST  # the NLL is the same at every temperature


# --------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_figures_against_other_libraries(temperature):
    logits, labels = sample(temperature=2.0)
    index = everything(labels)[100:1500]
    ours, bins = measure(logits, labels, index, temperature, "s_2")
    z, y = logits[index].double() / temperature, labels[index]
    p = z.softmax(1)
    assert ours["nll"] == pytest.approx(log_loss(y, p.numpy()), abs=1e-12)
    one_vs_rest = [brier_score_loss(y == k, p[:, k].numpy()) for k in range(6)]
    assert ours["brier"] == pytest.approx(sum(one_vs_rest), abs=1e-12)
    ece = MulticlassCalibrationError(6, n_bins=BINS, norm="l1")(p, y).item()
    assert ours["ece"] == pytest.approx(ece, abs=1e-6)  # torchmetrics computes in float32
    classwise = 0
    for k, b in itertools.product(range(6), range(BINS)):
        inside = (p[:, k] > b / BINS) & (p[:, k] <= (b + 1) / BINS)
        classwise += (p[inside, k].sum() - (y[inside] == k).sum()).abs().item() / len(y) / 6
    assert ours["classwise_ece"] == pytest.approx(classwise, abs=1e-12)
    confidence, right = p.amax(1), p.argmax(1) == y
    assert ours["aurc_msp"] == pytest.approx(oracles.aurc(confidence, right), abs=1e-12)
    assert ours["aurc_max_logit"] == pytest.approx(oracles.aurc(z.amax(1), right), abs=1e-12)
    centred = z - z.mean(1, keepdim=True)
    assert ours["aurc_best_s_p"] == pytest.approx(oracles.aurc(centred.amax(1) / centred.norm(dim=1), right), abs=1e-12)
    which = np.digitize(confidence.numpy(), np.arange(1, BINS) / BINS, right=True)
    expected = [[(which == b).sum(), confidence[which == b].sum(), right[which == b].sum()] for b in range(BINS)]
    np.testing.assert_allclose(bins, np.array(expected), atol=1e-9)


def test_the_temperature_is_scored_on_what_did_not_choose_it():
    logits, labels = sample(600, temperature=2.0)
    result = calibrate(logits, labels, 0.25, 3, seed=1, name="a")
    held_out = torch.from_numpy(splits(600, 0.25, 3, 1))
    before, after = [], []
    for held, temperature in zip(held_out.T, result["temperatures"], strict=True):
        assert temperature == pytest.approx(fit_temperature(logits[held], labels[held]))
        z, y = logits[~held].double(), labels[~held]
        before.append(F.cross_entropy(z, y).item())
        after.append(F.cross_entropy(z / temperature, y).item())
    assert result["before"]["nll"] == pytest.approx(np.mean(before))
    assert result["after"]["nll"] == pytest.approx(np.mean(after)) and result["held_out_images"] == 150
    assert result["bins"][:, :, 0].sum(1).tolist() == [1350, 1350]


def test_splits_without_a_temperature_are_left_out(monkeypatch):
    """Two of 60 predictions are wrong, with the label second. A split that holds out neither would fit the smallest T allowed."""
    logits, labels = sample(60)
    labels = logits.argmax(1)
    labels[:2] = logits[:2].argsort(1)[:, -2]
    held_out = np.zeros((60, 3), bool)
    for split, rows in enumerate((range(20), range(20, 40), [*range(2), *range(40, 58)])):
        held_out[list(rows), split] = True
    expected = [fit_temperature(logits[held], labels[held]) for held in torch.from_numpy(held_out.T)]
    assert expected[1] == COLDEST and COLDEST < min(expected[0], expected[2])
    found = temperatures.temper(logits, labels, torch.from_numpy(held_out.T))
    assert found.temperatures == pytest.approx(expected[::2]) and "in 1 of 3 splits, which are omitted" in found.note
    assert found.held_out.T.tolist() == held_out[:, ::2].tolist() and found.msp.shape == found.nll.shape == (2, 60)
    monkeypatch.setattr(viz.load("metrics.calibration"), "splits", lambda *_: held_out)
    result = calibrate(logits, labels, 1 / 3, 3, seed=0, name="a")
    assert result["temperatures"] == pytest.approx(expected[::2]) and len(result["chosen"]) == 2
    nll = [
        F.cross_entropy(logits[~held].double() / t, labels[~held]).item() for held, t in zip(held_out.T, expected, strict=True)
    ]
    assert result["after"]["nll"] == pytest.approx((nll[0] + nll[2]) / 2) and result["bins"][1, :, 0].sum() == 80
    assert any("in 1 of 3 splits, which are omitted" in note for note in result["notes"])


def test_what_a_temperature_does_to_the_ranking():
    """It leaves the AURC of max logit and of normalised logits unchanged, and changes that of MSP."""
    logits, labels = sample(3000, temperature=4.0)
    result = calibrate(logits, labels, 0.2, 2, seed=0, name="a")
    assert min(result["temperatures"]) > 3.5
    for score in ("max_logit", "best_s_p"):
        assert result["after"][f"aurc_{score}"] == pytest.approx(result["before"][f"aurc_{score}"], abs=1e-14)
    assert abs(result["after"]["aurc_msp"] - result["before"]["aurc_msp"]) > 1e-4
    assert result["after"]["ece"] < 0.03 < 0.1 < result["before"]["ece"]


def test_the_calibration_command(tmp_path):
    for name, temperature in {"ce": 2.0, "ls": 0.5}.items():
        torch.save(dict(zip(("logits", "labels"), sample(400, temperature=temperature), strict=True)), tmp_path / f"{name}.pt")
    words = ["--input", tmp_path / "ce.pt", tmp_path / "ls.pt", "--names", "CE", "LS", "--output", tmp_path / "out"]
    result = run(ROOT / "viz/calibration.py", *words, "--repeats", 2)
    assert result.returncode == 0, result.stderr
    models = json.loads((tmp_path / "out/summary.json").read_text())["models"]
    assert list(models) == ["CE", "LS"] and "CE: T and p are chosen on 80 held-out images" in result.stderr
    for name, temperature in {"CE": 2.0, "LS": 0.5}.items():
        assert np.mean(models[name]["temperatures"]) == pytest.approx(temperature, rel=0.25)
        pair = [f"{models[name][when]['nll']:.4f}" for when in ("before", "after")]
        assert " | ".join(pair) in (tmp_path / "out/summary.md").read_text() and "  ".join(pair) in result.stdout
    pixels = matplotlib.image.imread(tmp_path / "out/reliability.png")
    assert min(pixels.shape[:2]) > 500 and pixels.std() > 0.02
    assert (tmp_path / "out/reliability.pdf").read_bytes().startswith(b"%PDF")


def test_calibration_of_all_right_all_wrong_and_constant(tmp_path, monkeypatch):
    logits, _ = sample(150)
    kinds = {"right": (logits, logits.argmax(1)), "wrong": (logits, logits.argmin(1)), "constant": (0 * logits, logits.argmax(1))}
    for name, (z, y) in kinds.items():
        torch.save({"logits": z, "labels": y}, tmp_path / f"{name}.pt")
    files = [str(tmp_path / f"{name}.pt") for name in kinds]
    words = ["calibration.py", "--input", *files, "--repeats", "2", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    calibration.main()
    text = (tmp_path / "out/summary.json").read_text()
    rows = json.loads(text)["models"]
    assert "NaN" not in text and "Infinity" not in text
    assert rows["right"]["temperatures"] == [COLDEST] * 2 and rows["wrong"]["temperatures"] == [HOTTEST] * 2
    assert rows["right"]["before"]["aurc_msp"] == 0 and rows["wrong"]["before"]["aurc_msp"] == pytest.approx(1)
    assert "right: the NLL falls up to the end of the range" in (tmp_path / "out/summary.md").read_text()


def test_of_two_classes_no_p_is_chosen():
    logits, labels = sample(100)
    (note, *_) = calibrate(logits[:, :2], labels % 2, 0.2, 2, seed=0, name="a")["notes"]
    assert note.startswith("T is chosen on 20 held-out images")


def test_calibration_says_what_is_wrong(tmp_path, monkeypatch):
    logits, labels = sample(100)
    torch.save({"logits": logits, "labels": labels}, tmp_path / "a.pt")
    torch.save({"logits": logits[:, :, None, None], "labels": labels[:, None, None]}, tmp_path / "maps.pt")

    def refused(match, *words):
        monkeypatch.setattr(sys, "argv", ["calibration.py", *map(str, words), "--output", str(tmp_path / "out")])
        with pytest.raises(InputError, match=match):
            calibration.main()

    refused("none.pt: no such logits file", "--input", tmp_path / "none.pt")
    refused(r"not \(N, K\) floating point", "--input", tmp_path / "maps.pt")
    refused("--val-fraction 0: a number from", "--input", tmp_path / "a.pt", "--val-fraction", 0)
    refused("a: 0.001 of 100 images, the share to hold out", "--input", tmp_path / "a.pt", "--val-fraction", 0.001)
    (tmp_path / "out").write_text("")
    refused("cannot be written", "--input", tmp_path / "a.pt", "--repeats", 1)


# ----------------------------------------------------------------------------------------------------- suppression


@pytest.mark.parametrize("classes", [3, 10, 1000])
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("loss", gradients.LOSSES)
def test_the_maps_against_the_gradient_of_the_losses(loss, right, classes):
    """They equal the gradient of maxsup_loss.py's loss minus that of cross-entropy, at logits of the stated form."""
    alpha, beta = 0.15, 3e-3
    criterion = {"ls": LabelSmoothingLoss(alpha), "maxsup": MaxSupLoss(alpha), "logit-penalty": LogitPenaltyLoss(beta)}[loss]
    for msp in (1 / classes + 0.01, 0.5, 0.999):
        top = float(even_logits(np.array(msp), classes))
        z = torch.full((1, classes), -top / (classes - 1), dtype=torch.float64)
        z[0, 1] = top
        assert z.softmax(1)[0, 1].item() == pytest.approx(msp) and z.mean().item() == pytest.approx(0, abs=1e-12)
        z.requires_grad_()
        target = torch.tensor([1 if right else 2])
        (added,) = torch.autograd.grad(criterion(z, target) - F.cross_entropy(z, target), z)
        index = {"max": 1, "target": int(target), "other": 0}
        ours = {logit: gradient(loss, np.array([msp]), right, logit, classes, alpha, beta)[0] for logit in index}
        # LogitPenaltyLoss squares in float32; everything else is float64.
        expected = {logit: added[0, which].item() for logit, which in index.items()}
        assert ours == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_who_is_held_down():
    """Label smoothing suppresses the largest logit only if it is the target's; MaxSup always does, by the same amount."""
    msp = np.array([0.3, 0.9])
    assert (gradient("ls", msp, True, "max", 10) > 0).all() and (gradient("ls", msp, False, "max", 10) < 0).all()
    assert (gradient("ls", msp, False, "target", 10) > 0).all()
    for right in (True, False):
        assert (gradient("maxsup", msp, right, "max", 10) == gradient("ls", msp, True, "max", 10)).all()
        assert np.diff(gradient("logit-penalty", msp, right, "max", 10)) > 0  # grows with the confidence


def test_the_suppression_command(tmp_path, monkeypatch):
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["suppression.py", "--output", str(tmp_path), *words])
        suppression.main()

    command("--classes", "10", "100", "--alpha", "0.2")
    assert matplotlib.image.imread(tmp_path / "suppression.png").std() > 0.1
    assert (tmp_path / "suppression.pdf").read_bytes().startswith(b"%PDF")
    for words, match in {("--alpha", "nan"): "--alpha nan: a number from", ("--beta", "0"): "--beta 0: "}.items():
        with pytest.raises(InputError, match=match):
            command(*words)
    complains(run(ROOT / "viz/suppression.py", "--output", tmp_path, "--classes", 2), "--classes 2: a number from 3")
