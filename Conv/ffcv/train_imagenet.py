"""Train and evaluate torchvision's ConvNets with MaxSup on .ffcv files, in the manner of ffcv-imagenet.

python train_imagenet.py --config configs/rn50_maxsup.yaml --data.train_dataset=... --data.val_dataset=...
torchrun --nproc_per_node=8 train_imagenet.py --config configs/rn50_maxsup.yaml ...
python train_imagenet.py --eval --resume run/checkpoint.pth --data.val_dataset=...
"""

import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint
import config as configuration
import distributed
import errors
import run_folder
from errors import InputError
from maxsup_loss import make_loss
from models import WithDenseLogits, create_model

try:
    import ffcv_file
    import loaders
except ImportError as error:
    errors.no_ffcv(error)

CALIBRATION_BINS = 15
CHECK_EVERY = 50  # steps between looks at the losses: each look makes a GPU wait


def main(argv: list[str] | None = None) -> None:
    config, command = configuration.read(argv)
    device = settle(config)
    distributed.start(device.type)
    if command.eval:
        evaluate_checkpoint(config, command.resume, device)
    else:
        train(config, command, device)
    distributed.stop()


def settle(config) -> torch.device:
    """Settle the options that hang on the machine; returns the device. Raises InputError for a GPU that is not there."""
    training = config.training
    training.device = training.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if training.device == "cuda" and not torch.cuda.is_available():
        raise InputError("training.device=cuda: this machine has no GPU that PyTorch can use")
    training.amp = training.amp or ("bf16" if training.device == "cuda" else "off")
    torch.set_float32_matmul_precision("highest" if training.deterministic else "high")
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not training.deterministic
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if training.device == "cuda" else torch.device("cpu")


def train(config, command, device: torch.device) -> None:
    output = run_folder.claim(Path(config.logging.folder), command.resume, command.overwrite)
    resume = run_folder.find_checkpoint(output, command.resume)
    state = checkpoint.load(resume) if resume else None

    train_file, val_file = open_file(config, "train"), open_file(config, "val")
    classes = match_classes(train_file, val_file, state, resume)
    config.model.num_classes = config.model.num_classes or len(classes)
    for file in (train_file, val_file):
        check_labels(file, config.model.num_classes)
    warn_of_memory(config, train_file, val_file)
    args = checkpoint_args(config, train_file, val_file)

    torch.manual_seed(config.training.seed)
    model = create_model(config.model.arch, config.model.num_classes, config.model.blurpool, config.model.small_stem)
    model = model.to(device, memory_format=torch.channels_last)
    try_sizes(model, config, device)
    criterion = build_criterion(config).to(device)
    optimizer = build_optimizer(model, args["rate"], config.training)
    scaler = torch.amp.GradScaler(device.type, enabled=config.training.amp == "fp16")
    parts = {"optimizer": optimizer, "scaler": scaler, "loss": criterion}
    start_epoch = run_folder.restore(state, resume, model, parts, args, config) if state else 0
    del state

    batches = loaders.train_images(train_file.path, train_file.records, config, device)
    val_batches = loaders.val_images(val_file.path, val_file.records, config, device)
    say_setup(model, batches, train_file, val_file, start_epoch, args, config)
    run_folder.write_params(output, config)
    wrapped = wrap(model, config)
    goes_on = resume is not None and resume.resolve() == (output / checkpoint.NAME).resolve()
    log = run_folder.Log(output, start_epoch if goes_on else 0)

    started, epochs = time.time(), config.training.epochs
    for epoch in range(start_epoch, epochs):
        side = resolution(epoch, config.resolution)
        training = train_one_epoch(wrapped, criterion, batches, optimizer, scaler, args["rate"], side, config, epoch, device)
        line = {"epoch": epoch + 1, **{f"train_{key}": value for key, value in training.items()}}
        line |= {"lr": optimizer.param_groups[0]["lr"], "alpha": getattr(criterion, "alpha", None), "resolution": side}
        distributed.share_buffers(model)
        line |= {f"val_{key}": value for key, value in evaluate(model, val_batches, config, device).items()}
        check_weights(model, line, epoch)
        if distributed.is_main():
            passed = time.time() - started
            line["seconds"] = round(log.seconds + passed, 3)
            log.write(line)
            run_folder.save(output, model, parts, classes, epoch, args, config)
            say_epoch(line, passed / (epoch + 1 - start_epoch) * (epochs - epoch - 1), epochs)
    distributed.barrier()  # nobody leaves before the last checkpoint is on the disk
    distributed.say(f"checkpoint, params.json and log.jsonl: {output}/")


