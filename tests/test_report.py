"""viz/report.py: its numbers against other computations, and its page in a real browser, with hostile names."""

import html
import json
import math
import os
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import optimize, stats
from sklearn.datasets import load_digits

import oracles
from browser import CHROMIUM, Browser
from subprojects import Subproject

SUBPROJECT = viz = Subproject("viz")
report = viz.load("report")
InputError = viz.load("common.errors").InputError
inputs, sections = viz.load("report_page.inputs"), viz.load("report_page.sections")
logit_panels = viz.load("drawing.logit_panels")
answer, numbers = viz.load("report_page.answer"), viz.load("report_page.numbers")
temperature, reliability, style = viz.load("metrics.temperature"), viz.load("drawing.reliability"), viz.load("drawing.style")
create, table = viz.load("checkpoints.models").create, viz.load("common.terminal").table

SCRIPT, IMAGE = "<script>alert(1)</script>", '"><img src=x>'
CARRIED = ("calibration", "selective", "logits", "features", "gradcam", "confusion", "mistakes")


def call(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, words)])
    report.main()


def outputs(count: int, classes: int, lift: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in which the label's is `lift` above the others on average; equal seeds give equal labels and noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += lift
    return logits, labels


def save(path, logits, labels, **more):
    torch.save({"logits": logits, "labels": labels, **more}, path)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Logits files of two models of the same 500 images, with hostile names of classes and images."""
    folder = tmp_path_factory.mktemp("pair")
    names = {"classes": [SCRIPT, "$\\frac", "two words", "w" * 60, "e", "f"], "paths": [f"{IMAGE}{i}" for i in range(500)]}
    trained = {"a": {"loss": "ls", "alpha": 0.1}, "b": {"loss": "maxsup", "alpha": 0.1, "alpha_end": 0.2}}
    for name, lift in {"a": 1.0, "b": 2.0}.items():
        save(folder / f"{name}.pt", *outputs(500, 6, lift), args=trained[name], **names)
    return folder / "a.pt", folder / "b.pt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report on two checkpoints with random weights, for a few digits whose files and classes have hostile names."""
    root = tmp_path_factory.mktemp("checkpoints")
    digits, classes = load_digits(), sorted([r"<script>alert(1)<\script>", "1", "2"])
    for split, start in (("train", 0), ("val", 1000)):
        for label, name in enumerate(classes):
            (root / f"images/{split}/{name}").mkdir(parents=True)
            for index in start + np.flatnonzero(digits.target[start : start + 400] == label)[:25]:
                pixels = np.round(digits.images[index] * 255 / 16).astype(np.uint8)
                Image.fromarray(pixels).save(root / f"images/{split}/{name}/{IMAGE}{index}.png")
    args = {"model": "resnet8", "library": "cifar", "width": 8, "num_classes": 3, "input_size": 8, "crop_ratio": 1.0}
    args |= {"interpolation": "bilinear", "mean": [0.3] * 3, "std": [0.4] * 3, "data": None, "loss": "maxsup", "alpha": 0.1}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        weights = create("cifar", "resnet8", 3, width=8).state_dict()
        content = {"model": weights, "args": args | {"data_path": str(root / "images"), "seed": seed}, "classes": classes}
        torch.save(content, root / f"{name}.pth")
    with viz.active(), pytest.MonkeyPatch.context() as patch:
        paths = [root / "one.pth", root / "two.pth"]
        call(patch, "--checkpoint", *paths, "--output", root / "report", "--num-workers", 0, "--device", "cpu")
    return root


@pytest.fixture(scope="module")
def page_of_logits(pair, tmp_path_factory):
    output = tmp_path_factory.mktemp("logits") / "report"
    with viz.active(), pytest.MonkeyPatch.context() as patch:
        call(patch, "--input", *pair, "--names", "A", "<b>B</b>", "--note", "<i>note</i>", "--output", output)
    return output


# ------------------------------------------------------------------------------------------------------------- numbers


def test_numbers_and_their_intervals(pair, page_of_logits):
    content = json.loads((page_of_logits / "report.json").read_text())
    right = {}
    for path, name in zip(pair, ("A", "<b>B</b>"), strict=True):
        held = torch.load(path)
        right[name] = (held["logits"].argmax(1) == held["labels"]).double().numpy()
        assert content["estimates"][name]["top1"]["value"] == pytest.approx(100 * right[name].mean())
        nll = torch.nn.functional.cross_entropy(held["logits"].double(), held["labels"]).item()
        assert content["estimates"][name]["nll"]["value"] == pytest.approx(nll)
        for key in ("top1", "nll", "ece", "ece_temperature", "aurc", "aurc_normalised"):
            low, high = content["estimates"][name][key]["interval"]
            assert low < content["estimates"][name][key]["value"] < high, key
    (row,) = [row for row in content["differences"] if row["metric"] == "top1"]
    paired = right["<b>B</b>"] - right["A"]
    assert row["value"] == pytest.approx(100 * paired.mean()) and row["told"] and row["how"] == "images"
    half = 100 * 1.96 * paired.std() / math.sqrt(len(paired))  # the normal interval; 1,000 resamples have about 5 % of noise
    assert np.diff(row["interval"])[0] / 2 == pytest.approx(half, rel=0.12)
    assert np.mean(row["interval"]) == pytest.approx(row["value"], abs=0.2 * half)
    assert any("is more accurate than A" in sentence for sentence in content["answer"])
    assert content["answer"][-1].startswith("The strengths differ: 0.1 for A, 0.1 to 0.2 for <b>B</b>. ")


def test_metrics_are_resampled_as_by_hand(pair):
    """Rows are repeated as often as drawn. Resampling raises an ECE, so its draws are shifted back by the mean increase."""
    run = inputs.Run("a", pair[0], 0.1, torch.load(pair[0], weights_only=True))
    metrics, (draw,) = numbers.measure(run), viz.load("metrics.resampling").resamples(500, 16, 0)
    logits, labels = run.content["logits"].double(), run.content["labels"]
    held_out, temperatures = run.outputs.tempered.held_out, run.outputs.tempered.temperatures
    by_hand = {key: [] for key in ("top1", "nll", "near_zero", "aurc", "ece", "ece_temperature")}
    for weights in draw().T:
        rows = torch.from_numpy(np.repeat(np.arange(500), weights))
        z, y = logits[rows], labels[rows]
        right, confidence = z.argmax(1) == y, z.softmax(1).amax(1)
        by_hand["top1"].append(100 * right.double().mean().item())
        by_hand["nll"].append(torch.nn.functional.cross_entropy(z, y).item())
        by_hand["near_zero"].append((z.abs() < 0.1).double().mean().item())
        by_hand["aurc"].append(oracles.aurc(confidence, right))
        by_hand["ece"].append(oracles.ece(confidence, right))
        errors = []
        for held, temperature in zip(held_out, temperatures, strict=True):
            scored = ~held[rows]
            errors.append(oracles.ece((z[scored] / temperature).softmax(1).amax(1), right[scored]))
        by_hand["ece_temperature"].append(np.mean(errors))
    found = numbers.resampled(run, metrics, 16)
    for key, expected in by_hand.items():
        moved = metrics[key] - np.mean(expected) if key.startswith("ece") else 0
        assert found[key] == pytest.approx(np.array(expected) + moved, abs=1e-9), key


def test_the_gain_of_normalised_logits_is_of_the_same_images(tmp_path):
    """AURC by s_p minus AURC by MSP, on the images not used to choose p; the scale of the logits differs between images."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = outputs(400, 8, 2.5)
    logits *= 1 + 3 * torch.rand(400, 1, generator=generator)
    save(tmp_path / "a.pt", logits, labels)
    run = inputs.Run("a", tmp_path / "a.pt", 0.1, torch.load(tmp_path / "a.pt", weights_only=True))
    metrics = numbers.measure(run)
    found, (draw,) = numbers.resampled(run, metrics, 16), viz.load("metrics.resampling").resamples(400, 16, 0)
    options, scores = viz.load("common.options"), viz.load("metrics.scores").all_scores(logits, labels)[0]
    held_out = viz.load("metrics.resampling").splits(400, options.FRACTION, options.REPEATS, options.SEED)
    chosen = viz.load("metrics.selection").choose(run.outputs.ranked, held_out)
    assert set(chosen) != {"msp"}
    right = logits.argmax(1) == labels

    def gain(weights):
        gains = []
        for held, name in zip(held_out.T, chosen, strict=True):
            rows = np.repeat(np.arange(400), weights * ~held)
            gains.append(oracles.aurc(scores[name][rows], right[rows]) - oracles.aurc(scores["msp"][rows], right[rows]))
        return np.mean(gains)

    assert metrics["normalised_less_msp"] == pytest.approx(gain(np.ones(400, int)), abs=1e-12)
    by_hand = [gain(weights) for weights in draw().T[: 16 // numbers.FEWER]]
    assert found["normalised_less_msp"] == pytest.approx(by_hand, abs=1e-12) and min(by_hand) < -0.001


def test_features_are_resampled_as_by_hand():
    """The metrics of each resample equal those of the repeated features."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 5, generator=generator), torch.arange(40) % 3
    found = numbers._resampled_features(features, labels, 16)
    (draw,) = viz.load("metrics.resampling").resamples(40, 16, 0)
    variation = viz.load("metrics.variation").feature_variation
    for column, weights in enumerate(draw().T):
        index = torch.from_numpy(np.repeat(np.arange(40), weights))
        expected = variation(features[index], labels[index])
        assert found["d_within_val"][column] == pytest.approx(expected["d_within"], abs=1e-6)  # float32 products
        assert found["r2_val"][column] == pytest.approx(expected["r2"], abs=1e-6)


def test_intervals_over_seeds(tmp_path, monkeypatch):
    """They are paired by seed if both methods state the same seeds, else Welch's; both equal scipy's."""
    accuracy = {}
    for name, lift in {"x": 1.0, "y": 1.3}.items():
        for seed in (3, 1, 2) if name == "x" else (1, 2, 3):
            logits, labels = outputs(300, 5, lift)
            logits += torch.randn(300, 5, generator=torch.Generator().manual_seed(10 + seed)) * 0.5
            save(tmp_path / f"{name}{seed}.pt", logits, labels, args={"seed": seed})
            accuracy[name, seed] = 100 * (logits.argmax(1) == labels).double().mean().item()
    groups = [word for name in "xy" for word in ("--group", name, *(tmp_path / f"{name}{s}.pt" for s in (2, 1, 3)))]
    call(monkeypatch, *groups, "--only", "calibration", "confusion", "--output", tmp_path / "out")
    content = json.loads((tmp_path / "out/report.json").read_text())
    x, y = ([accuracy[name, seed] for seed in (2, 1, 3)] for name in "xy")
    (row,) = [row for row in content["differences"] if row["metric"] == "top1"]
    low, high = stats.ttest_rel(y, x).confidence_interval()
    assert row["how"] == "paired seeds" and row["interval"] == pytest.approx([low, high])
    assert content["estimates"]["x"]["top1"]["spread"] == pytest.approx(np.std(x, ddof=1))
    assert set(content["sections"]) == {"calibration", "confusion"}
    for seed in (1, 2, 3):  # the files of y no longer state their seeds
        held = torch.load(tmp_path / f"y{seed}.pt", weights_only=True)
        save(tmp_path / f"y{seed}.pt", held["logits"], held["labels"])
    low, high = stats.ttest_ind(y, x, equal_var=False).confidence_interval()
    for order, interval in ((groups, [low, high]), (groups[5:] + groups[:5], [-high, -low])):
        out = tmp_path / f"unknown-{order[1]}"
        call(monkeypatch, *order, "--only", "calibration", "--output", out)
        (row,) = [row for row in json.loads((out / "report.json").read_text())["differences"] if row["metric"] == "top1"]
        assert row["how"] == "seeds" and row["interval"] == pytest.approx(interval)


def test_a_group_is_of_different_seeds_of_one_method(tmp_path, monkeypatch):
    for seed in (0, 1):
        save(tmp_path / f"x{seed}.pt", *outputs(300, 5, 1.0 + seed / 100), args={"seed": seed, "loss": "ls", "alpha": 0.1})
    save(tmp_path / "other.pt", *outputs(300, 5, 1.5), args={"seed": 1, "loss": "ls", "alpha": 0.2})
    for paths, match in (
        (("x0", "x0"), "x0.pt and .*x0.pt: the same logits, so they are not two seeds of x"),
        (("x0", "other"), "x0.pt and .*other.pt: trained with alpha 0.1 and 0.2, so they are not seeds of one method"),
    ):
        words = ["--group", "x", *(tmp_path / f"{name}.pt" for name in paths), "--group", "y", tmp_path / "x1.pt"]
        with pytest.raises(InputError, match=match):
            call(monkeypatch, *words, "--only", "calibration", "--output", tmp_path / "out")


def test_a_temperature_at_the_end_of_its_range_is_said(tmp_path, monkeypatch, capsys):
    """No prediction is wrong, so the NLL falls with the temperature."""
    logits, _ = outputs(300, 5, 1.0)
    call(
        monkeypatch,
        "--input",
        save(tmp_path / "a.pt", logits, logits.argmax(1)),
        "--only",
        "calibration",
        "--output",
        tmp_path / "o",
    )
    said = "in 10 of 10 splits: T says little"
    assert said in capsys.readouterr().err and said in (tmp_path / "o/index.html").read_text()


def test_equal_differences_tell_nothing():
    """Their spread is only rounding, which would make an interval of no width that excludes 0."""
    for second in ([0.85, 0.75, 0.65], [0.4, 0.3, 0.2]):
        row = numbers._over_seeds([0.9, 0.8, 0.7], second, [1, 2, 3], [1, 2, 3])
        assert row == {"value": pytest.approx(0.9 - second[0]), "interval": None, "how": "paired seeds"}
    assert numbers._over_seeds([0.9, 0.8], [0.9, 0.8], [1, 2], [1, 2])["interval"] == [0, 0]


def test_sentences_follow_the_intervals():
    """By made-up numbers of three models, the most accurate differs from both others, from one of them, or from neither."""

    def sentence(*ends):
        values = dict(zip("abc", (90.0, 91.0, 92.0), strict=True))
        none = {key: {"value": None, "interval": None} for key in numbers.METRICS}
        estimates = {name: none | {"top1": {"value": values[name]}} for name in "abc"}
        rows = [
            {"model": "c", "less": less, "metric": "top1", "value": 92 - values[less], "interval": [low, 4.0], "told": low > 0}
            for less, low in zip("ab", ends, strict=True)
        ]
        return answer.answer(estimates, rows, "10 images")[0]

    assert sentence(1.0, 0.5).lead == "c is the most accurate" and sentence(1.0, 0.5).told
    some = sentence(1.0, -0.5)
    assert (
        some.lead == "c is more accurate than a"
        and "the difference from b cannot be told: +1.00\u00a0points against b (−0.50 to 4.00)" in some.rest
    )
    assert sentence(-1.0, -0.5).lead == "Which model is the most accurate cannot be told"


def test_the_sentence_on_normalised_logits_follows_the_intervals():
    def sentence(**ends):
        gains = {name: {"value": sum(pair) / 2, "interval": pair} for name, pair in ends.items()}
        none = {key: {"value": None, "interval": None} for key in numbers.METRICS}
        return answer.answer({name: none | {"normalised_less_msp": gain} for name, gain in gains.items()}, [], "10 images")[-1]

    one = sentence(LS=[-0.02, -0.01])
    assert one.told and one.lead + one.rest == (
        "Normalised logits rank the errors of LS better than MSP: AURC −1.500\u00a0points for LS (−2.000 to −1.000)."
    )
    some = sentence(LS=[-0.02, -0.01], CE=[0.0, 0.0], worse=[0.01, 0.03])
    assert not some.told and some.lead == "Normalised logits rank the errors of LS better than MSP"
    assert some.rest.endswith(
        "; no gain can be told: 0.000\u00a0points for CE (0.000 to 0.000), +2.000\u00a0points for worse (1.000 to 3.000)."
    )
    none = sentence(CE=[-0.01, 0.01])
    assert not none.told and none.lead == "No gain from normalised logits can be told" and "for CE (−1.000 to 1.000)" in none.rest


def test_different_strengths_are_called_recipes():
    of_ce, of_ls = {"CE": ("ce", "0.0")}, {"LS": ("ls", "0.1")}
    for matched in ({}, of_ce, of_ls, of_ls | {"MaxSup": ("maxsup", "0.1")}, of_ls | {"LS 0.2": ("ls", "0.2")}):
        assert answer.recipes(matched) == []
    (found,) = answer.recipes(of_ce | of_ls | {"MaxSup": ("maxsup", "0.1 to 0.2")})
    assert found.lead + found.rest == (
        "The strengths differ: 0.1 for LS, 0.1 to 0.2 for MaxSup. Between label smoothing and MaxSup, this compares recipes, not "
        "methods."
    )


def test_an_error_has_no_interval_below_zero():
    """The bootstrap's shift would move its lower end there; the interval of a difference may reach below zero."""
    draws = {"a": {key: np.linspace(-0.1, 0.2, 100) for key in ("ece", "ece_temperature", "max_logit_gap")}}
    found = numbers.estimates({"a": [dict.fromkeys(draws["a"], 0.05)]}, draws)["a"]
    assert found["ece"]["interval"][0] == found["ece_temperature"]["interval"][0] == 0 and found["ece"]["interval"][1] > 0.1
    assert found["max_logit_gap"]["interval"][0] < 0


def test_bars_of_near_zero_logits_hold_equally_many_shares():
    for classes, most in ((1000, 92), (1000, 160), (100, 75), (10, 10)):
        share = torch.arange(most + 1) / classes  # each possible share once
        models = logit_panels.Models({"a": SimpleNamespace(near_zero=share)}, {}, 0, 1, classes, 0.1)
        figure, axis = plt.subplots()
        logit_panels.near_zero_histogram(axis, models, "a")
        heights = [round(bar.get_height() * len(share) / 100) for bar in axis.patches]
        plt.close(figure)
        assert sum(heights) == len(share) and len(set(heights[:-1])) == 1 and heights[-1] <= heights[0] and len(heights) <= 42


def test_images_for_grad_cam_are_right_for_one_model_and_wrong_for_another():
    def run_of(*predicted):
        content = {"logits": torch.eye(3)[list(predicted)], "labels": torch.tensor([0, 1, 2])}
        return inputs.Run("m", Path("m.pt"), 0.01, content)

    for second, chosen, words in (
        ((0, 1, 1), [2], "No image is right for one model and wrong for another"),
        ((0, 2, 1), [1], "Images that some models get right and others wrong (1 in all)"),
    ):
        found, said = sections.disagreements([run_of(0, 1, 0), run_of(*second)])
        assert found == chosen and said.startswith(words)


def test_newtons_temperature_is_the_optimum():
    """It equals the NLL's minimum by scipy's bounded search for each split; without a minimum, an end of the range."""
    for scale in (0.2, 1.0, 5.0):
        logits, labels = outputs(400, 6, 2.0)
        logits *= scale
        held_out = torch.rand(3, 400, generator=torch.Generator().manual_seed(1)) < 0.3
        found = temperature.temper(logits, labels, held_out)
        for held, value in zip(held_out, found.temperatures, strict=True):
            rows, targets = logits[held].double(), labels[held]

            def nll(log_t, rows=rows, targets=targets):
                return torch.nn.functional.cross_entropy(rows / math.exp(log_t), targets).item()

            best = optimize.minimize_scalar(nll, bounds=(-4, 4), method="bounded", options={"xatol": 1e-8})
            assert value == pytest.approx(math.exp(best.x), rel=1e-5)
        expected = torch.nn.functional.cross_entropy(logits.double() / found.temperatures[0], labels, reduction="none")
        torch.testing.assert_close(found.nll[0], expected)
        torch.testing.assert_close(1 + found.msp[0], (logits.double() / found.temperatures[0]).softmax(1).amax(1))
    perfect = torch.eye(5)
    for gap in (1, 8, 40):  # with 8, the slope is 0 in float64 before T is that cold
        assert temperature.fit_temperature(gap * perfect, torch.arange(5), start=1.0) == temperature.COLDEST
    assert temperature.fit_temperature(perfect, (torch.arange(5) + 1) % 5, start=1.0) == temperature.HOTTEST


# ---------------------------------------------------------------------------------------------------------------- page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "Chromium is missing: apt-get install chromium"
        pytest.skip("no Chromium here: apt-get install chromium")
    tab = Browser(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


WIDER = """[...document.querySelectorAll('body *')].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(element => element.outerHTML.slice(0, 120))"""
WITHOUT_WORDS = """[...document.querySelectorAll('img, svg')].filter(element =>
    !(element.getAttribute('alt') || element.getAttribute('aria-label'))).length"""
SMALL = """[...document.querySelectorAll('body *')].filter(element => element.getClientRects().length
    && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    && parseFloat(getComputedStyle(element).fontSize) * (element.ownerSVGElement
        ? Math.hypot(element.getScreenCTM().a, element.getScreenCTM().b) : 1) < 11.9
).map(element => element.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", ["checkpoints", "logits"])
def test_the_page_in_chromium(kind, width, dark, request, browser):
    output = request.getfixturevalue("folder") / "report" if kind == "checkpoints" else request.getfixturevalue("page_of_logits")
    browser.open(output / "index.html", width, dark)
    browser.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.requests() == [] and browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(WIDER) == [] and browser.evaluate(SMALL) == []
    assert browser.evaluate(WITHOUT_WORDS) == 0
    assert browser.evaluate("document.querySelectorAll('script, iframe, object').length") == 0
    assert browser.evaluate("document.querySelectorAll('img:not([src^=\"data:\"])').length") == 0
    assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)")
    text = browser.evaluate("document.body.innerText")
    assert IMAGE in text and ("<script>alert(1)<" in text)
    if kind == "logits":
        assert SCRIPT in text and "<b>B</b>" in text and "<i>note</i>" in text
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 24, 26)" if dark else "rgb(255, 255, 255)")
    targets = browser.evaluate("[...document.querySelectorAll('nav a')].every(link => document.querySelector(link.hash))")
    assert targets and browser.evaluate("document.querySelectorAll('nav a').length") == 2 + len(CARRIED)


def test_sections_pictures_and_files(folder, page_of_logits):
    content = json.loads((folder / "report/report.json").read_text())
    assert tuple(content["sections"]) == CARRIED
    assert all(part["missing"] is None for part in content["sections"].values())
    assert len(content["sections"]["mistakes"]["content"]["one"]) == 8
    assert all(content["estimates"]["one"][f"d_within_{split}"]["value"] > 0 for split in ("train", "val"))
    assert content["models"]["one"][0]["loss"] == "maxsup" and content["models"]["one"][0]["architecture"] == "resnet8"
    assert {path.stem for path in (folder / "report/figures").iterdir()} == set(report.FIGURES)
    for path in (folder / "report/figures").iterdir():
        assert path.read_bytes().startswith(b"%PDF")
    missing = json.loads((page_of_logits / "report.json").read_text())["sections"]
    assert "logits files hold neither" in missing["gradcam"]["missing"] and "--features" in missing["features"]["missing"]
    page = (page_of_logits / "index.html").read_text()
    assert missing["mistakes"]["notes"][0] in page and not re.search(r"(?:src|href)=\"?(?:https?:)?//", page)


def test_a_command_under_a_figure_draws_it(page_of_logits, tmp_path, monkeypatch):
    page = (page_of_logits / "index.html").read_text()
    commands = {f: page.split(f'id="figure-{f}"')[1].split("<code>")[1].split("</code>")[0] for f in ("reliability", "max_logit")}
    for name, command in commands.items():
        words = shlex.split(html.unescape(command))
        assert words[:2] == ["python", "viz/report.py"]
        call(monkeypatch, *words[2:-1], tmp_path)
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert np.asarray(Image.open(tmp_path / f"{name}.png")).std() > 10
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize("count, classes", [(200, 2), (300, 1000), (60, 12)])
def test_one_model_of_few_or_many_classes(count, classes, tmp_path, monkeypatch, capsys):
    """With 60 images in 12 classes one class has none; with 300 in 1,000 classes, most have none."""
    logits, labels = outputs(count, classes, 3.0)
    if classes == 12:
        labels[labels == 4] = 5
    save(tmp_path / "a.pt", logits, labels, features=torch.randn(count, 7))
    call(monkeypatch, "--input", tmp_path / "a.pt", "--output", tmp_path / "out", "--skip", "gradcam")
    content = json.loads((tmp_path / "out/report.json").read_text())
    assert content["differences"] == [] and 4 <= len(content["answer"]) <= 7
    assert (content["estimates"]["a"]["aurc_normalised"]["value"] is None) == (classes == 2)
    page = (tmp_path / "out/index.html").read_text()
    assert ("classes have no image here" in page) == (classes > 2) and "gradcam" not in content["sections"]
    out = capsys.readouterr().out
    assert max(map(len, out.split("\n\n")[0].splitlines())) <= 100


def test_all_right(tmp_path, monkeypatch):
    """Without mistakes there is no gallery of them, no confusion and no AUROC, and the page says so."""
    labels = torch.arange(90) % 3
    save(tmp_path / "a.pt", 9.0 * torch.eye(3)[labels], labels)
    call(monkeypatch, "--input", tmp_path / "a.pt", "--output", tmp_path / "out")
    content = json.loads((tmp_path / "out/report.json").read_text())
    assert content["estimates"]["a"]["auroc"]["value"] is None
    assert content["sections"]["mistakes"]["missing"] == content["sections"]["confusion"]["missing"] == "No prediction is wrong."


def test_bad_input(pair, page_of_logits, tmp_path, monkeypatch):
    a, b = pair
    content = torch.load(a)
    fewer = save(tmp_path / "fewer.pt", content["logits"][:400], content["labels"][:400])
    others = save(tmp_path / "others.pt", content["logits"], (content["labels"] + 1) % 6)
    classes = save(tmp_path / "classes.pt", content["logits"][:, :5], content["labels"].clamp(max=4))
    named = save(tmp_path / "named.pt", content["logits"], content["labels"], classes=list("abcdef"))
    moved = save(tmp_path / "moved.pt", content["logits"], content["labels"], paths=[str(i) for i in range(500)])
    short = save(tmp_path / "short.pt", content["logits"], content["labels"], paths=["x"])
    out = ["--output", tmp_path / "out"]
    for words, match in {
        ("--input", a, fewer): "a.pt and .*fewer.pt were shown different images: 500 and 400",
        ("--input", a, others): "a.pt and .*others.pt were shown different images, whose labels differ",
        ("--input", a, moved): "were shown different images: '\"><img src=x>0' where the other has '0'",
        ("--input", a, classes): "a.pt and .*classes.pt have different classes: 6 and 5",
        ("--input", a, named): "have different classes: '<script>.*' where the other has 'a'",
        ("--input", short): "short.pt: its paths are not a list of 500",
        ("--input", a, b, "--names", "x", "x"): "need different names, not x, x",
        ("--input", tmp_path / "none.pt"): "none.pt: no such logits file",
        ("--group", "x", a, "--group", "x", b): "--group: the methods need different names",
        ("--group", "x"): "--group x: give a name, then at least one file",
        ("--input", a, "--only", "logits", "--skip", "logits"): "leave no section",
        ("--input", a, "--figure", "gradcam"): "--figure gradcam: Grad-CAM needs images",
        ("--input", a, "--figure", "projection", "--note", "x"): "--note: belongs to the page, which --figure does not make",
        ("--group", "x", a, b, "--data", "digits"): "--data: needs checkpoints, and these are logits files",
    }.items():
        with pytest.raises(InputError, match=match):
            call(monkeypatch, *words, *out)
    with pytest.raises(InputError, match="holds an output of viz/report.py already; --overwrite replaces it"):
        call(monkeypatch, "--input", a, "--output", page_of_logits)


# ------------------------------------------------------------------------------------------------------------- figures


def test_intervals_of_reliability_bars():
    right, count = np.array([0, 3, 40, 12]), np.array([2, 5, 50, 12])
    low, high = reliability.wilson(right / count, count)
    for index in range(4):
        expected = stats.binomtest(int(right[index]), int(count[index])).proportion_ci(method="wilson")
        # The code uses 1.96 for 1.959964.
        assert (low[index], high[index]) == (pytest.approx(expected.low, abs=1e-4), pytest.approx(expected.high, abs=1e-4))


def test_long_names_keep_their_beginning():
    assert style.short("hippopotomonstrosesquippedaliophobia", 12) == "hippopotomo…"
    assert style.short(" two\nwords ", 12) == "two words"


def test_tables_of_the_terminal_fit():
    rows = [["a" * 120, "1.00", "2"], ["b\x1b[31m", "10.00", "3"]]
    lines = table(["model", "top-1", "x"], rows).splitlines()
    assert max(map(len, lines)) == 100 and lines[2].endswith("a…   1.00  2") and "\x1b" not in "".join(lines)
    assert "not shown: c8, c9" in table(["model", *(f"c{i}" for i in range(10))], [["m", *["123456789"] * 10]])
