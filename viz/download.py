"""Download the checkpoints that the papers released, with resumption, and print the scores that they should reach.

    python viz/download.py --list
    python viz/download.py resnet50                        # into checkpoints/resnet50/
    python viz/download.py selective --files '*imagenet*'

The host lists the files of a release; a file that is already complete is not downloaded again. HF_ENDPOINT and GITHUB_API_URL
select other hosts (mirrors).
"""

import fnmatch
import hashlib
import json
import os
import urllib.request
from pathlib import Path
from typing import NamedTuple

from common import errors, options
from common.errors import InputError, printable, reason

from tqdm import tqdm

WEIGHTS = ("*.pth", "*.pt", "*.ckpt", "*.safetensors", "*.bin", "*.th", "*.tar", "*params.json")
TIMEOUT = 30  # seconds without an answer
PIECE = 1 << 20  # bytes written at a time
LONGEST_ANSWER = 1 << 24  # maximum bytes of a list of files


class Release(NamedTuple):
    repository: str
    what: str
    expected: str  # numbers that the papers report
    tag: str | None = None  # of a release on GitHub; None: a repository on the Hugging Face Hub


TABLES = """MaxSup repository, Tables 1 and 2 (ResNet-50 on ImageNet-1K): intra-class variation and inter-class separability
(train / val each), linear transfer to CIFAR-10 in %:
  CE                      0.3114 / 0.3313   0.4025 / 0.4451   81.43
  label smoothing         0.2632 / 0.2543   0.4690 / 0.4611   74.58
  online label smoothing  0.2707 / 0.2820   0.5943 / 0.5708
  Zipf's label smoothing  0.2611 / 0.2932   0.5522 / 0.4790
  MaxSup                  0.2926 / 0.2998   0.5188 / 0.4972   81.02"""

RELEASES = {
    "resnet50": Release(
        "zhouyuxuanyx/MaxSup-Regularized-ResNet50", "ResNet-50 on ImageNet-1K, MaxSup paper (arXiv:2502.15798)", TABLES
    ),
    "deit-small": Release(
        "ZhouYuxuanYX/Maximum-Suppression-Regularization",
        "DeiT-Small on ImageNet-1K, MaxSup paper (arXiv:2502.15798)",
        "no figures for this model are recorded here; see the paper",
        tag="checkpoint_deit",
    ),
    "selective": Release(
        "ENSTA-U2IS/Label-smoothing-Selective-classification",
        "models at several strengths of label smoothing, Lightning checkpoints (Xia et al., ICLR 2025, arXiv:2403.14715)",
        "the paper's figures are curves: more label smoothing, worse AURC; logit normalisation helps (viz/selective.py)",
    ),
}


def main() -> None:
    parser = options.parser("Download the checkpoints that the papers released.")
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"release to download: {', '.join(RELEASES)}")
    parser.add_argument(
        "--list", action="store_true", help="list the releases and the numbers that the papers report; needs no network"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("checkpoints"), help="folder in which each release gets its own folder"
    )
    parser.add_argument("--files", default="*", metavar="PATTERN", help="download only the files whose names match this pattern")
    args = parser.parse_args()
    if args.list or args.name is None:
        for name, release in RELEASES.items():
            place = f"{'github' if release.tag else 'hub'} {release.repository}"
            print(f"{name}: {release.what}\n{place} -> {printable(args.output / name)}/\n{release.expected}\n")
        return
    if args.name not in RELEASES:
        raise InputError(f"{args.name}: no such release; there are {', '.join(RELEASES)}")
    release, folder = RELEASES[args.name], args.output / args.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetch = fetch_from_github if release.tag else fetch_from_hub
        for path in fetch(release, args.files, folder):
            errors.say(f"{path}  {path.stat().st_size / 1e6:,.1f} MB")
    except InputError:
        raise
    except Exception as error:  # the hub's client has used several HTTP libraries, each with its own exceptions
        why = reason(getattr(error, "reason", None) or error)
        raise InputError(f"{release.repository}: not fetched ({why}); the same command goes on where this one stopped")
    print(release.expected)


