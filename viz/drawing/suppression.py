"""What the regulariser of a loss adds to the gradient of each logit, from the formula.

Each loss is the cross-entropy plus a regulariser R. A positive dR/dz_k suppresses logit k in training, a negative one raises it
(Xia et al. 2025, Figure 4; [.] is 1 if true, else 0):

    label smoothing   R = alpha (z_y - mean z)     dR/dz_k = alpha ([k = y] - 1/K)
    MaxSup            R = alpha (max z - mean z)   dR/dz_k = alpha ([k = argmax z] - 1/K)
    logit penalty     R = beta/2 ||z||^2           dR/dz_k = beta z_k

The first two do not depend on how sharp the prediction is. The third depends on the logits, not only on the MSP. They are assumed
to have mean 0, and all classes but the predicted one to share 1 - MSP evenly, including the label if the prediction is wrong. If
a prediction is right with probability q, the expected gradient is q times that of a right one plus 1 - q times that of a wrong
one.
"""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import SymLogNorm

from drawing import style

LOSSES = {"ls": "label smoothing", "maxsup": "MaxSup", "logit-penalty": "logit penalty"}
# The rows of a map: whether the prediction is right, which logit, the row's name.
ROWS = [
    (True, "max", "right: $z_{max} = z_y$"),
    (True, "other", "right: any other"),
    (False, "max", "wrong: $z_{max}$"),
    (False, "target", "wrong: $z_y$"),
    (False, "other", "wrong: any other"),
]
COLUMNS = 200  # of a map, along the MSP
CAPTION = (
    "What the regulariser R adds to the gradient of a logit: above 0 (red) training holds it down, below 0 (blue) raises it. "
    "α = {alpha:g}, β = {beta:g}; no MSP is under 1/K.\n"
    "Label smoothing: R = α ($z_y$ − mean z), ∂R/∂$z_k$ = α ([k = y] − 1/K).   "
    "MaxSup: R = α (max z − mean z), ∂R/∂$z_k$ = α ([k = argmax z] − 1/K).\n"
    "So where a prediction is right with probability q, label smoothing holds $z_{{max}}$ down by α (q − 1/K) on average, "
    "MaxSup by α (1 − 1/K) whatever q is.\n"
    "Logit penalty: R = β/2 ‖z‖², ∂R/∂$z_k$ = β $z_k$; here with mean z = 0 and 1 − MSP shared evenly by the classes that are "
    "not predicted, the label's among\nthem: $z_{{max}}$ = (1 − 1/K) log(MSP (K − 1) / (1 − MSP)), and every other logit is "
    "−$z_{{max}}$ / (K − 1). Its numbers are those at MSP = 0.2, 0.5 and 0.9."
)


def gradient(
    loss: str, msp: np.ndarray, right: bool, logit: str, classes: int, alpha: float = 0.1, beta: float = 2e-3
) -> np.ndarray:
    """dR/dz of one logit at each MSP (M,), float64, by the formulas above.

    loss: one of LOSSES. right: whether the label is the predicted class. logit: "max", the predicted class's; "target", the
    label's; "other", that of a class which is neither.
    """
    if loss == "logit-penalty":
        largest = even_logits(msp, classes)
        is_max = logit == "max" or (logit == "target" and right)
        return beta * (largest if is_max else -largest / (classes - 1))
    if loss == "ls":
        counts = logit == "target" or (logit == "max" and right)
    else:
        counts = logit == "max" or (logit == "target" and right)
    return np.full(np.shape(msp), alpha * (counts - 1 / classes))


def even_logits(msp: np.ndarray, classes: int) -> np.ndarray:
    """The largest of K logits of mean 0 whose softmax is msp at the largest and the same at all others: float64 (M,)."""
    return (1 - 1 / classes) * np.log(msp * (classes - 1) / (1 - msp))


@plt.rc_context({"text.parse_math": True})
def draw(sizes: list[int], alpha: float, beta: float, path: Path) -> None:
    """A row of maps per number of classes, a column per loss: (right or wrong, logit) x MSP, all on the same colour scale."""
    figure, axes = plt.subplots(
        len(sizes), len(LOSSES), figsize=(12.5, 2.6 * len(sizes) + 1.6), squeeze=False, sharey=True, sharex=True
    )
    maps = {}
    for classes in sizes:
        edges = np.linspace(1 / classes, 1, COLUMNS + 1)
        msp = (edges[1:] + edges[:-1]) / 2
        for loss in LOSSES:
            rows = [gradient(loss, msp, right, logit, classes, alpha, beta) for right, logit, _ in ROWS]
            maps[classes, loss] = (edges, np.stack(rows))
    bound = 10.0 ** math.ceil(math.log10(max(np.abs(values).max() for _, values in maps.values())))
    colours = SymLogNorm(bound / 1000, vmin=-bound, vmax=bound)
    for axis, ((classes, loss), (edges, values)) in zip(axes.flat, maps.items(), strict=True):
        image = axis.pcolormesh(edges, np.arange(len(ROWS) + 1), values, norm=colours, cmap="RdBu_r", rasterized=True)
        shown, digits = ((0.2, 0.5, 0.9), 2) if loss == "logit-penalty" else ((0.5,), 3)
        for row, (right, logit, _) in enumerate(ROWS):
            for at in [at for at in shown if at >= 1 / classes]:  # no MSP is under 1/K
                value = gradient(loss, np.array([at]), right, logit, classes, alpha, beta)[0]
                colour = "white" if abs(colours(value) - 0.5) > 0.38 else "black"
                axis.text(at, row + 0.5, f"{value:+.{digits}g}", ha="center", va="center", size=9, color=colour)
        axis.hlines([1, 3, 4], *edges[[0, -1]], color="white", linewidth=1)
        axis.axhline(2, color="black", linewidth=1)
        axis.set(title=f"{LOSSES[loss]}, K = {classes:,}", xlim=(0, 1), ylim=(len(ROWS), 0))
        axis.set_yticks(np.arange(len(ROWS)) + 0.5, [name for *_, name in ROWS])
        axis.grid(False)
    for axis in axes[-1]:
        axis.set_xlabel("MSP, the largest softmax probability")
    figure.colorbar(image, ax=axes, label="∂R/∂z, added to the gradient", shrink=0.9)
    figure.supxlabel(CAPTION.format(alpha=alpha, beta=beta), x=0.01, ha="left", fontsize=9)
    style.save(figure, path)
