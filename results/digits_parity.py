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
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "viz"), str(ROOT / "Deit")]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a run is small: many at once, each on one core, beat many threads on one

from tqdm import tqdm  # noqa: E402

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
# key in summary.json: heading, decimals
COLUMNS = {
    "train_top1": ("train top-1 %", 2),
    "top1": ("val top-1 %", 2),
    "d_within_train": ("intra-class var. train", 4),
    "d_within_val": ("intra-class var. val", 4),
    "r2_train": ("inter-class sep. train", 4),
    "r2_val": ("inter-class sep. val", 4),
    "transfer": ("transfer to 10 digits %", 2),
    "aurc": ("AURC", 5),
    "ece": ("ECE", 4),
}
# The seeds' claims: sentence, metric, the method said to be higher, the method said to be lower.
CLAIMS = [
    ("LS lowers intra-class variation against CE", "d_within_val", "CE", "LS"),
    ("MaxSup keeps more intra-class variation than LS", "d_within_val", "MaxSup", "LS"),
    ("MaxSup separates classes better than LS", "r2_val", "MaxSup", "LS"),
    ("LS lowers linear transfer against CE", "transfer", "CE", "LS"),
    ("MaxSup transfers better than LS", "transfer", "MaxSup", "LS"),
    ("MaxSup is more accurate than LS", "top1", "MaxSup", "LS"),
    ("MaxSup is more accurate than CE", "top1", "MaxSup", "CE"),
    ("LS ranks its errors worse than CE (higher AURC)", "aurc", "LS", "CE"),
    ("MaxSup ranks its errors better than LS (lower AURC)", "aurc", "LS", "MaxSup"),
    ("LS is better calibrated than CE (lower ECE)", "ece", "CE", "LS"),
]


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
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(train_one, epochs, *job) for job in jobs]
        with tqdm(total=epochs * len(jobs), desc=f"training {len(jobs)} models", unit="epoch", **BAR) as bar:
            while waiting:
                for run in [run for run in waiting if run.done()]:
                    waiting.remove(run)
                    run.result()
                bar.update(sum(finished_epochs(folder) for *_, folder in jobs) - bar.n)
                time.sleep(0.5)


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

    verdicts = [judge(measured, *claim) for claim in CLAIMS]
    means = {name: {key: spread([row[key] for row in rows]) for key in COLUMNS} for name, rows in measured.items()}
    summary = {
        "experiment": "digits-parity",
        "data": "scikit-learn digits, odd / even, 1,400 training and 397 validation images",
        "recipe": " ".join([*RECIPE, "--epochs", str(epochs)]),
        "losses": {name: " ".join(options) for name, options in LOSSES.items()},
        "mean_and_standard_deviation": means,
        "runs": measured,
        "claims": verdicts,
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (output / "summary.md").write_text(markdown(summary))
    draw_features(examples, output / "features")


def draw_near_zero(runs: dict[str, Path], output: Path) -> None:
    """The histogram of near-zero logits and the scatter of confidence against it, as viz/analysis.py draws them."""
    from analysis import analyse
    from logits import extract

    folder = output / "analysis"
    folder.mkdir(exist_ok=True)
    analyse({name: extract(run / "checkpoint.pth") for name, run in runs.items()}, NEAR_ZERO, folder)


def spread(values: list[float]) -> list[float]:
    """Mean and standard deviation over seeds (n - 1)."""
    mean = sum(values) / len(values)
    return [mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))]


def judge(measured: dict, sentence: str, metric: str, higher: str, lower: str) -> dict:
    """Test one claim by the 95 % t interval of the difference, paired by seed: the same weights and images in the same order."""
    from scipy.stats import t

    differences = [a[metric] - b[metric] for a, b in zip(measured[higher], measured[lower])]
    mean, deviation = spread(differences)
    half = t.ppf(0.975, len(differences) - 1) * deviation / math.sqrt(len(differences))
    verdict = "holds" if mean - half > 0 else "does not hold" if mean + half < 0 else "cannot be told"
    interval = [mean - half, mean + half]
    return {
        "claim": sentence,
        "metric": metric,
        "difference": f"{higher} - {lower}",
        "mean": mean,
        "interval": interval,
        "verdict": verdict,
    }


def markdown(summary: dict) -> str:
    """The table and the sentences of summary.md, from what summary.json holds."""
    means, seeds = summary["mean_and_standard_deviation"], len(summary["runs"]["CE"])
    lines = [
        f"Mean ± standard deviation over {seeds} seeds. Training named two classes, odd and even; transfer is to the ten digits.",
        "",
        f"| loss | {' | '.join(title for title, _ in COLUMNS.values())} |",
        f"|---|{'---:|' * len(COLUMNS)}",
    ]
    for name, row in means.items():
        cells = [f"{row[key][0]:.{places}f} ± {row[key][1]:.{places}f}" for key, (_, places) in COLUMNS.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "The papers' claims at this scale, by the 95 % interval of the difference, paired by seed:", ""]
    for claim in summary["claims"]:
        title, places = COLUMNS[claim["metric"]]
        low, high = claim["interval"]
        figures = f"{title}, {claim['difference']}: {claim['mean']:+.{places}f}, from {low:+.{places}f} to {high:+.{places}f}"
        lines.append(f"- {claim['claim']}: **{claim['verdict']}** ({figures}).")
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
