"""What selective classification needs to know of a model: the ranking by each score, and its largest logits given its MSP."""

from typing import NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from metrics.risk_coverage import Ranking, rank
from metrics.scores import all_scores

MSP_BINS = 400  # of 0.0025: a window of 0.05 is 20 of them
ODDS = (-3, 12)  # powers of ten between which the odds MSP / (1 - MSP) are binned
ODDS_PER_TEN = 20  # bins in a factor of ten


class Model(NamedTuple):
    """rankings: by the name of the score. units, samples: images; in segmentation images, pixels. labels: as in the file.

    given_msp: (2, MSP_BINS, 3) float64 for right and wrong predictions: count, sum of max logit, sum of its square, by bin of
    MSP. given_odds: the same (2, ODDS bins, 3) by bin of log10 of the odds MSP / (1 - MSP), which tell confident samples apart.
    """

    rankings: dict[str, Ranking]
    units: int
    samples: int
    classes: int
    labels: Tensor
    given_msp: np.ndarray
    given_odds: np.ndarray


def rank_images(logits: Tensor, labels: Tensor, name: str) -> Model:
    """logits (N, K) and labels (N,) of the model `name`: every image is a sample and a unit."""
    scores, wrong = all_scores(logits, labels, f"scores of {name}")
    scores, wrong = {key: score.numpy() for key, score in scores.items()}, wrong.numpy()
    bar = tqdm(scores.items(), desc=f"ranks of {name}", unit="score", disable=None, leave=False)
    rankings = {key: rank(score, wrong) for key, score in bar}
    sums = [given(scores["msp"], scores["max_logit"], wrong) for given in (given_msp, given_odds)]
    return Model(rankings, len(labels), len(labels), logits.shape[1], labels, *sums)


def given_msp(msp: np.ndarray, max_logit: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Model.given_msp of samples, to be added up over images: MSP less 1 (n,), max logit (n,), wrong (n,) bool."""
    return _binned((1 + msp) * MSP_BINS, MSP_BINS, max_logit, wrong)


def given_odds(msp: np.ndarray, max_logit: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Model.given_odds of the same samples; odds beyond ODDS count in the bins at the ends."""
    with np.errstate(divide="ignore"):  # an MSP of 1 has infinite odds
        odds = np.log10((1 + msp) / np.abs(msp)).clip(*ODDS)
    return _binned((odds - ODDS[0]) * ODDS_PER_TEN, (ODDS[1] - ODDS[0]) * ODDS_PER_TEN, max_logit, wrong)


def _binned(position: np.ndarray, bins: int, max_logit: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    index = position.astype(np.int64).clip(0, bins - 1) + bins * wrong
    sums = [np.bincount(index, power, 2 * bins) for power in (np.ones_like(max_logit), max_logit, max_logit**2)]
    return np.stack(sums, 1).reshape(2, bins, 3)
