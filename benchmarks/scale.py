"""Write SCALE.md: what the ImageNet rows need on 1, 8 and 32 GPUs, from results/tables/loading.json and published speeds.

python benchmarks/scale.py            # the page, from the tables as they are now
"""

import argparse
import json
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
PAGE = TOP / "benchmarks/SCALE.md"
TIMM = "timm's training benchmark, RTX 3090, mixed precision (`results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv`)"
NVIDIA = "NVIDIA's DeepLearningExamples, `PyTorch/Classification/ConvNets/resnet50v1.5/README.md`, DGX A100, mixed precision"
IMAGES, ARCHIVES, FFCV = 1_281_167, 155, 490  # training images; GB of the archives, and of the .ffcv files (results/README.md)
ALL_IMAGES = IMAGES + 50_000  # the files hold the validation images, too
A100 = (2470, 16_621)  # ResNet-50, images/s on 1 and on 8 GPUs: NVIDIA
FULL = "FFCV, full size, JPEG at quality 90"  # of loading.json
BANDWIDTH = (2.039, 3.35)  # TB/s of memory: data sheets of the A100 80GB and of the H100, both SXM
# Row of results/papers.json: title, millions of parameters, loader in loading.json, images per step of all GPUs, GB of files
ROWS = {
    "imagenet-deit-small": ("DeiT-Small", 22.05, "our archives", 1024, ARCHIVES),
    "imagenet-resnet18": ("ResNet-18", 11.69, "FFCV, side at most 500, half as JPEG at 90", 2048, FFCV),
    "imagenet-resnet50": ("ResNet-50", 25.56, "FFCV, side at most 500, half as JPEG at 90", 2048, FFCV),
    "imagenet-resnet101": ("ResNet-101", 44.55, "our archives", 256, ARCHIVES),
    "imagenet-mobilenetv2": ("MobileNetV2", 3.50, "our archives", 256, ARCHIVES),
}


def derived(expression: str, digits: int = 0) -> tuple[float, str]:
    """The value of an arithmetic expression, and both as a page shows them."""
    value = round(eval(expression, {"__builtins__": {}}), digits)  # only text from this file
    return value, f"`{expression}` = {value:,.{digits}f}"