def train_one_epoch(
    model: nn.Module, criterion: nn.Module, batches, optimizer, scaler, rate: float, side: int, config, epoch: int, device
) -> dict:
    """Train for one epoch on images of side x side px. model(images) gives logits (N, K), or (logits, dense logits).

    Returns loss (mean over all processes), top1 (%), images_per_second (all processes together, from the second step on: the
    first waits for what is compiled). Raises InputError naming epoch and step where the loss is not finite.
    """
    model.train()
    criterion.train()
    if hasattr(criterion, "set_epoch"):
        criterion.set_epoch(epoch, config.training.epochs)
    # Dropout, where a model has it, draws from here: a resumed run needs no history.
    torch.manual_seed(int(np.random.SeedSequence((config.training.seed, epoch, distributed.rank())).generate_state(1)[0]))

    steps, losses, right = len(batches), [], torch.zeros((), device=device)
    images_a_step = config.training.batch_size * distributed.world_size()
    start, counted = time.perf_counter(), steps
    bar = progress(batches.epoch(epoch, side), steps, f"epoch {epoch + 1}/{config.training.epochs}", images_a_step)
    for step, (images, targets) in enumerate(bar):
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor(epoch, step / steps, config)
        with autocast(config):
            output = model(images)
            logits, *dense = output if isinstance(output, tuple) else (output,)
            loss = criterion(logits, targets, *dense)
        losses.append(loss.detach())
        right += (logits.argmax(1) == targets).sum()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            first = step + 1 - (step % CHECK_EVERY + 1)
            check_finite(torch.stack(losses[first:]), epoch, first)
            bar.set_postfix(loss=f"{losses[-1].item():.3f}", refresh=False)
        if step == 0 and steps > 1:
            losses[0].item()  # waits for a GPU
            start, counted = time.perf_counter(), steps - 1

    if hasattr(criterion, "renew"):
        criterion.renew()
    seconds = time.perf_counter() - start
    mean_loss = distributed.sum_over_processes(torch.stack(losses).double().mean()).item() / distributed.world_size()
    top1 = 100 * distributed.sum_over_processes(right).item() / (steps * images_a_step)
    return {"loss": mean_loss, "top1": top1, "images_per_second": counted * images_a_step / seconds}


@torch.inference_mode()
def evaluate(model: nn.Module, batches, config, device) -> dict:
    """Top-1 and top-5 (%), cross-entropy and expected calibration error; each image counts once, over all processes.

    batches: this process's share as loaders.val_images gives it, None where it has none.
    """
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # images, right, right in the top 5, cross-entropy
    bins = torch.zeros(2, CALIBRATION_BINS, dtype=torch.float64, device=device)  # confidence, right
    images_a_step = config.validation.batch_size * distributed.world_size()
    share = [] if batches is None else batches.epoch(0, config.validation.resolution)
    for images, targets in progress(share, 0 if batches is None else len(batches), "evaluate", images_a_step):
        with autocast(config):
            logits = model(images)
            if config.validation.lr_tta:
                logits = (logits + model(images.flip(3))) / 2
        logits = logits.float()
        top5 = logits.topk(min(5, logits.shape[1])).indices == targets.unsqueeze(1)
        right = top5[:, 0].double()
        cross_entropy = F.cross_entropy(logits, targets, reduction="sum")
        sums += torch.stack([torch.full_like(cross_entropy, len(targets)), right.sum(), top5.sum(), cross_entropy])
        confidence = logits.softmax(1).amax(1).double()
        index = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1  # bins (0, 1/15], (1/15, ...
        bins[0].index_add_(0, index, confidence)
        bins[1].index_add_(0, index, right)
    distributed.sum_over_processes(sums)
    distributed.sum_over_processes(bins)
    count, top1, top5, loss = sums.tolist()
    ece = (bins[0] - bins[1]).abs().sum().item() / count
    return {"images": int(count), "top1": 100 * top1 / count, "top5": 100 * top5 / count, "loss": loss / count, "ece": ece}


