"""Train and evaluate timm's image classifiers with MaxSup: DeiT's command line, the losses of maxsup_loss.py.

The paper's run, DeiT-Small on ImageNet-1K:  bash train_with_MaxSup.sh --data-path /path/to/ImageNet
The smallest run, on 1,400 digits, is in README.md.
"""

import copy
import time
from pathlib import Path

import errors
from errors import InputError, is_first, say

from options import INPUTS, check, fill_in, get_parser

if __name__ == "__main__":  # before the slow imports: --help and mistakes are answered immediately
    ARGS = get_parser().parse_args()
    check(copy.deepcopy(ARGS))

import timm
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

import checkpoint
import distributed
import foreign
import run_folder
import weights
from data.loaders import eval_loader, seed_everything, train_loader
from data.splits import CIFARS, Images, match_classes, open_images
from data.transforms import crop_ratio, eval_transform, train_transform
from data.zip_images import warm
from distillation import Distillation
from engine import bare_model, check_weights, evaluate, train_one_epoch
from maxsup_loss import make_loss
from models import create_model, wrap
from report import TensorBoard, say_epoch, warn_of_batch


def main(args) -> None:
    fill_in(args)
    errors.batch = f"--batch-size {args.batch_size}"
    distributed.start(args.device)
    for note in args.__dict__.pop("notes"):
        say(note)
    if args.eval:
        evaluate_checkpoint(args)
    else:
        with run_folder.locked(args.output_dir):
            train(args)
    distributed.stop()


