"""Measured tables: one JSON file each in results/tables/, and the blocks of the READMEs that are rendered from them.

A table is a dict: `command` that measured it, `environment` (machine, versions, sizes), `columns` [[heading, format], ...],
`rows` [[value, ...], ...] of text and numbers. The format is Python's for numbers (".2f"), "" for text.
"""

import os
import re
import textwrap
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
RESULTS = TOP / "results"
TABLES = RESULTS / "tables"
MARK = re.compile(r"<!-- (results/\S+) -->\n")


def markdown(table: dict) -> str:
    """The command and environment of the measurement, and the table itself."""
    formats = [form for _, form in table["columns"]]
    lines = [f"`{table['command']}`: {table['environment']}.", "", f"| {' | '.join(title for title, _ in table['columns'])} |"]
    lines.append(f"|{'|'.join('---:' if form else '---' for form in formats)}|")
    for row in table["rows"]:
        cells = ["" if value is None else format(value, form) for value, form in zip(row, formats, strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def block(text: str, name: str, content: str) -> str:
    """The page `text` with `content` between <!-- name --> and <!-- end of name -->. Raises ValueError for missing marks."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"the marks {start.strip()} and {end.strip()} are needed once each")
    before, rest = text.split(start)
    return before + start + content + end + rest.split(end)[1]


def wrap(text: str) -> str:
    """Fill paragraphs and list items to lines of at most 100 characters; code, headings and table rows stay as they are."""
    lines, paragraph, code = [], [], False
    for line in [*text.split("\n"), "```"]:
        prose = not code and line.strip() and line[0] not in "|#`"
        if paragraph and (not prose or line.startswith("- ")):
            indent = "  " * paragraph[0].startswith("- ")
            words = " ".join(part.strip() for part in paragraph)
            lines += textwrap.wrap(words, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
            paragraph = []
        code ^= line.startswith("```")
        (paragraph if prose else lines).append(line)
    return "\n".join(lines[:-1])


def pages() -> list[Path]:
    """Every page of the project that has a block."""
    found = [TOP / "README.md", *TOP.glob("*/README.md"), *TOP.glob("*/*/README.md")]
    return [page for page in found if MARK.search(page.read_text())]


def write(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)
