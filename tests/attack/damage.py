"""Hostile inputs: damage to bytes, to lines of text, to values in a tree, and to images.

Each function takes the good input and a random.Random, and returns a short description of the damage and the damaged input. The
description begins with ~ if the damaged input could be another good one: a changed digit in a text, a pixel without a checksum.
"""

import copy
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

HUGE = 10**12


def of_bytes(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage bytes: flipped bits, truncation, a block that is copied, repeated, zeroed or removed, or a false size or offset."""
    size = len(content)
    at, length = rng.randrange(max(size, 1)), min(size, rng.choice((1, 8, 64, 512)))
    other, block = rng.randrange(max(size - length, 1)), content[at : at + length]
    kind = rng.choice("flip flip flips cut cut head swap repeat zero drop lie lie append empty".split())
    if kind in ("flip", "flips"):
        result = bytearray(content)
        for _ in range(1 if kind == "flip" else 16):
            if size:
                result[rng.randrange(size)] ^= 1 << rng.randrange(8)
        return kind, bytes(result)
    if kind == "lie":  # overwrites a number: most formats store lengths and offsets in 2, 4 or 8 bytes
        number = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**63 - 1, size, size - 1))
        packed = struct.pack(rng.choice("<>") + "Q", number)
        packed = packed[: rng.choice((2, 4, 8))] if packed[0] else packed[-rng.choice((2, 4, 8)) :]
        at = rng.choice((at, rng.randrange(min(64, size) or 1), max(0, size - 1 - rng.randrange(64))))
        return f"lie {number:#x} at {at}", content[:at] + packed + content[at + len(packed) :]
    return f"{kind} at {at} of {size}", {
        "cut": content[:at],
        "head": content[at:],
        "swap": content[:other] + block + content[other + length :],
        "repeat": content[:at] + block * 3 + content[at + length :],
        "zero": content[:at] + bytes(len(block)) + content[at + length :],
        "drop": content[:at] + content[at + length :],
        "append": content + content[:length],
        "empty": b"",
    }[kind]


FIELDS = ["", "9" * 5000, "a" * 70000, "[" * 3000, "²", "٣", "é", "\0", "\udcff", "a\rb", "\x1b[2J", "&a [*a]"]
FIELDS += "NaN -1 1e999 true null ../x {} 0x10 1_000 -0 1.5 inf !!python/object:os.system".split()


def of_text(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage text: a line or field that is missing, repeated or replaced, another encoding, or any damage to its bytes."""
    text = content.decode(errors="surrogateescape")
    lines = text.splitlines(keepends=True) or [""]
    row = rng.randrange(len(lines))
    kind = rng.choice(("bytes", "field", "field", "field", "line", "missing", "twice", "moved", "encoding", "ends", "add"))
    if kind == "bytes":
        name, content = of_bytes(content, rng)
        return f"~{name}", content
    if kind == "encoding":
        name = rng.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1"))
        return f"~{name}", text.encode(name, "replace") + (b"\xe9" if name == "latin-1" else b"")
    word = rng.choice(FIELDS)
    if kind == "field":
        for separator in rng.sample(["\t", ";", ",", ": ", " ", "="], 6):
            parts = lines[row].rstrip("\n").split(separator)
            if len(parts) > 1:
                parts[rng.randrange(len(parts))] = word
                lines[row] = separator.join(parts) + "\n"
                break
        else:
            lines[row] = word + "\n"
    elif kind == "line":
        lines[row] = word + "\n"
    elif kind == "add":
        lines.insert(row, word + "\n")
    elif kind == "ends":
        lines = [line.rstrip("\n") + rng.choice(("\r\n", "\r", "\n\n", "")) for line in lines]
    else:
        line = lines.pop(row)
        lines += {"missing": [], "twice": [line, line], "moved": [line]}[kind]
    return f"~{kind} {word[:20]!r} in line {row + 1}", "".join(lines).encode(errors="surrogateescape")


def of_map(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage a class map. It must name every image of its archive once, so a missing or repeated line can be detected."""
    name, content = of_text(content, rng)
    return name.removeprefix("~") if name.startswith(("~missing", "~twice")) else name, content


def values(old: object, plain: bool) -> list:
    """Replacements for a value: other types, numbers out of range, and tensors that are empty, enormous or not finite."""
    nested = []
    for _ in range(200):
        nested = [nested]
    found = [
        None,
        "x",
        -1,
        2**70,
        1.5,
        float("nan"),
        float("inf"),
        True,
        [],
        {},
        [None],
        {"x": 1},
        nested,
        "x" * 100_000,
        ["a", 1],
    ]
    if not plain:
        found += [b"x", (1, 2), {1: 2}, torch.tensor(1), torch.empty(3, device="meta"), torch.zeros(1).expand(HUGE)]
        found += [torch.eye(3).to_sparse(), torch.zeros(0), torch.zeros(2, 3, dtype=torch.complex64)]
    if isinstance(old, torch.Tensor) and old.numel():
        bad = old.clone().flatten()
        bad = bad.double() if not bad.is_floating_point() else bad
        bad[0] = float("nan")
        found += [bad.view_as(old), old.unsqueeze(0), old.flatten()[:-1], old.bool(), old.to(torch.complex64), old.flatten()[:0]]
        found += [torch.zeros(1, dtype=old.dtype).expand(HUGE, *old.shape[1:])]
    return [value for value in found if type(value) is not type(old) or isinstance(old, torch.Tensor) or value != value]


def of_tree(tree: object, rng: random.Random, plain: bool = False) -> tuple[str, object]:
    """Damage a tree of dicts and lists: one value, at any depth, is replaced, removed, or moved to another key."""
    tree = copy.copy(tree)
    where, node, path = None, tree, []
    while isinstance(node, dict | list) and len(node) and (not path or rng.random() < 0.7):
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        child = copy.copy(node[key])
        node[key], where, node = child, node, child
        path.append(key)
    if where is None:
        return "whole", rng.choice(values(tree, plain))
    name = ".".join(map(str, path))
    if rng.random() < 0.15:
        value = where.pop(path[-1])
        if isinstance(where, dict) and rng.random() < 0.3:
            where[rng.choice((7, None, "x"))] = value
        return f"{name} missing", tree
    where[path[-1]] = value = rng.choice(values(node, plain))
    shown = f"{tuple(value.shape)} {value.dtype} {value.device}" if isinstance(value, torch.Tensor) else repr(value)[:30]
    return f"{name} = {shown}", tree


def of_torch(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage a file of torch.save: its bytes, or one value in it."""
    if rng.random() < 0.5:
        return of_bytes(content, rng)
    name, tree = of_tree(torch.load(io.BytesIO(content), weights_only=True), rng)
    file = io.BytesIO()
    torch.save(tree, file, _use_new_zipfile_serialization=rng.random() < 0.9)
    return name, file.getvalue()


def of_json(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage a JSON file, which has one value per line or one value in all: its text, or one value in it."""
    if rng.random() < 0.4:
        return of_text(content, rng)
    lines = content.decode().splitlines()
    by_line = len(lines) > 1 and lines[0].endswith("}")
    row = rng.randrange(len(lines)) if by_line else 0
    name, tree = of_tree(json.loads(lines[row] if by_line else content), rng, plain=True)
    lines = [*lines[:row], json.dumps(tree), *lines[row + 1 :]] if by_line else [json.dumps(tree)]
    return f"line {row + 1}: {name}", "\n".join([*lines, ""]).encode()


def of_zip(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage an archive: its bytes, a name, a header of an entry, an image, or the number of its entries."""
    kind = rng.choice(("bytes", "bytes", "name", "fewer", "method", "header", "count", "picture"))
    if kind == "bytes":
        return of_bytes(content, rng)
    start = content.rindex(b"PK\5\6")
    if kind == "count":
        return kind, content[: start + 8] + struct.pack("<HH", *[rng.choice((0, 1, 3, 0xFFFF))] * 2) + content[start + 12 :]
    if kind in ("header", "method"):  # one byte of a local header or of a directory entry
        signature = rng.choice((b"PK\3\4", b"PK\1\2"))
        starts = [at for at in range(len(content)) if content[at : at + 4] == signature]
        at = rng.choice(starts) + 4 + rng.randrange(26 if signature == b"PK\3\4" else 42)
        return f"{kind} {signature!r} + {at}", content[:at] + bytes([rng.choice((0, 1, 8, 99, 255))]) + content[at + 1 :]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    row = rng.randrange(len(entries))
    name, data = entries[row]
    if kind == "fewer":
        del entries[row]
    elif kind == "picture":
        kind, data = of_picture(data, rng)
        entries[row] = name, data
    else:
        wrong = ["../" + name, "/" + name, name.upper(), name + "\n", name + "/", "other/" + name, "", name[:-3], "\udce9" + name]
        name = rng.choice(
            [*wrong, "é/" + name, name.replace("/", "\\"), "x" * 300 + name, entries[row - 1][0], ".hidden/" + name]
        )
        entries[row] = name, data
    with zipfile.ZipFile(file := io.BytesIO(), "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, data in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name.encode(errors="surrogateescape").decode("latin-1") if "\udce9" in name else name
            archive.writestr(info, data)
    return f"{kind} of entry {row}", file.getvalue()


def of_entries(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage an archive whose images are not decoded: other images with the right checksums are as good."""
    name, content = of_zip(content, rng)
    own = " of entry " in name and not name.startswith(("fewer", "name"))
    return f"~{name}" if own else name, content


def unsealed(damage: Callable) -> Callable:
    """The same damage for a format without checksums, where it may be undetectable."""

    def of_unsealed(content: bytes, rng: random.Random) -> tuple[str, bytes]:
        name, content = damage(content, rng)
        return f"~{name.removeprefix('~')}", content

    return of_unsealed


def of_picture(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage an image: its bytes, its pixel type (with the same content), or the size that it claims."""
    kind = rng.choice(("bytes", "16 bits", "16 bits", "float", "palette", "bomb", "one bit", "text"))
    if kind == "bytes":
        name, content = of_bytes(content, rng)
        return f"~{name}", content
    if kind == "text":
        return kind, b"no picture"
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    if kind == "bomb":  # a PNG that claims 60,000 x 60,000 pixels
        header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
        parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
        return kind, b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    file, grey = io.BytesIO(), np.asarray(picture.convert("L"))
    if kind == "16 bits":
        Image.fromarray(grey.astype(np.uint16) * 257).save(file, "PNG")
    elif kind == "float":
        Image.fromarray(grey.astype(np.float32) / 255).save(file, "TIFF")
    else:
        picture.convert("P" if kind == "palette" else "1").save(file, "PNG")
    return kind if kind in ("16 bits", "float") else f"~{kind}", file.getvalue()
