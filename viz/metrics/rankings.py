"""What selective classification needs to know of a model: the ranking by each score, and its largest logits given its MSP."""

from typing import NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from metrics.risk_coverage import Ranking, rank
from metrics.scores import all_scores

MSP_BINS = 400  # of 0.0025: a window of 0.05 is 20 of them


class Model(NamedTuple):
    """rankings: by the name of the score. units, samples: images; in segmentation images, pixels. labels: as in the file.

    given_msp: (2, MSP_BINS, 3) float64 for right and wrong predictions: count, sum of max logit, sum of its square, by bin of
    MSP.
    """

    rankings: dict[str, Ranking]
    units: int
    samples: int
    classes: int
    labels: Tensor
    given_msp: np.ndarray


def rank_images(logits: Tensor, labels: Tensor, name: str) -> Model:
    """logits (N, K) and labels (N,) of the model `name`: every image is a sample and a unit."""
    scores, wrong = all_scores(logits, labels, f"scores of {name}")
    scores, wrong = {key: score.numpy() for key, score in scores.items()}, wrong.numpy()
    bar = tqdm(scores.items(), desc=f"ranks of {name}", unit="score", disable=None, leave=False)
    rankings = {key: rank(score, wrong) for key, score in bar}
    return Model(
        rankings, len(labels), len(labels), logits.shape[1], labels, given_msp(scores["msp"], scores["max_logit"], wrong)
    )


def given_msp(msp: np.ndarray, max_logit: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Model.given_msp of samples, to be added up over images: MSP less 1 (n,), max logit (n,), wrong (n,) bool."""
    index = ((1 + msp) * MSP_BINS).astype(np.int64).clip(0, MSP_BINS - 1) + MSP_BINS * wrong
    sums = [np.bincount(index, power, 2 * MSP_BINS) for power in (np.ones_like(max_logit), max_logit, max_logit**2)]
    return np.stack(sums, 1).reshape(2, MSP_BINS, 3)
