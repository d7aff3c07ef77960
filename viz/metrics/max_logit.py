"""The largest logit of right and of wrong predictions at equal MSP (Xia et al. 2025, Figure 5, as numbers)."""

import numpy as np

from metrics.outputs import Outputs

BINS = 20  # of the MSP, each 0.05 wide


def measure(test: Outputs, train: Outputs | None) -> dict[str, float | None]:
    """Mean largest logit in each bin of the MSP, averaged over the bins that hold right and wrong predictions.

    A bin counts by its share of all samples. Under label smoothing the paper finds max_logit_gap, right less wrong, negative.
    """
    sums = test.ranked.given_msp  # (2, finer bins, 3): count and sum of the largest logits, right and wrong
    count, total = np.moveaxis(sums.reshape(2, BINS, -1, 3).sum(2)[:, :, :2], 2, 0)
    both = (count > 0).all(0)
    if not both.any():
        return dict.fromkeys(("max_logit_right", "max_logit_wrong", "max_logit_gap"))
    right, wrong = np.average(total[:, both] / count[:, both], axis=1, weights=count[:, both].sum(0)).tolist()
    return {"max_logit_right": right, "max_logit_wrong": wrong, "max_logit_gap": right - wrong}
