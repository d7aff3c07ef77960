"""results/: verdicts against scipy, metrics of a real run, and that every README says what the JSON files say."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.stats import ttest_1samp

import render
import tables
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


def test_training_metrics_are_of_the_images_that_were_trained_on(tmp_path):
    """A long-tailed run: accuracy on its own training images, as the trainer's open_data makes them."""
    words = "--model resnet8 --num-workers 0 --device cpu --epochs 1 --imbalance-ratio 20 --output_dir".split()
    result = run(ROOT / "Conv/common_resnet/train.py", *words, tmp_path)
    assert result.returncode == 0, result.stderr
    command = f"""
import sys; sys.path.insert(0, {str(ROOT / "results")!r})
from argparse import Namespace; from pathlib import Path
import measure; from sources import open_data
path = Path({str(tmp_path / "checkpoint.pth")!r})
state = measure.checkpoint.load(path)
args = Namespace(**{{**state["args"], "device": "cpu"}})
model = measure.create_model(state["args"], 10)
model.load_state_dict(state["model"])
train, _ = open_data(args)
logits, _ = measure.outputs(model.eval(), train)
right = (logits.argmax(1) == train.labels).double().mean().item()
print("FOUND", len(train), 100 * right, measure.measure(path, False)["train_top1"])
"""
    result = run(sys.executable, "-c", command)
    assert result.returncode == 0, result.stderr
    images, expected, found = result.stdout.split("FOUND")[1].split()
    assert int(images) < 600 and float(found) == pytest.approx(float(expected), abs=1e-6)


def test_reproduce_lists_and_refuses():
    listed = run(ROOT / "results/reproduce.py", "--list").stdout
    assert all(name in listed for name in EXPERIMENTS)
    complains(run(ROOT / "results/reproduce.py", "nonsense"), "nonsense", "fashion-coarse")
    complains(run(ROOT / "results/reproduce.py", "--render", "--jobs", 0), "--jobs 0")


TINY = """
WORDS = "--data digits --model resnet8 --width 8 --batch-size 64 --epochs 2 --num-workers 0"
METHODS = {"CE": "--loss ce", "LS 0.2": "--loss ls --alpha 0.2"}
EXPERIMENTS["tiny"] = Experiment("digits", "ten classes", "ResNet-8", WORDS, METHODS, 2, 0.1)
"""


def test_a_killed_reproduction_goes_on(tmp_path):
    """SIGKILL, which leaves runs that go on by themselves: the same command waits for them, and runs nothing twice."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if name.split("/")[0] in ("Conv", "Deit", "data", "results", "viz", "README.md") and (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    with open(tmp_path / "results/experiments.py", "a") as file:
        file.write(TINY)
    command = [sys.executable, tmp_path / "results/reproduce.py", "tiny", "--jobs", 2]
    runs, work = tmp_path / "results/runs/tiny", tmp_path / "output/results/tiny"
    process = subprocess.Popen([str(word) for word in command])
    deadline = time.time() + 200
    while not list(work.glob("*/log.jsonl")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    result = run(*command)
    assert result.returncode == 0, result.stderr
    assert sorted(path.stem for path in runs.iterdir()) == ["CE-seed0", "CE-seed1", "LS-0.2-seed0", "LS-0.2-seed1"]
    for folder in work.iterdir():
        assert (folder / "train.txt").read_text().count("epoch   2/2") == 1 and len(
            (folder / "log.jsonl").read_text().splitlines()
        ) == 2
    content = json.loads((runs / "LS-0.2-seed1.json").read_text())
    assert content["training_seconds"] > 0 and content["measuring_seconds"] > 0 and content["metrics"]["top1"] > 10
    assert "## tiny: digits, ten classes" in (tmp_path / "results/README.md").read_text()


def test_the_pages_are_what_the_json_files_say():
    """Byte for byte: a figure changed by hand, or a run that was not rendered, fails here; so does a table that no page shows."""
    pages = render.rendered()
    for path, text in pages.items():
        assert path.read_text() == text, f"{path}: python results/reproduce.py --render"
    shown = {name for path in pages for name in tables.MARK.findall(path.read_text())}
    assert shown >= {f"results/tables/{path.name}" for path in tables.TABLES.glob("*.json")} | {"results/runs"}


def test_tables_and_blocks():
    table = {"command": "c", "environment": "e", "columns": [["a", ""], ["b", ".2f"], ["n", ",d"]]}
    text = tables.markdown(table | {"rows": [["x", 1.236, 1234], ["y", None, 5]]})
    assert text == "`c`: e.\n\n| a | b | n |\n|---|---:|---:|\n| x | 1.24 | 1,234 |\n| y |  | 5 |\n"
    page = "1\n<!-- results/x.json -->\nold\n<!-- end of results/x.json -->\n2\n"
    new = tables.block(page, "results/x.json", "new\n")
    assert new == page.replace("old", "new") and tables.block(new, "results/x.json", "old\n") == page
    with pytest.raises(ValueError, match="needed once each"):
        tables.block(page, "results/y.json", "")
