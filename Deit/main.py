"""Train and evaluate image classifiers of timm with MaxSup: DeiT's command line, the losses of maxsup_loss.py.

The smallest real run, on 1,400 digits:  python ../data/digits/prepare.py && python main.py --help
The paper's, DeiT-Small on ImageNet-1K:  bash train_with_MaxSup.sh --data-path /path/to/ImageNet
"""

import sys
import time
from pathlib import Path

import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

import checkpoint
import distributed
import errors
import run_folder
from data.folder import FolderImages
from data.loaders import eval_loader, seed_everything, train_loader
from data.splits import match_classes, open_images
from data.transforms import crop_ratio, eval_transform, train_transform
from data.zip_images import ZipImages, warm
from distributed import say
from engine import bare_model, check_weights, evaluate, train_one_epoch
from errors import InputError
from maxsup_loss import make_loss
from models import create_model, wrap
from options import SETTINGS, fill_in, get_parser
from report import TensorBoard, say_epoch, warn_of_batch


def main(args) -> None:
    fill_in(args)
    distributed.start(args.device)
    if args.eval:
        evaluate_checkpoint(args)
    else:
        train(args)
    distributed.stop()


def train(args) -> None:
    output = args.output_dir
    continued = run_folder.claim(output, args.resume, args.overwrite)
    resume = run_folder.find_checkpoint(output, args.resume)
    state = checkpoint.load(resume) if resume else None

    ratio = crop_ratio(args.input_size, args.eval_crop_ratio)
    evaluation = eval_transform(args.input_size, ratio, args.mean, args.std)
    training = evaluation if args.no_aug else build_augmentation(args)
    train_set, val_set = open_splits(args.data_path, args.cache, train=training, val=evaluation)
    classes = state.get("classes", train_set.classes) if state else train_set.classes
    if state:
        match_classes(train_set, classes, str(resume))
    match_classes(val_set, classes, str(args.data_path / "train"))
    args.num_classes = settle_num_classes(args.num_classes, len(classes), args.data_path)
    loading = {"workers": args.num_workers, "pin": args.pin_mem and args.device == "cuda"}
    loader = train_loader(train_set, args.batch_size, args.repeated_aug, args.seed, **loading)
    val_loader = eval_loader(val_set, int(1.5 * args.batch_size), args.dist_eval, **loading)

    seed_everything(args.seed)
    model = create_model(args.model, args.num_classes, args.input_size, args.drop, args.drop_path).to(args.device)
    ema = ModelEmaV3(model, decay=args.model_ema_decay) if args.model_ema else None
    criterion = build_criterion(args, torch.from_numpy(train_set.labels)).to(args.device)
    args.global_batch = args.batch_size * distributed.world_size()
    args.scaled_lr = args.lr if args.unscale_lr else args.lr * args.global_batch / 512
    optimizer, scheduler = build_optimizer(model, args)
    scaler = torch.amp.GradScaler(args.device, enabled=args.amp == "fp16")
    parts = {"optimizer": optimizer, "lr_scheduler": scheduler, "scaler": scaler, "loss": criterion}
    averaged = ema.module if ema else None
    mixup = build_mixup(args)

    start_epoch = restore(state, resume, model, averaged, parts, args) if state else 0
    del state
    say_setup(model, loader, len(val_set), start_epoch, args)
    wrapped = wrap(model, args.loss == "zipf", args.device, args.compile)
    if not continued:
        run_folder.remove_checkpoint(output)
    kept_epochs = start_epoch if continued else 0
    log = run_folder.Log(output, kept_epochs)
    board = TensorBoard(output, kept_epochs) if args.tensorboard and distributed.is_main() else None
    inputs = {"input_size": args.input_size, "mean": args.mean, "std": args.std, "interpolation": "bicubic", "crop_ratio": ratio}
    source = {"data": None, "data_path": args.data_path}
    facts = checkpoint.facts(model=args.model, library="timm", num_classes=args.num_classes, **inputs, **source)

    scheduler.step(start_epoch)
    run = {"epochs": args.epochs, "seed": args.seed, "device": args.device, "amp": args.amp, "clip_grad": args.clip_grad}
    how = {"device": args.device, "amp": args.amp, "shared": args.dist_eval}
    started = time.time()
    for epoch in range(start_epoch, args.epochs):
        training = train_one_epoch(wrapped, criterion, loader, optimizer, scaler, epoch=epoch, mixup=mixup, ema=ema, **run)
        line = {"epoch": epoch + 1, **{f"train_{key}": value for key, value in training.items()}}
        line |= {"lr": optimizer.param_groups[0]["lr"], "alpha": getattr(criterion, "alpha", None)}
        if (epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs:
            for evaluated, name in ((model, "val"), (averaged, "ema")):
                if evaluated is not None:
                    distributed.share_buffers(evaluated)
                    line |= {f"{name}_{key}": value for key, value in evaluate(evaluated, val_loader, **how).items()}
        scheduler.step(epoch + 1)
        check_weights(model, epoch, line.get("val_loss", 0))
        if distributed.is_main():
            passed = time.time() - started
            line["seconds"] = round(log.seconds + passed, 3)
            log.write(line)
            if board:
                board.write(line)
            options = vars(args) | facts
            checkpoint.save(output / checkpoint.NAME, bare_model(model), averaged, parts, classes, epoch, args.seed, options)
            say_epoch(line, args.epochs, passed / (epoch + 1 - start_epoch) * (args.epochs - epoch - 1))
    distributed.barrier()  # nobody leaves before the last checkpoint is on the disk
    say(f"checkpoint and log: {output}/")


def evaluate_checkpoint(args) -> None:
    """--eval --resume X: print top-1, top-5, loss and ECE of the validation images; the model is the checkpoint's own."""
    if args.resume in (None, "auto"):
        raise InputError("--eval needs --resume PATH, the checkpoint to evaluate")
    path = Path(args.resume)
    state = checkpoint.load(path)
    facts = {**vars(args), **state.get("args", {})}
    size = facts["input_size"]
    ratio = facts.get("crop_ratio", crop_ratio(size, args.eval_crop_ratio))
    transform = eval_transform(size, ratio, facts["mean"], facts["std"])
    (val_set,) = open_splits(args.data_path, args.cache, val=transform)
    if "classes" in state:
        match_classes(val_set, state["classes"], str(path))
    outputs = settle_num_classes(facts["num_classes"], len(val_set.classes), args.data_path)
    model = create_model(facts["model"], outputs, size, args.drop, args.drop_path)
    weights = ("model_ema" if args.model_ema else "model", "the moving average" if args.model_ema else "the weights")
    if not isinstance(state.get(weights[0]), dict):
        raise InputError(f"{path}: holds no {weights[0]!r}; omit --model-ema")
    checkpoint.load_weights(model, state[weights[0]], path)
    pin = args.pin_mem and args.device == "cuda"
    loader = eval_loader(val_set, int(1.5 * args.batch_size), args.dist_eval, args.num_workers, pin)
    result = evaluate(model.to(args.device), loader, args.device, args.amp, args.dist_eval)
    say(
        f"{weights[1]} of {path} on {result['images']} images: top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %  "
        f"loss {result['loss']:.4f}  ECE {result['ece']:.4f}"
    )


def open_splits(root: Path, cache: bool, **transforms) -> list[FolderImages | ZipImages]:
    """The splits of --data-path with their transforms; with --cache their archives, read into memory once per machine."""
    with distributed.local_main_first():  # it writes the archives' index, which the others find
        sets = [open_images(root, split, transform, cache) for split, transform in transforms.items()]
        for note in sum((images.notes for images in sets), []):
            say(note)
        if cache and distributed.is_local_main():
            warning = warm(*(images.root for images in sets), show=distributed.is_main())
            if warning:
                print(warning, flush=True)
    return sets


def settle_num_classes(outputs: int | None, found: int, data_path: Path) -> int:
    """How many outputs the model has: as many as asked for, or as the data has classes."""
    if outputs is not None and found > outputs:
        raise InputError(
            f"{data_path}: {found} classes, so labels up to {found - 1}, but the model has {outputs} outputs; see --num-classes"
        )
    return outputs or found


def build_augmentation(args):
    return train_transform(
        args.input_size,
        args.mean,
        args.std,
        color_jitter=args.color_jitter,
        auto_augment=None if args.aa == "none" else args.aa,
        hflip=args.hflip,
        scale=args.scale,
        interpolation=args.train_interpolation,
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
    )


def build_criterion(args, labels: torch.Tensor) -> nn.Module:
    """The loss. Its strengths, the published ones where none are given, are written into args."""
    prior = torch.bincount(labels, minlength=args.num_classes) / len(labels) if args.prior == "frequency" else None
    try:
        criterion = make_loss(args.loss, args.num_classes, args.alpha, args.alpha_end, prior)
    except ValueError as error:
        raise InputError(f"--loss {args.loss}: {error}")
    args.alpha, args.alpha_end = getattr(criterion, "alpha", None), getattr(criterion, "alpha_end", None)
    return criterion


def build_optimizer(model: nn.Module, args):
    """timm's optimiser and schedule, stepped once per epoch as DeiT does."""
    options = {"eps": args.opt_eps} if "adam" in args.opt else {}
    if args.opt_betas:
        options["betas"] = tuple(args.opt_betas)
    try:
        optimizer = create_optimizer_v2(
            model, args.opt, lr=args.scaled_lr, weight_decay=args.weight_decay, momentum=args.momentum, **options
        )
    except (ValueError, AssertionError) as error:
        raise InputError(f"--opt {args.opt}: {error}")
    names = ("decay_epochs", "decay_rate", "min_lr", "warmup_lr", "warmup_epochs")
    schedule = {name: getattr(args, name) for name in names}
    return optimizer, create_scheduler_v2(optimizer, args.sched, num_epochs=args.epochs, **schedule)[0]


def build_mixup(args) -> Mixup | None:
    """timm's mixup and cutmix; the loss smooths where it should, so the mixed targets are not smoothed."""
    if args.mixup <= 0 and args.cutmix <= 0:
        return None
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=0.0,
        num_classes=args.num_classes,
    )