def rate_factor(epoch: int, within: float, config) -> float:
    """The learning rate's share of its highest value, at a place within an epoch from 0 up to 1.

    step: times step_ratio every step_length epochs. cyclic: from 1e-4 linearly to 1 at peak_epoch, then linearly to 0 at the end.
    """
    lr = config.lr
    if lr.schedule == "step":
        return lr.step_ratio ** (epoch // lr.step_length)
    return float(np.interp(epoch + within, [0, lr.peak_epoch, config.training.epochs], [1e-4, 1, 0]))


def resolution(epoch: int, ramp) -> int:
    """Side of an epoch's training images, pixels: min_res up to start_ramp, max_res from end_ramp, multiples of 32 between."""
    if epoch >= ramp.end_ramp:
        return ramp.max_res
    if epoch <= ramp.start_ramp:
        return ramp.min_res
    side = round(float(np.interp(epoch, [ramp.start_ramp, ramp.end_ramp], [ramp.min_res, ramp.max_res])) / 32) * 32
    return min(max(side, ramp.min_res), ramp.max_res)


def check_finite(losses: Tensor, epoch: int, first_step: int) -> None:
    """Raise InputError if one of the losses (steps,) is not finite; epochs and steps are counted from 1 in the message."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = first_step + bad[0].item()
        raise InputError(
            f"the loss is {losses[bad[0]].item()} in epoch {epoch + 1}, step {step + 1}; stopped before anything was saved from "
            f"this epoch: the last checkpoint is good. Try a lower lr.lr or training.amp=off"
        )


def check_weights(model: nn.Module, line: dict, epoch: int) -> None:
    """Raise InputError where the last step of an epoch has ruined the model, which no loss of that epoch shows."""
    finite = torch.stack([p.isfinite().all() for p in model.state_dict().values()]).all()
    if not finite or not math.isfinite(line["val_loss"]):
        raise InputError(
            f"weights or validation loss are not finite after epoch {epoch + 1}; stopped before this epoch was saved: the last "
            "checkpoint is good. Try a lower lr.lr or training.amp=off"
        )


def evaluate_checkpoint(config, resume: str | None, device: torch.device) -> None:
    """--eval --resume X: print top-1, top-5, loss and ECE of the validation images; size and crop are the checkpoint's own.

    Weights without args (see checkpoint.load) take model.arch and validation.* from the configuration.
    """
    if resume in (None, "auto"):
        raise InputError("--eval needs --resume PATH, the checkpoint to evaluate")
    path = Path(resume)
    state = checkpoint.load(path)
    weights, args = state["model"], state.get("args", {})
    num_classes = args.get("num_classes") or checkpoint.classes_of(weights, path)
    config.validation.resolution = args.get("input_size", config.validation.resolution)
    config.validation.crop_ratio = args.get("crop_ratio", config.validation.crop_ratio)
    blurpool = any(key.endswith("blur_filter") for key in weights)
    small_stem = args.get("small_stem", config.model.small_stem)
    model = create_model(args.get("model", config.model.arch), num_classes, blurpool, small_stem)
    checkpoint.load_weights(model, weights, path)
    model = model.to(device, memory_format=torch.channels_last)
    try_sizes(model, config, device)

    file = open_file(config, "val")
    check_labels(file, num_classes)
    if file.named and "classes" in state and file.classes != state["classes"]:
        raise InputError(f"{path}: its classes, or their order, are not those of {file.path}; write that file from its images")
    result = evaluate(model, loaders.val_images(file.path, file.records, config, device), config, device)
    distributed.say(
        f"the weights of {path} on {result['images']:,} images: top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %  "
        f"loss {result['loss']:.4f}  ECE {result['ece']:.4f}"
    )


def open_file(config, split: str) -> ffcv_file.File:
    path = getattr(config.data, f"{split}_dataset")
    if path is None:
        raise InputError(f"data.{split}_dataset is missing: the .ffcv file to {'train' if split == 'train' else 'validate'} on")
    return ffcv_file.read(Path(path), f"data.{split}_dataset")


def match_classes(train_file, val_file, state: dict | None, resume: Path | None) -> list[str]:
    """The classes in label order. Raises InputError where training file, validation file and checkpoint differ in them."""
    if train_file.named and val_file.named and train_file.classes != val_file.classes:
        raise InputError(
            f"{val_file.path}: its classes, or their order, are not those of {train_file.path}; write both from one image folder"
        )
    named = next((file for file in (train_file, val_file) if file.named), train_file)
    if state and "classes" in state and named.named and state["classes"] != named.classes:
        raise InputError(f"{resume}: its classes, or their order, are not those of {named.path}")
    return state["classes"] if state and "classes" in state else named.classes


def check_labels(file: ffcv_file.File, num_classes: int) -> None:
    highest = int(file.records["f1"].max())
    if highest >= num_classes:
        raise InputError(
            f"{file.path}: has labels up to {highest}, but the model has {num_classes} outputs; see model.num_classes"
        )


def warn_of_memory(config, *files: ffcv_file.File) -> None:
    total, room = sum(file.path.stat().st_size for file in files), loaders.memory()
    if config.data.in_memory and total > room:
        distributed.say(
            f"warning: data.in_memory=1, but the files take {total / 1e9:.1f} GB and the memory is {room / 1e9:.1f} GB: "
            "what does not fit is read from the disk again in each epoch; data.in_memory=0 reads in longer pieces"
        )


def checkpoint_args(config, train_file, val_file) -> dict:
    """What rebuilds and feeds the model, for whoever reads the checkpoint; and the learning rate for the global batch."""
    global_batch = config.training.batch_size * distributed.world_size()
    source = Path(val_file.source) if val_file.source else None
    return {
        "library": "torchvision",
        "model": config.model.arch,
        "num_classes": config.model.num_classes,
        "blurpool": config.model.blurpool,
        "small_stem": config.model.small_stem,
        "input_size": config.validation.resolution,
        "crop_ratio": config.validation.crop_ratio,
        "interpolation": "area",  # OpenCV's INTER_AREA, of the central square cut first
        "mean": list(loaders.MEAN),
        "std": list(loaders.STD),
        "data_path": str(source.parent) if source and source.name == "val" else None,
        "train_dataset": str(train_file.path.resolve()),
        "val_dataset": str(val_file.path.resolve()),
        "loss": config.loss.name,
        "global_batch": global_batch,
        "rate": config.lr.lr * (global_batch / config.lr.for_batch if config.lr.for_batch else 1),
    }


def try_sizes(model: nn.Module, config, device) -> None:
    """Raise InputError if the model cannot take images of one of the sizes to come."""
    for side in {config.resolution.min_res, config.resolution.max_res, config.validation.resolution}:
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, side, side, device=device))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise InputError(f"model.arch={config.model.arch} cannot take images of {side} px: {str(error).splitlines()[0]}")
    model.train()


def build_criterion(config) -> nn.Module:
    loss = config.loss
    try:
        criterion = make_loss(loss.name, config.model.num_classes, loss.alpha, loss.alpha_end)
    except ValueError as error:
        raise InputError(f"loss.name={loss.name}: {error}")
    loss.alpha = getattr(criterion, "alpha", loss.alpha)
    return criterion


def build_optimizer(model: nn.Module, rate: float, training) -> torch.optim.SGD:
    """SGD with momentum; weight decay on what has two dimensions or more, so not on norms and biases."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": training.weight_decay}]
    return torch.optim.SGD(groups, lr=rate, momentum=training.momentum)


