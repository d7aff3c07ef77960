"""What MaxSup changes, on data that needs no download: CE, label smoothing and MaxSup on odd and even digits, over seeds.

    python results/digits_parity.py            # what train_with_MaxSup.sh runs; output/digits/

Each run trains through Deit/main.py on two coarse classes; seeds share initial weights and data order across the losses. Then
the frozen features are asked for the ten digits, which training never named: features that collapse within a class cannot tell
them. One more run a loss, on all ten digits, gives the figures of near-zero logits, for which two classes are too few. It
writes summary.json, summary.md and figures. A killed run goes on where it was.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "viz"), str(ROOT / "Deit")]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a run is small: many at once, each on one core, beat many threads on one

from tqdm import tqdm

import render

LOSSES = {
    "CE": ["--loss", "ce"],
    "LS": ["--loss", "ls", "--alpha", "0.1"],
    "MaxSup": ["--loss", "maxsup", "--alpha", "0.1", "--alpha-end", "0.2"],
}
RECIPE = """
    --model test_resnet --input-size 16 --batch-size 64 --recipe-batch 0 --drop-path 0
    --opt sgd --lr 0.1 --unscale-lr --weight-decay 5e-4 --warmup-epochs 2 --warmup-lr 0.01 --min-lr 0
    --aa rand-m5-n1-mstd0.5-inc1 --hflip 0 --reprob 0.25 --mixup 0 --cutmix 0 --no-repeated-aug
    --num_workers 0 --device cpu --eval-every 100
