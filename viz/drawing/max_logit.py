"""The largest logit of right and of wrong predictions given the MSP (Xia et al. 2025, Figure 5)."""

from pathlib import Path

import numpy as np

from drawing import style
from metrics.rankings import MSP_BINS

WINDOW = MSP_BINS // 20  # bins in a window of 0.05
FEWEST = 10  # samples in a window whose mean and spread are drawn


def draw(models: dict[str, np.ndarray], path: Path) -> None:
    """A panel per model: mean and standard deviation of max logit in a window of 0.05 of the MSP, right and wrong predictions."""
    figure, axes = style.panels(len(models), sharex=True, sharey=True)
    for axis, (name, given_msp) in zip(axes, models.items(), strict=True):
        for colour, which, sums in zip(style.COLOURS[:2], ("right", "wrong"), given_msp, strict=True):
            centre, mean, spread = sliding(sums)
            axis.plot(centre, mean, color=colour, label=f"{which}, mean ± std")
            axis.fill_between(centre, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        axis.set(title=name, xlabel="MSP (0.05 sliding window)", xlim=(0, 1))
    axes[0].set_ylabel("max logit")
    axes[0].legend(loc="upper left")
    style.save(figure, path)


def sliding(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres of the windows (W,), mean and standard deviation (W,) there, NaN under FEWEST samples: from the sums of MSP's bins
    (MSP_BINS, 3), count, sum and sum of squares."""
    windows = np.lib.stride_tricks.sliding_window_view(sums, WINDOW, axis=0).sum(-1)
    count, total, squares = np.where(windows[:, :1] < FEWEST, np.nan, windows).T
    mean = total / count
    centre = (np.arange(len(count)) + WINDOW / 2) / MSP_BINS
    return centre, mean, np.sqrt(np.maximum(squares / count - mean**2, 0))
