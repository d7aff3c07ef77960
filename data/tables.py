"""Extract a table from its archive and check it: what bank/prepare.py and shoppers/prepare.py share."""

import argparse
import csv
import io
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path

from unpack import InputError, printable, write_whole

MOST_BYTES = 2**28  # a member that claims more is none of these tables


def main(folder: Path, file: str, target: str, rows: int, columns: int, rarest: int) -> None:
    """Command line of a prepare.py: write folder/file from an archive, or check a file that is there.

    target: column to predict. rows, columns, rarest: what the table must have; the last is the size of the smaller class.
    """
    parser = argparse.ArgumentParser(description=f"Write {file} into its folder, and check it.")
    parser.add_argument("--archive", type=Path, help="the downloaded ZIP file; if omitted: check the existing table")
    parser.add_argument("--root", type=Path, default=folder, help="folder of the table (%(default)s)")
    args = parser.parse_args()
    path = args.root / file
    try:
        content = find(args.archive.read_bytes(), file) if args.archive else path.read_bytes()
        if content is None:
            raise InputError(f"{args.archive}: holds no {file}, not even in an archive inside it")
        said = check(content, args.archive or path, target, rows, columns, rarest)
        if args.archive:
            args.root.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        print(f"{path}: {said}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        sys.exit(f"error: {args.archive}: damaged, or not a ZIP file ({error})")
    except InputError as error:
        sys.exit(f"error: {printable(str(error))}")
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename}: no such file; the README next to this script says where the data come from")
    except OSError as error:
        sys.exit(f"error: {error.filename or path}: {error.strerror}")


def find(archive: bytes, file: str) -> bytes | None:
    """A member of a ZIP archive, or of an archive inside it (the UCI repository nests them), by its name; None if missing."""
    with zipfile.ZipFile(io.BytesIO(archive)) as found:
        for wanted in (lambda name: name.split("/")[-1] == file, lambda name: name.endswith(".zip")):
            for member in filter(lambda info: wanted(info.filename), found.infolist()):
                if member.file_size > MOST_BYTES:
                    raise InputError(f"{member.filename}: {member.file_size:,} bytes are no table")
                content = found.read(member)
                content = find(content, file) if member.filename.endswith(".zip") else content
                if content is not None:
                    return content
    return None


def check(content: bytes, path: Path, target: str, rows: int, columns: int, rarest: int) -> str:
    """A sentence about the table. Raises InputError if it is not the published one."""
    text = content.decode("utf-8-sig", errors="replace")
    delimiter = max(",;", key=text.split("\n", 1)[0].count)
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise InputError(f"{path}: not this table: {error}")
    names, body = (table[0], [row for row in table[1:] if row]) if table else ([], [])
    if target not in names or any(len(row) != len(names) for row in body):
        raise InputError(f"{path}: not this table: no column {target!r}, or rows of different lengths")
    counts = Counter(row[names.index(target)] for row in body)
    found = {
        "rows": len(body),
        "columns": len(names),
        "classes": len(counts),
        "rows of the smaller class": min(counts.values(), default=0),
    }
    expected = dict(zip(found, (rows, columns, 2, rarest), strict=True))
    wrong = [f"{found[key]:,} {key}, not {expected[key]:,}" for key in found if found[key] != expected[key]]
    if wrong:
        raise InputError(f"{path}: not the published table: {'; '.join(wrong)}")
    return f"{rows:,} rows, {columns} columns, {target}: {', '.join(f'{n:,} {name}' for name, n in counts.most_common())}"
