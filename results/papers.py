"""Tables of the papers' numbers and ours, each labelled by its source: papers.json holds theirs, the runs hold ours."""

import json
from pathlib import Path

from runs_tables import spread

FILE = Path(__file__).parent / "papers.json"
# The metric of a run that a paper's number is compared with, and its decimals.
METRICS = {"top-1 %": ("top1", 2), "error %": ("top1", 2), "AURC": ("aurc", 5), "AURC, normalised logits": ("aurc_normalised", 5)}


def markdown(metrics: dict[str, dict[str, dict[int, dict]]]) -> str:
    """The MaxSup paper's ImageNet tables, then a table per setting, with our runs if any. metrics[experiment][method][seed]."""
    content = json.loads(FILE.read_text())
    return "\n".join(
        [
            imagenet(content["imagenet"]),
            content["imagenet_note"] + "\n",
            *(beside(setting, metrics) for setting in content["settings"]),
        ]
    )


def imagenet(rows: dict[str, list]) -> str:
    lines = ["| ResNet-50 on ImageNet-1K, as the paper reports it | intra-class variation train / val | "]
    lines[0] += "inter-class separability train / val | linear transfer to CIFAR-10 % |"
    lines.append("|---|---|---|---|")
    for method, (train, val, r2_train, r2_val, transfer) in rows.items():
        lines.append(f"| {method} | {train:.4f} / {val:.4f} | {r2_train:.4f} / {r2_val:.4f} | {transfer or ''} |")
    return "\n".join(lines) + "\n"


def beside(setting: dict, metrics: dict) -> str:
    """A row per method and experiment of ours: each number as the paper reports it, if known, and ours, as mean and standard
    deviation over seeds.
    """
    methods = setting["methods"]
    runs = {one["experiment"]: one["what"] for one in setting["ours"]}
    runs = {name: what for name, what in runs.items() if methods.keys() & metrics.get(name, {}).keys()}
    figures = list(next(iter(methods.values())))
    columns = [
        (figure, who)
        for figure in figures
        for who in ("paper", "ours")
        if (runs if who == "ours" else any(one[figure] is not None for one in methods.values()))
    ]
    source = f"Our runs: {'; '.join(map(', '.join, runs.items()))}." if runs else "Not run yet."
    if not any(who == "paper" for _, who in columns):
        source += " To our knowledge, the paper reports no numbers for this setting."
    if runs and "AURC, normalised logits" in figures:
        source += " AURC uses all test images; with normalised logits, the four fifths that did not choose the exponent."
    lines = [f"**{setting['setting']}.** {source}", ""]
    lines += [
        f"| method |{' runs, ours | seeds, ours |' * bool(runs)} {' | '.join(f'{figure}, {who}' for figure, who in columns)} |"
    ]
    lines += ["|---|" + "---|---:|" * bool(runs) + "---:|" * len(columns)]
    for method, reported in methods.items():
        for name in [name for name in runs if method in metrics[name]] or [""]:
            seeds = metrics[name][method] if name else {}
            cells = [method, *([name, str(len(seeds))] if runs else [])]
            cells += [ours(figure, seeds) if who == "ours" else known(reported[figure]) for figure, who in columns]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def known(figure: float | None) -> str:
    return "" if figure is None else f"{figure:g}"


def ours(figure: str, seeds: dict[int, dict]) -> str:
    """Mean and standard deviation over seeds of the metric for one of the papers' numbers; empty without runs."""
    key, places = METRICS[figure]
    return spread([100 - one[key] if figure == "error %" else one[key] for one in seeds.values()], places)
