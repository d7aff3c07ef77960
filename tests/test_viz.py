"""viz/: the seed's two commands on a real checkpoint, and the metrics against brute force, scikit-learn and torchmetrics."""

import itertools
import json
import math
import os

import matplotlib.image
import pytest
import torch
from conftest import ROOT, complains, run
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score
from torchmetrics.classification import MulticlassCalibrationError

from metrics import aurc, classification, confidences, feature_variation, near_zero, risk_coverage

LOGITS, ANALYSIS = ROOT / "viz/logits.py", ROOT / "viz/analysis.py"


@pytest.fixture(scope="module")
def checkpoint(parity, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    words = "--model test_resnet --input-size 16 --epochs 2 --batch-size 64 --recipe-batch 0 --num_workers 0 --device cpu".split()
    words += "--no-aug --no-repeated-aug --opt sgd --lr 0.1 --unscale-lr --warmup-epochs 0".split()
    result = run(ROOT / "Deit/main.py", *words, "--data-path", parity, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    return folder / "checkpoint.pth"


@pytest.fixture(scope="module")
def sample():
    """300 samples of 7 classes with a bias towards the right class; float32, as files hold them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (300,), generator=generator)
    logits = 2 * torch.randn(300, 7, generator=generator)
    logits[torch.arange(300), labels] += 2
    return logits, labels


def test_the_seeds_two_commands(checkpoint, parity, tmp_path):
    """The logits equal a forward pass written here; the log's accuracy is theirs; every figure is a readable picture."""
    output = tmp_path / "logits_labels.pt"
    result = run(LOGITS, "--checkpoint", checkpoint, "--output", output, "--features", "--num-workers", 0)
    assert result.returncode == 0, result.stderr
    content = torch.load(output, weights_only=True)
    logits, labels = content["logits"], content["labels"]
    assert logits.shape == (397, 2) and logits.dtype == torch.float32 and labels.dtype == torch.int64
    assert content["classes"] == ["even", "odd"] and content["features"].shape == (397, 96)
    assert content["paths"] == sorted(str(path.relative_to(parity / "val")) for path in (parity / "val").rglob("*.png"))
    assert labels.tolist() == [int(path.startswith("odd")) for path in content["paths"]]
    state = torch.load(checkpoint, weights_only=True)
    by_hand = content["features"] @ state["model"]["fc.weight"].T + state["model"]["fc.bias"]
    torch.testing.assert_close(logits, by_hand)
    last = json.loads((checkpoint.parent / "log.jsonl").read_text().splitlines()[-1])
    measured = classification(logits, labels)
    assert measured["top1"] == pytest.approx(last["val_top1"]) and f"top-1 {measured['top1']:.2f} %" in result.stdout
    assert measured["nll"] == pytest.approx(last["val_loss"], abs=1e-5) and measured["ece"] == pytest.approx(
        last["val_ece"], abs=1e-5
    )

    result = run(ANALYSIS, "--input", output, "--output", tmp_path / "results")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "results/summary.json").read_text())
    assert summary["logits_labels"]["top1"] == pytest.approx(measured["top1"])
    assert f"{measured['top1']:.2f}" in result.stdout
    for figure in ("near_zero_histogram", "near_zero_scatter"):
        pixels = matplotlib.image.imread(tmp_path / "results" / f"{figure}.png")
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.02
        assert (tmp_path / "results" / f"{figure}.pdf").read_bytes().startswith(b"%PDF")


def test_several_inputs_stand_side_by_side(sample, tmp_path):
    logits, labels = sample
    for name, scale in {"a": 1, "b": 0.01}.items():
        torch.save(
            {"logits": logits * scale, "labels": labels}, tmp_path / f"{name}.pt", _use_new_zipfile_serialization=name == "a"
        )
    result = run(ANALYSIS, "--input", tmp_path / "a.pt", tmp_path / "b.pt", "--names", "CE", "LS", "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert list(summary) == ["CE", "LS"]
    assert summary["LS"]["near_zero"] == pytest.approx(((0.01 * logits).abs() < 0.01).float().mean().item())
    assert summary["CE"]["top1"] == summary["LS"]["top1"]


def test_classification_against_other_libraries(sample):
    logits, labels = sample
    p = logits.double().softmax(1)
    ours = classification(logits, labels)
    assert ours["nll"] == pytest.approx(log_loss(labels, p.numpy()), abs=1e-12)
    assert ours["top1"] == pytest.approx(100 * top_k_accuracy_score(labels, p.numpy(), k=1))
    assert ours["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, p.numpy(), k=5))
    ece = MulticlassCalibrationError(7, n_bins=15, norm="l1")(p, labels).item()
    assert ours["ece"] == pytest.approx(ece, abs=1e-6)  # torchmetrics computes in float32
    one_vs_rest = sum(brier_score_loss(labels == k, p[:, k].numpy()) for k in range(7))
    assert ours["brier"] == pytest.approx(one_vs_rest, abs=1e-12)


def test_aurc_against_all_orders_of_tied_samples():
    confidence = torch.tensor([0.9, 0.7, 0.7, 0.7, 0.5, 0.5])
    right = torch.tensor([True, False, True, True, False, True])
    orders = [
        o for o in itertools.permutations(range(6)) if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(o))
    ]
    assert len(orders) == 12
    curves = [[sum(not right[i] for i in order[:n]) / n for n in range(1, 7)] for order in orders]
    expected = torch.tensor(curves, dtype=torch.float64).mean(0)
    torch.testing.assert_close(risk_coverage(confidence, right), expected)
    assert aurc(confidence, right) == pytest.approx(expected.mean().item())
    shuffled = torch.randperm(6)
    assert aurc(confidence[shuffled], right[shuffled]) == pytest.approx(aurc(confidence, right))


def test_feature_variation_against_all_pairs():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 9 + [2] * 5 + [5] * 12)  # unequal classes, and names with gaps
    features = torch.randn(26, 6, generator=generator) + 2 * torch.randn(6, 6, generator=generator)[labels]
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    distance = 1 - unit @ unit.T
    means = {(a, b): distance[labels == a][:, labels == b].mean().item() for a in (0, 2, 5) for b in (0, 2, 5)}
    within = sum(means[k, k] for k in (0, 2, 5)) / 3
    total = sum(means.values()) / 9
    expected = {"d_within": within, "d_total": total, "r2": 1 - within / total}
    assert feature_variation(features, labels) == pytest.approx(expected, abs=1e-9)
    assert feature_variation(100 * features, labels) == pytest.approx(expected, abs=1e-6)  # rounded to float32 anew
    collapsed = torch.eye(3)[torch.tensor([0, 0, 1, 2, 2])]
    found = feature_variation(collapsed, torch.tensor([0, 0, 1, 2, 2]))
    assert found["d_within"] == pytest.approx(0) and found["r2"] == pytest.approx(1)


