"""Train ConvNets with MaxSup and the losses it is compared with, from 8-pixel digits to ImageNet.

python train.py --data digits --model resnet20 --loss maxsup
torchrun --nproc_per_node=8 train.py --data imagenet --data-path P --model resnet50 --loss maxsup
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import errors
from errors import InputError, is_first, say

from options import cpu_has_bf16, fill_in, get_parser

if __name__ == "__main__":  # before the slow imports: --help and mistakes are answered immediately
    ARGS = get_parser().parse_args()

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision import transforms

import checkpoint
import distributed
import evaluate_options
import foreign
import run_folder
import states
from data import Images, Inputs, open_data
from data.longtail import by_shots
from data.order import mix
from data.pixels import usual_path
from engine import check_weights, evaluate, train_one_epoch
from evaluate import main as evaluate_checkpoint
from initial import start_from
from maxsup_loss import make_loss
from mixing import Mixing
from models import bare_model, classifier, create_model, model_facts, sync_batch_norm, wrap
from optimizer import build_optimizer, freeze_backbone, rate
from resume import restore
from teacher import build_distillation

# The options that --test-only passes on to evaluate.py if they are given.
TESTED = ("data", "data_path", "model", "width", "stem_stride", "input_size", "crop_ratio", "mean", "std")


def main(args: argparse.Namespace) -> None:
    said = vars(args).pop("said")
    given = {name: getattr(args, name) for name in TESTED if name in said}
    notes = fill_in(args)
    if "val_resize_size" in said:
        given["crop_ratio"] = args.crop_ratio
    errors.batch = f"--batch-size {args.batch_size}"
    if not args.test_only:
        distributed.start(args.device)
    for note in notes:
        say(note)
    if args.test_only:
        return test(args, given)
    if args.amp == "bf16" and args.device == "cpu" and not cpu_has_bf16():
        lacking = "this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16)"
        say(f"--amp bf16: {lacking}; float32 is rounded as they would round it, which is no faster than --amp off")
    with run_folder.locked(args.output_dir):
        train(args)
    distributed.stop()


def train(args: argparse.Namespace) -> None:
    """Start or resume training; write a log line and the checkpoint after each epoch. Raises InputError for invalid input."""
    description = model_facts(args.model, args.input_size, args.width, args.stem_stride)
    if args.batch_size % distributed.world_size():
        raise InputError(f"--batch-size {args.batch_size}: does not divide among {distributed.world_size()} processes")
    if foreign.is_url(args.resume or ""):
        args.resume = str(foreign.open_source(args.resume)[0])
    resume = run_folder.claim(args.output_dir, args.resume, args.overwrite)
    state = states.read(resume) if resume else None
    if args.freeze_backbone and not (args.init or state):
        raise InputError("--freeze-backbone: needs --init or a checkpoint to --resume, the weights that stay as they are")
    if state:
        began = state.get("args", {}).get("init")
        if args.init not in (None, began):
            say(f"note: --init has no effect: {resume} has the weights")
        args.init = began

    shape = (args.input_size, args.crop_ratio, args.mean, args.std)
    inputs = Inputs(args.data, args.data_path, *shape, args.device, args.num_workers, args.in_memory)
    train_data, val_data, args.superclasses = open_data(
        inputs, args.holdout, args.superclasses, args.imbalance_ratio, args.label_noise, args.seed
    )
    args.mean, args.std = train_data.mean, train_data.std  # measured if they were not known
    if args.in_memory:
        train_data.augment(args.padding, args.flip, args.cutout)
    else:
        train_data.augment(args.flip, auto_augment(args), args.random_erase)
    classes = train_data.classes
    steps = len(train_data) // args.batch_size
    if steps == 0:
        raise InputError(f"{len(train_data)} training images are fewer than one batch of {args.batch_size}; lower --batch-size")
    training_images = torch.bincount(train_data.labels.cpu(), minlength=len(classes))
    facts = checkpoint.facts(
        **description,
        num_classes=len(classes),
        input_size=args.input_size,
        mean=args.mean,
        std=args.std,
        interpolation="bilinear",
        crop_ratio=args.crop_ratio,
        data=None if args.data == "folder" else args.data,
        data_path=args.data_path or usual_path(args.data),
        superclasses=args.superclasses,
    )
    facts["training_images"] = train_data.class_sizes.tolist()  # for evaluate.py's many, medium and low
    facts["data_digest"] = train_data.digest

    model = build_model(args, description, classes, args.init if not state else None)
    ema = None
    if args.ema_decay:
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay), use_buffers=True)
    criterion = build_criterion(args.loss, args.alpha, args.alpha_end, args.prior, training_images).to(args.device)
    args.alpha, args.alpha_end = (getattr(criterion, name, getattr(args, name)) for name in ("alpha", "alpha_end"))
    optimizer = build_optimizer(model, args.lr, args.momentum, args.weight_decay, args.opt == "sgd_nesterov", args.layer_decay)
    course = ("epochs", "warmup_epochs", "sched", "decay_epochs", "decay_rate")
    share = partial(rate, steps=steps, **{name: getattr(args, name) for name in course})
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step))
    parts = {"optimizer": optimizer, "lr_scheduler": scheduler, "loss": criterion}

    start_epoch = 0
    if state:
        start_epoch = restore(state, resume, model, ema, parts, classes, steps, vars(args) | facts)
        del state
    say_setup(model, train_data, val_data, start_epoch, args)
    mixing = Mixing(args.mixup_alpha, args.cutmix_alpha, len(classes), args.seed)
    distillation = build_distillation(args, train_data)
    wrapped = wrap(model, args.loss == "zipf", args.compile, args.device, args.in_memory)
    log = run_folder.Log(args.output_dir, resume, start_epoch, args.epochs)

    started = time.time()
    for epoch in range(start_epoch, args.epochs):
        training = train_one_epoch(
            wrapped,
            criterion,
            train_data,
            optimizer,
            scheduler,
            ema,
            epoch=epoch,
            epochs=args.epochs,
            batch_size=args.batch_size,
            seed=args.seed,
            amp=args.amp,
            mixing=mixing,
            distillation=distillation,
            clip_grad_norm=args.clip_grad_norm,
        )
        line = {"epoch": epoch + 1, **{f"train_{key}": value for key, value in training.items()}}
        last_step = (epoch + 1) * steps - 1  # the scheduler is one step ahead
        line |= {"lr": max(scheduler.base_lrs) * share(last_step), "alpha": getattr(criterion, "alpha", None)}
        distributed.share_buffers(model)
        if (epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs:
            line |= validate(model, ema, val_data, train_data, args)
        check_weights(model, epoch, line.get("val_nll", 0.0) + line.get("ema_nll", 0.0))
        if is_first():
            passed = time.time() - started
            line["seconds"] = round(log.seconds + passed, 3)
            log.write(line)
            save(args.output_dir / checkpoint.NAME, model, ema, parts, train_data, epoch, vars(args) | facts)
            say_epoch(line, passed / (epoch + 1 - start_epoch) * (args.epochs - epoch - 1), args.epochs)
    distributed.barrier()  # no process exits before the last checkpoint is on the disk
    say(f"checkpoint and log: {args.output_dir}/")


def build_model(args: argparse.Namespace, description: dict, classes: list[str], init: str | None) -> nn.Module:
    """The model on its device, initialised from the seed or from `init`. Raises InputError for weights that do not fit."""
    torch.manual_seed(mix(args.seed))
    model = create_model(description, len(classes))
    if init:
        start_from(init, model, description, classes, {"mean": args.mean, "std": args.std})
    if args.freeze_backbone:
        freeze_backbone(model, classifier(model))
    model = model.to(args.device, memory_format=torch.channels_last)
    return sync_batch_norm(model, args.device) if args.sync_bn and distributed.world_size() > 1 else model


def validate(model: nn.Module, ema: AveragedModel | None, val_data: Images, train_data: Images, args: argparse.Namespace) -> dict:
    """The validation entries of a log line: metrics of the model, as val_, and of its moving average, as ema_.

    Computed in float32, as evaluate.py and viz/ do by default.
    """
    count = len(train_data.classes)
    metrics, right, images = evaluate(model, val_data, count, args.batch_size, "off")
    if args.imbalance_ratio != 1:
        metrics |= by_shots(right, images, train_data.class_sizes)
    line = {f"val_{key}": value for key, value in metrics.items()}
    if ema is not None:
        distributed.share_buffers(ema.module)  # not ema: its own counter is on the CPU, which NCCL does not support
        metrics, *_ = evaluate(ema.module, val_data, count, args.batch_size, "off")
        line |= {f"ema_{key}": value for key, value in metrics.items()}
    return line


def auto_augment(args: argparse.Namespace) -> Callable | None:
    """The transform of --auto-augment, or None; with bilinear interpolation, as in torchvision's reference script."""
    kind, bilinear = args.auto_augment, transforms.InterpolationMode.BILINEAR
    if kind == "ra":
        magnitude = 9 if args.ra_magnitude is None else args.ra_magnitude
        return transforms.RandAugment(magnitude=magnitude, interpolation=bilinear)
    if kind == "ta_wide":
        return transforms.TrivialAugmentWide(interpolation=bilinear)
    if kind == "augmix":
        return transforms.AugMix(severity=args.augmix_severity or 3, interpolation=bilinear)
    return transforms.AutoAugment(transforms.AutoAugmentPolicy(kind), interpolation=bilinear) if kind else None


