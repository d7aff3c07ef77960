"""The sections of a report: what each shows about the models, by the definitions of metrics/ and the figures of drawing/."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.errors import InputError

import numpy as np
import torch
from PIL import Image

from drawing import grad_cam as cam
from drawing import logit_panels, max_logit, projection, reliability, risk_coverage
from drawing.panels import Panels
from metrics.calibration_error import BINS, binned
from metrics.selection import TWO_CLASSES
from report_page import SECTIONS
from report_page.answer import between, shown
from report_page.blocks import Cell, Figure, Gallery, Picture, Section, Table, picture
from report_page.inputs import Run
from report_page.numbers import METRICS

PAIRS, MISTAKES, DISAGREEMENTS = 12, 8, 4  # pairs of classes, mistakes per model, images for Grad-CAM
MOST_ROWS = 16  # a table of differences with more rows is folded


@dataclass
class Findings:
    """What the sections show. runs: the seeds of each method. command: maps a figure's name to what draws only this figure."""

    runs: dict[str, list[Run]]
    estimates: dict[str, dict[str, dict]]
    differences: list[dict]
    command: Callable[[str], str]
    device: str = "cpu"

    @property
    def first(self) -> dict[str, Run]:
        """The first seed of each method, for sections that show single images."""
        return {name: seeds[0] for name, seeds in self.runs.items()}

    @property
    def several_seeds(self) -> bool:
        return any(len(seeds) > 1 for seeds in self.runs.values())

    def values(self, name: str, key: str) -> float | None:
        return self.estimates[name][key]["value"]


def numbers_table(found: Findings, keys: tuple[str, ...], caption: str) -> Table:
    """A row per model, a column per metric that any of them has: the number (± the standard deviation over seeds), under it the
    interval."""
    keys = [key for key in keys if any(found.values(name, key) is not None for name in found.runs)]
    rows = []
    for name in found.runs:
        cells = [Cell(name, strong=True)]
        for key in keys:
            estimate = found.estimates[name][key]
            small = between(key, estimate["interval"]) if estimate["interval"] else ""
            text = shown(key, estimate["value"], unit=False)
            if estimate.get("spread") is not None:
                text += f" ± {shown(key, estimate['spread'], unit=False)}"
            cells.append(Cell(text, small))
        rows.append(cells)
    units = [f"{METRICS[key].title}{f', {METRICS[key].unit.strip()}' if METRICS[key].unit else ''}" for key in keys]
    return Table(caption, ["model", *units], rows)


def differences_table(found: Findings, keys: list[str], caption: str, folded: bool) -> Table | None:
    """A row per pair and metric: the difference, its interval as text and picture, and whether it excludes 0."""
    rows = []
    for key in keys:
        part = [row for row in found.differences if row["metric"] == key and row["interval"]]
        bound = max((abs(end) for row in part for end in row["interval"]), default=0) or 1
        for row in part:
            ends, value = row["interval"], row["value"]
            place = tuple(float(at / bound) for at in (ends[0], value, ends[1]))
            reading = f"{row['model' if value > 0 else 'less']} is higher" if row["told"] else "cannot be told"
            pair, title = f"{row['model']} − {row['less']}", METRICS[key].title if row is part[0] else ""
            rows.append([title, pair, shown(key, value, sign=True), between(key, ends), Cell("", picture=place), reading])
    head = ["measure", "difference", "value", "95 % interval", "around zero", "by this interval"]
    return Table(caption, head, rows, folded or len(rows) > MOST_ROWS, "sides") if rows else None


