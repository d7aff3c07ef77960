"""The largest logit of right and of wrong predictions given the MSP (Xia et al. 2025, Figure 5).

The MSP is drawn on the scale of its odds: on a linear scale, the samples of a confident model, with an MSP close to 1, would fall
on one vertical line.
"""

import numpy as np

from drawing import style
from drawing.panels import Panels
from metrics.rankings import ODDS, ODDS_PER_TEN

WINDOW = ODDS_PER_TEN // 2  # bins in a window, within which the odds MSP / (1 - MSP) grow by a factor of 3.2
FEWEST = 10  # minimum number of samples in a window whose mean and spread are drawn
# log10 of the odds: MSP
TICKS = {np.log10(p / (1 - p)): f"{p:g}" for p in (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)}
TICKS |= {float(k): f"1−1e-{k}" for k in range(4, ODDS[1] + 1)}


def panels(models: dict[str, np.ndarray]) -> Panels:
    """A panel per model: mean and standard deviation of the max logit in a sliding window, of right and of wrong predictions.
    models: each model's sums by odds of the MSP (2, bins, 3), see metrics.rankings."""
    words = "The largest logit of right and of wrong predictions against the MSP, of {}"
    drawn = np.concatenate([sliding(part)[0][np.isfinite(sliding(part)[1])] for sums in models.values() for part in sums])
    ends = (drawn.min() - 0.3, drawn.max() + 0.3) if len(drawn) else (-1, 1)
    parts = {words.format(name): _panel(name, sums, ends) for name, sums in models.items()}
    return Panels(parts, len(parts), legend=2)


def _panel(name: str, given_odds: np.ndarray, ends: tuple[float, float]):
    def draw(axis) -> None:
        for colour, which, sums in zip((style.RIGHT, style.WRONG), ("right", "wrong"), given_odds, strict=True):
            centre, mean, spread = sliding(sums)
            axis.plot(centre, mean, color=colour, label=f"{which}, mean ± std")
            axis.fill_between(centre, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        axis.set(title=style.short(name, 32), xlabel="MSP (scale of its odds)", ylabel="largest logit")
        shown = [(at, words) for at, words in TICKS.items() if ends[0] <= at <= ends[1]]
        shown = shown[:: -(-len(shown) // 6) or 1]  # there is room for at most six
        axis.set_xticks([at for at, _ in shown], [words for _, words in shown])
        axis.tick_params(axis="x", labelsize=9)
        axis.set_xlim(*ends)

    return draw


def sliding(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres of the windows (W,) in log10 of the odds, and mean and standard deviation (W,) there, NaN under FEWEST samples.
    sums: count, sum and sum of squares of each bin (bins, 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(sums, WINDOW, axis=0).sum(-1)
    count, total, squares = np.where(windows[:, :1] < FEWEST, np.nan, windows).T
    mean = total / count
    centre = ODDS[0] + (np.arange(len(count)) + WINDOW / 2) / ODDS_PER_TEN
    return centre, mean, np.sqrt(np.maximum(squares / count - mean**2, 0))
