"""Semantic segmentation: logits (N, K, H, W) and labels (N, H, W), whose pixels are the samples and whose images are the units.

A file may be larger than memory: it stays on disk and is processed one image at a time.
"""

from collections.abc import Iterator

from common.errors import InputError

import numpy as np
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from metrics.rankings import Model, given_odds, rank_images
from metrics.risk_coverage import Ranking, rank
from metrics.scores import all_scores

EXACT = 2**18  # up to this many pixels are ranked one by one; the scores of more are binned
BINS = 4096


def labelled_pixels(content: dict, title: str, step: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """For each image the logits (n, K) and classes (n,) of its labelled pixels, every step-th of them. Raises InputError."""
    logits, labels = content["logits"], content["labels"]
    for image in tqdm(range(len(logits)), desc=title, unit="image", disable=None, leave=False):
        target = labels[image].flatten().long()
        kept = (target != content["ignore_index"]).nonzero().squeeze(1)[::step]
        rows = logits[image].flatten(1)[:, kept].T.contiguous()
        if not rows.isfinite().all():
            raise InputError(f"{content['path']}: image {image} has logits that are NaN or infinite")
        yield rows, target[kept]


def pixels(content: dict, title: str, step: int = 1) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """For each image the scores of its labelled pixels, every step-th of them, (n,) by name, and which are wrong, (n,) bool."""
    for rows, target in labelled_pixels(content, title, step):
        scores, wrong = all_scores(rows, target)
        yield {name: score.numpy() for name, score in scores.items()}, wrong.numpy()


def rank_pixels(content: dict, name: str) -> Model:
    """The rankings of `content`, from logits_file.load. More than EXACT pixels are ranked by bins of the score, see edges()."""
    build = _rank_each if content["pixels"] <= EXACT else _rank_bins
    rankings, sums = build(content, f"scores of {name}")
    return Model(rankings, len(content["labels"]), content["pixels"], content["logits"].shape[1], content["labels"], sums)


def rank_file(content: dict, name: str) -> Model:
    """The rankings of a logits file of either form."""
    if content["logits"].ndim == 4:
        return rank_pixels(content, name)
    return rank_images(content["logits"], content["labels"], name)


def _rank_each(content: dict, title: str) -> tuple[dict[str, Ranking], np.ndarray]:
    images = list(pixels(content, title))
    wrong = np.concatenate([mistakes for _, mistakes in images])
    unit = np.repeat(np.arange(len(images)), [len(mistakes) for _, mistakes in images])
    scores = {key: np.concatenate([scores[key] for scores, _ in images]) for key in images[0][0]}
    rankings = {key: rank(score, wrong, unit, len(images)) for key, score in scores.items()}
    return rankings, given_odds(scores["msp"], scores["max_logit"], wrong)


def _rank_bins(content: dict, title: str) -> tuple[dict[str, Ranking], np.ndarray]:
    """Samples and errors by bin and image, counted image by image. A bin is a group, as if its pixels had equal scores."""
    step = -(-content["pixels"] // EXACT)
    sample = [scores for scores, _ in pixels(content, f"{title}, bins", step)]
    bounds = {key: edges(np.concatenate([scores[key] for scores in sample])) for key in sample[0]}
    del sample
    columns, sums = {key: ([], []) for key in bounds}, 0
    for scores, wrong in pixels(content, title):
        for key, score in scores.items():
            index = len(bounds[key]) - np.searchsorted(bounds[key], score, side="right")  # the most confident bin is 0
            for which, counted in zip(columns[key], (index, index[wrong]), strict=True):
                counts = np.bincount(counted, minlength=len(bounds[key]) + 1).astype(np.int32)
                which.append(sparse.csr_array(counts[None]))
        sums = sums + given_odds(scores["msp"], scores["max_logit"], wrong)
    stacked = {key: [sparse.vstack(which).T.tocsr().astype(np.int64) for which in pair] for key, pair in columns.items()}
    return {key: Ranking(*pair) for key, pair in stacked.items()}, sums


def edges(sample: np.ndarray) -> np.ndarray:
    """Ascending edges (<= BINS,) between the bins, from a sample of the scores (n,).

    Three quarters of them are spaced equally in rank. One quarter is spaced by equal ratios of ranks, for the beginning of the
    curve, where few pixels are answered.
    """
    sample = np.sort(sample)
    ranks = np.r_[np.linspace(1, len(sample), 3 * BINS // 4), np.geomspace(1, len(sample), BINS // 4)].round().astype(np.int64)
    return np.unique(sample[-ranks])
