"""Train and evaluate torchvision's ConvNets with MaxSup on .ffcv files, following ffcv-imagenet.

python train_imagenet.py --config configs/rn50.yaml --loss=maxsup --data.train_dataset=... --data.val_dataset=...
torchrun --nproc_per_node=8 train_imagenet.py --config configs/rn50.yaml --loss=maxsup ...
python train_imagenet.py --eval --resume run/checkpoint.pth --data.val_dataset=...
"""

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import errors
from errors import InputError, is_first, say

import options

if __name__ == "__main__":  # before the slow imports: --help and mistakes are answered immediately
    ARGS = options.read()

import numpy as np
import torch
from torch import nn

import checkpoint
import distributed
import foreign
import run_folder
import states
from engine import check_weights, evaluate, resolution, train_one_epoch
from initial import head_name, start_from
from maxsup_loss import make_loss
from mixing import Mixing
from models import bare_model, create_model, wrap
from resume import restore
from write_options import no_ffcv

try:
    import data
    import ffcv_file
except ImportError as error:
    raise no_ffcv(error)


def main(config: SimpleNamespace, command: argparse.Namespace) -> None:
    """Train or evaluate; config and command are the results of options.read."""
    device = settle(config.training, command.eval)
    distributed.start(device.type)
    for note in command.notes:
        say(f"note: {note}")
    section = "validation" if command.eval else "training"
    errors.batch = f"{section}.batch_size={getattr(config, section).batch_size}"
    if config.training.amp == "bf16" and device.type == "cpu" and not options.cpu_has_bf16():
        say("training.amp=bf16: this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16): float32, off, is faster here")
    if command.eval:
        evaluate_checkpoint(config, command, device)
    else:
        with run_folder.locked(Path(config.logging.folder)):
            train(config, command, device)
    distributed.stop()


def settle(training: SimpleNamespace, evaluating: bool) -> torch.device:
    """Set the options that depend on the machine; returns the device. Raises InputError for cuda without a GPU."""
    training.device = training.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if training.device == "cuda" and not torch.cuda.is_available():
        raise InputError("training.device=cuda: this machine has no GPU that PyTorch can use")
    native = training.device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    training.amp = training.amp or ("bf16" if native and not evaluating else "off")
    torch.set_float32_matmul_precision("highest" if training.deterministic else "high")
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not training.deterministic
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if training.device == "cuda" else torch.device("cpu")