def calibration(found: Findings) -> Section:
    keys = ("top1", "nll", "ece", "temperature", "ece_temperature")
    section = Section(
        "calibration", "Accuracy and calibration", "How often is a model right, and does its confidence say so?", list(keys)
    )
    section.tables.append(numbers_table(found, keys, "Accuracy and calibration"))
    diagrams, models = {}, {}
    for name, seeds in found.runs.items():
        diagrams[name] = sum(reliability_bins(run) for run in seeds)
        models[name] = {
            "before": {"ece": found.values(name, "ece")},
            "after": {"ece": found.values(name, "ece_temperature")},
            "temperatures": [value for run in seeds for value in run.outputs.tempered.temperatures],
        }
    caption = (
        "Reliability diagrams: a bar ends on the diagonal where the confidence is right. Vertical lines: 95 % intervals; bars of "
        f"fewer than {reliability.FEW} images are pale."
    )
    section.figures.append(figure(found, "reliability", caption, reliability.panels(diagrams, models)))
    section.numbers = {
        name: {"temperatures": models[name]["temperatures"], "bins": (bins / len(models[name]["temperatures"])).tolist()}
        for name, bins in diagrams.items()
    }
    return section


def reliability_bins(run: Run) -> np.ndarray:
    """(2, BINS, 3) before and after the temperature, sums over the splits: images, confidence, right predictions."""
    right, tempered = run.samples.right, run.outputs.tempered
    before = binned(run.samples.confidence, right)[:, :3].numpy() * len(tempered.temperatures)
    after = np.zeros((BINS, 3))
    for msp, held in zip(tempered.msp, tempered.held_out, strict=True):
        after += binned(1 + msp[~held], right[~held])[:, :3].numpy()
    return np.stack([before, after])


def selective(found: Findings) -> Section:
    keys = ("aurc", "auroc", "coverage_at_risk_1", "risk_at_coverage_80", "aurc_normalised", "normalised_less_msp")
    section = Section(
        "selective",
        "Selective classification",
        "How wrong is a model if it may leave the least confident images unanswered?",
        list(keys),
    )
    section.tables.append(numbers_table(found, keys, "Ranking of errors by confidence (MSP, the largest softmax probability)"))
    curves = {name: mean_curve(seeds) for name, seeds in found.runs.items()}
    caption = "The share of wrong answers at each coverage, the share of images that are answered. Lower is better."
    if all(normal is not None for _, _, normal in curves.values()):
        caption += " Dashed: confidence by normalised logits."
    else:
        section.notes.append(f"{TWO_CLASSES[0].upper()}{TWO_CLASSES[1:]}.")
    section.figures.append(figure(found, "risk_coverage", caption, risk_coverage.panels(curves)))
    kept = np.linspace(0, 1, 101)[1:]
    section.numbers = {
        "coverages": kept.tolist(),
        "risk": {n: np.interp(kept, c, risk).tolist() for n, (c, risk, _) in curves.items()},
    }
    return section


