"""Every subproject is a folder of plain scripts; tests import from them by path, and run commands as a user would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Deit/ first: what Conv/common_resnet has under the same names is the same file, or not imported by the tests.
sys.path[:0] = [str(ROOT / folder) for folder in ("Deit", "viz", "Conv/common_resnet", "results")]
# Two cores, small tensors: more threads only wait for one another. Set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def run(*command: object, cwd: Path = ROOT, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a command of the project with this interpreter's environment and return what it printed."""
    words = [str(word) for word in command]
    if words[0].endswith(".py"):
        words.insert(0, sys.executable)
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=timeout)


def complains(result: subprocess.CompletedProcess, *pieces: str) -> str:
    """Assert that a command failed with one line on stderr, without a traceback, that holds all the pieces."""
    assert result.returncode != 0, result.stdout
    assert "Traceback" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    for piece in pieces:
        assert piece in lines[0], lines[0]
    return lines[0]


@pytest.fixture(scope="session")
def parity(tmp_path_factory) -> Path:
    """The digits as an image folder of two classes, even and odd."""
    folder = tmp_path_factory.mktemp("data") / "parity"
    result = run(ROOT / "data/digits/prepare.py", "--labels", "parity", "--output", folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def few(parity, tmp_path_factory):
    """64 training and 33 validation digits: one step of 64 is an epoch, and 33 do not divide among two processes."""
    folder = tmp_path_factory.mktemp("data") / "few"
    for split, counts in {"train": (32, 32), "val": (17, 16)}.items():
        for name, count in zip(("even", "odd"), counts):
            (folder / split / name).mkdir(parents=True)
            for image in sorted((parity / split / name).iterdir())[:count]:
                shutil.copy(image, folder / split / name)
    return folder


@pytest.fixture(scope="session")
def ten(tmp_path_factory) -> Path:
    """The digits as an image folder of ten classes."""
    folder = tmp_path_factory.mktemp("data") / "ten"
    assert run(ROOT / "data/digits/prepare.py", "--output", folder).returncode == 0
    return folder


@pytest.fixture(scope="session")
def ffcv_files(few, tmp_path_factory):
    """The few digits as raw .ffcv files, written by two processes."""
    folder = tmp_path_factory.mktemp("ffcv")
    environment = {**os.environ, "IMAGENET_DIR": str(few), "WRITE_DIR": str(folder), "PYTHON": sys.executable}
    words = ["bash", str(ROOT / "Conv/ffcv/write_imagenet.sh"), "500", "0", "90", "--num-workers", "2"]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "64 images of 2 classes" in result.stdout and "33 images of 2 classes" in result.stdout
    assert len(list(folder.iterdir())) == 4
    return folder
