"""Tables: aligned columns for the terminal, with the few numbers that matter and at most 100 characters wide; and Markdown."""

from common.errors import printable

WIDTH = 100
SHORTEST = 6  # characters to which a name may be cut


def table(head: list[str], rows: list[list[str]], names: int = 1) -> str:
    """The rows under their head, the first `names` columns aligned left, the others right.

    If lines would be longer than WIDTH, the columns of names are cut; then the last columns are omitted, and a line names them.
    """
    rows = [[printable(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH:
        longest = max(range(names), key=widths.__getitem__)
        if widths[longest] > SHORTEST:
            widths[longest] -= 1
        else:
            widths.pop()
    lines = []
    for row in rows:
        cells = [cell if len(cell) <= width else f"{cell[: width - 1]}…" for cell, width in zip(row, widths, strict=False)]
        cells = [c.ljust(w) if i < names else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    left_out = [f"not shown: {', '.join(head[len(widths) :])}"] if len(widths) < len(head) else []
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], *left_out]) + "\n"


def markdown(head: list[str], rows: list[list[str]], names: int = 1, text: int = 0) -> str:
    """The same as a Markdown table; the last `text` columns hold words, too."""
    kinds = "|---" * names + "|---:" * (len(head) - names - text) + "|---" * text + "|"
    lines = [f"| {' | '.join(printable(cell).replace('|', '&#124;') for cell in row)} |" for row in [head, *rows]]
    return "\n".join([lines[0], kinds, *lines[1:]]) + "\n"


def number(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:,.{decimals}f}"


def counted(count: int, noun: str) -> str:
    """1 model, 2 models, ..."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