def train(args) -> None:
    """Start or resume training; write a log line and the checkpoint after each epoch. Raises InputError for invalid input."""
    output = args.output_dir
    if foreign.is_url(args.resume or ""):
        args.resume = str(foreign.open_source(args.resume)[0])
    resume = run_folder.claim(output, args.resume, args.overwrite)
    found = weights.read_to_continue(str(resume)) if resume else None

    if args.freeze_backbone and not (args.finetune or found):
        raise InputError("--freeze-backbone: needs --finetune or a checkpoint to --resume, the weights that stay as they are")

    ratio = crop_ratio(args.input_size, args.eval_crop_ratio)
    evaluation = eval_transform(args.input_size, ratio, args.mean, args.std)
    training = evaluation if args.no_aug else build_augmentation(args)
    train_set, val_set = open_splits(args, train=training, val=evaluation)
    classes = (found and found.classes) or train_set.classes
    if found:
        match_classes(train_set, classes, str(resume), all_there=True)
    match_classes(val_set, classes, str(args.data_path / "train"))
    args.num_classes = settle_num_classes(args.num_classes, len(classes), args.data_path)
    loading = {"workers": args.num_workers, "pin": args.pin_mem and args.device == "cuda"}
    loader = train_loader(train_set, args.batch_size, args.repeated_aug, args.seed, **loading)
    val_loader = eval_loader(val_set, int(1.5 * args.batch_size), args.dist_eval, **loading)

    seed_everything(args.seed)
    model = create_model(args.model, args.num_classes, args.input_size, args.drop, args.drop_path).to(args.device)
    if args.finetune and not found:
        weights.finetune(model, foreign.read(args.finetune), args.input_size, classes, args.mean, args.std)
    if args.freeze_backbone or args.attn_only:
        weights.freeze(model, args.attn_only)
    distillation = build_distillation(args, model, classes)
    memory = "cpu" if args.model_ema_force_cpu else None
    ema = ModelEmaV3(model, decay=args.model_ema_decay, device=memory) if args.model_ema else None
    criterion = build_criterion(args, torch.from_numpy(train_set.labels)).to(args.device)
    args.global_batch = args.batch_size * distributed.world_size()
    args.scaled_lr = args.lr if args.unscale_lr else args.lr * args.global_batch / 512
    optimizer, scheduler = build_optimizer(model, args)
    scaler = torch.amp.GradScaler(args.device, enabled=args.amp == "fp16")
    parts = {"optimizer": optimizer, "lr_scheduler": scheduler, "scaler": scaler, "loss": criterion}
    averaged = ema.module if ema else None
    mixup = build_mixup(args)

    if args.start_epoch >= args.epochs:
        raise InputError(f"--start_epoch {args.start_epoch}: counted from 0, it is beyond --epochs {args.epochs}")
    start_epoch = weights.restore(found, model, averaged, parts, args) if found else args.start_epoch
    if found and args.start_epoch not in (0, start_epoch):
        say(f"--start_epoch {args.start_epoch} has no effect, as in DeiT: {resume} continues with epoch {start_epoch}")
    del found
    say_setup(model, loader, len(val_set), start_epoch, args)
    wrapped = wrap(model, args.loss == "zipf", args.compile, args.device)
    log = run_folder.Log(output, resume, start_epoch, args.epochs)
    board = TensorBoard(output, log.kept_epochs) if args.tensorboard and is_first() else None
    inputs = {"input_size": args.input_size, "mean": args.mean, "std": args.std, "interpolation": "bicubic", "crop_ratio": ratio}
    source = {"data": CIFARS[args.data_set].__name__.lower() if args.data_set in CIFARS else None, "data_path": args.data_path}
    facts = checkpoint.facts(model=args.model, library="timm", num_classes=args.num_classes, **inputs, **source)

    scheduler.step(start_epoch)
    run = {"epochs": args.epochs, "seed": args.seed, "device": args.device, "amp": args.amp, "clip_grad": args.clip_grad}
    run |= {"distillation": distillation, "train_mode": args.train_mode}
    how = {"device": args.device, "amp": "off", "shared": args.dist_eval}  # as in --eval and viz/
    started = time.time()
    for epoch in range(start_epoch, args.epochs):
        training = train_one_epoch(wrapped, criterion, loader, optimizer, scaler, epoch=epoch, mixup=mixup, ema=ema, **run)
        line = {"epoch": epoch + 1, **{f"train_{key}": value for key, value in training.items()}}
        line |= {"lr": max(group["lr"] for group in optimizer.param_groups), "alpha": getattr(criterion, "alpha", None)}
        if (epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs:
            for evaluated, name in ((model, "val"), (averaged, "ema")):
                if evaluated is not None:
                    evaluated.to(args.device)
                    distributed.share_buffers(evaluated)
                    line |= {f"{name}_{key}": value for key, value in evaluate(evaluated, val_loader, **how).items()}
            if averaged is not None and memory:
                averaged.to(memory)
        scheduler.step(epoch + 1)
        check_weights(model, epoch, line.get("val_nll", 0) + line.get("ema_nll", 0))
        if is_first():
            passed = time.time() - started
            line["seconds"] = round(log.seconds + passed, 3)
            log.write(line)
            if board:
                board.write(line)
            options = vars(args) | facts
            checkpoint.save(output / checkpoint.NAME, bare_model(model), averaged, parts, classes, epoch, args.seed, options)
            say_epoch(line, args.epochs, passed / (epoch + 1 - start_epoch) * (args.epochs - epoch - 1))
    distributed.barrier()  # no process exits before the last checkpoint is on the disk
    say(f"checkpoint and log: {output}/")


def evaluate_checkpoint(args) -> None:
    """--eval --resume X: print top-1, top-5, NLL and ECE of the validation images.

    The model is the one named in the file. Its size, crop and normalisation are used too, unless the command line gives others.
    """
    if args.resume in (None, "auto"):
        raise InputError("--eval needs --resume PATH, the checkpoint to evaluate")
    found = foreign.read(args.resume, args.model_ema)
    said = {key: value for key, value in found.facts.items() if found.ours or key != "model" or timm.is_model(value)}
    given = {name: getattr(args, name) for name in INPUTS if getattr(args, name) is not None}
    facts = vars(args) | INPUTS | said | given
    size = facts["input_size"]
    own = said.get("crop_ratio") if args.eval_crop_ratio is None else None
    ratio = own or crop_ratio(size, facts["eval_crop_ratio"])
    say(f"images of {size} px, a central crop of {ratio:g}, normalised by mean {facts['mean']} and std {facts['std']}")
    model, outputs = weights.rebuild(found, facts["model"], size)
    try:
        transform = eval_transform(size, ratio, facts["mean"], facts["std"], said.get("interpolation", "bicubic"))
    except ValueError:
        raise InputError(f"{args.resume}: its images are resized by {facts['interpolation']!r}, which this trainer does not have")
    (val_set,) = open_splits(args, val=transform)
    names = foreign.class_names(found.classes, outputs, val_set.classes)
    if not found.ours:
        order = "" if names else ", which are taken to be in the order of the folder's, for it has no names"
        say("\n".join([f"{args.resume} is taken for {facts['model']} at {size} px, with its own classes{order}", *found.notes]))
    if names:
        match_classes(val_set, names, args.resume)
    settle_num_classes(outputs, len(val_set.classes), args.data_path)
    pin = args.pin_mem and args.device == "cuda"
    loader = eval_loader(val_set, int(1.5 * args.batch_size), args.dist_eval, args.num_workers, pin)
    result = evaluate(model.to(args.device), loader, args.device, args.amp, args.dist_eval)
    say(
        f"the {'moving average' if args.model_ema else 'weights'} of {args.resume} on {result['images']} images: "
        f"top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %  NLL {result['nll']:.4f}  ECE {result['ece']:.4f}"
    )


def open_splits(args, **transforms) -> list[Images]:
    """The splits of --data-path with their transforms; with --cache from archives, read into memory once per machine."""
    with distributed.local_main_first():  # it writes the archives' index, or downloads, for the others
        sets = [
            open_images(args.data_path, split, transform, args.cache, args.data_set, args.inat_category)
            for split, transform in transforms.items()
        ]
        for note in sum((images.notes for images in sets), []):
            say(note)
        if args.cache and distributed.is_local_main():
            warning = warm(*(images.root for images in sets), show=is_first())
            if warning:
                print(warning, flush=True)
    return sets


def settle_num_classes(outputs: int | None, found: int, data_path: Path) -> int:
    """The model's number of outputs: as requested, or the number of classes in the data."""
    if outputs is not None and found > outputs:
        raise InputError(
            f"{data_path}: {found} classes, so labels up to {found - 1}, but the model has {outputs} outputs; see --num-classes"
        )
    return outputs or found


def build_augmentation(args):
    options = {"color_jitter": args.color_jitter, "auto_augment": None if args.aa == "none" else args.aa, "hflip": args.hflip}
    options |= {"scale": args.scale, "interpolation": args.train_interpolation, "simple_crop": args.src}
    options |= {"re_prob": args.reprob, "re_mode": args.remode, "re_count": args.recount}
    try:
        return train_transform(args.input_size, args.mean, args.std, **options)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        policies = "none, or a policy such as rand-m9-mstd0.5-inc1, augmix-m3, original, originalr, v0, v0r or 3a"
        raise InputError(f"--aa {args.aa}: unknown to timm ({error}); give {policies}")


def build_criterion(args, labels: torch.Tensor) -> nn.Module:
    """The loss. Its strengths, as given or as published, are written into args."""
    if args.loss == "bce":
        return BinaryCrossEntropy(smoothing=0.0, target_threshold=0.0)  # as in DeiT, all classes of a mixed image have target 1
    prior = torch.bincount(labels, minlength=args.num_classes) / len(labels) if args.prior == "frequency" else None
    criterion = make_loss(args.loss, args.num_classes, args.alpha, args.alpha_end, prior)
    args.alpha, args.alpha_end = getattr(criterion, "alpha", None), getattr(criterion, "alpha_end", None)
    return criterion


def build_distillation(args, model: nn.Module, classes: list[str]) -> Distillation | None:
    """The teacher and the distillation settings; a model with a distillation token is set to train it."""
    if args.distillation_type == "none":
        return None
    if args.distillation_type == "soft" and args.num_classes != len(classes):
        teaches = f"a teacher has a distribution over the {len(classes)} classes of the data"
        raise InputError(f"--num-classes {args.num_classes}: {teaches}; omit the option, or distil with --distillation-type hard")
    teacher = weights.build_teacher(args, classes).to(args.device)
    has_token = hasattr(model, "set_distilled_training")
    if has_token:
        model.set_distilled_training(True)
    else:
        say(f"{args.model} has no distillation token: its one classifier learns from the teacher too")
    # As in DeiT's code, the mean is over samples and classes; Hinton's loss, with the same factor tau^2, is K times larger.
    kind = {"kind": args.distillation_type, "alpha": args.distillation_alpha, "tau": args.distillation_tau}
    return Distillation(teacher, **kind, has_token=has_token, per_element=True)


def build_optimizer(model: nn.Module, args):
    """timm's optimiser and schedule, stepped once per epoch; DeiT's own loop runs one epoch behind its schedule."""
    options = {"eps": args.opt_eps}  # timm drops it for an optimiser without one
    if args.opt_betas:
        options["betas"] = tuple(args.opt_betas)
    if args.layer_decay is not None:
        options["layer_decay"] = args.layer_decay
    try:
        optimizer = create_optimizer_v2(
            model, args.opt, lr=args.scaled_lr, weight_decay=args.weight_decay, momentum=args.momentum, **options
        )
    except (ValueError, AssertionError) as error:
        raise InputError(f"--opt {args.opt}: {error}")
    if getattr(optimizer, "is_second_order", False):
        raise InputError(f"--opt {args.opt}: needs second derivatives, which this trainer does not compute")
    names = ("decay_epochs", "decay_rate", "min_lr", "warmup_lr", "warmup_epochs")
    schedule = {name: getattr(args, name) for name in names}
    schedule |= {"noise": args.lr_noise, "noise_pct": args.lr_noise_pct, "noise_std": args.lr_noise_std, "noise_seed": args.seed}
    return optimizer, create_scheduler_v2(optimizer, args.sched, num_epochs=args.epochs, **schedule)[0]


def build_mixup(args) -> Mixup | None:
    """timm's mixup and cutmix; the mixed targets are not smoothed, because smoothing is part of the loss."""
    if args.mixup <= 0 and args.cutmix <= 0 and not args.cutmix_minmax:
        return None
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=0.0,
        num_classes=args.num_classes,
    )


