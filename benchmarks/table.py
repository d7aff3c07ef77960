"""What a benchmark prints, and the JSON file that results/ renders pages from (see results/tables.py for its format)."""

import argparse
import json
import os
import platform
import shlex
import sys
from pathlib import Path

# The cores that this process may use, which taskset and clusters limit.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=_file, metavar="FILE", help="also write the table as JSON, as in results/tables/")


def _file(text: str) -> Path:
    """For argparse: checks the folder before minutes of work begin."""
    if not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"{Path(text).parent}: no such folder")
    return Path(text)


def report(environment: str, columns: list[tuple[str, str]], rows: list[list], path: Path | None) -> None:
    """Print a table of (heading, format) columns, and write it to `path` if there is one."""
    cells = [[heading for heading, _ in columns]]
    cells += [["" if v is None else format(v, form) for v, (_, form) in zip(row, columns, strict=True)] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    print(f"{command()}: {environment}")
    for row in cells:
        print(
            "  ".join(cell.rjust(w) if form else cell.ljust(w) for cell, w, (_, form) in zip(row, widths, columns, strict=True))
        )
    sys.stdout.flush()
    if path:
        table = {"command": command(), "environment": environment, "columns": columns, "rows": rows}
        write(path, table)
        print(f"table: {path}")


def write(path: Path, content: dict) -> None:
    """Write a JSON file completely or not at all."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def command() -> str:
    """The command line of this process without --json, with FOLDER and FILE for the paths of images and checkpoint."""
    script, words = Path(sys.argv[0]), sys.argv[1:]
    for option in ("--data-path", "--checkpoint"):
        if option in words[:-1]:
            words[words.index(option) + 1] = "FILE" if option == "--checkpoint" else "FOLDER"
    if "--json" in words[:-1]:
        del words[words.index("--json") : words.index("--json") + 2]
    return shlex.join(["python", f"{script.resolve().parent.name}/{script.name}", *words])


def environment(device: str = "cpu", threads: int | None = None) -> str:
    """The machine and torch in words."""
    import torch

    if device == "cuda":
        where = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
        where = f"{cpu}, {CORES} cores, {threads or torch.get_num_threads()} thread(s)"
    return f"{where}, torch {torch.__version__}"
