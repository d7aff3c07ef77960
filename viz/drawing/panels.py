"""A figure of several panels: one image for a paper, or one small SVG per panel for a page, which a phone can stack."""

import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt

from drawing import style

WIDTH, HEIGHT = 3.55, 2.95  # inches of a panel on a page: 341 px, which a phone shows at full size
DOTS = 192  # per inch, of the rasterised scatter plots inside an SVG: twice the pixels of a screen
INK = "#010203"  # stands in an SVG for the colour of the page's text, which differs in dark mode


@dataclass
class Panels:
    """The drawing function of each panel, by a description of what it shows (the text for readers who cannot see it).

    columns: of the whole figure. shared: all panels have the same scales. legend: of the first panel, below the figure, where it
    hides no point.
    """

    parts: dict[str, Callable]
    columns: int
    shared: bool = True
    legend: int = 0  # columns of the legend; 0: none
    legend_title: str | None = None
    title: str = ""
    options: dict | None = None  # of the PNG and PDF: width and height of a panel

    def whole(self):
        """The figure (matplotlib's) and its axes in the order of the parts."""
        rows = -(-len(self.parts) // self.columns)
        figure, axes = style.grid(rows, self.columns, sharex=self.shared, sharey=self.shared, **self.options or {})
        for axis, draw in zip(axes, self.parts.values(), strict=False):
            draw(axis)
            if self.shared:
                axis.label_outer()
        for axis in axes[len(self.parts) :]:
            axis.set_axis_off()
        if self.title:
            figure.suptitle(self.title)
        self._add_legend(figure, axes)
        return figure, axes[: len(self.parts)]

    def save(self, path: Path) -> None:
        """Write path.png and path.pdf."""
        style.save(self.whole()[0], path)

    def svgs(self, salt: str) -> list[str]:
        """An SVG element per panel, on the scales of the whole figure. salt: prefix of the ids within them."""
        whole, axes = self.whole()
        limits = [(axis.get_xlim(), axis.get_ylim()) for axis in axes]
        plt.close(whole)
        found = []
        with plt.rc_context(_PAGE):
            for index, (words, draw) in enumerate(self.parts.items()):
                figure, axis = plt.subplots(figsize=(WIDTH, HEIGHT))
                draw(axis)
                axis.set(xlim=limits[index][0], ylim=limits[index][1])
                found.append(svg(figure, f"{salt}-{index}", words))
        return found

    def key(self, salt: str) -> str:
        """An SVG element of only the legend, shared by all panels; "" if there is none."""
        if not self.legend:
            return ""
        with plt.rc_context(_PAGE):
            drawn, axis = plt.subplots()
            next(iter(self.parts.values()))(axis)
            labels = axis.get_legend_handles_labels()[1]
            figure = plt.figure(figsize=(WIDTH, 0.23 * -(-len(labels) // self.legend) + 0.1 + 0.25 * bool(self.legend_title)))
            self._add_legend(figure, [axis], loc="center")
            plt.close(drawn)
            return svg(figure, f"{salt}-key", f"Legend: {', '.join(labels)}")

    def _add_legend(self, figure, axes: list, loc: str = "outside lower center") -> None:
        handles, labels = next((found for found in (axis.get_legend_handles_labels() for axis in axes) if found[0]), ([], []))
        if not self.legend or not handles:
            return
        legend = figure.legend(handles, labels, title=self.legend_title, loc=loc, ncols=self.legend, markerscale=2)
        for handle in legend.legend_handles:
            handle.set_alpha(1)


_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor", "grid.color")
_PAGE = {key: INK for key in _INKED} | {
    "svg.fonttype": "none",
    "axes.titlesize": 10,
    "font.size": 10,
    "legend.fontsize": 9,
    "grid.alpha": 0.14,
}


def svg(figure, salt: str, words: str) -> str:
    """The figure as an SVG element for the inside of a page: text stays text, in the page's font and colour."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, dpi=DOTS, metadata={"Date": None})
    plt.close(figure)
    width, height = figure.get_size_inches() * 96
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->|<title>.*?</title>", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    # The page's font family is used; sizes stay in user units, 1/72 inch.
    text = re.sub(r"font: (?:[\w ]+ )?(\d+(?:\.\d+)?)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{salt}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{salt}-", text)
    label = html.escape(words)
    head = f'<svg role="img" aria-label="{label}" style="width:{width:.0f}px;aspect-ratio:{width / height:.4f}"'
    end = text.index(">")
    return re.sub(r' (?:width|height)="[^"]*"', "", text[:end]).replace("<svg", head, 1) + text[end:].strip()
