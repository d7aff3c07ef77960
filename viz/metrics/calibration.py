"""Calibration and the ranking of errors before and after a temperature, over random splits: what calibration.py shows."""

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from metrics.calibration_error import BINS
from metrics.rankings import rank_images
from metrics.resampling import splits
from metrics.risk_coverage import aurc, weigh
from metrics.scores import chunks, normalised_scores, plain_scores
from metrics.selection import FEW_ERRORS, FEW_HELD_OUT, choose
from metrics.temperature import at_temperature, fit_each

# best_s_p is the best s_p even where MSP ranks better. A temperature changes neither its ranking nor that of the max logit.
RANKINGS = {"msp": "MSP", "max_logit": "max logit", "best_s_p": "best s_p"}


def calibrate(logits: Tensor, labels: Tensor, fraction: float, repeats: int, seed: int, name: str) -> dict:
    """Numbers for logits (N, K) and labels (N,) before and after a temperature, averaged over the splits.

    Returns temperatures and chosen (one per usable split; no s_p is chosen for two classes), before and after (ece,
    classwise_ece, nll, brier, and the AURC of RANKINGS), bins and notes. bins (2, BINS, 3) holds, before and after, the samples,
    the sum of confidence and the right predictions of each bin, summed over the scored images of all usable splits.
    """
    held_out = splits(len(labels), fraction, repeats, seed)
    model = rank_images(logits, labels, name)
    chosen = choose(model, held_out, msp=False)
    rows = {"before": [], "after": []}
    bins, notes = np.zeros((2, BINS, 3)), []
    temperatures, kept, note = fit_each(logits, labels, torch.from_numpy(held_out).T)
    for split in tqdm(kept, desc=f"calibration of {name}", unit="split", disable=None, leave=False):
        scored = torch.from_numpy(np.flatnonzero(~held_out[:, split]))
        for which, (key, temperature) in enumerate({"before": 1.0, "after": temperatures[split]}.items()):
            measured, counts = at_temperature(logits, labels, scored, temperature)
            score = chosen[split] if chosen else None
            rows[key].append(measured | rankings_at(logits, labels, scored, temperature, score))
            bins[which] += counts
    held = weigh(model.rankings["msp"], held_out.astype(np.int32))
    few = len(labels) - len(scored)
    if few < FEW_HELD_OUT or held.wrong.min() < FEW_ERRORS:
        notes.append(
            f"{'T and p are' if chosen else 'T is'} chosen on {few:,} held-out images with as few as {held.wrong.min()} errors: "
            "too few to tell"
        )
    notes += [note] * (note is not None)
    temperatures, chosen = ([values[split] for split in kept] if values else values for values in (temperatures, chosen))
    mean = {key: {f: float(np.mean([row[f] for row in measured])) for f in measured[0]} for key, measured in rows.items()}
    settings = {"images": len(labels), "held_out_images": few, "temperatures": temperatures, "chosen": chosen}
    return settings | mean | {"bins": bins, "notes": notes}


def rankings_at(logits: Tensor, labels: Tensor, index: Tensor, temperature: float, score: str | None) -> dict[str, float]:
    """The AURC of each of RANKINGS, for rows `index` (n,) of logits (N, K) / temperature. score: which s_p to use, or None."""
    columns = {key: [] for key in RANKINGS if score or key != "best_s_p"}
    wrong = []
    for rows, targets in chunks(logits, labels, index):
        rows = rows / temperature
        scores, predicted = plain_scores(rows)
        if score:
            scores["best_s_p"] = normalised_scores(rows, powers=[int(score.removeprefix("s_"))])[score]
        wrong.append(predicted != targets)
        for key, column in columns.items():
            column.append(scores[key])
    return {f"aurc_{key}": aurc(torch.cat(column), ~torch.cat(wrong)) for key, column in columns.items()}