def chosen(names: list[str], pattern: str, release: Release) -> list[str]:
    """The weight files of a release that match the pattern. Raises InputError if there are none or a name is unsafe."""
    found = [name for name in names if any(fnmatch.fnmatch(name.lower(), kind) for kind in WEIGHTS)]
    matching = [name for name in found if fnmatch.fnmatch(name, pattern)]
    if not matching:
        listed = ", ".join((found or names)[:6]) or "nothing"
        raise InputError(f"{release.repository}: no weights match --files {pattern!r}; it holds {listed}")
    for name in matching:
        if name != os.path.normpath(name) or name.startswith(("/", "..")) or "\\" in name or not name.isprintable():
            raise InputError(f"{release.repository}: {name!r} is not a valid file name")
    return matching


def fetch_from_hub(release: Release, pattern: str, folder: Path):
    """Yield the path of each file once it is downloaded; huggingface_hub resumes downloads and shows progress."""
    from huggingface_hub import HfApi, hf_hub_download, logging

    endpoint = os.environ.get("HF_ENDPOINT")
    logging.set_verbosity_error()  # it announces every retry
    found = HfApi(endpoint=endpoint).model_info(release.repository, timeout=TIMEOUT, files_metadata=True).siblings or []
    digests = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in found}
    for name in chosen(list(digests), pattern, release):
        path = Path(hf_hub_download(release.repository, name, local_dir=folder, endpoint=endpoint))
        yield verified(path, digests[name])


def fetch_from_github(release: Release, pattern: str, folder: Path):
    """Yield the path of each file of a release once it is downloaded."""
    api = os.environ.get("GITHUB_API_URL", "https://api.github.com")
    with open_url(f"{api}/repos/{release.repository}/releases/tags/{release.tag}") as answer:
        try:
            assets = {row["name"]: row for row in json.loads(answer.read(LONGEST_ANSWER))["assets"]}
            facts = {name: (row["browser_download_url"], int(row["size"])) for name, row in assets.items()}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{release.repository}: {api} answers with something other than a release")
    for name in chosen(list(assets), pattern, release):
        digest = str(assets[name].get("digest") or "")  # older files have none
        yield verified(download(*facts[name], folder / Path(name).name), digest.removeprefix("sha256:"))


def verified(path: Path, digest: str | None) -> Path:
    """Return the path of a file with the SHA-256 that its host states, if any; remove another file. Raises InputError."""
    if digest:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            path.unlink()
            raise InputError(f"{path}: came with the SHA-256 {found[:12]}..., its host states {digest[:12]}...; it is removed")
    return path


def download(url: str, size: int, path: Path) -> Path:
    """Download a file of known size (bytes) under a temporary name, resuming a partial download; rename it when complete."""
    if path.exists() and path.stat().st_size == size:
        return path
    part = path.with_name(f"{path.name}.part")
    start = part.stat().st_size if part.exists() else 0
    with open_url(url, {"Range": f"bytes={start}-"} if 0 < start < size else {}) as answer:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # a host that cannot resume sends the whole file
        bar = tqdm(total=size, initial=start, desc=path.name, unit="B", unit_scale=True, leave=False, disable=None)
        with open(part, "ab" if start else "wb") as file, bar:
            while file.tell() <= size and (piece := answer.read(PIECE)):
                file.write(piece)
                bar.update(len(piece))
    came = part.stat().st_size
    if came > size:
        part.unlink()
        raise InputError(f"{path.name}: more than the {size:,} bytes came that its host states")
    if came < size:
        raise ConnectionError(f"{path.name}: {came:,} of {size:,} bytes came")
    os.replace(part, path)
    return path


def open_url(url: str, headers: dict | None = None):
    if not url.startswith(("https://", "http://")):
        raise InputError(f"{url[:80]}: not a web address")
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=TIMEOUT)


if __name__ == "__main__":
    errors.run(main)