def page() -> str:
    loading = json.loads((TOP / "results/tables/loading.json").read_text())
    loaders = {row[0]: row[1] for row in loading["rows"]}
    plans = {plan["name"]: plan for plan in json.loads((TOP / "results/papers.json").read_text())["planned"] if "name" in plan}
    ratio, ratio_line = derived(f"{A100[0]} / {plans['imagenet-resnet50']['images_per_second']:.0f}", 2)
    hopper, hopper_line = derived(f"{BANDWIDTH[1]} / {BANDWIDTH[0]}", 2)
    node, node_line = derived(f"{A100[1]} / (8 * {A100[0]})", 2)
    lines = [
        "# ImageNet on 1, 8 and 32 GPUs, on paper",
        "",
        "`python benchmarks/scale.py` writes this page. We have not run ImageNet on GPUs. Each number below",
        "is measured on a CPU here, published elsewhere, or derived in the line that shows it.",
        "",
        "## Images/s per GPU",
        "",
        f"- RTX 3090: {TIMM}.",
        f"- A100, ResNet-50: {A100[0]:,} images/s on one GPU ({NVIDIA}).",
        f"  The other models are scaled by the same factor: {ratio_line}.",
        f"- H100: the A100's speed times the ratio of the memory bandwidths, {hopper_line}. Normalisation and activations",
        "  are bound by memory bandwidth. The ratio of the peak speeds in bfloat16 is larger.",
        f"- 8 GPUs: {node_line} of the speed of 8 single GPUs (same source, with its loader). We assume the same for 32 GPUs.",
        "",
        "| model | RTX 3090 | A100 | H100 |",
        "|---|---:|---:|---:|",
    ]
    speeds = {}
    for name, (title, *_) in ROWS.items():
        ours = plans[name]["images_per_second"]
        on_a100 = derived(f"{ours:.0f} * {ratio}")[0]
        speeds[name] = (round(ours), on_a100, derived(f"{on_a100:.0f} * {hopper}")[0])
        lines.append(f"| {title} | {speeds[name][0]:,} | {speeds[name][1]:,.0f} | {speeds[name][2]:,.0f} |")
    lines += [
        "",
        "## Cores that the loaders need",
        "",
        f"`{loading['command']}` measured the loaders ({loading['environment']}).",
        "It uses 2 processes on 2 cores, so images/s per core are half of its figures. It crops and flips. RandAugment and",
        "random erasing of DeiT's recipe need more cores, which we have not measured.",
        "",
        "| model, loader | images/s per core | cores per A100 | cores per H100 |",
        "|---|---|---|---|",
    ]
    for name, (title, _, loader, *_) in ROWS.items():
        core, core_line = derived(f"{loaders[loader]:.0f} / 2")
        cores = [derived(f"{speed:.0f} / {core:.0f}", 1)[1] for speed in speeds[name][1:]]
        lines.append(f"| {title}: {loader} | {core_line} | {cores[0]} | {cores[1]} |")
    faster, faster_line = derived(f"{loaders['our archives, re-encoded at 256']:.0f} / {loaders['our archives']:.0f}", 2)
    lines += [
        "",
        "A machine with 8 GPUs and 96 cores has 12 cores per GPU. In a row that needs more, the GPUs wait for images.",
        f"`data/imagenet/prepare.py --shorter-side 256` speeds up loading from archives by a factor: {faster_line}.",
        "",
        "## Disk and page cache",
        "",
        "All processes of a machine share its page cache. If the files do not fit into memory, each epoch reads them again.",
        "",
        "| model | files, GB | KB per image | GB/s to read on 1 A100 | on 8 | on 32, in all |",
        "|---|---:|---|---|---|---|",
    ]
    for name, (title, _, _, _, size) in ROWS.items():
        kilobytes, line = derived(f"{size}e6 / {ALL_IMAGES}")
        speed = speeds[name][1]
        reads = [derived(f"{count * share} * {speed:.0f} * {kilobytes:.0f} / 1e6", 2)[1] for count, share in counts(node)]
        lines.append(f"| {title} | {size} | {line} | {' | '.join(reads)} |")
    lines += [
        "",
        "One NVMe disk reads 3 to 7 GB/s, a network file system often less than 1 GB/s. The .ffcv files reach this limit first:",
        "half of their images are raw. `write_imagenet.sh 500 1.0 90` stores only JPEG: 65 GB at 512 px, according to FFCV. This",
        f"needs more cores: {derived(f'{loaders[FULL]:.0f} / 2')[1]} images/s per core for JPEG at full size.",
        "",
        "## Network",
        "",
        "DistributedDataParallel sends 2 (n - 1) / n times the gradients, 4 bytes per parameter, in each step. It does so",
        "during the backward pass, which is about two thirds of a step. The recipes fix the images per step of all GPUs",
        "together, so each of 32 GPUs has few images.",
        "",
        "| model | images per step and GPU, 32 GPUs | step, ms (A100) | MB sent per GPU and step | Gbit/s to hide it |",
        "|---|---|---|---|---|",
    ]
    for name, (title, parameters, _, batch, _) in ROWS.items():
        each, each_line = derived(f"{batch} / 32")
        step, step_line = derived(f"1000 * {each:.0f} / {speeds[name][1]:.0f}", 1)
        sent, sent_line = derived(f"2 * 31 / 32 * 4 * {parameters}")
        lines.append(
            f"| {title} | {each_line} | {step_line} | {sent_line} | {derived(f'8 * {sent:.0f} / (2 / 3 * {step})')[1]} |"
        )
    lines += [
        "",
        "NVLink within a machine carries 2,400 Gbit/s per direction on an A100 (600 GB/s in both). Between machines, 100 to 400",
        "Gbit/s per machine are usual. A batch of 256 on 32 GPUs (ResNet-101, MobileNetV2) is therefore bound by the",
        "network and by kernel launches. For these recipes, use 8 GPUs per run, and run several at once.",
        "",
        "## Hours of one run",
        "",
        "| model | epochs | 1 A100 | 8 A100 | 32 A100, at best |",
        "|---|---:|---|---|---|",
    ]
    for name, (title, *_) in ROWS.items():
        epochs = plans[name]["epochs"]
        hours = [
            derived(f"{IMAGES} * {epochs} / ({count * share} * {speeds[name][1]:.0f}) / 3600", 1)[1]
            for count, share in counts(node)
        ]
        lines.append(f"| {title} | {epochs} | {' | '.join(hours)} |")
    return "\n".join(lines) + "\n"


def counts(node: float) -> list[tuple[int, float]]:
    """Numbers of GPUs, and the share of its single-GPU speed that each keeps."""
    return [(1, 1), (8, node), (32, node)]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    PAGE.write_text(page())
    print(f"page: {PAGE}")