def test(args: argparse.Namespace, given: dict) -> None:
    """--test-only: run evaluate.py on the checkpoint of --resume. given: the values of those of TESTED that were given."""
    words = ["--checkpoint", args.resume] + ["--ema"] * bool(args.ema_decay)
    words += ["--batch-size", args.batch_size, "--num-workers", args.num_workers, "--device", args.device]
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    evaluate_checkpoint(evaluate_options.get_parser().parse_args([str(word) for word in words]))


def build_criterion(
    loss: str, alpha: float | None, alpha_end: float | None, prior: str, training_images: torch.Tensor
) -> nn.Module:
    """The loss that the options name. training_images (K,): the number of training images with each label."""
    frequencies = training_images / training_images.sum() if prior == "frequency" else None
    return make_loss(loss, len(training_images), alpha, alpha_end, frequencies)


def save(
    path: Path, model: nn.Module, ema: AveragedModel | None, parts: dict, train_data: Images, epoch: int, args: dict
) -> None:
    """Write the checkpoint of an epoch, including the rows of a training subset and the labels of a noisy training set."""
    more = {"ema_updates": int(ema.n_averaged) if ema else 0}
    if train_data.rows is not None:
        more["training_rows"] = train_data.rows
    if args["label_noise"]:
        more["training_labels"] = train_data.labels.cpu()
    average = ema.module if ema else None
    checkpoint.save(path, bare_model(model), average, parts, train_data.classes, epoch, args["seed"], args, **more)


