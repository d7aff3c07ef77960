"""data/digits and the main job: the images are scikit-learn's, and the job can be killed and goes on."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from conftest import ROOT, complains, run

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


def test_the_main_job_in_small_and_again(tmp_path):
    """3 seeds of 1 epoch: everything is written; a second call only measures anew; a run that is gone is made again."""
    job = [ROOT / "results/digits_parity.py", "--seeds", 3, "--epochs", 1, "--output", tmp_path]
    result = run(*job)
    assert result.returncode == 0, result.stderr
    assert "| MaxSup |" in result.stdout and "MaxSup keeps more linear transfer accuracy than LS" in result.stdout
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


def test_workers_end_when_the_job_is_killed(tmp_path):
    """SIGKILL to the main process alone: what it started must not wait for work for ever."""
    words = [sys.executable, ROOT / "results/digits_parity.py", "--epochs", 500, "--output", tmp_path]
    job = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list(tmp_path.glob("*/log.jsonl")):
        assert job.poll() is None and time.time() < deadline
        time.sleep(0.1)
    started = [Path("/proc", pid) for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]
    assert len(started) > 1
    job.kill()
    job.wait()
    while any(place.exists() for place in started):
        assert time.time() < deadline, "orphans"
        time.sleep(0.1)
