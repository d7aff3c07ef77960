"""results/: verdicts against scipy, metrics of a real run, and that every README says what the JSON files say."""

import json
import sys

import numpy as np
import pytest
from scipy.stats import ttest_1samp

import cifar10_first
import render
from conftest import ROOT, complains, run
from experiments import EXPERIMENTS
from verdicts import interval, judge


def test_intervals_are_students():
    values = [0.3, -0.1, 0.25, 0.4, 0.05]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((np.mean(values), expected.low, expected.high), rel=1e-12)


def runs(**methods):
    """runs[method][seed] of metrics m and n."""
    return {name: {seed: {"m": value, "n": 2 * value} for seed, value in enumerate(values)} for name, values in methods.items()}


def test_verdicts_follow_the_interval_alone():
    found = runs(A=[1.0, 1.2, 1.1], B=[0.5, 0.8, 0.6], C=[1.0, 0.1, 2.0])
    claim = {"metric": "m", "higher": "A", "lower": "B"}
    assert judge(claim, found)["verdict"] == "supported" and judge(claim, found)["mean"] == pytest.approx(1.4 / 3)
    assert judge(claim | {"higher": "B", "lower": "A"}, found)["verdict"] == "contradicted"
    assert judge(claim | {"lower": "C"}, found)["verdict"] == "cannot be told"
    assert judge({"metric": "n", "less_metric": "m", "method": "B"}, found)["mean"] == pytest.approx(1.9 / 3)
    slope = {"metric": "m", "slope": {"B": 0, "A": 0.1}}
    assert judge(slope, found)["mean"] == pytest.approx(14 / 3)  # a difference of 1.4 / 3 over 0.1
    assert judge(claim | {"lower": "D"}, found) is None and judge(claim | {"metric": "o"}, found) is None
    assert judge(claim, runs(A=[1.0, 1.2], B=[0.5, 0.8])) is None  # two seeds say nothing of a spread


def test_paired_by_seed_not_by_place():
    """Seeds that only one of the methods has are left out."""
    found = runs(A=[1.0, 2.0, 3.0], B=[0.9, 1.9, 2.9])
    found["B"] = {seed + 1: metrics for seed, metrics in found["B"].items()} | {0: {"m": 0.9, "n": 1}}
    assert judge({"metric": "m", "higher": "A", "lower": "B"}, found)["mean"] == pytest.approx((0.1 + 1.1 + 1.1) / 3)


def test_measuring_a_run(tmp_path):
    """The trainer's log, and features that its classifier turns into the logits."""
    words = "--model resnet8 --num-workers 0 --device cpu --epochs 2 --superclasses --loss ls --output_dir".split()
    result = run(ROOT / "Conv/common_resnet/train.py", *words, tmp_path)
    assert result.returncode == 0, result.stderr
    command = f"""
import sys; sys.path.insert(0, {str(ROOT / "results")!r})
import json; from pathlib import Path; from measure import measure
print("FOUND" + json.dumps(measure(Path({str(tmp_path / "checkpoint.pth")!r}), True)))
"""
    result = run(sys.executable, "-c", command)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.split("FOUND")[1])
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert found["top1"] == pytest.approx(last["val_top1"]) and found["nll"] == pytest.approx(last["val_loss"], abs=1e-5)
    assert found["ece"] == pytest.approx(last["val_ece"], abs=1e-5)
    assert 10 < found["transfer"] <= 100 and 0 < found["d_within_val"] < 1  # chance on ten digits is 10 %
    assert found["error_enhancement"] < 0 < found["regularisation"] and found["maxsup_enhancement"] == 0


def test_reproduce_lists_and_refuses():
    listed = run(ROOT / "results/reproduce.py", "--list").stdout
    assert all(name in listed for name in EXPERIMENTS)
    complains(run(ROOT / "results/reproduce.py", "nonsense"), "nonsense", "fashion-coarse")
    complains(run(ROOT / "results/reproduce.py", "--render", "--jobs", 0), "--jobs 0")


def test_the_pages_are_what_the_json_files_say():
    """Byte for byte: a figure changed by hand, or a run that was not rendered, fails here."""
    found = render.read_runs()
    verdicts = render.judge_all(found)
    assert (ROOT / "results/README.md").read_text() == render.page(found, verdicts)
    readme = (ROOT / "README.md").read_text()
    assert render.MARKS[0] + render.table_of_claims(verdicts, "results/") + render.MARKS[1] in readme
    if cifar10_first.RESULT.exists():
        page = cifar10_first.README.read_text()
        assert cifar10_first.rendered(page, json.loads(cifar10_first.RESULT.read_text())) == page