def train(config: SimpleNamespace, command, device: torch.device) -> None:
    """Start or resume training; write a log line and the checkpoint after each epoch. Raises InputError for invalid input."""
    output = Path(config.logging.folder)
    resume = run_folder.claim(output, command.resume, command.overwrite)
    state = states.read(resume) if resume else None

    model_options, training = config.model, config.training
    train_file, val_file = open_file(config.data.train_dataset, "train"), open_file(config.data.val_dataset, "val")
    classes = match_classes(train_file, val_file, state, resume)
    num_classes = model_options.num_classes = model_options.num_classes or len(classes or train_file.classes)
    for file in (train_file, val_file):
        check_labels(file, num_classes)
    warn_of_memory(config.data.in_memory, train_file, val_file)
    global_batch = training.batch_size * distributed.world_size()
    rate = config.lr.lr * (global_batch / config.lr.for_batch if config.lr.for_batch else 1)

    described = {"model": model_options.arch, "small_stem": model_options.small_stem, "blurpool": model_options.blurpool}
    torch.manual_seed(training.seed)
    model = create_model(model_options.arch, num_classes, model_options.blurpool, model_options.small_stem)
    if model_options.init and not state:
        start_from(model_options.init, model, described, classes, {"mean": data.MEAN, "std": data.STD})
    model = model.to(device, memory_format=torch.channels_last)
    if training.sync_bn and distributed.world_size() > 1:
        if device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        else:
            say("training.sync_bn: PyTorch synchronises batch norm on GPUs only; each process has its own here")
    try_sizes(
        model, model_options.arch, {config.resolution.min_res, config.resolution.max_res, config.validation.resolution}, device
    )
    criterion = build_criterion(config.loss, train_file.records["f1"], num_classes).to(device)
    optimizer = build_optimizer(model, rate, training.momentum, training.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=training.amp == "fp16")
    parts = {"optimizer": optimizer, "scaler": scaler, "loss": criterion}
    start_epoch = restore(state, resume, model, parts, global_batch, config) if state else 0
    del state
    folder = Path(val_file.source or ".")
    # "area" is OpenCV's INTER_AREA, applied to the central square, which is cut out first.
    inputs = {"mean": data.MEAN, "std": data.STD, "interpolation": "area", "crop_ratio": config.validation.crop_ratio}
    source = {"data": None, "data_path": folder.parent if folder.name == "val" else None}
    inputs |= {"input_size": config.validation.resolution, "num_classes": num_classes}
    facts = checkpoint.facts(library="torchvision", **described, **inputs, **source)
    facts |= {"train_dataset": str(train_file.path.resolve()), "val_dataset": str(val_file.path.resolve())}
    facts |= {"alpha": config.loss.alpha, "alpha_end": config.loss.alpha_end, "epochs": training.epochs, "seed": training.seed}
    facts |= {"loss": config.loss.name, "global_batch": global_batch, "rate": rate, "config": options.plain(config)}

    threads = config.data.num_workers
    batches = data.train_images(train_file, training, config.augmentation, threads, config.data.in_memory, device)
    val_batches = data.val_images(val_file, config.validation, threads, device)
    say_setup(model, batches, train_file, val_file, start_epoch, global_batch, rate, config)
    if is_first():
        text = json.dumps(options.plain(config), indent=1) + "\n"
        states.write_whole(output / "params.json", lambda file: file.write(text.encode()))
    mixing = Mixing(config.augmentation.mixup_alpha, config.augmentation.cutmix_alpha, num_classes, training.seed)
    wrapped = wrap(model, config.loss.name == "zipf", training.compile, device)
    log = run_folder.Log(output, resume, start_epoch, training.epochs)

    started, epochs = time.time(), training.epochs
    for epoch in range(start_epoch, epochs):
        side = resolution(epoch, config.resolution)
        metrics = train_one_epoch(wrapped, criterion, batches, optimizer, scaler, rate, config.lr, training, epoch, side, mixing)
        line = {"epoch": epoch + 1, **{f"train_{key}": value for key, value in metrics.items()}}
        line |= {"lr": optimizer.param_groups[0]["lr"], "alpha": getattr(criterion, "alpha", None), "resolution": side}
        distributed.share_buffers(model)
        metrics = evaluate(model, val_batches, config.validation, "off", device)  # as in --eval and viz/
        line |= {f"val_{key}": value for key, value in metrics.items()}
        check_weights(model, epoch, line["val_nll"])
        if is_first():
            passed = time.time() - started
            line["seconds"] = round(log.seconds + passed, 3)
            log.write(line)
            schedule = {"epoch": epoch + 1}  # rate, order and crops are functions of (seed, epoch)
            save = (output / checkpoint.NAME, bare_model(model), None, parts, classes, epoch, training.seed, facts)
            checkpoint.save(*save, lr_scheduler=schedule)
            say_epoch(line, passed / (epoch + 1 - start_epoch) * (epochs - epoch - 1), epochs)
    distributed.barrier()  # no process exits before the last checkpoint is on the disk
    say(f"checkpoint, params.json and log.jsonl: {output}/")


