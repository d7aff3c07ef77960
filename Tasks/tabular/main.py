"""Train an MLP on a table with MaxSup and the losses it is compared with.

python main.py --data digits --loss maxsup
python main.py --data bank --data-path bank-full.csv --loss ls --alpha 0.2 --seeds 20
python main.py --data my.csv --target label --loss maxsup --logits maxsup.pt
"""

import argparse
import time
from pathlib import Path

import errors
from errors import InputError

from options import fill_in, get_parser

if __name__ == "__main__":  # before the slow imports: --help and mistakes are answered immediately
    ARGS = get_parser().parse_args()

import torch
from torch import Tensor, nn

import checkpoint
import run_folder
import states
from data import Table, open_table, split_and_encode
from engine import evaluate, train_one_epoch
from maxsup_loss import make_loss
from models import create_model
from seeds import train_seeds

# Settings that should not change when a run is resumed.
SETTINGS = ("alpha", "alpha_end", "epochs", "batch_size", "lr")

SUMMED_UP = ("train_top1", "val_top1", "val_nll", "val_ece", "val_aurc")  # averaged over seeds


def main(args: argparse.Namespace) -> None:
    fill_in(args)
    errors.batch = f"--batch-size {args.batch_size}"
    table = open_table(args)
    sizes = torch.bincount(torch.from_numpy(table.labels), minlength=len(table.classes)).tolist()
    counts = ", ".join(f"{name} {size:,}" for name, size in zip(table.classes[:10], sizes, strict=False))
    more = ", ..." if len(sizes) > 10 else ""
    print(f"data           {args.data}: {sum(sizes):,} rows, {len(table.columns)} columns; {counts}{more}")
    if args.seeds is None:
        run(args, table)
    else:
        train_seeds(args, lambda own: run(own, table, brief=True), SUMMED_UP)


def run(args, table: Table, brief: bool = False) -> dict[str, float]:
    """Train one seed in a folder that no other run uses."""
    with run_folder.locked(args.output_dir):
        return train(args, table, brief)


def train(args, table: Table, brief: bool) -> dict[str, float]:
    """Train one seed; returns the metrics of the last epoch. `brief` prints one line per run."""
    resume = run_folder.claim(args.output_dir, args.resume, args.overwrite)
    state = states.read(resume) if resume else None
    *tensors, columns = split_and_encode(table, args.train_share, args.seed)
    x_train, y_train, x_test, y_test = (part.to(args.device) for part in tensors)
    classes = table.classes

    torch.manual_seed(args.seed)
    model = create_model(x_train.shape[1], len(classes)).to(args.device)
    criterion = build_criterion(args, y_train, len(classes)).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    facts = checkpoint.facts(args, columns, len(classes), *tensors[:2])
    parts = {"optimizer": optimizer, "loss": criterion}
    start_epoch = restore(state, resume, model, parts, facts, classes, args) if state else 0
    if not brief:
        say_setup(x_train, x_test, model, args)
    log = run_folder.Log(args.output_dir, resume, start_epoch, args.epochs)

    metrics, logits = measure(model, x_train, y_train, x_test, y_test) if start_epoch == args.epochs else ({}, None)
    started = time.perf_counter()
    for epoch in range(start_epoch, args.epochs):
        loss = train_one_epoch(model, criterion, x_train, y_train, optimizer, args, epoch)
        metrics, logits = measure(model, x_train, y_train, x_test, y_test)
        line = {"epoch": epoch + 1, "train_loss": loss, **metrics, "alpha": getattr(criterion, "alpha", None)}
        log.write(line | {"seconds": round(log.seconds + time.perf_counter() - started, 3)})
        state = {name: part.state_dict() for name, part in {"model": model, **parts}.items()}
        # All random numbers are functions of (seed, epoch), so the seed is the whole state of the generators.
        state |= {"epoch": epoch, "rng": {"seed": args.seed}, "classes": classes, "args": facts}
        states.write(state, args.output_dir / checkpoint.NAME)
        if not brief:
            say_metrics(f"epoch {epoch + 1:3d}/{args.epochs}  loss {loss:.4f}", metrics)
    if args.logits:
        content = {"logits": logits, "labels": y_test.cpu(), "classes": classes, "model": "mlp", "args": facts}
        states.write(content, args.logits)
    if brief:
        say_metrics(f"seed {args.seed}", metrics)
    else:
        print(f"checkpoint and log: {args.output_dir}/" + (f", test logits: {args.logits}" if args.logits else ""))
    return metrics


