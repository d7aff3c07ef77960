"""What selective classification needs to know about a model: the ranking by each score, and the largest logit given the MSP."""

from typing import NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from metrics.risk_coverage import Ranking, rank
from metrics.scores import all_scores

ODDS = (-3, 12)  # powers of ten between which the odds MSP / (1 - MSP) are binned
ODDS_PER_TEN = 20  # bins per factor of ten


class Model(NamedTuple):
    """rankings: by name of the score. units: images; samples: images, or pixels in segmentation. labels: as in the file.

    given_odds: (2, bins, 3) float64 for right and wrong predictions: count, sum of max logit, sum of its square, by bin of log10
    of the odds MSP / (1 - MSP), which separate confident samples.
    """

    rankings: dict[str, Ranking]
    units: int
    samples: int
    classes: int
    labels: Tensor
    given_odds: np.ndarray


def rank_images(logits: Tensor, labels: Tensor, name: str) -> Model:
    """The rankings of logits (N, K) and labels (N,) of the model `name`. Every image is a sample and a unit."""
    scores, wrong = all_scores(logits, labels, f"scores of {name}")
    scores, wrong = {key: score.numpy() for key, score in scores.items()}, wrong.numpy()
    bar = tqdm(scores.items(), desc=f"ranks of {name}", unit="score", disable=None, leave=False)
    rankings = {key: rank(score, wrong) for key, score in bar}
    sums = given_odds(scores["msp"], scores["max_logit"], wrong)
    return Model(rankings, len(labels), len(labels), logits.shape[1], labels, sums)


def given_odds(msp: np.ndarray, max_logit: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Model.given_odds of some samples, which can be summed over images; msp: MSP - 1 (n,), max_logit (n,), wrong (n,) bool.

    Odds outside ODDS count in the outermost bins.
    """
    with np.errstate(divide="ignore"):  # an MSP of 1 has infinite odds
        odds = np.log10((1 + msp) / np.abs(msp)).clip(*ODDS)
    bins = (ODDS[1] - ODDS[0]) * ODDS_PER_TEN
    index = ((odds - ODDS[0]) * ODDS_PER_TEN).astype(np.int64).clip(0, bins - 1) + bins * wrong
    sums = [np.bincount(index, power, 2 * bins) for power in (np.ones_like(max_logit), max_logit, max_logit**2)]
    return np.stack(sums, 1).reshape(2, bins, 3)
