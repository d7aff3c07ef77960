"""Train semantic segmentation with MaxSup and the losses it is compared with.

python main.py --data camvid --data-path P --model deeplabv3plus_resnet18 --loss maxsup
torchrun --nproc_per_node=8 main.py --data ade20k --data-path P --model upernet_deit_small --init deit.pth --loss ce
"""

import json
import math
import time
from pathlib import Path

import errors
from errors import InputError, is_first, say

from options import cpu_has_bf16, fill_in, get_parser, rate, settle_length

if __name__ == "__main__":  # before the slow imports: --help and mistakes are answered immediately
    ARGS = get_parser().parse_args()

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

import checkpoint
import distributed
import run_folder
import states
from data import Batches, Images, class_frequencies, mix
from engine import LogitsGrid, evaluate, train_one_epoch
from layouts import IGNORE
from maxsup_loss import make_loss
from models import create_model, start_from

# Settings that should not change when a run is resumed.
SETTINGS = """
    alpha alpha_end steps batch_size opt lr momentum weight_decay power warmup_steps seed amp size shorter_side crop
    scale flip jitter max_class_share mean std drop_path aux_weight sync_bn
""".split()
LARGEST_LOGITS = 2**34  # bytes; the logits are gathered in memory


def main(args) -> None:
    fill_in(args)
    errors.batch = f"--batch-size {args.batch_size}"
    distributed.start(args.device)
    if args.amp == "bf16" and args.device == "cpu" and not cpu_has_bf16():
        say("--amp bf16: this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16): float32, --amp off, is faster here")
    with run_folder.locked(args.output_dir):
        train(args)
    distributed.stop()