""".split()
NEAR_ZERO = 0.1  # of ten logits hardly any comes within the papers' 0.01
BAR = {"dynamic_ncols": True, "mininterval": 1, "disable": None}
# Of render.COLUMNS.
SHOWN = ("train_top1", "top1", "d_within_train", "d_within_val", "r2_train", "r2_val", "transfer", "aurc", "ece")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="seeds of each loss, at least 3")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each run")
    parser.add_argument("--output", type=Path, default=ROOT / "output/digits", help="folder for runs, tables and figures")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once, a core each")
    args = parser.parse_args()
    if args.seeds < 3:
        sys.exit(f"error: --seeds {args.seeds}: a spread over seeds needs at least 3")
    if args.epochs < 1 or args.jobs < 1:
        sys.exit(f"error: --epochs {args.epochs} --jobs {args.jobs}: both from 1 on")
    started = time.time()
    parity, ten = prepare_data("parity"), prepare_data("ten")
    runs = {(name, seed): args.output / f"{name.lower()}-seed{seed}" for seed in range(args.seeds) for name in LOSSES}
    ten_runs = {name: args.output / f"{name.lower()}-ten" for name in LOSSES}
    jobs = [(parity, seed, name, folder) for (name, seed), folder in runs.items()]
    jobs += [(ten, 0, name, folder) for name, folder in ten_runs.items()]
    try:
        claim(args.output, args.epochs)
        train(jobs, args.epochs, args.jobs)
        measured, examples = measure(runs)
        write(measured, examples, args.epochs, args.output)
        draw_near_zero(ten_runs, args.output)
    except OSError as error:
        sys.exit(f"error: {error.filename or args.output}: {error.strerror}")
    print((args.output / "summary.md").read_text())
    print(f"{time.time() - started:.0f} s; tables and figures: {args.output}/")


def prepare_data(labels: str) -> Path:
    folder = ROOT / "data/digits" / labels
    if not folder.exists():
        subprocess.run([sys.executable, ROOT / "data/digits/prepare.py", "--labels", labels], check=True)
    return folder


def claim(output: Path, epochs: int) -> None:
    """Make the output folder and see that what it holds comes from the same recipe."""
    output.mkdir(parents=True, exist_ok=True)
    recipe = json.dumps({"recipe": RECIPE, "losses": LOSSES, "epochs": epochs})
    note = output / "recipe.json"
    if note.exists() and note.read_text() != recipe and any(output.glob("*/checkpoint.pth")):
        sys.exit(f"error: {output} holds runs of another recipe; remove it or choose another --output")
    note.write_text(recipe)


def train(jobs: list[tuple[Path, int, str, Path]], epochs: int, at_once: int) -> None:
    """Train what is missing of (data, seed, loss, folder), several at once, with one bar over the epochs of all."""
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        waiting = [pool.submit(train_one, epochs, *job) for job in jobs]
        with tqdm(total=epochs * len(jobs), desc=f"training {len(jobs)} models", unit="epoch", **BAR) as bar:
            while waiting:
                for run in [run for run in waiting if run.done()]:
                    waiting.remove(run)
                    run.result()
                bar.update(sum(finished_epochs(folder) for *_, folder in jobs) - bar.n)
                time.sleep(0.5)


def end_with_parent() -> None:
    """End this process when the one that started it is gone, killed perhaps: it would wait for work for ever."""

    def watch():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def train_one(epochs: int, data: Path, seed: int, name: str, folder: Path) -> None:
    """One run of Deit/main.py in this process; what it prints goes to train.txt beside its checkpoint."""
    import torch

    from main import main as train
    from options import get_parser

    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    where = ["--data-path", str(data), "--seed", str(seed), "--output_dir", str(folder), "--resume", "auto"]
    with open(folder / "train.txt", "a") as file, contextlib.redirect_stdout(file):
        train(get_parser().parse_args([*RECIPE, "--epochs", str(epochs), *LOSSES[name], *where]))


def finished_epochs(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def measure(runs: dict) -> tuple[dict, dict]:
    """All metrics of each run, and the logits files of the first seed for the figures."""
    import torch

    from logits import extract
    from metrics import classification, feature_variation

    torch.set_num_threads(os.cpu_count() or 1)
    measured, examples = {name: [] for name in LOSSES}, {}
    for (name, seed), folder in tqdm(runs.items(), desc="measuring", unit="model", **BAR):
        train, val = (extract(folder / "checkpoint.pth", split=split, features=True) for split in ("train", "val"))
        row = classification(val["logits"], val["labels"])
        for split, content in (("train", train), ("val", val)):
            variation = feature_variation(content["features"], content["labels"])
            row |= {f"{key}_{split}": variation[key] for key in ("d_within", "r2")}
        last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        row |= {
            "train_top1": last["train_top1"],
            "transfer": linear_transfer(train, val),
            "seed": seed,
            "seconds": last["seconds"],
        }
        measured[name].append(row)
        if seed == 0:
            examples[name] = {"train": train, "val": val}
    return measured, examples


def linear_transfer(train: dict, val: dict) -> float:
    """Accuracy (%) on the validation digits of a logistic regression on frozen unit features, fitted to the ten digits.

    Its strength is chosen by 5-fold cross-validation on the training images alone.
    """
    import torch.nn.functional as F
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    x, y = F.normalize(train["features"]).numpy(), digits(train)
    head = GridSearchCV(LogisticRegression(max_iter=2000), {"C": [1, 10, 100, 1000]}, cv=5).fit(x, y)
    return 100 * head.score(F.normalize(val["features"]).numpy(), digits(val))


def digits(content: dict) -> list[int]:
    """The digit of each image, which its file name begins with (data/digits/prepare.py)."""
    return [int(Path(path).name.split("_")[0]) for path in content["paths"]]


def write(measured: dict, examples: dict, epochs: int, output: Path) -> None:
    import torch

    summary = {
        "experiment": "digits-parity",
        "data": "scikit-learn digits, odd / even, 1,400 training and 397 validation images",
        "recipe": " ".join([*RECIPE, "--epochs", str(epochs)]),
        "losses": {name: " ".join(options) for name, options in LOSSES.items()},
        "runs": measured,
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (output / "summary.md").write_text(markdown(measured))
    draw_features(examples, output / "features")


def draw_near_zero(runs: dict[str, Path], output: Path) -> None:
    """The histogram of near-zero logits and the scatter of confidence against it, as viz/analysis.py draws them."""
    from analysis import analyse
    from logits import extract

    folder = output / "analysis"
    folder.mkdir(exist_ok=True)
    analyse({name: extract(run / "checkpoint.pth") for name, run in runs.items()}, NEAR_ZERO, folder)


def markdown(measured: dict[str, list[dict]]) -> str:
    """The table and the sentences of summary.md, from the metrics of each loss over seeds."""
    runs = {name: {row["seed"]: row for row in rows} for name, rows in measured.items()}
    seeds = len(runs["CE"])
    intro = (
        f"Mean ± standard deviation over {seeds} seeds. Training named two classes, odd and even; transfer is to the ten digits."
    )
    lines = [
        intro,
        "",
        *render.means(runs, SHOWN),
        "",
        "The papers' claims at this scale, by the 95 % interval of the difference, paired by seed:",
        "",
    ]
    for claim, test, found in render.judge_all({"digits-parity": runs}):
        for verdict in found.values():
            lines.append(f"- {render.sentence(claim, test)}: {render.cell(test, verdict)}, {render.what(test)}.")
    return "\n".join(lines) + "\n"


def draw_features(examples: dict, path: Path) -> None:
    """Validation features of each loss side by side: unit length, on their two principal axes, the same scale for all."""
    import torch.nn.functional as F
    from sklearn.decomposition import PCA

    import style

    figure, axes = style.panels(len(examples), height=3.9, sharex=True, sharey=True)
    for axis, (name, content) in zip(axes, examples.items()):
        axes_of = PCA(2, svd_solver="full").fit(F.normalize(content["train"]["features"]).numpy())
        points = axes_of.transform(F.normalize(content["val"]["features"]).numpy())
        for digit in range(10):
            which = [index for index, value in enumerate(digits(content["val"])) if value == digit]
            colour = style.COLOURS[digit % 2]
            axis.scatter(*points[which].T, marker=f"${digit}$", s=26, color=colour, linewidths=0.3)
        axis.set(title=name, xlabel="first principal axis", aspect="equal")
    axes[0].set_ylabel("second principal axis")
    figure.suptitle("Validation features (seed 0): even digits blue, odd ones orange, which is all that training named")
    style.save(figure, path)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it was")
