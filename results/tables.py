"""Measured tables: a JSON file each in results/tables/, and the blocks of the READMEs that are rendered from them.

A table is a dict: `command` that measured it, `environment` (machine, versions, sizes), `columns` [[heading, format], ...],
`rows` [[value, ...], ...] of text and numbers. The format is Python's for numbers (".2f"), "" for text.
"""

import json
import os
import platform
import re
import shlex
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
TABLES = TOP / "results/tables"
MARK = re.compile(r"<!-- (results/\S+) -->\n")


def add_option(parser) -> None:
    """--json of the benchmarks."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON, as results/tables/ holds it")


def report(environment: str, columns: list[tuple[str, str]], rows: list[list], path: Path | None) -> None:
    """Print a table, and write it to `path` if there is one."""
    table = {"command": command(), "environment": environment, "columns": columns, "rows": rows}
    print(markdown(table), flush=True)
    if path:
        write(path, json.dumps(table, indent=1) + "\n")
        print(f"table: {path}")


def command() -> str:
    """The command line of this process, with FOLDER for where its images lie on this machine."""
    script, words = Path(sys.argv[0]), sys.argv[1:]
    for option in ("--data", "--data-path", "--checkpoint"):
        if option in words[:-1]:
            words[words.index(option) + 1] = "FILE" if option == "--checkpoint" else "FOLDER"
    if "--json" in words[:-1]:
        del words[words.index("--json") : words.index("--json") + 2]
    return shlex.join(["python", f"{script.resolve().parent.name}/{script.name}", *words])


def markdown(table: dict) -> str:
    """What measured it, on what, and the table itself."""
    formats = [form for _, form in table["columns"]]
    lines = [f"`{table['command']}`: {table['environment']}.", "", f"| {' | '.join(title for title, _ in table['columns'])} |"]
    lines.append(f"|{'|'.join('---:' if form else '---' for form in formats)}|")
    for row in table["rows"]:
        cells = ["" if value is None else format(value, form) for value, form in zip(row, formats, strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def environment(device: str = "cpu", threads: int | None = None) -> str:
    """The machine and torch in words."""
    import torch

    if device == "cuda":
        where = torch.cuda.get_device_name()
    else:
        where = f"{cpu_name()}, {os.cpu_count()} cores, {threads or torch.get_num_threads()} thread(s)"
    return f"{where}, torch {torch.__version__}"


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def block(text: str, name: str, content: str) -> str:
    """A page with what stands between <!-- name --> and <!-- end of name --> made anew."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"the marks {start.strip()} and {end.strip()} are needed once each")
    before, rest = text.split(start)
    return before + start + content + end + rest.split(end)[1]


def pages() -> list[Path]:
    """Every page of the project that has a block."""
    places = [TOP / "README.md", *TOP.glob("*/README.md"), *TOP.glob("Conv/*/README.md"), *TOP.glob("data/*/README.md")]
    return [page for page in places if MARK.search(page.read_text())]


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)
