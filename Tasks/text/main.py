"""Train an LSTM on texts with MaxSup and the losses it is compared with: a classifier, or a language model.

python main.py --data imdb --data-path aclImdb --loss ls --alpha 0.2
python main.py --data text --data-path FILE_OR_FOLDER --loss maxsup
"""

import argparse
import math
import time
from pathlib import Path

import errors
from errors import InputError

from options import cpu_has_bf16, fill_in, get_parser

if __name__ == "__main__":  # before the slow imports: --help and mistakes are answered immediately
    ARGS = get_parser().parse_args()

import torch
from torch import Tensor, nn

import checkpoint
import run_folder
import states
from data import Texts, open_reviews, open_text, read_embeddings
from engine import evaluate, train_one_epoch
from maxsup_loss import make_loss
from models import MODELS
from seeds import train_seeds

# Settings that should not change when a run is resumed.
SETTINGS = ("alpha", "alpha_end", "epochs", "batch_size", "lr", "amp", "device")

SUMMED_UP = ("train_top1", "val_top1", "val_nll", "val_ece", "val_aurc")  # averaged over seeds


def main(args: argparse.Namespace) -> None:
    fill_in(args)
    errors.batch = f"--batch-size {args.batch_size}"
    if args.amp == "bf16" and args.device == "cpu" and not cpu_has_bf16():
        args.amp = "off"
        lacking = "this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16), which PyTorch's LSTM needs"
        print(f"--amp bf16: {lacking}; training in float32")
    start = time.perf_counter()
    read = open_reviews if args.model == "lstm" else open_text
    texts = read(args.data_path, args.max_tokens, args.vocabulary)
    kind = "texts" if args.model == "lstm" else "windows"
    tokens = int(texts.train.lengths.sum()), int(texts.test.lengths.sum())
    print(
        f"data           {args.data}: {len(texts.train.lengths):,} {kind} for training ({tokens[0]:,} tokens), "
        f"{len(texts.test.lengths):,} for testing ({tokens[1]:,}); {len(texts.words):,} words; "
        f"read in {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    if args.seeds is None:
        run(args, texts)
    else:
        keys = (*SUMMED_UP, "val_perplexity") if args.model == "lstm-lm" else SUMMED_UP
        train_seeds(args, lambda own: run(own, texts, brief=True), keys)


def run(args, texts: Texts, brief: bool = False) -> dict[str, float]:
    """Train one seed in a folder that no other run uses."""
    with run_folder.locked(args.output_dir):
        return train(args, texts, brief)


def train(args, texts: Texts, brief: bool) -> dict[str, float]:
    """Train one seed; returns the metrics of the last epoch. `brief` prints one line per run."""
    resume = run_folder.claim(args.output_dir, args.resume, args.overwrite)
    state = states.read(resume) if resume else None
    classes = texts.classes

    torch.manual_seed(args.seed)
    model = MODELS[args.model](len(texts.words), len(classes), args.embedding_size, args.hidden_size)
    if args.embeddings and state is None:
        with torch.no_grad():
            found = read_embeddings(args.embeddings, texts.words, model.embedding.weight)
        print(f"embeddings     {found:,} of {len(texts.words):,} words are in {args.embeddings}", flush=True)
    model = model.to(args.device)
    criterion = build_criterion(args, texts, len(classes)).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    facts = checkpoint.facts(args, texts)
    parts = {"optimizer": optimizer, "loss": criterion}
    start_epoch = restore(state, resume, model, parts, facts, classes, args) if state else 0
    if not brief:
        say_setup(model, len(classes), args)
    log = run_folder.Log(args.output_dir, resume, start_epoch, args.epochs)

    metrics, started = {}, time.perf_counter()
    for epoch in range(start_epoch, args.epochs):
        start = time.perf_counter()
        line = {"epoch": epoch + 1, "train_loss": train_one_epoch(model, criterion, texts.train, optimizer, args, epoch)}
        line |= {"alpha": getattr(criterion, "alpha", None), "train_seconds": round(time.perf_counter() - start, 3)}
        last = epoch + 1 == args.epochs
        if last or (epoch + 1) % args.eval_every == 0:
            metrics, logits, targets = measure(model, texts, last, args)
            line |= metrics
        log.write(line | {"seconds": round(log.seconds + time.perf_counter() - started, 3)})
        state = {name: part.state_dict() for name, part in {"model": model, **parts}.items()}
        # All random numbers are functions of (seed, epoch), so the seed is the whole state of the generators.
        state |= {"epoch": epoch, "rng": {"seed": args.seed}, "classes": classes, "args": facts}
        if args.model == "lstm":
            state["vocabulary"] = texts.words  # a language model's classes are its vocabulary
        states.write(state, args.output_dir / checkpoint.NAME)
        if not brief:
            say_metrics(f"epoch {epoch + 1:3d}/{args.epochs}  loss {line['train_loss']:.4f}", line)
    if start_epoch == args.epochs:
        metrics, logits, targets = measure(model, texts, True, args)
    if args.logits:
        content = {"logits": logits, "labels": targets, "classes": classes, "model": args.model, "args": facts}
        states.write(content, args.logits)
    if brief:
        say_metrics(f"seed {args.seed}", metrics)
    else:
        print(f"checkpoint and log: {args.output_dir}/" + (f", test logits: {args.logits}" if args.logits else ""))
    return metrics


def measure(model: nn.Module, texts: Texts, training_too: bool, args) -> tuple[dict[str, float], Tensor, Tensor]:
    """Metrics on the test split, its logits and targets; training_too adds train_top1, another pass over the training split."""
    found, logits, targets = evaluate(model, texts.test, args)
    metrics = {f"val_{key}": value for key, value in found.items()}
    if args.model == "lstm-lm":
        metrics["val_perplexity"] = math.exp(min(found["nll"], 700))
    if training_too:
        metrics["train_top1"] = evaluate(model, texts.train, args)[0]["top1"]
    return metrics, logits, targets


def build_criterion(args, texts: Texts, classes: int) -> nn.Module:
    """The loss of the command line; sets args.alpha and args.alpha_end to the values that it uses."""
    prior = None
    if args.prior == "frequency":
        targets = texts.train.batch(torch.arange(len(texts.train.lengths)), "cpu")[2]  # all targets, without padding
        prior = torch.bincount(targets, minlength=classes).float() / len(targets)
    criterion = make_loss(args.loss, classes, args.alpha, args.alpha_end, prior)
    args.alpha, args.alpha_end = getattr(criterion, "alpha", args.alpha), getattr(criterion, "alpha_end", None)
    return criterion


def restore(state: dict, path: Path, model: nn.Module, parts: dict, facts: dict, classes: list[str], args) -> int:
    """Restore a checkpoint's state; returns the epoch to continue with. Raises InputError if it does not fit this run.

    Sets facts["embeddings"] to the file that the run started with.
    """
    missing = [key for key in ("args", "epoch", "classes", "optimizer", "loss") if key not in state]
    if missing:
        raise InputError(f"{path}: not a checkpoint of this trainer; it has no {', '.join(missing)}")
    was = state["args"]
    for name in ("loss", "prior", "seed", "data", "max_tokens", "vocabulary", "model", "embedding_size", "hidden_size"):
        if was.get(name) != facts[name]:
            raise InputError(f"{path}: a run with --{name.replace('_', '-')} {was.get(name)}, not {facts[name]}")
    if state["classes"] != classes or was.get("data_digest") != facts["data_digest"]:
        raise InputError(f"{path}: trained on other texts, words or classes than {args.data_path} gives now")
    if not 0 <= state["epoch"] < args.epochs:
        raise InputError(f"{path}: has {state['epoch'] + 1} epochs, more than --epochs {args.epochs}")
    if facts["embeddings"] not in (None, was.get("embeddings")):
        print(f"note: --embeddings has no effect: {path} has the weights", flush=True)
    facts["embeddings"] = was.get("embeddings")
    for name in SETTINGS:
        if was.get(name) != facts[name]:
            print(f"warning: {name} was {was.get(name)} in {path}, now it is {facts[name]}", flush=True)
    states.load_weights(model, state["model"], path)
    states.load_parts(parts, state, path)
    print(f"resuming {path} after epoch {state['epoch'] + 1} of {args.epochs}", flush=True)
    return state["epoch"] + 1


def say_setup(model: nn.Module, classes: int, args) -> None:
    alpha = "" if args.alpha is None else f" {args.alpha:g}" + ("" if args.alpha_end is None else f" -> {args.alpha_end:g}")
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"model          {args.model}, {millions:.2f} M parameters, {classes:,} classes, {args.max_tokens} tokens\n"
        f"loss           {args.loss}{alpha}, seed {args.seed}\n"
        f"device         {args.device}, {torch.get_num_threads()} CPU threads, mixed precision {args.amp}\n"
        f"optimiser      Adam, batch {args.batch_size}, lr {args.lr:g}, {args.epochs} epochs",
        flush=True,
    )


def say_metrics(title: str, line: dict[str, float]) -> None:
    names = {"train_top1": "train top-1", "val_top1": "test top-1", "val_perplexity": "perplexity"}
    names |= {"val_nll": "NLL", "val_ece": "ECE", "val_aurc": "AURC"}
    forms = {"train_top1": ".2f", "val_top1": ".2f", "val_perplexity": ".2f", "val_aurc": ".5f"}
    found = [f"{label} {line[key]:{forms.get(key, '.4f')}}" for key, label in names.items() if key in line]
    seconds = f"{line['train_seconds']:.0f} s" if "train_seconds" in line else ""
    print("  ".join([title, *found, seconds]), flush=True)


if __name__ == "__main__":
    main(ARGS)
