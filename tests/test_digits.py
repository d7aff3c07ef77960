"""data/digits and results/quick.py: the images are scikit-learn's, and a killed command can be continued."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from conftest import ROOT, complains, on_terminal, run, warm
from training import PATIENCE

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


def test_the_first_command_is_killed_goes_on_and_repeats(tmp_path):
    """2 seeds of 3 epochs. After SIGKILL the trainers end by themselves, and the same command repeats none of them and writes all
    results. A third call, at a terminal, measures the same numbers again and repeats a run that was deleted."""
    job = [sys.executable, str(ROOT / "results/quick.py"), "--seeds", "2", "--epochs", "3", "--jobs", "2", "--output", tmp_path]
    with open(os.devnull, "w") as nowhere:
        number = warm().start([str(word) for word in job[1:]], ROOT, nowhere, nowhere)
    deadline = time.time() + PATIENCE
    while not list(tmp_path.glob("ten/*/log.jsonl")):
        assert Path(f"/proc/{number}").exists() and time.time() < deadline
        time.sleep(0.1)
    started = [Path("/proc", pid) for pid in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
    assert len(started) > 1
    os.kill(number, signal.SIGKILL)
    assert warm().wait() == -signal.SIGKILL
    result = run(*job, timeout=900)
    assert result.returncode == 0, result.stderr
    assert not any(trainer.exists() for trainer in started)
    printed = list(tmp_path.glob("*/*/train.txt"))
    assert len(printed) == 9 and all(file.read_text().count("epoch   1/3") == 1 for file in printed)
    printed = result.stdout.splitlines()
    (start,) = (index for index, line in enumerate(printed) if line.startswith("method"))
    table = printed[start : start + 5]
    assert {len(line) for line in table} == {len(table[0])} and len(table[0]) <= 100
    assert [line.split("  ")[0] for line in table[2:]] == ["CE", "LS 0.1", "MaxSup 0.1-0.2"]
    assert "results/README.md" in result.stdout and printed[-1] == f"page: {tmp_path}/report/index.html"
    assert not any(word in result.stdout for word in ("supported", "contradicted", "undecided"))
    page, columns = (tmp_path / "report/index.html").read_text(), (tmp_path / "summary.md").read_text()
    for reported in ("The MaxSup paper reports that LS lowers intra-class variation", "selective-classification paper reports"):
        assert reported in page and reported in columns
    assert "results/README.md" in page and "| MaxSup 0.1-0.2 | 2 |" in columns and "train top-1 %" in columns
    for figure in ("features/projection.png", "analysis/near_zero_histogram.png", "analysis/near_zero_scatter.png"):
        assert Image.open(tmp_path / figure).size[0] > 1000
    first = json.loads((tmp_path / "summary.json").read_text())["runs"]
    estimates = json.loads((tmp_path / "report/report.json").read_text())["estimates"]
    for method, seeds in first.items():  # two commands measured the same seeds
        top1, transfer = ([metrics[key] for metrics in seeds.values()] for key in ("top1", "transfer"))
        assert estimates[method]["top1"]["seeds"] == pytest.approx(top1, abs=1e-9)
        assert f"{method} {np.mean(transfer):.2f} ± {np.std(transfer, ddof=1):.2f} %" in page
        (row,) = (line for line in table if line.startswith(method))
        assert f"  {np.mean(top1):.2f} ± {np.std(top1, ddof=1):.2f}  " in row
    assert len({metrics["nll"] for seeds in first.values() for metrics in seeds.values()}) == 6  # every run differs
    assert all(10 < metrics["transfer"] <= 100 for seeds in first.values() for metrics in seeds.values())

    kept = (tmp_path / "parity/CE-seed1/checkpoint.pth").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "parity/LS-0.1-seed1")
    result = on_terminal(*job, timeout=900)
    assert result.returncode == 0, result.stdout
    assert all(f"{bar}: 100%" in result.stdout for bar in ("training 9 models", "measuring and drawing"))
    assert (tmp_path / "parity/CE-seed1/checkpoint.pth").stat().st_mtime_ns == kept
    assert json.loads((tmp_path / "summary.json").read_text())["runs"] == first
    complains(run(*job[:4], "--epochs", 4, "--output", tmp_path), "another recipe")
    complains(run(*job[:3], 1), "at least 2")


def test_a_second_first_command_says_that_it_waits(tmp_path):
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        words = [sys.executable, ROOT / "results/quick.py", "--output", tmp_path]
        second = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        said = second.stdout.readline()
        second.kill()
        second.wait()
    assert said == f"another process is working in {tmp_path}; waiting for it to end\n"
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
