"""Files of torch.save from any source: read without running code in them, and refused if they are damaged."""

import argparse
import contextlib
import pickle
import re
import warnings
import zipfile
from pathlib import Path

from common.errors import InputError, reason, warn

import torch
from safetensors.torch import load_file
from torch import Tensor

from checkpoints.checksums import verify_checksums

# What checkpoints often hold in addition to the weights: a best accuracy as a NumPy scalar, an output folder as a path.
ASIDE = [f"numpy.{name}" for name in ("dtype", "core.multiarray.scalar", "_core.multiarray.scalar")]
ASIDE += [
    f"pathlib.{module}{name}Path" for module in ("", "_local.") for name in ("Posix", "Windows", "PurePosix", "PureWindows")
]


class Unread:
    """Replaces every object of a type in ASIDE: no NumPy or pathlib object is built from the content of a file."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def read(path: Path, kind: str, memory_map: bool = False, verify: bool = True) -> object:
    """The content of a .pth, .pt, .ckpt, .th or .safetensors file on the CPU; kind: what it is called in messages.

    A file that contains code is refused; the code is not run. Raises InputError; warns if a file has no checksums. verify:
    compare the checksums; without this, the content is good only for a first look.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such {kind}")
    try:
        if verify and not verify_checksums(path):
            warn(f"{path}: a file of its format has no checksums, so damage cannot be noticed")
        if path.suffix == ".safetensors":
            return load_file(path)
        # Old DeiT checkpoints hold the options of their command line as a Namespace, which only carries attributes.
        allowed = torch.serialization.safe_globals([argparse.Namespace, *((Unread, name) for name in ASIDE)])
        with open(path, "rb") as file, allowed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about foreign pickles, which are either refused in one line or read
            if not memory_map or not zipfile.is_zipfile(file):
                return torch.load(path, map_location="cpu", weights_only=True)
            # PyTorch cannot memory-map a file whose name holds bytes that are not valid characters.
            name = path if str(path).isprintable() else f"/dev/fd/{file.fileno()}"
            return torch.load(name, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))  # what the file would have called
        called = found.group(1) if found else "not a pickle of tensors"
        what = f"{path}: refused, it holds more than tensors and plain types ({called}); nothing in it was run"
        mend = "if you trust it, read it with torch.load(..., weights_only=False) and save its weights alone"
        raise InputError(_of_another_kind(path) or (f"{what}; {mend}" if found else what))
    except Exception as error:  # a damaged file can raise any exception
        if other := _of_another_kind(path):
            raise InputError(other)
        raise InputError(f"{path}: damaged, or not a {kind} ({reason(error).removeprefix(f'{path}: ')})")


def _of_another_kind(path: Path) -> str | None:
    """Advice for an intact file that torch.save did not write; None if its kind is not one of the known ones."""
    if path.suffix in (".npz", ".npy", ".csv"):
        return f"{path}: not a file of PyTorch; torch.save({{'logits': ..., 'labels': ...}}, 'x.pt') with tensors writes one"
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return f"{path}: a TorchScript program; torch.save(model.state_dict(), 'x.pth') writes weights, which are read here"
    return None


def is_ordinary(value: object) -> bool:
    """Whether this is a tensor that holds all of its real numbers: not sparse, quantised, complex, without data, or expanded."""
    return (
        isinstance(value, Tensor)
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        and not (value.is_quantized or value.is_complex())
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