def say_setup(model: nn.Module, loader, val_images: int, start_epoch: int, args) -> None:
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    scaling = "taken as it is" if args.unscale_lr else f"{args.lr:g} x {args.global_batch} / 512"
    alpha = "" if args.alpha is None else f" {args.alpha:g}" + ("" if args.alpha_end is None else f" -> {args.alpha_end:g}")
    epochs = f"{start_epoch + 1} to {args.epochs}, {len(loader)} steps each" if start_epoch < args.epochs else "all done already"
    say(
        f"model          {args.model}, {millions:.2f} M parameters, {args.num_classes} classes, {args.input_size} px\n"
        f"loss           {args.loss}{alpha}{', class frequencies as prior' if args.prior == 'frequency' else ''}\n"
        f"data           {len(loader.dataset):,} training and {val_images:,} validation images in {args.data_path}\n"
        f"processes      {distributed.world_size()} on {args.device}, mixed precision {args.amp}, "
        f"{args.num_workers} loading processes each\n"
        f"global batch   {args.global_batch} = {distributed.world_size()} x {args.batch_size}\n"
        f"learning rate  {args.scaled_lr:g} ({scaling})\n"
        f"epochs         {epochs}"
    )
    warn_of_batch(args.global_batch, args.recipe_batch)


if __name__ == "__main__":
    main(ARGS)
