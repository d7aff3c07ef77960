"""Draw image, truth, prediction, errors and uncertainty of each pixel, one row per model (Figure 1 of arXiv 2403.14715).

python uncertainty_maps.py --checkpoint ce.pth ls.pth maxsup.pth --names CE LS MaxSup --data-path P --output maps.png
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

from errors import InputError

from options import get_maps_parser

if __name__ == "__main__":  # before the slow imports: --help and mistakes are answered immediately
    ARGS = get_maps_parser().parse_args()

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.colors import ListedColormap
from torch import Tensor

import states
from data import Batches, Images
from engine import predict
from layouts import IGNORE, LAYOUTS
from models import create_model

NO_LABEL = "0.85"  # grey


def main(args: argparse.Namespace) -> None:
    if args.names and len(args.names) != len(args.checkpoint):
        raise InputError(f"--names has {len(args.names)} names for {len(args.checkpoint)} checkpoints")
    if args.output.suffix not in (".png", ".pdf"):
        raise InputError(f"--output {args.output}: must end in .png or .pdf")
    if args.output.exists() and not args.overwrite:
        raise InputError(f"{args.output} is there already; --overwrite replaces it")
    rows, names = [], []
    for path in args.checkpoint:
        state = states.read(path)
        rows.append(maps_of(state, path, args))
        names.append(str(state["args"].get("loss", path.stem)))
    if any(not np.array_equal(row["image"], rows[0]["image"]) for row in rows):
        raise InputError("the checkpoints were trained at several sizes or on several data sets; a figure has one image")
    try:
        draw(rows, args.names or names).savefig(args.output, dpi=88)
    except OSError as error:
        raise InputError(f"{args.output}: cannot be written ({error.strerror})")
    for name, row in zip(args.names or names, rows, strict=True):
        wrong = row["errors"][row["truth"] != IGNORE]
        print(f"{name}: {100 * wrong.mean():.2f} % of {wrong.size:,} labelled pixels are wrong")
    print(args.output)


@torch.inference_mode()
def maps_of(state: dict, path: Path, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """The five maps of a checkpoint's model on the chosen test image, each (H, W) except the image, (H, W, 3) in [0, 1]."""
    facts = state.get("args", {})
    try:
        settings = {key: facts[key] for key in ("model", "data", "size", "shorter_side", "input_size", "mean", "std")}
        if settings["data"] not in LAYOUTS:
            raise ValueError(f"data {settings['data']!r}")
        for key, count in {"mean": 3, "std": 3, "input_size": 2, "size": 2}.items():
            values = settings[key] if key != "size" or settings[key] else [1, 1]
            if len(values) != count or not all(0 <= value <= 8192 for value in values):
                raise ValueError(f"{key} {settings[key]}")
        data_path = args.data_path or Path(facts["data_path"])
        model = create_model(settings["model"], int(facts["num_classes"]), list(settings["input_size"]))
    except (KeyError, TypeError, ValueError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}: not a checkpoint of main.py ({error!r})")
    states.load_weights(model, state["model"], path)
    rest = SimpleNamespace(**settings, data_path=data_path, device="cpu", batch_size=1, seed=0, num_workers=0)
    batches = Batches(Images(rest, "test"), rest)
    batches.choose([find_image(batches.images, args.image)])
    _, image, labels = next(batches.evaluation())
    truth = labels[0].numpy()
    if (truth == IGNORE).all():
        raise InputError(f"--image {args.image}: no pixel of it has a label; choose another")
    logits = predict(model.eval(), image, truth.shape, SimpleNamespace(predict="whole"))[0]
    confidence, prediction = logits.softmax(0).max(0)
    pixels = np.asarray(batches.images.read(batches.indices[0])[0].resize(truth.shape[::-1])) / 255
    wrong = (prediction.numpy() != truth) & (truth != IGNORE)
    uncertainty = rank_of_uncertainty(confidence, labels[0] != IGNORE).numpy()
    return {"image": pixels, "truth": truth, "prediction": prediction.numpy(), "errors": wrong, "uncertainty": uncertainty}


def rank_of_uncertainty(confidence: Tensor, labelled: Tensor) -> Tensor:
    """(H, W): each labelled pixel's rank by decreasing confidence, from 0 (most certain) to 1; NaN for other pixels.

    Pixels of equal confidence share the mean of their ranks.
    """
    values, group, counts = (-confidence[labelled].double()).unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double() - 1
    ranks = torch.full(confidence.shape, torch.nan, dtype=torch.float64)
    ranks[labelled] = (last - (counts - 1) / 2)[group] / max(int(labelled.sum()) - 1, 1)
    return ranks


def find_image(images: Images, which: str) -> int:
    """The index of a test image, from its number or a part of its name. Raises InputError if there is none."""
    if which.isdecimal() and which == str(int(which)):
        if int(which) < len(images):
            return int(which)
        raise InputError(f"--image {which}: the test images have the numbers 0 to {len(images) - 1}")
    found = [index for index, (path, _) in enumerate(images.pairs) if which in path.name]
    if not found:
        raise InputError(f"--image {which}: no test image has that in its name; they look like {images.pairs[0][0].name}")
    return found[0]


def draw(rows: list[dict[str, np.ndarray]], names: list[str]) -> pyplot.Figure:
    """A figure with one row per model and five columns."""
    matplotlib.use("Agg")
    height, width = rows[0]["truth"].shape
    figure, axes = pyplot.subplots(
        len(rows), 5, figsize=(11, 0.6 + 2.05 * len(rows) * height / width), squeeze=False, layout="constrained"
    )
    classes = 1 + max(int(max(row["truth"][row["truth"] != IGNORE].max(initial=0), row["prediction"].max())) for row in rows)
    palette = pyplot.get_cmap("tab20" if classes <= 20 else "nipy_spectral", classes)
    palette = ListedColormap([palette(label) for label in range(classes)]).with_extremes(bad=NO_LABEL)
    error_colours = ListedColormap(["white", "#b2182b"]).with_extremes(bad=NO_LABEL)
    for name, row, line in zip(names, rows, axes, strict=True):
        no_label = row["truth"] == IGNORE
        shades = pyplot.get_cmap("viridis").with_extremes(bad=NO_LABEL)
        line[0].imshow(row["image"])
        for axis, key in ((line[1], "truth"), (line[2], "prediction")):
            hidden = no_label if key == "truth" else np.zeros_like(no_label)
            axis.imshow(np.ma.array(row[key], mask=hidden), cmap=palette, vmin=-0.5, vmax=classes - 0.5, interpolation="nearest")
        line[3].imshow(np.ma.array(row["errors"], mask=no_label), cmap=error_colours, vmin=0, vmax=1, interpolation="nearest")
        last = line[4].imshow(row["uncertainty"], cmap=shades, vmin=0, vmax=1, interpolation="nearest")
        line[0].set_ylabel(name, fontsize=11)
    for axis, title in zip(axes[0], ("image", "truth", "prediction", "errors", "uncertainty rank"), strict=True):
        axis.set_title(title, fontsize=11)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(last, ax=axes[:, 4], ticks=[0.08, 0.9], pad=0.03, aspect=12 * len(rows))
    bar.ax.set_yticklabels(["certain", "uncertain"], rotation=90, va="center")
    return figure


if __name__ == "__main__":
    main(ARGS)