def restore(state: dict, path: Path, model: nn.Module, averaged: nn.Module | None, parts: dict, args) -> int:
    """Put a checkpoint's state back; returns the epoch to continue with. Raises InputError if it is another run's."""
    was = state.get("args", {})
    missing = [key for key in ("epoch", "classes", *parts) if key not in state]
    if missing:
        raise InputError(f"{path}: cannot be resumed, it holds no {', '.join(missing)}; --eval reads it")
    if was.get("model", args.model) != args.model:
        raise InputError(f"{path}: a checkpoint of {was['model']}, not of --model {args.model}")
    checkpoint.load_weights(model, state["model"], path)
    for name in ("loss", "prior", "opt"):
        if was.get(name, "uniform" if name == "prior" else None) != getattr(args, name):
            raise InputError(
                f"{path}: trained with --{name} {was.get(name)}, not {getattr(args, name)}, which cannot use its state"
            )
    for name in SETTINGS:
        if name in was and was[name] != getattr(args, name):
            say(f"warning: {name} was {was[name]} in {path}, now it is {getattr(args, name)}")
    # The command line, not the checkpoint, has the last word on rates and schedule, which is a function of the epoch alone.
    groups = parts["optimizer"].state_dict()["param_groups"]
    saved = state["optimizer"]
    if [len(group["params"]) for group in saved.get("param_groups", [])] != [len(group["params"]) for group in groups]:
        raise InputError(f"{path}: its optimiser groups the weights otherwise; --weight-decay was {was.get('weight_decay')}")
    parts["optimizer"].load_state_dict({"state": saved["state"], "param_groups": groups})
    if state["scaler"]:  # empty where the run so far did without --amp fp16
        parts["scaler"].load_state_dict(state["scaler"])
    parts["loss"].load_state_dict(state["loss"])
    if averaged is not None:
        if not state.get("model_ema"):
            raise InputError(f"{path}: holds no moving average; omit --model-ema")
        checkpoint.load_weights(averaged, state["model_ema"], path)
    if state["epoch"] + 1 > args.epochs:
        raise InputError(f"{path}: has {state['epoch'] + 1} epochs already, more than --epochs {args.epochs}")
    say(f"resuming {path} after epoch {state['epoch'] + 1} of {args.epochs}")
    return state["epoch"] + 1


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
    try:
        main(get_parser().parse_args())
    except InputError as error:
        errors.stop(error)
    except KeyboardInterrupt:
        sys.exit("interrupted; --resume auto continues after the last finished epoch")