def test_near_zero_and_confidence_by_hand():
    logits = torch.tensor([[0.005, -0.005, 1.0, 3.0], [0.01, 0.0, 0.0, 0.0]])
    assert near_zero(logits, 0.01).tolist() == [0.5, 0.75]
    confidence, predicted = confidences(torch.tensor([[0.0, math.log(3)]]))
    assert confidence.item() == pytest.approx(0.75, abs=1e-7) and predicted.item() == 1  # log 3 is rounded to float32


# --------------------------------------------------------------------------------- bad input: one line, no traceback


def test_bad_logits_files(sample, tmp_path):
    from errors import InputError
    from logits_file import load

    logits, labels = sample
    nan = logits.clone()
    nan[3, 2] = torch.nan
    files = {
        "a dict with the tensors": [1, 2],
        r"\(300,\) torch.float32, not \(N, K\)": {"logits": logits[:, 0], "labels": labels},
        "not 300 class indices": {"logits": logits, "labels": labels[:-1]},
        "1 samples have logits that are NaN": {"logits": nan, "labels": labels},
        "labels from 0 to 6, but the classes are 0 to 4": {"logits": logits[:, :5], "labels": labels},
        "0 samples of 7": {"logits": logits[:0], "labels": labels[:0]},
        "300 samples of 1 classes": {"logits": logits[:, :1], "labels": labels * 0},
    }
    for match, content in files.items():
        torch.save(content, tmp_path / "bad.pt")
        with pytest.raises(InputError, match=match):
            load(tmp_path / "bad.pt")
    for content in (b"", b"PK", torch.save):
        if content is torch.save:
            torch.save({"logits": os.system, "labels": labels}, tmp_path / "bad.pt")
        else:
            (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(InputError, match="damaged|refused"):
            load(tmp_path / "bad.pt")


def test_analysis_says_what_is_wrong(sample, tmp_path):
    logits, labels = sample
    torch.save({"logits": logits, "labels": labels}, tmp_path / "a.pt")
    torch.save({"logits": torch.cat([logits, logits], 1), "labels": labels}, tmp_path / "b.pt")
    out = ["--output", tmp_path / "out"]
    complains(run(ANALYSIS, "--input", tmp_path / "none.pt", *out), "no such logits file")
    complains(run(ANALYSIS, "--input", tmp_path / "a.pt", tmp_path / "b.pt", *out), "a has 7, b has 14")
    complains(run(ANALYSIS, "--input", tmp_path / "a.pt", "--names", "x", "y", *out), "--names: 2 for 1")
    complains(run(ANALYSIS, "--input", tmp_path / "a.pt", "--threshold", "nan", *out), "--threshold nan")
    complains(run(ANALYSIS, "--input", tmp_path / "a.pt", tmp_path / "a.pt", *out), "different names")
    complains(run(ANALYSIS, "--input", tmp_path / "a.pt", "--output", tmp_path / "a.pt/x"), "cannot be written")


def test_logits_says_what_is_wrong(checkpoint, parity, tmp_path, monkeypatch):
    import sys

    import logits
    from errors import InputError

    def refused(match, *words):
        monkeypatch.setattr(sys, "argv", ["logits.py", *[str(word) for word in words], "--num-workers", "0"])
        with pytest.raises(InputError, match=match):
            logits.main()

    there = ["--output", tmp_path / "out.pt"]
    (tmp_path / "half.pth").write_bytes(checkpoint.read_bytes()[:5000])
    torch.save({"weights": 1}, tmp_path / "foreign.pth")
    refused("none.pth: no such checkpoint", "--checkpoint", tmp_path / "none.pth", *there)
    refused("half.pth: damaged", "--checkpoint", tmp_path / "half.pth", *there)
    refused("foreign.pth: not a checkpoint of this project", "--checkpoint", tmp_path / "foreign.pth", *there)
    refused("nowhere/val: no such folder", "--checkpoint", checkpoint, "--data-path", tmp_path / "nowhere", *there)
    (tmp_path / "data/val/zebra").mkdir(parents=True)
    (tmp_path / "data/val/zebra/a.png").write_bytes(next((parity / "val/odd").iterdir()).read_bytes())
    refused("its 1 classes are not the 2", "--checkpoint", checkpoint, "--data-path", tmp_path / "data", *there)
    refused("is the checkpoint itself", "--checkpoint", checkpoint, "--output", checkpoint, "--overwrite")
    (tmp_path / "there.pt").write_text("mine")
    refused("there.pt is there already", "--checkpoint", checkpoint, "--output", tmp_path / "there.pt")
    refused("no such folder to write to", "--checkpoint", checkpoint, "--output", tmp_path / "no/out.pt")
