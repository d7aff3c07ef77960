"""viz/: the original's two commands on a real checkpoint; the metrics against brute force, scikit-learn and torchmetrics."""

import importlib
import itertools
import json
import math
import os
import sys

import matplotlib.image
import numpy
import pytest
import torch

from conftest import ROOT, complains, run
from oracles import risk_coverage
from subprojects import Subproject

SUBPROJECT = viz = Subproject("viz")
analyse = viz.load("analysis").analyse
figures = viz.load("drawing.logit_panels")
InputError = viz.load("common.errors").InputError
aurc = viz.load("metrics.risk_coverage").aurc
classification = viz.load("metrics.classification").classification
columns = viz.load("metrics.classification").columns
ClassSums, feature_variation = (getattr(viz.load("metrics.variation"), name) for name in ("ClassSums", "feature_variation"))
near_zero = viz.load("metrics.near_zero").near_zero
sampled = viz.load("metrics.samples")
DENSITY_BINS, density, samples, summary = sampled.DENSITY_BINS, sampled.density, sampled.samples, sampled.summary

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


@pytest.fixture
def refused(monkeypatch):
    """Run a script's main in this process and check that it names the mistake in one line."""

    def call(script, match, *words):
        monkeypatch.setattr(sys, "argv", [script, *[str(word) for word in words]])
        with pytest.raises(InputError, match=match) as told:
            importlib.import_module(script).main()
        assert "\n" not in str(told.value)

    return call


def test_the_seeds_two_commands(checkpoint, parity, tmp_path):
    """The logits equal those of the features by hand; the log's metrics are theirs; every figure is a readable image."""
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
    assert measured["nll"] == pytest.approx(last["val_nll"], abs=1e-5) and measured["ece"] == pytest.approx(
        last["val_ece"], abs=1e-5
    )

    result = run(ANALYSIS, "--input", output, "--output", tmp_path / "results")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "results/summary.json").read_text())
    assert summary["logits_labels"]["top1"] == pytest.approx(measured["top1"])
    assert f"{measured['top1']:.2f}" in result.stdout
    for figure in ("near_zero_histogram", "near_zero_scatter", "logit_density", "top_against_mean", "model-logits_labels"):
        pixels = matplotlib.image.imread(tmp_path / "results" / f"{figure}.png")
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.02
        assert (tmp_path / "results" / f"{figure}.pdf").read_bytes().startswith(b"%PDF")


def test_several_inputs_stand_side_by_side(sample, tmp_path, monkeypatch, capsys):
    logits, labels = sample
    for name, scale in {"a": 1, "b": 0.01}.items():
        torch.save(
            {"logits": logits * scale, "labels": labels}, tmp_path / f"{name}.pt", _use_new_zipfile_serialization=name == "a"
        )
    words = ["--input", tmp_path / "a.pt", tmp_path / "b.pt", "--names", "CE", "LS", "--output", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["analysis", *map(str, words)])
    importlib.import_module("analysis").main()
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert list(summary) == ["CE", "LS"] and "| CE | 300 |" in (tmp_path / "out/summary.md").read_text()
    assert capsys.readouterr().out.startswith("model  images  top-1 %")
    assert summary["LS"]["near_zero"] == pytest.approx(((0.01 * logits).abs() < 0.01).float().mean().item())
    assert summary["CE"]["top1"] == summary["LS"]["top1"]


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
    labels = torch.tensor([0] * 9 + [2] * 5 + [5] * 12)  # classes of unequal size, and labels with gaps
    features = torch.randn(26, 6, generator=generator) + 2 * torch.randn(6, 6, generator=generator)[labels]
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    distance = 1 - unit @ unit.T
    means = {(a, b): distance[labels == a][:, labels == b].mean().item() for a in (0, 2, 5) for b in (0, 2, 5)}
    within = sum(means[k, k] for k in (0, 2, 5)) / 3
    total = sum(means.values()) / 9
    expected = {"d_within": within, "d_total": total, "r2": 1 - within / total}
    assert feature_variation(features, labels) == pytest.approx(expected, abs=1e-9)
    passing = ClassSums(7)  # classes 1, 3, 4 and 6 have no sample
    for rows, which in zip(features.split(7), labels.split(7), strict=True):
        passing.add(rows, which)
    assert passing.variation() == pytest.approx(expected, abs=1e-9)
    assert feature_variation(100 * features, labels) == pytest.approx(expected, abs=1e-6)  # rounded to float32 again
    collapsed = torch.eye(3)[torch.tensor([0, 0, 1, 2, 2])]
    found = feature_variation(collapsed, torch.tensor([0, 0, 1, 2, 2]))
    assert found["d_within"] == pytest.approx(0) and found["r2"] == pytest.approx(1)


