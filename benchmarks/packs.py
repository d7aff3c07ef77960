"""What a machine without network needs for gpu.py: CIFAR-10 and wheels, in folders small enough to be copied one by one."""

import hashlib
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
DATA = TOP / "output/gpu_data"  # where received files are kept
SITE = DATA / "site"  # packages from wheels, for PYTHONPATH
PIECE = 40 * 2**20  # bytes of a part
WHEELS = ("timm",)  # what machines with PyTorch may lack; a wheel is used only where the package does not import


def pack(folder: Path, cifar: Path | None) -> None:
    """Write parts, each with PIECE bytes at most of CIFAR-10's archives and the list of pieces; the first also with wheels."""
    files = sorted(cifar.glob("*")) if cifar else []
    if not {"train.zip", "val.zip"} <= {file.name for file in files}:
        sys.exit("error: --pack needs --data-path FOLDER, which holds train.zip and val.zip of CIFAR-10")
    content, sizes = b"", {}
    for file in (file for file in files if file.suffix in (".zip", ".txt")):
        sizes[file.name] = file.stat().st_size
        content += file.read_bytes()
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    listed = json.dumps({"files": sizes, "pieces": [hashlib.sha256(piece).hexdigest() for piece in pieces]})
    for number, piece in enumerate(pieces):
        part = folder / f"part{number + 1}"
        part.mkdir(parents=True, exist_ok=True)
        (part / f"piece{number}").write_bytes(piece)
        (part / "pieces.json").write_text(listed)
    tested = (TOP / "requirements-tested.txt").read_text()
    wanted = [line for line in tested.split() if line.partition("==")[0] in WHEELS]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    if subprocess.run([*download, folder / "part1", *wanted]).returncode:
        print(f"warning: {' '.join(wanted)} could not be downloaded; the packs hold only the data")
    print(f"{len(pieces)} parts: {folder}/part1 ...; copy each to gpu_packs/ where the GPU is, in one call or one by one")


def receive(packs: Path) -> Path | None:
    """CIFAR-10's folder, made from the pieces in `packs` and those received earlier; None while some are missing."""
    DATA.mkdir(parents=True, exist_ok=True)
    for file in [*packs.glob("part*/piece*"), *packs.glob("part*/*.whl")]:
        if not (DATA / file.name).exists():
            shutil.copy(file, DATA / file.name)
    wheels = [wheel for wheel in DATA.glob("*.whl") if not find_spec(wheel.name.split("-")[0])]
    if wheels and not SITE.exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", SITE]
        subprocess.run([*install, *wheels], check=True)
    if (DATA / "cifar10/val.zip").exists():
        return DATA / "cifar10"
    if not (DATA / "pieces.json").exists():
        return None
    listed = json.loads((DATA / "pieces.json").read_text())
    pieces = [DATA / f"piece{number}" for number in range(len(listed["pieces"]))]
    if not all(piece.exists() for piece in pieces):
        return None
    content = [piece.read_bytes() for piece in pieces]
    for number, (piece, expected) in enumerate(zip(content, listed["pieces"], strict=True)):
        if hashlib.sha256(piece).hexdigest() != expected:
            pieces[number].unlink()
            sys.exit(f"error: piece {number} of the packs is damaged; copy part{number + 1} again")
    whole, start = b"".join(content), 0
    (DATA / "cifar10").mkdir(exist_ok=True)
    for name, size in listed["files"].items():  # val.zip, taken above as the sign that all are there, comes after train.zip
        (DATA / "cifar10" / Path(name).name).write_bytes(whole[start : start + size])
        start += size
    return DATA / "cifar10"
