"""viz/selective.py: its figures against brute force, scikit-learn and torch-uncertainty, and a truth planted in the logits."""

import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

import oracles
from conftest import ROOT, complains, run
from subprojects import Subproject

SUBPROJECT = viz = Subproject("viz")
selective, selection = viz.load("selective"), viz.load("metrics.selection")
classification = viz.load("metrics.classification").classification
InputError, logits_file = viz.load("common.errors").InputError, viz.load("common.logits_file")
resampling, rankings = viz.load("metrics.resampling"), viz.load("metrics.rankings")
interval, resamples, splits = resampling.interval, resampling.resamples, resampling.splits
given_odds, rank_images = rankings.given_odds, rankings.rank_images
risks, scoring = viz.load("metrics.risk_coverage"), viz.load("metrics.scores")
FIGURES, RISKS, COVERAGES, curve, figures = risks.FIGURES, risks.RISKS, risks.COVERAGES, risks.curve, risks.figures
rank, weigh = risks.rank, risks.weigh
POWERS, all_scores, normalised_scores = scoring.POWERS, scoring.all_scores, scoring.normalised_scores
plain_scores = scoring.plain_scores
sliding, terminal_tables = viz.load("drawing.max_logit").sliding, viz.load("drawing.selective_table").terminal_tables

SELECTIVE = ROOT / "viz/selective.py"