def evaluate_checkpoint(config, command, device: torch.device) -> None:
    """--eval --resume X: print top-1, top-5, NLL and ECE of the validation images.

    Size, crop and lr_tta are the checkpoint's unless the command line gives others. For weights of other trainers, model.arch and
    validation.* of the configuration apply. Raises InputError if mean or standard deviation are not ImageNet's.
    """
    resume = command.resume
    if resume in (None, "auto"):
        raise InputError("--eval needs --resume PATH, the checkpoint to evaluate")
    found = foreign.read(resume)
    for note in found.notes:
        say(f"note: {resume}: {note}")
    weights, args = found.weights, found.facts if found.ours else {}
    for key, fact in (("resolution", "input_size"), ("crop_ratio", "crop_ratio")):
        if fact in args and f"validation.{key}" not in command.given:
            setattr(config.validation, key, args[fact])
    if found.ours and "validation.lr_tta" not in command.given:
        config.validation.lr_tta = mirrored(found.state["args"])
    mirror = ", and their mirror images" if config.validation.lr_tta else ""
    say(f"images of {config.validation.resolution} px, a central crop of {config.validation.crop_ratio:g}{mirror}")
    for key, ours in (("mean", data.MEAN), ("std", data.STD)):
        if list(args.get(key, ours)) != list(ours):
            raise InputError(f"{resume}: trained with a {key} of {args[key]}; this trainer knows only ImageNet's, {list(ours)}")
    blurpool = any(key.endswith("blur_filter") for key in weights)
    small_stem = args.get("small_stem", config.model.small_stem)
    arch = args.get("model", config.model.arch)
    make = partial(create_model, arch, blurpool=blurpool, small_stem=small_stem)
    num_classes = args.get("num_classes") or len(weights.get(head_name(make(2)) + "weight", ()))
    if not num_classes:
        raise InputError(f"{resume}: holds no weights of a classifier as {arch} has it; see model.arch")
    model = make(num_classes)
    states.load_weights(model, weights, resume)
    model = model.to(device, memory_format=torch.channels_last)
    try_sizes(model, arch, {config.validation.resolution}, device)

    file = open_file(config.data.val_dataset, "val")
    check_labels(file, num_classes)
    if file.named and found.classes not in (None, file.classes):
        raise InputError(f"{resume}: its classes, or their order, are not those of {file.path}; write that file from its images")
    batches = data.val_images(file, config.validation, config.data.num_workers, device)
    result = evaluate(model, batches, config.validation, config.training.amp, device)
    say(
        f"the weights of {resume} on {result['images']:,} images: top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %  "
        f"NLL {result['nll']:.4f}  ECE {result['ece']:.4f}"
    )


def mirrored(args: dict) -> bool:
    """Whether the run of a checkpoint was validated with validation.lr_tta, which other trainers do not have."""
    config = args.get("config")
    validation = config.get("validation") if isinstance(config, dict) else None
    return isinstance(validation, dict) and validation.get("lr_tta") is True


def open_file(path: str | None, split: str) -> ffcv_file.File:
    if path is None:
        raise InputError(f"data.{split}_dataset is missing: the .ffcv file to {'train' if split == 'train' else 'validate'} on")
    return ffcv_file.read(Path(path), f"data.{split}_dataset")


def match_classes(train_file, val_file, state: dict | None, resume: Path | None) -> list[str] | None:
    """The class names in label order, None if unknown. Raises InputError if the files and the checkpoint differ."""
    if train_file.named and val_file.named and train_file.classes != val_file.classes:
        raise InputError(
            f"{val_file.path}: its classes, or their order, are not those of {train_file.path}; write both from one image folder"
        )
    named, known = next((file for file in (train_file, val_file) if file.named), None), (state or {}).get("classes")
    if named and known not in (None, named.classes):
        raise InputError(f"{resume}: its classes, or their order, are not those of {named.path}")
    return known or (named.classes if named else None)


def check_labels(file: ffcv_file.File, num_classes: int) -> None:
    highest = int(file.records["f1"].max())
    if highest >= num_classes:
        raise InputError(
            f"{file.path}: has labels up to {highest}, but the model has {num_classes} outputs; see model.num_classes"
        )


