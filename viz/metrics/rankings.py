"""What selective classification needs to know of a model: the ranking by each score, and its largest logits given its MSP."""

from typing import NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from metrics.risk_coverage import Ranking, rank
from metrics.scores import all_scores

ODDS = (-3, 12)  # powers of ten between which the odds MSP / (1 - MSP) are binned
ODDS_PER_TEN = 20  # bins in a factor of ten


class Model(NamedTuple):
    """rankings: by the name of the score. units, samples: images; in segmentation images, pixels. labels: as in the file.

    given_odds: (2, bins, 3) float64 for right and wrong predictions: count, sum of max logit, sum of its square, by bin of log10
    of the odds MSP / (1 - MSP), which tell confident samples apart.
    """

    rankings: dict[str, Ranking]
    units: int
    samples: int
    classes: int
    labels: Tensor
    given_odds: np.ndarray


def rank_images(logits: Tensor, labels: Tensor, name: str) -> Model:
    """logits (N, K) and labels (N,) of the model `name`: every image is a sample and a unit."""
    scores, wrong = all_scores(logits, labels, f"scores of {name}")
    scores, wrong = {key: score.numpy() for key, score in scores.items()}, wrong.numpy()
    bar = tqdm(scores.items(), desc=f"ranks of {name}", unit="score", disable=None, leave=False)
    rankings = {key: rank(score, wrong) for key, score in bar}
    sums = given_odds(scores["msp"], scores["max_logit"], wrong)
    return Model(rankings, len(labels), len(labels), logits.shape[1], labels, sums)


def given_odds(msp: np.ndarray, max_logit: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Model.given_odds of samples, to be added up over images: MSP less 1 (n,), max logit (n,), wrong (n,) bool.

    Odds beyond ODDS count in the bins at the ends.
    """
    with np.errstate(divide="ignore"):  # an MSP of 1 has infinite odds
        odds = np.log10((1 + msp) / np.abs(msp)).clip(*ODDS)
    bins = (ODDS[1] - ODDS[0]) * ODDS_PER_TEN
    index = ((odds - ODDS[0]) * ODDS_PER_TEN).astype(np.int64).clip(0, bins - 1) + bins * wrong
    sums = [np.bincount(index, power, 2 * bins) for power in (np.ones_like(max_logit), max_logit, max_logit**2)]
    return np.stack(sums, 1).reshape(2, bins, 3)
