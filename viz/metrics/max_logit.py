"""The largest logit of right and of wrong predictions at equal MSP (Xia et al. 2025, Figure 5, as numbers)."""

import numpy as np

from metrics.outputs import Outputs

NAMES = ("max_logit_right", "max_logit_wrong", "max_logit_gap")


def measure(test: Outputs, train: Outputs | None) -> dict[str, float | None]:
    """Mean largest logit in each narrow bin of the MSP's odds, averaged over the bins that hold both right and wrong predictions.

    Bins are weighted by their number of samples. Bins of equal width in the MSP would not do: the last one, whose odds span
    powers of ten, holds most predictions of a confident model, and in it the right predictions have larger logits because their
    MSP is larger. The paper finds that label smoothing makes max_logit_gap, right minus wrong, negative. None for two classes,
    where the MSP and the mean of the logits determine the largest one.
    """
    count, total = np.moveaxis(test.ranked.given_odds[:, :, :2], 2, 0)  # each (2, bins): right and wrong
    both = (count > 0).all(0)
    if test.ranked.classes < 3 or not both.any():
        return dict.fromkeys(NAMES)
    right, wrong = np.average(total[:, both] / count[:, both], axis=1, weights=count[:, both].sum(0)).tolist()
    return dict(zip(NAMES, (right, wrong, right - wrong), strict=True))