def mean_curve(seeds: list[Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """risk_coverage.curves, averaged over the seeds."""
    rows = [risk_coverage.curves(run.outputs.ranked, run.outputs.chosen, ~run.outputs.held_out) for run in seeds]
    columns = list(zip(*rows, strict=True))
    return columns[0][0], np.mean(columns[1], 0), None if rows[0][2] is None else np.mean(columns[2], 0)


def logits(found: Findings) -> Section:
    keys = ("near_zero", "max_logit_gap")
    section = Section("logits", "Logits", "What the outputs before the softmax look like.", list(keys))
    section.tables.append(numbers_table(found, keys, "Logits"))
    first = {name: run.samples for name, run in found.first.items()}
    threshold = next(iter(found.first.values())).threshold
    models = logit_panels.Models(first, {}, 0, 1, next(iter(found.first.values())).outputs.classes, threshold)
    captions = {
        "near_zero_histogram": f"How many of an image's logits are near zero, |z| < {threshold:g}.",
        "top_against_mean": "The largest logit of each image against the mean of its logits; orange: wrong predictions.",
    }
    for name, caption in captions.items():
        panels = logit_panels.of_models(name, models, caption, "{name}\n{said}")
        section.figures.append(figure(found, name, caption + _of_first(found), panels))
    caption = (
        "The largest logit given the confidence. Where right predictions have a lower largest logit than wrong ones of the same "
        "MSP, the MSP hides what the logits know."
    )
    panels = max_logit.panels({name: sum(run.outputs.ranked.given_odds for run in seeds) for name, seeds in found.runs.items()})
    section.figures.append(figure(found, "max_logit", caption, panels))
    return section


def features(found: Findings) -> Section:
    keys = ("d_within_train", "d_within_val", "r2_train", "r2_val")
    section = Section(
        "features", "Features", "The geometry of the penultimate features, which are the classifier's input.", ["r2_val"]
    )
    if all(found.values(name, "d_within_val") is None for name in found.runs):
        section.missing = "The logits files hold no features; viz/logits.py --features stores them."
        return section
    section.tables.append(
        numbers_table(found, keys, "Variation within classes, and separability (Table 1 of the MaxSup repository)")
    )
    planes = {name: run.plane for name, run in found.first.items() if run.plane}
    if planes:
        in_all = tuple(split for split in projection.SPLITS if all(split in plane["points"] for plane in planes.values()))
        caption = "Unit features of three classes on the plane through the classes' templates, the crosses." + _of_first(found)
        section.figures.append(figure(found, "projection", caption, projection.panels(planes, in_all)))
    else:
        section.notes.append("The projection needs checkpoints of three classes or more: logits files hold no templates.")
    return section


def confusion(found: Findings) -> Section:
    section = Section("confusion", "Confused classes", "The pairs of classes that are confused most, over all models.")
    counts, labels = {}, next(iter(found.first.values())).content["labels"].numpy()
    for name, seeds in found.runs.items():
        for run in seeds:
            wrong = (run.predicted != run.content["labels"]).numpy()
            pairs, number = np.unique(np.stack([labels[wrong], run.predicted.numpy()[wrong]], 1), axis=0, return_counts=True)
            for pair, count in zip(map(tuple, pairs.tolist()), number.tolist(), strict=True):
                counts.setdefault(pair, dict.fromkeys(found.runs, 0.0))[name] += count / len(seeds)
    most = sorted(counts, key=lambda pair: (-sum(counts[pair].values()), pair))[:PAIRS]
    if not most:
        section.missing = "No prediction is wrong."
        return section
    of_class, names = np.bincount(labels), next(iter(found.first.values())).classes
    rows, section.numbers = [], []
    highest = max(counts[pair][name] / of_class[pair[0]] for pair in most for name in found.runs)
    for true, predicted in most:
        rows.append([f"{names[true]} → {names[predicted]}", f"{of_class[true]:,}"])
        for count in counts[true, predicted].values():
            share = count / of_class[true]
            rows[-1].append(Cell(f"{count:.{count != int(count):d}f}", f"{100 * share:.1f} %", share=share / highest))
        row = {"label": names[true], "predicted": names[predicted], "images": int(of_class[true])}
        section.numbers.append(row | counts[true, predicted])
    mean = ", mean over seeds" if found.several_seeds else ""
    caption = f"Images of the first class that are taken for the second: their number{mean}, and their share of the first class"
    section.tables.append(Table(caption, ["label → prediction", "images", *found.runs], rows, kind="pairs"))
    return section


def mistakes(found: Findings) -> Section:
    intro = "The wrong predictions that a model is surest of." + _of_first(found)
    section = Section("mistakes", "Most confident mistakes", intro)
    section.numbers = {}
    for name, run in found.first.items():
        wrong = (~run.samples.right).nonzero().squeeze(1)
        sure = wrong[run.samples.msp[wrong].argsort(descending=True, stable=True)[:MISTAKES]].tolist()
        cards, section.numbers[name] = map(list, zip(*(_card(run, index) for index in sure), strict=True)) if sure else ([], [])
        title = f"{name}: {len(wrong):,} mistakes" + (f", the {len(sure)} surest" if len(sure) < len(wrong) else "")
        section.galleries.append(Gallery(title, cards))
    if not any(gallery.pictures for gallery in section.galleries):
        section.missing, section.galleries = "No prediction is wrong.", []
    elif all(run.images is None for run in found.first.values()):
        section.notes.append("Logits files hold no pictures; with --checkpoint the pictures appear here.")
    return section


def _card(run: Run, index: int) -> tuple[Picture, dict]:
    """The picture of an image with its label, prediction and confidence, and the same for report.json."""
    label, predicted = (run.classes[int(part[index])] for part in (run.content["labels"], run.predicted))
    path = run.paths[index] if run.paths else f"image {index:,}"
    confidence = float(run.samples.confidence[index])
    row = {"image": path, "index": index, "label": label, "predicted": predicted, "confidence": confidence}
    words = f"{path}: {label}, predicted as {predicted}"
    lines = [f"{predicted}: {percent(confidence)}", f"label: {label}", path]
    if run.images is None:
        return Picture("", words, lines), row
    return picture(open_image(run, index), words, lines), row


def percent(share: float) -> str:
    """A probability as a percentage that never reads as certain when it is not."""
    return f"{100 * share:.1f} %" if share < 0.9995 else f"{min(100 * share, 99.9999):.4f} %" if share < 1 else "100 %"


def open_image(run: Run, index: int) -> Image.Image:
    run.images.transform = None
    return run.images[index][0]


def gradcam(found: Findings) -> Section:
    section = Section("gradcam", "Grad-CAM", "Which part of an image a decision comes from.")
    runs = found.first
    if any(run.images is None for run in runs.values()):
        section.missing = "Grad-CAM needs images and models: logits files hold neither. --checkpoint has both."
        return section
    chosen, why = disagreements(list(runs.values()))
    if not chosen:
        section.missing = "No prediction is wrong, and the models agree on every image."
        return section
    run = next(iter(runs.values()))
    images = [open_image(run, index) for index in chosen]
    try:
        columns = {name: cam.explain_all(part.checkpoint, images, None, found.device, name) for name, part in runs.items()}
    except InputError as error:
        section.missing = f"Grad-CAM cannot be drawn: {error}"
        return section
    rows = []
    for row, (index, image) in enumerate(zip(chosen, images, strict=True)):
        label = run.classes[int(run.content["labels"][index])]
        cells = [picture(image, f"{run.paths[index]}, {label}", [f"label: {label}", run.paths[index]])]
        for name, panels in columns.items():
            panel = panels[row]
            heat = Image.fromarray(cam.overlay_of(panel))
            lines = [panel["words"], "right" if panel["top"] == int(run.content["labels"][index]) else "wrong"]
            cells.append(picture(heat, f"Grad-CAM of {run.paths[index]} by {name}: {panel['words']}", lines))
        rows.append(cells)
    caption = f"{why} Bright: the pixels that count most for what the model predicts." + _of_first(found)
    paths = [Path(run.paths[index]) for index in chosen]
    whole = partial(cam.draw, columns, paths, images)
    section.figures.append(Figure("gradcam", caption, found.command("gradcam"), None, rows, ["image", *columns], whole))
    section.numbers = [
        {"image": run.paths[index], "predictions": {n: p[row]["words"] for n, p in columns.items()}}
        for row, index in enumerate(chosen)
    ]
    return section


def disagreements(runs: list[Run]) -> tuple[list[int], str]:
    """Images that some models get right and others wrong, the most confident mistakes first; else the most confident mistakes of
    all; and a sentence that says which."""
    predicted, labels = torch.stack([run.predicted for run in runs]), runs[0].content["labels"]
    confidence = torch.stack([run.samples.confidence for run in runs])
    right = predicted == labels
    split = right.any(0) & ~right.all(0) if len(runs) > 1 else torch.zeros(len(labels), dtype=torch.bool)
    words = f"Images that some models get right and others wrong ({int(split.sum()):,} in all), the surest wrong answers first."
    if not split.any():
        split = ~right.all(0)
        words = "No image is right for one model and wrong for another; these are the surest mistakes."
        words = words if len(runs) > 1 else "The surest mistakes."
    surest = torch.where(right, 0, confidence).amax(0)  # of the wrong answers
    found = split.nonzero().squeeze(1)
    return found[surest[found].argsort(descending=True, stable=True)[:DISAGREEMENTS]].tolist(), words


def figure(found: Findings, name: str, caption: str, panels: Panels) -> Figure:
    return Figure(name, caption, found.command(name), panels)


def _of_first(found: Findings) -> str:
    return " Shown is the first seed of each method." if found.several_seeds else ""


MAKE = dict(zip(SECTIONS, (calibration, selective, logits, features, gradcam, confusion, mistakes), strict=True))