def say_setup(model: nn.Module, train_data: Images, val_data: Images, start_epoch: int, args: argparse.Namespace) -> None:
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    alpha = "" if args.alpha is None else f" {args.alpha:g}" + ("" if args.alpha_end is None else f" -> {args.alpha_end:g}")
    prior = ", prior: the training labels' frequencies" if args.prior == "frequency" else ""
    steps = len(train_data) // args.batch_size
    epochs = f"{start_epoch + 1} to {args.epochs}, {steps} steps each" if start_epoch < args.epochs else "all done already"
    path = None if args.in_memory else args.data_path or usual_path(args.data)
    source = f"in {path}" if path else "in memory"
    held = f" ({args.holdout:.0%} of the training images, held out)" if args.holdout else ""
    noise = f", {args.label_noise:.0%} of the training labels are wrong" if args.label_noise else ""
    teacher = args.teacher_path or args.teacher_logits
    taught = f", {args.distillation_alpha:g} of it {args.distillation_type} distillation from {teacher}" if teacher else ""
    say(
        f"model          {args.model}, {millions:.2f} M parameters, {len(train_data.classes)} classes, {args.input_size} px\n"
        f"loss           {args.loss}{alpha}{prior}{taught}\n"
        f"data           {args.data}: {len(train_data):,} training and {len(val_data):,} validation images{held} {source}"
        f"{noise}\n"
        f"processes      {distributed.world_size()} on {args.device}, mixed precision {args.amp}\n"
        f"optimiser      SGD, batch {args.batch_size}, lr {args.lr:g} ({args.sched}), weight decay {args.weight_decay:g}\n"
        f"epochs         {epochs}"
    )


def say_epoch(line: dict, seconds_left: float, epochs: int) -> None:
    text = f"epoch {line['epoch']:3d}/{epochs}  loss {line['train_loss']:.4f}"
    if line["train_top1"] is not None:
        text += f"  train top-1 {line['train_top1']:.2f} %"
    if "val_top1" in line:
        text += f"  val top-1 {line['val_top1']:.2f} %  ECE {line['val_ece']:.3f}"
    if "val_many" in line:
        shots = {name: line[f"val_{name}"] for name in ("many", "medium", "low")}
        text += "  " + " ".join(f"{name} {'-' if value is None else format(value, '.1f')}" for name, value in shots.items())
    left = f"{seconds_left / 60:.0f} min" if seconds_left >= 90 else f"{seconds_left:.0f} s"
    say(f"{text}  {line['train_images_per_second']:,.0f} images/s  {left} left")


if __name__ == "__main__":
    main(ARGS)
