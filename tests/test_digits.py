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


def test_the_first_command_in_small_and_again(tmp_path):
    """3 seeds of 3 epochs: everything is written; a second call measures anew; a run that is gone is made again, the same."""
    job = [ROOT / "results/quick.py", "--seeds", 3, "--epochs", 3, "--output", tmp_path]
    result = run(*job)
    assert result.returncode == 0, result.stderr
    assert "| MaxSup 0.1-0.2 | 3 |" in result.stdout and "results/README.md" in result.stdout
    assert not any(word in result.stdout for word in ("supported", "contradicted", "cannot be told"))
    for figure in ("features/projection.png", "analysis/near_zero_histogram.png", "analysis/near_zero_scatter.png"):
        assert Image.open(tmp_path / figure).size[0] > 1000
    first = json.loads((tmp_path / "summary.json").read_text())["runs"]
    assert len({metrics["nll"] for seeds in first.values() for metrics in seeds.values()}) == 9  # every run is another
    assert all(10 < metrics["transfer"] <= 100 for seeds in first.values() for metrics in seeds.values())
    kept = (tmp_path / "parity/CE-seed1/checkpoint.pth").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "parity/LS-0.1-seed2")
    result = run(*job)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "parity/CE-seed1/checkpoint.pth").stat().st_mtime_ns == kept
    assert json.loads((tmp_path / "summary.json").read_text())["runs"] == first
    complains(run(*job[:3], "--epochs", 4, "--output", tmp_path), "another recipe")
    complains(run(job[0], "--seeds", 2, "--output", tmp_path), "at least 3")


def test_trainers_of_a_killed_command_are_waited_for(tmp_path):
    """SIGKILL to the command alone: its trainers end by themselves, and the same command trains none of them twice."""
    words = [sys.executable, ROOT / "results/quick.py", "--epochs", 3, "--jobs", 2, "--output", tmp_path]
    job = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while len(list(tmp_path.glob("ten/*/log.jsonl"))) < 1:
        assert job.poll() is None and time.time() < deadline
        time.sleep(0.1)
    started = [Path("/proc", pid) for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]
    assert len(started) > 1
    job.kill()
    job.wait()
    assert run(*words).returncode == 0
    assert not any(process.exists() for process in started)
    for printed in tmp_path.glob("*/*/train.txt"):
        assert printed.read_text().count("epoch   1/3") == 1, printed
