"""What a section of the page is made of: figures, tables and pictures. The template page.html.j2 defines how they look."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from drawing import style
from drawing.panels import Panels

THUMBNAIL = 176  # maximum px of a side: twice the side that a picture has on the page


@dataclass
class Figure:
    """A figure of the page and of figures/NAME.pdf. command: draws only this figure. rows: of pictures, instead of panels; draw:
    makes the matplotlib figure of all these pictures."""

    name: str
    caption: str
    command: str
    panels: Panels | None = None
    rows: list[list["Picture"]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)  # titles of the pictures' columns
    draw: Callable | None = None

    @property
    def svgs(self) -> list[str]:
        return self.panels.svgs(self.name) if self.panels else []

    @property
    def key(self) -> str:
        return self.panels.key(self.name) if self.panels else ""


@dataclass
class Cell:
    """A cell of a table: text, smaller text under it, a share from 0 to 1 as a bar, an interval to draw, or text in bold."""

    text: str
    small: str = ""
    share: float | None = None
    picture: tuple[float, float, float] | None = None  # ends and middle of an interval, -1 to 1
    strong: bool = False


@dataclass
class Table:
    caption: str
    head: list[str]
    rows: list[list[Cell | str]]
    folded: bool = False  # shown on request
    kind: str = ""  # words: the first two columns are text; sides: the second and the last


@dataclass
class Picture:
    """A small picture, as a data: URI ("" if there is none), what it shows in words, and lines under it."""

    source: str
    alt: str
    lines: list[str]
    pixelated: bool = False


@dataclass
class Gallery:
    title: str
    pictures: list[Picture]


@dataclass
class Section:
    """A section of the page. missing: why it cannot be made, or None. numbers: its content in report.json."""

    key: str
    title: str
    intro: str = ""
    terms: list[str] = field(default_factory=list)  # keys of METRICS that the section explains
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: str | None = None
    numbers: object = None


def picture(image: Image.Image, alt: str, lines: list[str]) -> Picture:
    """A thumbnail: lossless if it is small enough to be shown pixel by pixel, else a JPEG."""
    small = max(image.size) <= style.PIXELS
    image = image.convert("RGB")
    if not small:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    kind, buffer = "PNG" if small else "JPEG", io.BytesIO()
    image.save(buffer, kind, **{} if small else {"quality": 85})
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/{kind.lower()};base64,{data}", alt, lines, small)
