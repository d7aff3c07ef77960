"""What viz/'s figures draw, compared with numbers computed here: which value is where, in which style, under which name."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from subprojects import Subproject

SUBPROJECT = viz = Subproject("viz")
logit_panels, max_logit, reliability, risk_coverage, samples = (
    viz.load(name)
    for name in (
        "drawing.logit_panels",
        "drawing.max_logit",
        "drawing.reliability",
        "drawing.risk_coverage",
        "metrics.samples",
    )
)
rank_images, rankings = viz.load("metrics.rankings").rank_images, viz.load("metrics.rankings")


@pytest.fixture
def axis():
    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


@pytest.fixture
def outputs():
    """Logits (300, 4) and labels, two thirds of which are predicted right."""
    torch.manual_seed(0)
    logits, labels = torch.randn(300, 4) * 2, torch.randint(4, (300,))
    logits[torch.arange(300), labels] += 2
    return logits, labels


def test_risk_is_drawn_against_coverage_solid_by_msp_and_dashed_by_normalised_logits(axis, outputs):
    logits, labels = outputs
    model = rank_images(logits, labels, "a")
    found = risk_coverage.curves(model, ["s_2"], np.ones((300, 1), bool))
    risk_coverage.lines(axis, {"a": found}, 1, log_risk=False)
    centred = logits.double() - logits.double().mean(1, keepdim=True)
    scores = {"-": logits.double().softmax(1).amax(1), "--": centred.amax(1) / centred.norm(dim=1)}
    wrong = (logits.argmax(1) != labels).double()
    drawn = {line.get_linestyle(): line.get_xydata() for line in axis.lines if len(line.get_xydata())}
    for style, score in scores.items():
        risk = wrong[score.argsort(descending=True)].cumsum(0) / torch.arange(1, 301)
        for count in (15, 150, 300):  # drawn coverages of 5, 50 and 100 %
            (row,) = np.flatnonzero(np.isclose(drawn[style][:, 0], 100 * count / 300))
            assert drawn[style][row, 1] == pytest.approx(100 * risk[count - 1].item())
    assert [line.get_label() for line in axis.lines if line.get_label()[0] != "_"] == ["a", "MSP", "normalised logits"]


def test_the_largest_logit_of_right_and_of_wrong_predictions(axis):
    """Every bin has 20 right predictions with max logits 4 and 6, and 20 wrong ones with 1 and 2."""
    bins = (rankings.ODDS[1] - rankings.ODDS[0]) * rankings.ODDS_PER_TEN
    given = np.array([[[20, 100, 10 * (16 + 36)]] * bins, [[20, 30, 10 * (1 + 4)]] * bins], float)
    max_logit._panel("a", given, (-1, 5))(axis)
    for line, band, label, mean, spread in zip(
        axis.lines, axis.collections, ("right, mean ± std", "wrong, mean ± std"), (5, 1.5), (1, 0.5), strict=True
    ):
        assert line.get_label() == label and np.allclose(line.get_ydata(), mean)
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((mean - spread, mean + spread))


def test_bars_of_reliability_are_what_is_right_and_the_gap_to_what_was_said(axis):
    """Of 50 predictions with a mean confidence of 0.9, 30 are right."""
    bins = np.zeros((reliability.BINS, 3))
    bins[13] = 50, 45, 30
    reliability._panel(bins, "a")(axis)
    found, gap = axis.patches[:2]
    assert found.get_xy() == pytest.approx((13 / 15, 0)) and found.get_height() == pytest.approx(0.6)
    assert gap.get_y() == pytest.approx(0.6) and gap.get_height() == pytest.approx(0.3)
    assert [container.get_label() for container in axis.containers] == ["share that is right", "gap to the confidence"]
    (interval,) = axis.collections[0].get_segments()
    assert interval[:, 1] == pytest.approx((0.4618, 0.7239), abs=1e-4)  # Wilson's interval, by hand


def models(logits, labels, low=-12.0, high=12.0):
    densities = {"a": samples.density(logits, low, high).numpy()}
    return logit_panels.Models({"a": samples.samples(logits, labels, 0.5)}, densities, low, high, 4, 0.5)


def test_dots_are_the_samples(axis, outputs):
    logits, labels = outputs
    right = logits.argmax(1) == labels
    logit_panels.top_against_mean(axis, models(logits, labels), "a")
    for dots, which, label in zip(axis.collections, (right, ~right), ("right", "wrong"), strict=True):
        expected = torch.stack([logits[which].mean(1), logits[which].amax(1)], 1)
        np.testing.assert_allclose(dots.get_offsets(), expected, atol=1e-6)
        assert dots.get_label() == label


def test_dots_of_near_zero_logits(axis, outputs):
    logits, labels = outputs
    logit_panels.near_zero_scatter(axis, models(logits, labels), "a")
    (dots,) = axis.collections
    x, y = dots.get_offsets().T
    np.testing.assert_allclose(y, logits.double().softmax(1).amax(1), atol=1e-6)
    beside = x - 100 * (logits.abs() < 0.5).double().mean(1).numpy()  # each dot lies near its own multiple of 25 %
    assert 5 < np.abs(beside).max() <= 0.3 * 25 and abs(beside.mean()) < 1


def test_the_density_stands_where_the_logits_lie(axis):
    """All logits lie between 3 and 3.12, in one of 200 bins."""
    logits = torch.full((50, 4), 3.05)
    logit_panels.logit_density(axis, models(logits, torch.zeros(50, dtype=torch.long)), "a")
    vertices = axis.collections[0].get_paths()[0].vertices
    high = vertices[vertices[:, 1] > vertices[:, 1].max() / 2]
    assert high[:, 0].min() == pytest.approx(3.0) and high[:, 0].max() == pytest.approx(3.12)
    assert vertices[:, 1].max() == pytest.approx(1 / 0.12)