def test_near_zero_and_confidence_by_hand():
    logits = torch.tensor([[0.005, -0.005, -1.0, 3.0], [0.01, 0.0, 0.0, 0.0]])
    assert near_zero(logits, 0.01).tolist() == [0.5, 0.75]
    msp, right, *_ = columns(torch.tensor([[0.0, math.log(3)]]), torch.tensor([1])).T
    assert msp.item() == pytest.approx(-0.25, abs=1e-7) and right.item() == 1  # log 3 is rounded to float32


# --------------------------------------------------------------------------------- bad input: one line, no traceback


def test_the_parts_of_label_smoothings_term_by_brute_force(sample):
    """They are computed per sample and class as in the MaxSup paper; alpha times their sum is alpha (z_t - mean z)."""
    logits, labels = sample
    rows = samples(logits, labels, 0.01)
    z = logits.double()
    assert torch.equal(samples(z, labels, 0.01).top, rows.top) and torch.equal(z, logits.double())  # float64 is not changed
    for i in (0, 7, 123):
        target = z[i, labels[i]].item()
        below = sum(target - value for value in z[i].tolist() if value < target) / 7
        above = sum(target - value for value in z[i].tolist() if value > target) / 7
        assert rows.regularisation[i].item() == pytest.approx(below, abs=1e-12)
        assert rows.error_enhancement[i].item() == pytest.approx(above, abs=1e-12)
        assert below + above == pytest.approx(target - z[i].mean().item(), abs=1e-12)
    found = summary(rows, 0.1)
    assert found["regularisation"] == pytest.approx(0.1 * rows.regularisation.mean().item())
    ours = classification(logits, labels)
    assert {key: found[key] for key in ours} == pytest.approx(ours, abs=1e-12)
    assert found["near_zero"] == pytest.approx(near_zero(logits, 0.01).mean().item())
    gap = (z.max(1).values - z.mean(1))[logits.argmax(1) != labels].numpy()
    assert found["gap_wrong_mean"] == pytest.approx(gap.mean())
    assert list(found["gap_wrong_quantiles"].values()) == pytest.approx(
        numpy.quantile(gap, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    )
    counts, _ = numpy.histogram(logits.numpy(), DENSITY_BINS, (-4.0, 8.0), density=False)
    # A logit on the edge of two bins may be counted in either: float32 in one library, float64 in the other.
    difference = density(logits, -4.0, 8.0).numpy() * logits.numel() * 12 / DENSITY_BINS - counts
    assert numpy.abs(difference).max() <= 1 + 1e-9


def test_all_right_leaves_the_wrong_undefined(tmp_path):
    logits = torch.eye(3)
    found = analyse({"a/b c": {"logits": logits, "labels": torch.arange(3)}}, 0.01, tmp_path)["a/b c"]
    assert (
        found["gap_wrong_mean"] is None
        and found["gap_wrong_quantiles"] is None
        and found["gap_right_mean"] == pytest.approx(2 / 3)
    )
    assert "| a/b c | 0.667 |" in (tmp_path / "summary.md").read_text() and (tmp_path / "model-a_b_c.png").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["a/b c"]["gap_wrong_mean"] is None


def test_a_large_input_is_drawn_as_a_stated_sample(tmp_path):
    generator = torch.Generator().manual_seed(1)
    content = {"logits": torch.randn(20_000, 5, generator=generator), "labels": torch.randint(5, (20_000,), generator=generator)}
    analyse({"many": content}, 0.01, tmp_path)
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 500_000
    assert figures._drawn(*torch.randn(2, 20_000), torch.ones(20_000))[3] == "5,000 of 20,000 samples"


def test_bad_logits_files(sample, tmp_path):
    load = viz.load("common.logits_file").load

    logits, labels = sample
    nan = logits.clone()
    nan[3, 2] = torch.nan
    files = {
        "a dict with the tensors": [1, 2],
        r"\(300,\) torch.float32, not \(N, K\)": {"logits": logits[:, 0], "labels": labels},
        r"not \(300,\) class indices": {"logits": logits, "labels": labels[:-1]},
        "1 samples have logits that are NaN": {"logits": nan, "labels": labels},
        "labels from 0 to 6, but the classes are 0 to 4": {"logits": logits[:, :5], "labels": labels},
        r"\(0, 7\); at least 1 sample": {"logits": logits[:0], "labels": labels[:0]},
        r"\(300, 1\); at least 1 sample and 2 classes": {"logits": logits[:, :1], "labels": labels * 0},
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


def test_analysis_says_what_is_wrong(sample, tmp_path, refused, monkeypatch):
    logits, labels = sample
    torch.save({"logits": logits, "labels": labels}, tmp_path / "a.pt")
    torch.save({"logits": torch.cat([logits, logits], 1), "labels": labels}, tmp_path / "b.pt")
    out = ["--output", tmp_path / "out"]
    complains(run(ANALYSIS, "--input", tmp_path / "a.pt", tmp_path / "b.pt", *out), "a has 7, b has 14")
    refused("analysis", "no such logits file", "--input", tmp_path / "none.pt", *out)
    refused(
        "measure", "--batch-size: needs images", "--input", tmp_path / "a.pt", "--batch-size", 7, "--output", tmp_path / "m.json"
    )
    words = ["--input", tmp_path / "a.pt", "--figure", "risk_coverage", "--title", "x", *out]
    refused("report", "--title: belongs to the page", *words)
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused("analysis", "runs in one process", "--input", tmp_path / "a.pt", *out)
    monkeypatch.setenv("WORLD_SIZE", "1")
    refused("analysis", "--names: 2 for 1", "--input", tmp_path / "a.pt", "--names", "x", "y", *out)
    refused("analysis", "--threshold nan", "--input", tmp_path / "a.pt", "--threshold", "nan", *out)
    refused("analysis", "--alpha -1", "--input", tmp_path / "a.pt", "--alpha", "-1", *out)
    refused("analysis", "different names", "--input", tmp_path / "a.pt", tmp_path / "a.pt", *out)
    refused("analysis", "cannot be written", "--input", tmp_path / "a.pt", "--output", tmp_path / "a.pt/x")


def test_logits_says_what_is_wrong(checkpoint, parity, tmp_path, refused):
    there = ["--output", tmp_path / "out.pt"]
    (tmp_path / "half.pth").write_bytes(checkpoint.read_bytes()[:5000])
    torch.save({"weights": 1}, tmp_path / "foreign.pth")
    refused("logits", "none.pth: no such checkpoint", "--checkpoint", tmp_path / "none.pth", *there)
    refused("logits", "half.pth: damaged", "--checkpoint", tmp_path / "half.pth", *there)
    refused("logits", "foreign.pth: holds no weights", "--checkpoint", tmp_path / "foreign.pth", *there)
    refused(
        "logits", "nowhere: no such folder or archive", "--checkpoint", checkpoint, "--data-path", tmp_path / "nowhere", *there
    )
    (tmp_path / "data/val/zebra").mkdir(parents=True)
    (tmp_path / "data/val/zebra/a.png").write_bytes(next((parity / "val/odd").iterdir()).read_bytes())
    refused("logits", "its 1 classes are not the 2", "--checkpoint", checkpoint, "--data-path", tmp_path / "data", *there)
    refused("logits", "is one of the files to read", "--checkpoint", checkpoint, "--output", checkpoint, "--overwrite")
    (tmp_path / "there.pt").write_text("mine")
    refused("logits", "there.pt is there already", "--checkpoint", checkpoint, "--output", tmp_path / "there.pt")
    refused("logits", "there.pt/out.pt: cannot be written", "--checkpoint", checkpoint, "--output", tmp_path / "there.pt/out.pt")


def test_commands_say_what_they_do_without_heavy_packages():
    """--help needs only the options, which are defined before the slow imports."""
    names = ", ".join(sorted(path.stem for path in (ROOT / "viz").glob("*.py")))
    heavy = "{'torch', 'numpy', 'matplotlib', 'timm', 'scipy', 'sklearn', 'PIL', 'huggingface_hub'}"
    code = f"import sys; sys.path.insert(0, 'viz'); import {names}; print({heavy} & sys.modules.keys())"
    assert run(sys.executable, "-c", code).stdout == "set()\n"
