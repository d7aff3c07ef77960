"""data/digits and the main job: the images are scikit-learn's, the statistics scipy's, and the README says what was measured."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits

from conftest import ROOT, complains, run

sys.path.insert(0, str(ROOT / "results"))
import digits_parity

PREPARE = ROOT / "data/digits/prepare.py"


def test_the_folder_holds_the_digits(parity):
    digits = load_digits()
    images = sorted(parity.rglob("*.png"), key=lambda path: int(path.stem.split("_")[1]))
    assert len(images) == 1797
    for index in (0, 1, 700, 1399, 1400, 1796):
        path = images[index]
        assert np.array_equal(np.rint(np.asarray(Image.open(path)) * (16 / 255)), digits.images[index])
        split, name = path.relative_to(parity).parts[:2]
        assert split == ("train" if index < 1400 else "val")
        assert name == ("odd" if digits.target[index] % 2 else "even") and path.name[0] == str(digits.target[index])


def test_prepare_overwrites_nothing(parity, tmp_path):
    complains(run(PREPARE, "--output", parity), "is there already")
    (tmp_path / "file").write_text("")
    complains(run(PREPARE, "--output", tmp_path / "file/x"), "cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_verdicts_are_paired_t_tests():
    numbers = np.random.default_rng(0)
    for shift in (0.0, 5.0, -5.0):
        base = numbers.normal(size=6)
        other = base + shift + 0.5 * numbers.normal(size=6)
        measured = {"A": [{"m": value} for value in other], "B": [{"m": value} for value in base]}
        claim = digits_parity.judge(measured, "A is above B", "m", "A", "B")
        interval = stats.ttest_rel(other, base).confidence_interval(0.95)
        assert claim["interval"] == pytest.approx(list(interval))
        expected = "holds" if interval.low > 0 else "does not hold" if interval.high < 0 else "cannot be told"
        assert claim["verdict"] == expected


def test_the_main_job_in_small_and_again(tmp_path):
    """3 seeds of 1 epoch: everything is written; a second call only measures anew; a run that is gone is made again."""
    job = [ROOT / "results/digits_parity.py", "--seeds", 3, "--epochs", 1, "--output", tmp_path]
    result = run(*job)
    assert result.returncode == 0, result.stderr
    assert "| MaxSup |" in result.stdout and "MaxSup transfers better than LS" in result.stdout
    for figure in ("features.png", "analysis/near_zero_histogram.png", "analysis/near_zero_scatter.png"):
        assert Image.open(tmp_path / figure).size[0] > 1000
    first = json.loads((tmp_path / "summary.json").read_text())
    # The same seed, whatever the loss: the first epoch's images in the same order, and so on; other seeds differ.
    assert len({run["train_top1"] for run in first["runs"]["CE"]}) > 1
    kept = (tmp_path / "ce-seed1/checkpoint.pth").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "ls-seed2")
    result = run(*job)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "ce-seed1/checkpoint.pth").stat().st_mtime_ns == kept
    again = json.loads((tmp_path / "summary.json").read_text())
    for name, rows in first["runs"].items():
        for a, b in zip(rows, again["runs"][name]):
            assert {**a, "seconds": 0} == {**b, "seconds": 0}
    complains(run(*job[:-3], 2, "--output", tmp_path), "another recipe")
    complains(run(job[0], "--seeds", 2, "--output", tmp_path), "at least 3")


def test_the_readme_shows_what_was_measured():
    """Ours in the README is results/digits_parity.json, to the letter, and that is this recipe's."""
    summary = json.loads((ROOT / "results/digits_parity.json").read_text())
    assert digits_parity.markdown(summary) in (ROOT / "README.md").read_text()
    assert summary["recipe"] == " ".join([*digits_parity.RECIPE, "--epochs", "12"])
    rows = summary["runs"]
    assert summary["mean_and_standard_deviation"]["CE"]["aurc"][0] == pytest.approx(np.mean([row["aurc"] for row in rows["CE"]]))
    assert summary["claims"] == [digits_parity.judge(rows, *claim) for claim in digits_parity.CLAIMS]
