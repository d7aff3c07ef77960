"""viz/segmentation.py: pixels are ranked like samples, images are resampled, and bins are as good as single pixels."""

import numpy as np
import pytest
import torch

from test_selective import (
    FIGURES,
    InputError,
    all_scores,
    figures,
    given_odds,
    measured,
    rank_images,
    resamples,
    sample,
    save,
    selection,
    viz,
    weigh,
)

SUBPROJECT = viz
segmentation = viz.load("metrics.segmentation")
logits_file = viz.load("common.logits_file")


def maps(images=12, classes=5, size=8, seed=0):
    """Logits (N, K, H, W) and labels (N, H, W), of which some, in one image all, are to be ignored."""
    logits, labels = sample(images * size * size, classes, seed)
    logits = logits.reshape(images, size, size, classes).permute(0, 3, 1, 2).contiguous()
    labels = labels.reshape(images, size, size)
    labels[:, 0], labels[2] = 255, 255
    return logits, labels.to(torch.uint8)


def test_pixels_are_samples_and_images_are_units(tmp_path):
    logits, labels = maps()
    model = segmentation.rank_pixels(logits_file.load(save(tmp_path / "a.pt", logits, labels), 255), "a")
    kept = labels.flatten() != 255
    flat, targets = logits.permute(0, 2, 3, 1).reshape(-1, 5)[kept], labels.flatten()[kept].long()
    assert (model.units, model.samples) == (12, len(targets))
    scores, wrong = all_scores(flat, targets)
    image = torch.arange(12).repeat_interleave(64)[kept].numpy()
    weights = resamples(12, 5, seed=0)[0]()
    for name, score in scores.items():
        ours = figures(weigh(model.rankings[name], weights))
        for column in range(5):
            alone = measured(score.numpy(), wrong.numpy(), weights[image, column])  # each pixel counts as often as its image
            assert {f: values[column] for f, values in ours.items()} == pytest.approx(alone, abs=1e-12), name
    whole = given_odds(scores["msp"].numpy(), scores["max_logit"].numpy(), wrong.numpy())
    np.testing.assert_allclose(model.given_odds, whole, atol=1e-9)


def test_one_pixel_an_image_is_classification(tmp_path):
    logits, labels = sample()
    content = logits_file.load(save(tmp_path / "a.pt", logits[:, :, None, None], labels[:, None, None]), 255)
    dense = selection.analyse({"a": segmentation.rank_file(content, "a")}, repeats=2, bootstrap=30)
    plain = selection.analyse({"a": rank_images(logits, labels, "a")}, repeats=2, bootstrap=30)
    assert dense == plain


def test_many_pixels_are_ranked_by_bins(tmp_path, monkeypatch):
    """For 46,000 pixels bins agree with single pixels to 1e-4; the order of the images does not matter.

    Coverage agrees to 2e-3, and risk at 20 % coverage to 1e-3: the bin at the cut has up to 1/3072 of the pixels, so 1/614 of
    those answered.
    """
    tolerance = dict.fromkeys(FIGURES, 1e-4) | {"risk_at_coverage_20": 1e-3}
    tolerance |= {figure: 2e-3 for figure in FIGURES if "coverage_at" in figure}
    logits, labels = maps(images=16, size=56)
    content = logits_file.load(save(tmp_path / "a.pt", logits, labels), 255)
    exact = segmentation.rank_pixels(content, "a")
    monkeypatch.setattr(segmentation, "EXACT", 2**14)
    binned = segmentation.rank_pixels(content, "a")
    backwards = logits_file.load(save(tmp_path / "b.pt", logits.flip(0), labels.flip(0)), 255)
    backwards = segmentation.rank_pixels(backwards, "b")
    weights = resamples(16, 8, seed=0)[0]()
    for name, ranking in binned.rankings.items():
        assert ranking.samples.shape[0] <= segmentation.BINS + 1
        ours, truth = figures(weigh(ranking, weights)), figures(weigh(exact.rankings[name], weights))
        for figure in FIGURES:
            np.testing.assert_allclose(ours[figure], truth[figure], atol=tolerance[figure], err_msg=figure)
            again = figures(weigh(backwards.rankings[name], weights[::-1]))
            np.testing.assert_allclose(again[figure], ours[figure], atol=1e-12)
    np.testing.assert_allclose(binned.given_odds, exact.given_odds, atol=1e-6)


def test_bad_maps(tmp_path):
    logits, labels = maps()
    nan, high = logits.clone(), labels.clone()
    nan[3, 2, 5, 5] = torch.nan
    high[4, 4, 4] = 7
    files = {
        r"'labels' is \(12, 8, 7\) torch.uint8, not \(12, 8, 8\) class indices": (logits, labels[:, :, 1:]),
        r"torch.int64, not \(N, K\) or \(N, K, H, W\) floating point": (logits.long(), labels),
        "image 4: labels from 0 to 7, but the classes are 0 to 4; --ignore-index 255": (logits, high),
        "every label is 255": (logits, labels * 0 + 255),
        r"\(12, 1, 8, 8\); at least 1 sample and 2 classes": (logits[:, :1], labels),
        "image 3 has logits that are NaN": (nan, labels),
        r"not \(N, K\) or \(N, K, H, W\) floating point": (logits[0], labels),
    }
    for match, parts in files.items():
        with pytest.raises(InputError, match=match):
            segmentation.rank_pixels(logits_file.load(save(tmp_path / "bad.pt", *parts), 255), "bad")