def wrap(model: nn.Module, config) -> nn.Module:
    if config.loss.name == "zipf":
        if isinstance(model, torchvision.models.ResNet):
            model = WithDenseLogits(model)
        else:
            distributed.say("zipf: only for ResNets the feature map votes for the ranks; this model's come from the logits")
    if distributed.world_size() > 1:
        devices = [torch.cuda.current_device()] if config.training.device == "cuda" else None
        model = nn.parallel.DistributedDataParallel(model, device_ids=devices)
    return torch.compile(model) if config.training.compile else model


def autocast(config) -> torch.autocast:
    """Mixed precision as training.amp says; "off" is full precision."""
    dtype = torch.float16 if config.training.amp == "fp16" else torch.bfloat16
    return torch.autocast(config.training.device, dtype, enabled=config.training.amp != "off")


def progress(batches, steps: int, title: str, images_a_step: int) -> tqdm:
    """A bar over batches with the time left, in images/s; only in the main process."""
    return tqdm(
        batches,
        total=steps,
        desc=title,
        unit=" images",
        unit_scale=images_a_step,
        leave=False,
        dynamic_ncols=True,
        mininterval=0.5,
        disable=None if distributed.is_main() else True,
    )


def say_setup(model: nn.Module, batches, train_file, val_file, start_epoch: int, args: dict, config) -> None:
    training, ramp, loss = config.training, config.resolution, config.loss
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    sides = f"{ramp.min_res}" if ramp.min_res == ramp.max_res else f"{ramp.min_res} to {ramp.max_res}"
    alpha = "" if loss.alpha is None else f" {loss.alpha:g}" + ("" if loss.alpha_end is None else f" -> {loss.alpha_end:g}")
    scaling = f"{config.lr.lr:g} x {args['global_batch']} / {config.lr.for_batch}" if config.lr.for_batch else "taken as it is"
    going = f"{start_epoch + 1} to {training.epochs}, {len(batches)} steps each"
    distributed.say(
        f"model          {config.model.arch}{', BlurPool' if config.model.blurpool else ''}, {millions:.2f} M parameters, "
        f"{config.model.num_classes} classes\n"
        f"loss           {loss.name}{alpha}\n"
        f"data           {len(train_file.records):,} training images at {sides} px, "
        f"{len(val_file.records):,} validation images at {config.validation.resolution} px\n"
        f"processes      {distributed.world_size()} on {training.device}, mixed precision {training.amp}, "
        f"{batches.loader.num_workers} loading threads each\n"
        f"global batch   {args['global_batch']} = {distributed.world_size()} x {training.batch_size}\n"
        f"learning rate  {args['rate']:g} ({scaling}), {config.lr.schedule}\n"
        f"epochs         {going if start_epoch < training.epochs else 'all done already'}"
    )


def say_epoch(line: dict, seconds_left: float, epochs: int) -> None:
    left = f"{seconds_left / 60:.0f} min" if seconds_left >= 90 else f"{seconds_left:.0f} s"
    distributed.say(
        f"epoch {line['epoch']:3d}/{epochs}  loss {line['train_loss']:.4f}  train top-1 {line['train_top1']:.2f} %  "
        f"val top-1 {line['val_top1']:.2f} %  ECE {line['val_ece']:.3f}  "
        f"{line['train_images_per_second']:,.0f} images/s  {left} left"
    )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        errors.stop(error)
    except KeyboardInterrupt:
        sys.exit("interrupted; --resume auto goes on after the last finished epoch")
