"""Every subproject is a folder of plain scripts. Tests import from these folders by path, and run commands as a user would."""

import contextlib
import fcntl
import functools
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from archives import deep_png, jpeg, write_zip
from subprojects import ROOT
from warm import Warm

PREPARE = ROOT / "data/imagenet/prepare.py"
# With two cores and small tensors, more threads only wait for one another. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def run(*command: object, cwd: Path = ROOT, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a command of the project with this interpreter's environment and return what it printed."""
    words = [str(word) for word in command]
    if words[0].endswith(".py"):
        words.insert(0, sys.executable)
    if words[0] == sys.executable and (words[1] == "-m" or words[1].endswith(".py")):
        return warm().run(words[1:], cwd, timeout)
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=timeout)


def on_terminal(*command: object, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a command with all its streams at a terminal, as a user does, so that bars are drawn. `stdout` is all it showed."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    words = [str(word) for word in command]
    shown = b""
    with (
        subprocess.Popen(words, cwd=ROOT, stdin=end, stdout=end, stderr=end) as child,
        open(terminal, "rb", buffering=0) as screen,
    ):
        os.close(end)
        killer = threading.Timer(timeout, child.kill)
        killer.start()
        with contextlib.suppress(OSError):  # EIO: the last process at the terminal has ended
            while piece := screen.read(1 << 16):
                shown += piece
        killer.cancel()
    return subprocess.CompletedProcess(words, child.returncode, shown.decode())


@functools.cache
def warm() -> Warm:
    return Warm()


def prepare(root, *words, **more):
    """Run data/imagenet/prepare.py, assert that it succeeds, and return what it printed."""
    result = run(PREPARE, "--root", root, "--workers", 1, *words, **more)
    assert result.returncode == 0, result.stderr
    return result.stdout


def complains(result: subprocess.CompletedProcess, *pieces: str) -> str:
    """Assert that a command failed without a traceback, and with one error line on stderr that contains all the pieces."""
    assert result.returncode != 0, result.stdout
    assert "Traceback" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    for piece in pieces:
        assert piece in lines[0], lines[0]
    return lines[0]


@pytest.fixture(autouse=True)
def of_one_subproject(request):
    """Run a test with the folder that its module names as SUBPROJECT on the path, as if no other subproject existed."""
    subproject = getattr(request.module, "SUBPROJECT", None)
    with subproject.active() if subproject else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session")
def parity(tmp_path_factory) -> Path:
    """The digits as an image folder of two classes, even and odd."""
    folder = tmp_path_factory.mktemp("data") / "parity"
    result = run(ROOT / "data/digits/prepare.py", "--labels", "parity", "--output", folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def few(parity, tmp_path_factory):
    """64 training and 33 validation digits: one step of 64 is an epoch, and 33 is not divisible by two processes."""
    folder = tmp_path_factory.mktemp("data") / "few"
    for split, counts in {"train": (32, 32), "val": (17, 16)}.items():
        for name, count in zip(("even", "odd"), counts, strict=True):
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
    if not os.environ.get("FFCV_REQUIRED"):
        pytest.importorskip("ffcv", reason="FFCV is not installed; bash Conv/ffcv/install.sh installs it")
    folder = tmp_path_factory.mktemp("ffcv")
    environment = {**os.environ, "IMAGENET_DIR": str(few), "WRITE_DIR": str(folder), "PYTHON": sys.executable}
    words = ["bash", str(ROOT / "Conv/ffcv/write_imagenet.sh"), "500", "0", "90", "--num-workers", "2"]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "64 images of 2 classes" in result.stdout and "33 images of 2 classes" in result.stdout
    assert len(list(folder.iterdir())) == 4
    return folder


@pytest.fixture(scope="session")
def odd(tmp_path_factory):
    """A folder with every kind of file that ImageNet contains, and names that are easy to sort wrongly."""
    folder = tmp_path_factory.mktemp("data") / "odd"
    files = {
        "train/n2/a.JPEG": jpeg(1),
        "train/n2/grey.JPEG": jpeg(2, "L"),
        "train/n2/cmyk.JPEG": jpeg(3, "CMYK"),
        "train/n2/png_under.JPEG": jpeg(4, form="PNG"),
        "train/n10/palette.png": jpeg(5, "P", form="PNG"),
        "train/n10/deep.png": deep_png(),
        "train/n10/alpha.png": jpeg(7, "RGBA", form="PNG"),
        "train/n10/B.jpg": jpeg(8),
        "train/n10/progressive.jpg": jpeg(9, progressive=True, quality=95),
        "train/n10/sub-x/1.jpg": jpeg(10),
        "train/n10/sub/2.jpg": jpeg(11),
        "train/n10-b/x.jpg": jpeg(12),
        "train/Übung/é.jpg": jpeg(13),
        "train/Übung/e.jpg": jpeg(14),
        "train/n2/notes.txt": b"no image",
    }
    files |= {f"val/{name}/{name}.jpg": jpeg(20 + i) for i, name in enumerate(("n2", "n10", "n10-b", "Übung"))}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def odd_zips(odd, tmp_path_factory):
    """The archives and maps of `odd`, in a folder of their own."""
    folder = tmp_path_factory.mktemp("data") / "zips"
    prepare(odd, "--output", folder)
    return folder


@pytest.fixture(scope="session")
def zips(parity, tmp_path_factory):
    """The archives and maps of the even and odd digits."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(parity, "--output", folder)
    return folder


@pytest.fixture
def small_zips(tmp_path):
    """Archives of two classes, with maps, for tests to damage: four training and two validation images."""
    files = {f"train/{name}/{i}.jpg": jpeg(10 * k + i) for k, name in enumerate("ab") for i in range(2)}
    write_zip(tmp_path / "train.zip", files)
    write_zip(tmp_path / "val.zip", {"val/1.jpg": files["train/a/1.jpg"], "val/2.jpg": files["train/b/1.jpg"]})
    (tmp_path / "train_map.txt").write_text("a/0.jpg\t0\na/1.jpg\t0\nb/0.jpg\t1\nb/1.jpg\t1\n")
    (tmp_path / "val_map.txt").write_text("1.jpg\t0\n2.jpg\t1\n")
    return tmp_path