def torch_uncertainty():
    """Only its risk-coverage metrics: the package itself needs Lightning, but this module does not."""
    package = Path(importlib.util.find_spec("torch_uncertainty").origin).parent
    spec = importlib.util.spec_from_file_location("tu_risk_coverage", package / "metrics/classification/risk_coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(score, wrong, weights=None):
    """figures() as plain numbers; weights (N,): how often each sample counts."""
    weights = np.ones(len(score), np.int32) if weights is None else weights
    groups = weigh(rank(np.asarray(score, float), np.asarray(wrong, bool)), weights[:, None])
    return {name: values[0] for name, values in figures(groups).items()}


def by_brute_force(score, wrong):
    """Every figure from its definition: the mean over all orders that sort the score, with cuts only between groups."""
    n = len(score)
    orders = [o for o in itertools.permutations(range(n)) if all(score[a] >= score[b] for a, b in itertools.pairwise(o))]
    curves = np.array([[np.mean([wrong[i] for i in order[:k]]) for k in range(1, n + 1)] for order in orders])
    risk, order = curves.mean(0), orders[0]
    best = np.sort(wrong)
    expected = {"error": np.mean(wrong), "aurc": risk.mean()}
    for percent in (20, 80):
        expected[f"risk_at_coverage_{percent}"] = risk[-(-percent * n // 100) - 1]
    expected["excess_aurc"] = risk.mean() - np.mean([best[:k].mean() for k in range(1, n + 1)])
    cuts = [k for k in range(1, n + 1) if k == n or score[order[k - 1]] > score[order[k]]]
    for level in RISKS:
        expected[f"coverage_at_risk_{100 * level:g}"] = max([k / n for k in cuts if risk[k - 1] <= level], default=0)
    both = len(set(wrong)) == 2
    expected["auroc"] = roc_auc_score(~np.array(wrong), score) if both else math.nan
    return expected


def sample(n=300, classes=7, seed=0, lift=2.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = 2 * torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += lift
    return logits, labels


# -------------------------------------------------------------------------------------------------------- scores


def test_scores_are_their_definitions():
    logits, labels = sample()
    z = logits.double().numpy()
    p = softmax(z, axis=1)
    ordered = np.sort(p, axis=1)
    ours, wrong = all_scores(logits, labels)
    expected = {
        "msp": ordered[:, -1] - 1,
        "max_logit": z.max(1),
        "entropy": -entropy(p, axis=1),
        "energy": logsumexp(z, axis=1),
        "margin": ordered[:, -1] - ordered[:, -2] - 1,
    }
    centred = torch.from_numpy(z - z.mean(1, keepdims=True))
    for power in POWERS:
        s = centred.amax(1) / torch.linalg.vector_norm(centred, power, 1)
        expected[f"s_{power}"] = (1 - s**-power).numpy()
    assert ours.keys() == expected.keys()
    for name, score in expected.items():
        assert ours[name].dtype == torch.float64
        np.testing.assert_allclose(ours[name].numpy(), score, rtol=1e-11, atol=1e-14, err_msg=name)  # powers to 10 lose digits
    assert (wrong == (logits.argmax(1) != labels)).all()


def test_certainty_keeps_its_digits():
    """Added to 1, exp(-40) and exp(-41) vanish in float64: the largest softmax entries are equal, but the scores are not."""
    logits = torch.tensor([[40.0, 0, 0], [41.0, 0, 0]], dtype=torch.float64)
    assert (logits.softmax(1).amax(1) == 1).all()
    ours, _ = plain_scores(logits)
    for row, top in enumerate((40, 41)):
        other = math.exp(-top)
        assert ours["msp"][row].item() == pytest.approx(-2 * other, rel=1e-12)
        assert ours["margin"][row].item() == pytest.approx(-3 * other, rel=1e-12)
        assert ours["entropy"][row].item() == pytest.approx(-(2 * other + 2 * top * other), rel=1e-12)
    assert all((score[1] > score[0]).item() for score in ours.values())


def test_normalised_logits_do_not_know_shift_and_scale():
    logits, _ = sample()
    logits = logits.double()
    plain = normalised_scores(logits)
    for other in (logits + 7, 1e-200 * logits, 1e200 * logits):
        for name, score in normalised_scores(other).items():
            torch.testing.assert_close(score, plain[name], rtol=1e-10, atol=0)


def test_constant_logits_are_the_least_confident():
    logits, _ = sample()
    for constant in (0.0, 0.1, -1e30):  # the mean of seven 0.1 has a rounding error
        logits[5] = constant
        for name, score in normalised_scores(logits.double()).items():
            assert score[5] == -torch.inf and torch.cat([score[:5], score[6:]]).isfinite().all(), name


def test_what_normalised_logits_cannot_tell_is_a_tie():
    """Two centred logits are (d, -d), and a single logit above the mean is half the 1-norm; rounding must not rank samples."""
    generator = torch.Generator().manual_seed(0)
    two = 3 * torch.randn(1000, 2, generator=generator).double() + 1
    assert all(len(score.unique()) == 1 for score in normalised_scores(two).values())
    alone = torch.rand(1000, 10, generator=generator).double()
    alone[:, 3] += 12
    scores = normalised_scores(alone)
    assert len(scores["s_1"].unique()) == 1 and len(scores["s_2"].unique()) == 1000
    sharp = torch.randn(1000, 1000, generator=generator).double()
    sharp[:, 3] += 2000  # s_10 is 1 minus about 1e-27, and still ranks all samples
    s_10 = normalised_scores(sharp)["s_10"]
    assert ((1 - s_10) ** -0.1 == 1).all() and len(s_10.unique()) == 1000


# ------------------------------------------------------------------------------------------------ figures of rankings


def test_a_worked_example():
    """Right, wrong, right, right: the risks are 0, 1/2, 1/3, 1/4, and at best 0, 0, 0, 1/4."""
    ours = measured([0.9, 0.8, 0.7, 0.6], [False, True, False, False])
    assert ours["aurc"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert ours["excess_aurc"] == pytest.approx((1 / 2 + 1 / 3) / 4)
    assert ours["coverage_at_risk_5"] == 1 / 4 and ours["risk_at_coverage_80"] == 1 / 4 and ours["auroc"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(12))
def test_figures_against_all_orders_of_tied_samples(seed):
    numbers = np.random.default_rng(seed)
    n = [1, 2, 5, 6, 7, 8][seed % 6]
    score = numbers.integers(0, max(2, n // 2), n) / 4
    wrong = [[True] * n, [False] * n, *[numbers.random(n) < 0.4 for _ in range(4)]][seed % 6 if seed < 6 else 5]
    expected = by_brute_force(score, list(map(bool, wrong)))
    assert expected.keys() == FIGURES.keys()
    assert measured(score, wrong) == pytest.approx(expected, abs=1e-14, nan_ok=True)
    shuffled = numbers.permutation(n)
    assert measured(score[shuffled], np.array(wrong)[shuffled]) == pytest.approx(expected, abs=1e-14, nan_ok=True)


@pytest.mark.parametrize("levels", [0, 5, 40])
def test_weights_repeat_samples(levels):
    """A column of weights gives the same as samples repeated that often, including ties and samples that were not drawn."""
    numbers = np.random.default_rng(levels)
    score = numbers.integers(0, levels, 200) / 8 if levels else numbers.random(200)
    wrong = numbers.random(200) < 0.5 - 0.4 * score / score.max()
    weights = np.concatenate([draw() for draw in resamples(200, 40, seed=1)], 1)
    assert (weights.sum(0) == 200).all() and (weights == 0).any(0).all()
    ours = figures(weigh(rank(score, wrong), weights))
    for column in (0, 1, 39):
        repeated = np.repeat(np.arange(200), weights[:, column])
        alone = measured(score[repeated], wrong[repeated])
        assert {name: values[column] for name, values in ours.items()} == pytest.approx(alone, abs=1e-13)
        right = torch.from_numpy(~wrong[repeated])
        assert ours["aurc"][column] == pytest.approx(oracles.aurc(torch.from_numpy(score[repeated]), right), abs=1e-13)
        assert ours["auroc"][column] == pytest.approx(roc_auc_score(right, score[repeated]), abs=1e-13)


@pytest.mark.parametrize("level", RISKS)
def test_a_risk_exactly_at_the_level_asked_for_is_allowed(level):
    """The last of the first 1 / level samples is wrong, so their risk is the level itself."""
    first = round(1 / level)
    wrong = np.arange(2 * first) >= first - 1
    name = f"coverage_at_risk_{100 * level:g}"
    assert measured(-np.arange(2.0 * first), wrong)[name] == 0.5
    assert measured(-np.arange(1.0 * first), wrong[:first])[name] == 1
    wrong[0] = True
    assert measured(-np.arange(2.0 * first), wrong)[name] == 0


def test_harmonic_numbers_of_a_table_and_of_the_digamma_function(monkeypatch):
    numbers = np.random.default_rng(0)
    score, wrong = numbers.random(3000), numbers.random(3000) < 0.2
    found = []
    for share in (0, 1000):
        monkeypatch.setattr(risks, "TABLE_SHARE", share)
        found.append(measured(score, wrong))
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_figures_against_torch_uncertainty():
    """There are no ties. Its AURC is a trapezoid rule on coverages 1/N to 1, divided by their distance; ours is the mean risk."""
    theirs, n = torch_uncertainty(), 500
    numbers = torch.Generator().manual_seed(0)
    confidence = 0.5 + 0.5 * torch.randperm(n, generator=numbers) / n  # of two classes; no value occurs twice
    labels = (torch.rand(n, generator=numbers) < 0.45 - 0.4 * (confidence - 0.5)).long()
    p = torch.stack([confidence, 1 - confidence], 1)
    ours = measured(confidence.double().numpy(), labels.numpy())

    def value(metric):
        metric.update(p, labels)
        return metric.compute().item()

    risk = oracles.risk_coverage(confidence.double(), labels == 0)
    trapezoid = (n * ours["aurc"] - (risk[0] + risk[-1]).item() / 2) / (n - 1)
    assert value(theirs.AURC()) == pytest.approx(trapezoid, abs=1e-6)  # it computes in float32
    for level in RISKS:
        coverage = value(theirs.CovAtxRisk(level))
        assert ours[f"coverage_at_risk_{100 * level:g}"] == pytest.approx(0 if math.isnan(coverage) else coverage, abs=1e-6)
    assert ours["risk_at_coverage_80"] == pytest.approx(value(theirs.RiskAtxCov(0.8)), abs=1e-6)


def test_the_best_ranking_against_its_published_limit():
    """Geifman et al. 2019: the least AURC at error rate r tends to r + (1 - r) ln(1 - r)."""
    wrong = np.arange(100_000) % 5 == 0
    ours = measured(-wrong.astype(float) - np.arange(100_000) / 1e6, wrong)
    assert ours["aurc"] - ours["excess_aurc"] == pytest.approx(0.2 + 0.8 * math.log(0.8), abs=2e-5)  # they differ by about 1/N


def test_curve_is_the_expected_risk():
    numbers = np.random.default_rng(3)
    score, wrong = numbers.integers(0, 9, 120) / 8, numbers.random(120) < 0.3
    expected = oracles.risk_coverage(torch.from_numpy(score), torch.from_numpy(~wrong)).numpy()
    ours = curve(weigh(rank(score, wrong), np.ones((120, 2), np.int32)), np.arange(1, 121) / 120)
    np.testing.assert_allclose(ours, np.stack([expected, expected], 1), atol=1e-14)


# ------------------------------------------------------------------------------------------- splits, bootstrap, pairs


def test_interval_of_an_error_rate_is_the_binomial_one():
    logits, labels = sample(2000)
    summary = selection.analyse({"a": rank_images(logits, labels, "a")}, repeats=1, bootstrap=1000)
    error = summary["models"]["a"]["scores"]["msp"]["error"]
    spread = 1.96 * math.sqrt(error["value"] * (1 - error["value"]) / 2000)
    low, high = error["interval"]
    # A percentile of 1,000 draws is uncertain by about 4 % of the spread.
    assert error["value"] - low == pytest.approx(spread, rel=0.15) and high - error["value"] == pytest.approx(spread, rel=0.15)


def test_equal_models_differ_by_nothing_and_pairs_share_their_images():
    logits, labels = sample(400)
    worse, other_images = logits.clone(), labels.roll(1)
    worse[:100] = 0.0  # the same images, a quarter of them with equal logits
    models = {"a": (logits, labels), "b": (3 * logits, labels), "c": (worse, labels), "d": (logits, other_images)}
    summary = selection.analyse({name: rank_images(*parts, name) for name, parts in models.items()}, repeats=3, bootstrap=200)
    pairs = {(pair["model"], pair["less"], pair["score"]): pair["figures"] for pair in summary["paired"]}
    assert {key[:2] for key in pairs} == {("b", "a"), ("c", "a"), ("c", "b")}
    assert sum("not of the same images" in note for note in summary["notes"]) == 3
    # Tripled logits keep the error rate in each resample; with separate resamples the interval would not be 0.
    assert pairs["b", "a", "msp"]["error"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert pairs["c", "a", "msp"]["error"]["interval"][0] > 0
    single = [summary["models"][name]["scores"]["msp"]["error"]["interval"] for name in "ac"]
    paired = pairs["c", "a", "msp"]["error"]["interval"]
    assert paired[1] - paired[0] < sum(high - low for low, high in single)


def test_splits_and_resamples_by_seed():
    held_out = splits(50, 0.2, 30, 0)
    assert (held_out.sum(0) == 10).all() and len(np.unique(held_out, axis=1).T) == 30
    assert (splits(50, 0.2, 30, 0) == held_out).all() and (splits(50, 0.2, 30, 1) != held_out).any()
    first, again, other = (np.concatenate([draw() for draw in resamples(50, 70, seed)], 1) for seed in (0, 0, 1))
    assert first.shape == (50, 70) and (first == again).all() and (first != other).any()
    assert interval(np.arange(101.0)) == pytest.approx([2.5, 97.5])
    assert interval(np.array([np.nan, np.nan, 1.0])) is None


@pytest.mark.parametrize("count", [0, 10])
def test_only_intervals_are_called_rough(count):
    notes = selection.analyse({"a": rank_images(*sample(20), "a")}, repeats=2, bootstrap=count)["notes"]
    assert any("the intervals are rough" in note for note in notes) == (count > 0)


def test_p_is_chosen_on_held_out_images_and_scored_on_the_others():
    logits, labels = sample(600, 20, lift=3.0)
    model = rank_images(logits, labels, "a")
    row = selection.analyse({"a": model}, 0.25, repeats=4, bootstrap=0, seed=3)["models"]["a"]
    scores, wrong = all_scores(logits, labels)
    held_out = torch.from_numpy(splits(600, 0.25, 4, 3))
    names = ["msp", *(f"s_{p}" for p in POWERS)]
    before, after, others = [], [], 0

    def best(rows):
        """The best score on these images, as if there were no others."""
        alone, errors = all_scores(logits[rows], labels[rows])
        return min(names, key=lambda name: oracles.aurc(alone[name], ~errors))

    for split, chosen in enumerate(row["chosen"]):
        held = held_out[:, split]
        assert chosen == best(held)
        others += chosen not in (best(~held), best(slice(None)))
        before.append(oracles.aurc(scores["msp"][~held], ~wrong[~held]))
        after.append(oracles.aurc(scores[chosen][~held], ~wrong[~held]))
    assert row["held_out_images"] == 150 and others > 0  # or else the choice could have been made on other images
    assert row["scores"]["split_msp"]["aurc"]["value"] == pytest.approx(np.mean(before))
    assert row["scores"]["normalised"]["aurc"]["value"] == pytest.approx(np.mean(after))
    assert row["normalised_less_msp"]["aurc"]["value"] == pytest.approx(np.mean(after) - np.mean(before))
    for p in POWERS:
        assert row["aurc_by_p"][p] == pytest.approx(oracles.aurc(scores[f"s_{p}"], ~wrong))


def planted(n=1000, classes=20):
    """CE: MSP ranks all wrong predictions below all right ones. LS: right ones' logits shrink until all wrong ones rank above.

    All logits have one shape, a top logit and a ramp below it; s_p falls as the ramp rises, whatever the scale.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=generator)
    wrong = torch.arange(n) % 4 == 0
    predicted = torch.where(wrong, (labels + 1) % classes, labels)
    height = torch.where(wrong, 0.6, 0.3) + 0.2 * torch.rand(n, generator=generator).double()
    ramp = (torch.arange(classes) - predicted.unsqueeze(1)) % classes / classes
    shape = (height.unsqueeze(1) * ramp).scatter(1, predicted.unsqueeze(1), 1.0)
    return 12 * shape, torch.where(wrong, 12.0, 2.0).unsqueeze(1) * shape, labels, wrong


def test_planted_suppression_of_right_predictions_is_found_and_undone():
    ce, ls, labels, wrong = planted()
    models = {name: rank_images(logits, labels, name) for name, logits in {"CE": ce, "LS": ls}.items()}
    summary = selection.analyse(models, repeats=3, bootstrap=100)
    scores = {name: row["scores"] for name, row in summary["models"].items()}
    assert scores["CE"]["msp"]["error"]["value"] == 0.25 == scores["LS"]["msp"]["error"]["value"]
    # CE: the best ranking. LS: the worst, all errors first, whose AURC is the mean over n of min(1, 250 / n).
    assert scores["CE"]["msp"]["excess_aurc"]["value"] == pytest.approx(0, abs=1e-12)
    assert scores["LS"]["msp"]["aurc"]["value"] == pytest.approx(np.minimum(1, 250 / np.arange(1, 1001)).mean(), abs=1e-12)
    assert scores["LS"]["msp"]["auroc"]["value"] == 0 and scores["LS"]["max_logit"]["auroc"]["value"] == 0
    assert "msp" not in summary["models"]["LS"]["chosen"]
    assert scores["LS"]["normalised"]["excess_aurc"]["value"] == pytest.approx(0, abs=1e-12)
    assert scores["LS"]["normalised"]["auroc"]["value"] == 1
    assert summary["models"]["CE"]["chosen"] == ["msp"] * 3  # kept, because no p beats it
    (msp,) = [pair for pair in summary["paired"] if pair["score"] == "msp"]
    assert (msp["model"], msp["less"]) == ("LS", "CE") and msp["figures"]["aurc"]["interval"][0] > 0.3
    assert summary["models"]["LS"]["normalised_less_msp"]["aurc"]["interval"][1] < -0.3
    shown = [line for line in terminal_tables(summary).splitlines() if line.startswith("LS  ")]
    assert [line[7:18].strip() for line in shown] == ["MSP", "MSP, as s_p", "s_p"]  # MSP also on the images of s_p


def test_max_logit_given_msp_by_hand():
    """Windows of half a power of ten of the odds have the mean and spread of exactly their right, or wrong, samples."""
    numbers = np.random.default_rng(0)
    odds, logit, wrong = numbers.uniform(-1, 5, 5000), numbers.normal(5, 2, 5000), numbers.random(5000) < 0.3
    msp = 10**odds / (1 + 10**odds)
    sums = given_odds(msp - 1, logit, wrong)
    for which in (False, True):
        centre, mean, spread = sliding(sums[int(which)])
        for window in np.searchsorted(centre, (-0.5, 1.1, 4.4)):
            inside = logit[(wrong == which) & (np.abs(odds - centre[window]) < 0.25)]
            assert mean[window] == pytest.approx(inside.mean()) and spread[window] == pytest.approx(inside.std())
    few = given_odds(np.full(9, -0.5), np.ones(9), np.zeros(9, bool))
    assert few[0, :, 0].max() == 9 and np.isnan(sliding(few[0])[1]).all()
    sure = given_odds(np.zeros(12), np.full(12, 30.0), np.zeros(12, bool))  # an MSP of 1 counts in the last window
    assert sliding(sure[0])[1][-1] == 30


# -------------------------------------------------------------------------------------------------------- commands


def save(path, logits, labels):
    torch.save({"logits": logits, "labels": labels}, path)
    return path


def test_the_command(tmp_path):
    for name, lift in {"ls_0.0": 2.0, "ls_0.1": 1.5}.items():
        logits, labels = sample(lift=lift)
        torch.save({"logits": logits, "labels": labels}, tmp_path / f"{name}.pt")
    files = [tmp_path / "ls_0.0.pt", tmp_path / "ls_0.1.pt"]
    words = ["--output", tmp_path / "out", "--bootstrap", 50, "--repeats", 2, "--log-risk"]
    result = run(SELECTIVE, "--input", *files, *words)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert list(summary["models"]) == ["ls_0.0", "ls_0.1"]
    tables = (tmp_path / "out/summary.md").read_text()
    for name, lift in {"ls_0.0": 2.0, "ls_0.1": 1.5}.items():
        expected = classification(*sample(lift=lift))
        figures = summary["models"][name]["scores"]["msp"]
        assert figures["aurc"]["value"] == pytest.approx(expected["aurc"])
        assert figures["error"]["value"] == pytest.approx(1 - expected["top1"] / 100)
        low, high = figures["aurc"]["interval"]
        assert f"| {figures['aurc']['value']:.5f} ({low:.5f} to {high:.5f}) |" in tables
        for entry in figures.values():
            assert entry["interval"][0] <= entry["value"] <= entry["interval"][1]
        assert figures["aurc"]["interval"][0] < figures["aurc"]["interval"][1]
    assert "| ls_0.1 - ls_0.0 | MSP |" in tables and "Note" in tables  # on the 60 held-out images
    assert "ls_0.1 - ls_0.0  MSP" in result.stdout and max(map(len, result.stdout.splitlines()[:-1])) <= 100
    assert "warning: ls_0.0: p is chosen on as few as 60 held-out samples" in result.stderr
    for figure in ("risk_coverage", "max_logit"):
        pixels = matplotlib.image.imread(tmp_path / "out" / f"{figure}.png")
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.02
        assert (tmp_path / "out" / f"{figure}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("kind", ["right", "wrong", "constant"])
def test_nothing_to_rank(kind, tmp_path):
    """If all are right, all are wrong, or all logits are equal, curves are drawn and undefined values are reported as such."""
    logits, labels = sample(200)
    logits[torch.arange(200), labels] += {"right": 100, "wrong": -100, "constant": 0}[kind]
    logits *= kind != "constant"
    models = {"a": rank_images(logits, labels, "a")}
    summary = selection.analyse(models, repeats=2, bootstrap=20)
    selective.write(summary, models, kind == "wrong", tmp_path)
    assert (tmp_path / "risk_coverage.png").stat().st_size > 10_000 and (tmp_path / "max_logit.pdf").exists()
    text = (tmp_path / "summary.md").read_text()
    row = json.loads((tmp_path / "summary.json").read_text())["models"]["a"]["scores"]["msp"]  # no NaN: JSON knows none
    if kind == "constant":
        error = (labels != 0).double().mean().item()  # argmax takes the first of equals
        assert row["aurc"]["value"] == pytest.approx(error) and row["auroc"] == {"value": 0.5, "interval": [0.5, 0.5]}
    else:
        assert row["auroc"] == {"value": None, "interval": None}
        assert row["aurc"]["value"] == pytest.approx(float(kind == "wrong"), abs=1e-12)
        assert row["excess_aurc"]["value"] == pytest.approx(0, abs=1e-12)
        assert row["coverage_at_risk_1"]["value"] == float(kind == "right")
        assert "undefined" in text and f"all predictions are {kind}" in text
    assert "NaN" not in (tmp_path / "summary.json").read_text()


def test_few_images(tmp_path):
    """Of two images a resample may contain only one; nothing breaks, and a warning says how few there are."""
    logits = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    models = {"a": rank_images(logits, torch.tensor([0, 1]), "a")}
    summary = selection.analyse(models, fraction=0.5, repeats=2, bootstrap=20)
    selective.write(summary, models, False, tmp_path)
    assert "as few as 1 held-out samples with 0 errors" in summary["notes"][0]


def test_two_classes_have_no_normalised_logits(tmp_path, monkeypatch, capsys):
    """s_p is the same for every sample, so it is not printed, drawn or written, and one line says why."""
    logits, labels = sample(300, 2)
    path = save(tmp_path / "a.pt", logits, labels)
    words = ["selective.py", "--input", str(path), "--output", str(tmp_path / "out"), "--bootstrap", "20", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", words)
    selective.main()
    (terminal, err), out = capsys.readouterr(), (tmp_path / "out/summary.md").read_text()
    assert err.count("normalised logits need three classes or more") == 1 == out.count("normalised logits need three classes")
    assert "MSP" in terminal and "s_p" not in terminal
    row = json.loads((tmp_path / "out/summary.json").read_text())["models"]["a"]
    assert row["chosen"] == [] and not {"normalised", "split_msp"} & row["scores"].keys() and "aurc_by_p" not in row
    assert "| s_p" not in out and "s_p - MSP" not in out and "p is chosen" not in out
    calibration = viz.load("calibration")
    monkeypatch.setattr(sys, "argv", ["calibration.py", *words[1:3], "--output", str(tmp_path / "other"), "--repeats", "2"])
    calibration.main()
    err, out = capsys.readouterr().err, (tmp_path / "other/summary.md").read_text()
    assert err.count("normalised logits need three classes or more") == 1 and "| – | – | – |" in out


def test_files_are_replaced_only_with_overwrite_and_another_commands_never(tmp_path, monkeypatch):
    path = save(tmp_path / "a.pt", *sample())
    commands = ("analysis", "selective", "calibration")
    for owner in commands:
        words = ["--input", str(path), "--output", str(tmp_path / owner)]
        monkeypatch.setattr(sys, "argv", [owner, *words])
        viz.load(owner).main()
        before = (tmp_path / owner / "summary.json").read_bytes()
        with pytest.raises(InputError, match=f"holds an output of viz/{owner}.py already; --overwrite replaces it"):
            viz.load(owner).main()
        monkeypatch.setattr(sys, "argv", [owner, *words, "--overwrite"])
        viz.load(owner).main()
        for other in set(commands) - {owner}:
            monkeypatch.setattr(sys, "argv", [other, *words])
            with pytest.raises(InputError, match=f"holds the output of viz/{owner}.py; choose another --output"):
                viz.load(other).main()
        assert (tmp_path / owner / "summary.json").read_bytes() == before


# ------------------------------------------------------------------------------------------------------- bad input


def test_a_model_may_have_more_outputs_than_the_data_has_classes(tmp_path):
    """The names are then those of the first outputs."""
    logits, labels = sample()
    torch.save({"logits": logits, "labels": labels, "classes": ["a", "b"]}, tmp_path / "a.pt")
    assert logits_file.load(tmp_path / "a.pt")["classes"] == ["a", "b"]
    torch.save({"logits": logits, "labels": labels, "classes": [*"abcdefgh"]}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="not a list of up to 7 names"):
        logits_file.load(tmp_path / "a.pt")


def test_what_is_wrong_is_said(tmp_path, monkeypatch):
    logits, labels = sample()
    a = save(tmp_path / "a.pt", logits, labels)
    b = save(tmp_path / "b.pt", torch.cat([logits, logits], 1), labels)
    tiny = save(tmp_path / "tiny.pt", logits[:2], labels[:2])
    out = ["--output", tmp_path / "out"]

    def refused(match, *words):
        monkeypatch.setattr(sys, "argv", ["selective.py", *map(str, words)])
        with pytest.raises(InputError, match=match):
            selective.main()

    refused("none.pt: no such logits file", "--input", tmp_path / "none.pt", *out)
    refused("a has 7, b has 14", "--input", a, b, *out)
    refused("--names: 2 for 1", "--input", a, "--names", "x", "y", *out)
    refused("different names", "--input", a, a, *out)
    refused("--val-fraction 1: a number from", "--input", a, "--val-fraction", "1", *out)
    refused("--val-fraction nan: a number", "--input", a, "--val-fraction", "nan", *out)
    refused("--repeats 0: a number from 1", "--input", a, "--repeats", "0", *out)
    refused("--seed -1", "--input", a, "--seed", "-1", *out)
    refused("--bootstrap -1", "--input", a, "--bootstrap", "-1", *out)
    refused("tiny: 0.2 of 2 images, the share to hold out, leaves one side of the split empty", "--input", tiny, *out)
    complains(run(SELECTIVE, "--input", a, "--bootstrap", 0, "--repeats", 1, "--output", a / "x"), "cannot be written")
    assert not (tmp_path / "out").exists()