def measure(model: nn.Module, x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor) -> tuple[dict, Tensor]:
    """The epoch's metrics and the test logits. train_top1 is measured in evaluation mode."""
    metrics, logits = evaluate(model, x_test, y_test)
    train_top1 = evaluate(model, x_train, y_train)[0]["top1"]
    return {"train_top1": train_top1} | {f"val_{key}": value for key, value in metrics.items()}, logits


def build_criterion(args, labels: Tensor, classes: int) -> nn.Module:
    """The loss of the command line; sets args.alpha and args.alpha_end to the values that it uses."""
    prior = None
    if args.prior == "frequency":
        prior = torch.bincount(labels.cpu(), minlength=classes).float() / len(labels)
    criterion = make_loss(args.loss, classes, args.alpha, args.alpha_end, prior)
    args.alpha, args.alpha_end = getattr(criterion, "alpha", args.alpha), getattr(criterion, "alpha_end", None)
    return criterion


def restore(state: dict, path: Path, model: nn.Module, parts: dict, facts: dict, classes: list[str], args) -> int:
    """Restore a checkpoint's state; returns the epoch to continue with. Raises InputError if it does not fit this run."""
    missing = [key for key in ("args", "epoch", "classes", "optimizer", "loss") if key not in state]
    if missing:
        raise InputError(f"{path}: not a checkpoint of this trainer; it has no {', '.join(missing)}")
    was = state["args"]
    for name in ("loss", "prior", "seed", "data", "train_share", "model"):
        if was.get(name) != facts[name]:
            raise InputError(f"{path}: a run with --{name.replace('_', '-')} {was.get(name)}, not {facts[name]}")
    if state["classes"] != classes or was.get("columns") != facts["columns"] or was.get("data_digest") != facts["data_digest"]:
        raise InputError(f"{path}: trained on other rows, columns or classes than {args.data_path or args.data} gives now")
    if not 0 <= state["epoch"] < args.epochs:
        raise InputError(f"{path}: has {state['epoch'] + 1} epochs, more than --epochs {args.epochs}")
    for name in SETTINGS:
        if was.get(name) != facts[name]:
            print(f"warning: {name} was {was.get(name)} in {path}, now it is {facts[name]}", flush=True)
    states.load_weights(model, state["model"], path)
    states.load_parts(parts, state, path)
    print(f"resuming {path} after epoch {state['epoch'] + 1} of {args.epochs}", flush=True)
    return state["epoch"] + 1


def say_setup(x_train: Tensor, x_test: Tensor, model: nn.Module, args) -> None:
    size, parameters = x_train.shape[1], sum(p.numel() for p in model.parameters())
    alpha = "" if args.alpha is None else f" {args.alpha:g}" + ("" if args.alpha_end is None else f" -> {args.alpha_end:g}")
    print(
        f"model          MLP {size}-{4 * size}-{2 * size}-{model[-1].out_features}, {parameters:,} parameters\n"
        f"rows           {len(x_train):,} for training, {len(x_test):,} for testing, {size} columns after encoding\n"
        f"loss           {args.loss}{alpha}, seed {args.seed}\n"
        f"optimiser      Adam, batch {args.batch_size}, lr {args.lr:g}, {args.epochs} epochs",
        flush=True,
    )


def say_metrics(title: str, metrics: dict[str, float]) -> None:
    print(
        f"{title}  train top-1 {metrics['train_top1']:.2f} %  test top-1 {metrics['val_top1']:.2f} %  "
        f"NLL {metrics['val_nll']:.4f}  ECE {metrics['val_ece']:.4f}  AURC {metrics['val_aurc']:.5f}",
        flush=True,
    )


if __name__ == "__main__":
    main(ARGS)