def warn_of_memory(in_memory: bool, *files: ffcv_file.File) -> None:
    total, room = sum(file.path.stat().st_size for file in files), data.memory()
    if in_memory and total > room:
        say(
            f"warning: data.in_memory=1, but the files take {total / 1e9:.1f} GB and the memory is {room / 1e9:.1f} GB: "
            "what does not fit is read from the disk again in each epoch; data.in_memory=0 reads in longer pieces"
        )


def try_sizes(model: nn.Module, arch: str, sides: set[int], device: torch.device) -> None:
    """Raise InputError if the model does not accept images of one of these sides, in pixels."""
    for side in sides:
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, side, side, device=device))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise InputError(f"model.arch={arch} cannot take images of {side} px: {str(error).splitlines()[0]}")
    model.train()


def build_criterion(loss: SimpleNamespace, labels: np.ndarray, num_classes: int) -> nn.Module:
    """The loss of the configuration's section, with strength and schedule filled in there; labels (N,) of the training images."""
    prior = None
    if loss.prior == "frequency":
        prior = torch.from_numpy(np.bincount(labels, minlength=num_classes) / len(labels)).float()
    criterion = make_loss(loss.name, num_classes, loss.alpha, loss.alpha_end, prior)
    loss.alpha, loss.alpha_end = (getattr(criterion, name, getattr(loss, name)) for name in ("alpha", "alpha_end"))
    return criterion


def build_optimizer(model: nn.Module, rate: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with momentum; weight decay applies to parameters of two or more dimensions, not to norms and biases."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    return torch.optim.SGD(groups, lr=rate, momentum=momentum)


def say_setup(
    model: nn.Module, batches, train_file, val_file, start_epoch: int, global_batch: int, rate: float, config: SimpleNamespace
) -> None:
    training, ramp, loss = config.training, config.resolution, config.loss
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    sides = f"{ramp.min_res}" if ramp.min_res == ramp.max_res else f"{ramp.min_res} to {ramp.max_res}"
    alpha = "" if loss.alpha is None else f" {loss.alpha:g}" + ("" if loss.alpha_end is None else f" -> {loss.alpha_end:g}")
    scaling = f"{config.lr.lr:g} x {global_batch} / {config.lr.for_batch}" if config.lr.for_batch else "taken as it is"
    going = f"{start_epoch + 1} to {training.epochs}, {len(batches)} steps each"
    say(
        f"model          {config.model.arch}{', BlurPool' if config.model.blurpool else ''}, {millions:.2f} M parameters, "
        f"{config.model.num_classes} classes\n"
        f"loss           {loss.name}{alpha}\n"
        f"data           {len(train_file.records):,} training images at {sides} px, "
        f"{len(val_file.records):,} validation images at {config.validation.resolution} px\n"
        f"processes      {distributed.world_size()} on {training.device}, mixed precision {training.amp}, "
        f"{batches.loader.num_workers} loading threads each\n"
        f"global batch   {global_batch} = {distributed.world_size()} x {training.batch_size}\n"
        f"learning rate  {rate:g} ({scaling}), {config.lr.schedule}\n"
        f"epochs         {going if start_epoch < training.epochs else 'all done already'}"
    )


def say_epoch(line: dict, seconds_left: float, epochs: int) -> None:
    accuracy = "" if line["train_top1"] is None else f"train top-1 {line['train_top1']:.2f} %  "
    left = f"{seconds_left / 60:.0f} min" if seconds_left >= 90 else f"{seconds_left:.0f} s"
    say(
        f"epoch {line['epoch']:3d}/{epochs}  loss {line['train_loss']:.4f}  {accuracy}"
        f"val top-1 {line['val_top1']:.2f} %  ECE {line['val_ece']:.3f}  "
        f"{line['train_images_per_second']:,.0f} images/s  {left} left"
    )


if __name__ == "__main__":
    main(*ARGS)
