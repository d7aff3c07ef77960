"""The papers' figures and ours, in one table with a label on each: papers.json holds theirs, the runs hold ours."""

import json
from pathlib import Path

FILE = Path(__file__).parent / "papers.json"
# What of a run's metrics a paper's figure is compared with.
METRICS = {"top-1 %": ("top1", 2), "error %": ("top1", 2), "AURC": ("aurc", 5), "AURC, normalised logits": ("aurc_normalised", 5)}


def markdown(metrics: dict[str, dict[str, dict[int, dict]]]) -> str:
    """The MaxSup paper's ImageNet tables, then the rows that runs of ours stand beside. metrics[experiment][method][seed]."""
    content = json.loads(FILE.read_text())
    parts = [
        imagenet(content["imagenet"]),
        content["imagenet_note"] + "\n",
        beside(content["rows"], metrics),
        content["rows_note"],
    ]
    return "\n".join(parts) + "\n"


def imagenet(rows: dict[str, list]) -> str:
    lines = ["| ResNet-50 on ImageNet-1K, as the paper reports it | intra-class variation train / val | "]
    lines[0] += "inter-class separability train / val | linear transfer to CIFAR-10 % |"
    lines.append("|---|---|---|---|")
    for method, (train, val, r2_train, r2_val, transfer) in rows.items():
        lines.append(f"| {method} | {train:.4f} / {val:.4f} | {r2_train:.4f} / {r2_val:.4f} | {transfer or ''} |")
    return "\n".join(lines) + "\n"


def beside(rows: list[dict], metrics: dict) -> str:
    """A row for each method of a setting, and each figure: the paper's, ours, and which runs ours are of."""
    lines = ["| setting | method | figure | the paper reports | our runs | what our runs are |", "|---|---|---|---:|---:|---|"]
    for row in rows:
        runs = next((runs for runs in row["ours"] if metrics.get(runs["experiment"], {}).get(row["method"])), None)
        for figure, reported in row["figures"].items():
            cells = [row["setting"], row["method"], figure, "" if reported is None else f"{reported:g}"]
            lines.append(f"| {' | '.join([*cells, *ours(figure, row['method'], runs, metrics)])} |")
    return "\n".join(lines) + "\n"


def ours(figure: str, method: str, runs: dict | None, metrics: dict) -> tuple[str, str]:
    if runs is None:
        return "not run", ""
    from render import spread

    key, places = METRICS[figure]
    seeds = metrics[runs["experiment"]][method]
    values = [100 - one[key] if figure == "error %" else one[key] for one in seeds.values()]
    count = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"
    return spread(values, places), f"{runs['experiment']}, {count}; {runs['what']}"