def train(args) -> None:
    """Start or resume training; write a log line and the checkpoint per epoch, and test.json at the end. Raises InputError."""
    if args.batch_size % distributed.world_size():
        raise InputError(f"--batch-size {args.batch_size}: does not divide among {distributed.world_size()} processes")
    synced = args.device == "cuda" and distributed.world_size() > 1 and args.sync_bn is not False
    if args.batch_size < 2 or (args.batch_size == distributed.world_size() and not synced):
        raise InputError(f"--batch-size {args.batch_size}: batch norm needs 2 crops per process, or --sync-bn on several GPUs")
    resume = run_folder.claim(args.output_dir, args.resume, args.overwrite)
    state = states.read(resume) if resume else None

    splits = {split: Batches(Images(args, split), args) for split in ("train", "val", "test")}
    classes = splits["train"].images.classes
    if len(splits["train"]) < args.batch_size:
        raise InputError(f"{len(splits['train'])} training images are fewer than --batch-size {args.batch_size}; lower it")
    settle_length(args, len(splits["train"].order))
    args.data_digest = splits["train"].images.digest()
    grid = logits_grid(splits["test"].images, args) if args.logits else None

    torch.manual_seed(mix(args.seed))
    pretrained = args.encoder_weights is not None and state is None
    model = create_model(args.model, len(classes), args.crop, args.drop_path, pretrained)
    if args.init and state is None:
        say(start_from(Path(args.init), model))
    model = model.to(args.device, memory_format=torch.channels_last)
    if synced:
        model = convert_sync_batchnorm(model)  # PyTorch's own conversion drops the activations of timm's norms
    criterion = build_criterion(args, splits["train"].images).to(args.device)
    optimizer = build_optimizer(model, args)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, args))
    parts = {"optimizer": optimizer, "lr_scheduler": scheduler, "loss": criterion}

    start_epoch = restore(state, resume, model, parts, classes, len(splits["train"].order), args) if state else 0
    say_setup(model, splits, start_epoch, args)
    wrapped = wrap(model, args)
    log = run_folder.Log(args.output_dir, resume, start_epoch, args.epochs)
    inputs = {"input_size": list(args.crop), "mean": args.mean, "std": args.std, "interpolation": "bilinear", "crop_ratio": 1.0}
    inputs |= {"data": args.data, "data_path": args.data_path}
    facts = checkpoint.facts(model=args.model, library="smp", num_classes=len(classes), **inputs)

    started = time.time()
    for epoch in range(start_epoch, args.epochs):
        training = train_one_epoch(wrapped, criterion, splits["train"], optimizer, scheduler, args, epoch)
        line = {"epoch": epoch + 1, **{f"train_{key}": value for key, value in training.items()}}
        last_step = scheduler.last_epoch - 1  # of this epoch: the scheduler is one step ahead
        line |= {"lr": args.lr * rate(last_step, args), "alpha": getattr(criterion, "alpha", None)}
        distributed.share_buffers(model)
        check_weights(model, epoch)
        if (epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs:
            metrics = evaluate(model, splits["val"], args)
            line |= {f"val_{key}": value for key, value in metrics.items() if key != "iou"}
        if is_first():
            passed = time.time() - started
            line["seconds"] = round(log.seconds + passed, 3)
            log.write(line)
            options = vars(args) | facts
            checkpoint.save(args.output_dir / checkpoint.NAME, model, None, parts, classes, epoch, args.seed, options)
            say_epoch(line, passed / (epoch + 1 - start_epoch) * (args.epochs - epoch - 1), args)
    metrics = evaluate(model, splits["test"], args, grid)
    if is_first():
        write_test(metrics, grid, classes, splits["test"].images, args)
    distributed.barrier()  # no process exits before the last file is on the disk


def logits_grid(images: Images, args) -> LogitsGrid:
    """Memory for --logits. Raises InputError if it would take more than LARGEST_LOGITS."""
    sizes = [images.label_size(index) for index in range(len(images))]
    size = max(height for height, _ in sizes), max(width for _, width in sizes)
    if args.logits_stride // 2 >= min(size):
        raise InputError(f"--logits-stride {args.logits_stride}: keeps no pixel of images of {size[0]} x {size[1]}")
    needed = len(images) * len(images.classes) * size[0] * size[1] * 4
    if needed / args.logits_stride**2 > LARGEST_LOGITS:
        least = math.ceil(math.sqrt(needed / LARGEST_LOGITS))
        raise InputError(
            f"--logits {args.logits}: more than {LARGEST_LOGITS / 2**30:.0f} GiB with --logits-stride {args.logits_stride}; "
            f"--logits-stride {least} is the least that fits"
        )
    return LogitsGrid(len(images), len(images.classes), size, args.logits_stride, args.device)


def check_weights(model: nn.Module, epoch: int) -> None:
    """Raise InputError if the model has diverged in the last step of an epoch, which no loss of that epoch shows."""
    if not torch.stack([value.isfinite().all() for value in model.state_dict().values()]).all():
        raise InputError(
            f"weights are not finite after epoch {epoch + 1}; stopped before this epoch was saved: the last checkpoint is good. "
            "Try a lower --lr, or --warmup-steps"
        )


def build_criterion(args, images: Images) -> nn.Module:
    prior = class_frequencies(images) if args.prior == "frequency" else None
    try:
        criterion = make_loss(args.loss, len(images.classes), args.alpha, args.alpha_end, prior, ignore_index=IGNORE)
    except ValueError as error:
        raise InputError(f"--loss {args.loss}: {error}")
    args.alpha, args.alpha_end = (getattr(criterion, name, getattr(args, name)) for name in ("alpha", "alpha_end"))
    return criterion


def build_optimizer(model: nn.Module, args) -> torch.optim.Optimizer:
    """Norms and biases, the parameters of one dimension, have no weight decay, nor have class tokens and position embeddings."""
    named = list(model.named_parameters())
    free = [p for name, p in named if p.ndim <= 1 or name.endswith(("pos_embed", "cls_token", "dist_token"))]
    decayed = [p for name, p in named if not any(p is other for other in free)]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if args.opt == "adamw":
        return torch.optim.AdamW(groups, lr=args.lr)
    return torch.optim.SGD(groups, lr=args.lr, momentum=args.momentum)


def wrap(model: nn.Module, args) -> nn.Module:
    if distributed.world_size() > 1:
        devices = [torch.cuda.current_device()] if args.device == "cuda" else None
        # Gradients are views of the averaged buckets. Some parameters of EfficientNet encoders never get one, hence static_graph.
        how = {"device_ids": devices, "gradient_as_bucket_view": True, "static_graph": True}
        model = nn.parallel.DistributedDataParallel(model, **how)
        # Each process has its own batch norm statistics until share_buffers.
        model.broadcast_buffers = False  # the argument is deprecated since torch 2.13, and its successor is missing in 2.11
    return torch.compile(model) if args.compile else model


def restore(state: dict, path: Path, model: nn.Module, parts: dict, classes: list[str], steps: int, args) -> int:
    """Restore a checkpoint's state; returns the epoch to continue with. Raises InputError if it does not fit this run.

    steps: the number per epoch.
    """
    was = state.get("args", {})
    missing = [key for key in ("epoch", "classes", *parts) if key not in state]
    if missing:
        raise InputError(f"{path}: cannot be resumed, it holds no {', '.join(missing)}; --init takes a backbone from it")
    for name in ("model", "data", "loss", "prior"):
        if was.get(name) != getattr(args, name):
            raise InputError(f"{path}: a run with --{name} {was.get(name)}, not {getattr(args, name)}")
    if state["classes"] != classes:
        raise InputError(f"{path}: trained on other classes, {', '.join(map(str, state['classes'][:3]))} ...")
    if was.get("data_digest", args.data_digest) != args.data_digest:
        raise InputError(f"{path}: trained on other images than {args.data_path} holds now")
    for name in ("init", "encoder_weights"):
        if getattr(args, name) not in (None, was.get(name)):
            say(f"note: --{name.replace('_', '-')} has no effect: {path} has the weights")
        setattr(args, name, was.get(name))
    for name in SETTINGS:
        if name in was and was[name] != getattr(args, name):
            say(f"warning: {name} was {was[name]} in {path}, now it is {getattr(args, name)}")
    states.load_weights(model, state["model"], path)
    epoch = state["epoch"] + 1
    if epoch > args.epochs:
        raise InputError(f"{path}: has {epoch} epochs already, more than the {args.epochs} requested")
    if was.get("batch_size") == args.batch_size and was.get("steps", 0) < min(epoch * steps, args.steps):
        raise InputError(
            f"{path}: ended after {was['steps']} steps, within its epoch {epoch}; resuming needs whole epochs of {steps} steps"
        )
    states.load_parts(parts, state, path)
    scheduler = parts["lr_scheduler"]
    scheduler.last_epoch = min(epoch * steps, args.steps)  # in steps of this run
    scheduler._step_count = scheduler.last_epoch + 1
    for group in parts["optimizer"].param_groups:
        group["lr"] = args.lr * rate(scheduler.last_epoch, args)
    say(f"resuming {path} after epoch {epoch} of {args.epochs}")
    return epoch


def write_test(metrics: dict, grid: LogitsGrid | None, classes: list[str], images: Images, args) -> None:
    """Write test.json and --logits, and print both paths with the metrics."""
    path = args.output_dir / "test.json"
    text = json.dumps(metrics | {"classes": classes, "predict": args.predict}) + "\n"
    states.write_whole(path, lambda file: file.write(text.encode()))
    say(
        f"test           mIoU {metrics['miou']:.2f} %, pixel accuracy {metrics['pixel_accuracy']:.2f} %, "
        f"ECE {metrics['ece']:.4f}, NLL {metrics['nll']:.4f}, {metrics['images']:,} images ({path})"
    )
    if grid is not None:
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        content = {"logits": grid.logits, "labels": grid.labels, "classes": classes, "model": args.model, "args": plain}
        content["paths"] = [str(image.relative_to(args.data_path)) for image, _ in images.pairs]
        states.write(content, args.logits)
        shape = " x ".join(map(str, grid.logits.shape))
        say(f"logits         {args.logits}: {shape}, {args.logits.stat().st_size / 1e6:,.0f} MB")


def say_setup(model: nn.Module, splits: dict[str, Batches], start_epoch: int, args) -> None:
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    alpha = "" if args.alpha is None else f" {args.alpha:g}" + ("" if args.alpha_end is None else f" -> {args.alpha_end:g}")
    counts = ", ".join(f"{len(data):,} {split}" for split, data in splits.items())
    done = f"from {start_epoch + 1}" if start_epoch < args.epochs else "all done already"
    say(
        f"model          {args.model}, {millions:.2f} M parameters, {len(splits['train'].images.classes)} classes\n"
        f"loss           {args.loss}{alpha}\n"
        f"data           {args.data} in {args.data_path}: {counts} images, crops of {args.crop[0]} x {args.crop[1]}\n"
        f"processes      {distributed.world_size()} on {args.device}, mixed precision {args.amp}\n"
        f"optimiser      {args.opt}, {args.steps:,} steps of {args.batch_size} crops, lr {args.lr:g}\n"
        f"epochs         {args.epochs}, {done}; checkpoint and log in {args.output_dir}/"
    )


def say_epoch(line: dict, seconds_left: float, args) -> None:
    text = f"epoch {line['epoch']:3d}/{args.epochs}  loss {line['train_loss']:.4f}"
    if "val_miou" in line:
        text += f"  val mIoU {line['val_miou']:.2f} %  accuracy {line['val_pixel_accuracy']:.2f} %  ECE {line['val_ece']:.3f}"
    left = f"{seconds_left / 60:.0f} min" if seconds_left >= 90 else f"{seconds_left:.0f} s"
    say(f"{text}  {line['train_images_per_second']:,.1f} images/s  {left} left")


if __name__ == "__main__":
    main(ARGS)
