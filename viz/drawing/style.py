"""The style of every figure: colours that colour-blind readers can distinguish (Okabe & Ito), one font size, PNG and PDF."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from common.errors import printable
from common.outputs import whole

import matplotlib.pyplot as plt

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000"]
RIGHT, WRONG = COLOURS[0], COLOURS[4]  # predictions
PIXELS = 32  # px: images this small are shown pixel by pixel

plt.rcParams.update(
    {
        "figure.constrained_layout.use": True,
        "figure.dpi": 100,
        "savefig.dpi": 150,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "pdf.fonttype": 42,  # text in PDFs stays text
        "text.parse_math": False,  # a $ in the name of a class or model stays a $
    }
)


def grid(rows: int, columns: int, width: float = 3.6, height: float = 3.2, **options):
    """rows x columns axes. Returns the figure and the list of axes, row by row."""
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, **options)
    return figure, list(axes.flat)


def short(text: str, width: int) -> str:
    """The text on one line of at most `width` characters; a longer one, a single word too, ends with an ellipsis."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def save(figure, path: Path) -> None:
    """Write path.png and path.pdf, each under its final name only when complete, and close the figure."""
    save_one(figure, *(path.with_name(path.name + suffix) for suffix in (".png", ".pdf")))


def save_one(figure, *paths: Path) -> None:
    """Write files in the formats of their suffixes, and close the figure."""
    for path in paths:
        with whole(path) as temporary:
            figure.savefig(temporary)
    plt.close(figure)
