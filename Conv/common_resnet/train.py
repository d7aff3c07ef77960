"""Train ConvNets with MaxSup and the losses it is compared with, from 8-pixel digits to ImageNet.

python train.py --data digits --model resnet20 --loss maxsup
torchrun --nproc_per_node=8 train.py --data imagenet --data-path P --model resnet50 --loss maxsup
"""

import json
import math
import os
import time
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import checkpoint
import distributed
import errors
from engine import bare_model, evaluate, train_one_epoch
from errors import InputError
from longtail import by_shots
from maxsup_loss import make_loss
from networks import WithDenseLogits, create_model, model_facts, sync_batch_norm
from options import fill_in, get_parser, rate
from order import mix
from sources import SMALL, open_data

# What should not change between the start of a run and its resumption.
SETTINGS = """
    data alpha alpha_end epochs batch_size lr momentum weight_decay sched decay_epochs decay_rate warmup_epochs seed amp
    input_size mean std padding flip cutout imbalance_ratio superclasses holdout ema_decay sync_bn label_noise prior
""".split()


def main(args) -> None:
    fill_in(args)
    facts = model_facts(args.model, args.input_size, args.width, args.stem_stride)
    distributed.start(args.device)
    train(args, facts)
    distributed.stop()


def train(args, facts: dict) -> None:
    if args.batch_size % distributed.world_size():
        raise InputError(f"--batch-size {args.batch_size}: does not divide among {distributed.world_size()} processes")
    output = claim_output(args)
    resume = find_checkpoint(args)
    state = checkpoint.load(resume) if resume else None

    train_data, val_data = open_data(args)
    classes = train_data.classes
    if len(train_data) < args.batch_size:
        raise InputError(f"{len(train_data)} training images are less than one batch of {args.batch_size}; lower --batch-size")
    training_images = torch.bincount(train_data.labels.cpu(), minlength=len(classes))

    torch.manual_seed(mix(args.seed))
    model = create_model(facts, len(classes))
    if args.init:
        start_from(args.init, model, args)
    model = model.to(args.device, memory_format=torch.channels_last)
    if args.sync_bn and distributed.world_size() > 1:
        model = sync_batch_norm(model, args.device)
    ema = None
    if args.ema_decay:
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay), use_buffers=True)
    criterion = build_criterion(args, training_images).to(args.device)
    optimizer = build_optimizer(model, args)
    steps = len(train_data) // args.batch_size
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps, args))
    parts = {"optimizer": optimizer, "lr_scheduler": scheduler, "loss": criterion}
    facts |= {"num_classes": len(classes), "training_images": training_images.tolist()}

    start_epoch = 0
    if state:
        start_epoch = restore(state, resume, model, ema, parts, classes, steps, args)
        del state
    say_setup(model, train_data, val_data, start_epoch, args)
    wrapped = wrap(model, args)
    goes_on = resume is not None and resume.resolve() == (output / checkpoint.NAME).resolve()
    log = Log(output, start_epoch if goes_on else 0)

    started = time.time()
    for epoch in range(start_epoch, args.epochs):
        training = train_one_epoch(wrapped, criterion, train_data, optimizer, scheduler, ema, args, epoch)
        line = {"epoch": epoch + 1, **{f"train_{key}": value for key, value in training.items()}}
        line |= {"lr": optimizer.param_groups[0]["lr"], "alpha": getattr(criterion, "alpha", None)}
        distributed.share_buffers(model)
        if (epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs:
            metrics, right, images = evaluate(model, val_data, len(classes), args)
            line |= {f"val_{key}": value for key, value in metrics.items()}
            if args.imbalance_ratio != 1:
                line |= {f"val_{key}": value for key, value in by_shots(right, images, training_images).items()}
            if ema is not None:
                distributed.share_buffers(ema.module)  # its own counter stays on the CPU, where NCCL does not go
                line |= {f"ema_{key}": value for key, value in evaluate(ema.module, val_data, len(classes), args)[0].items()}
        check_weights(model, line, epoch)
        if distributed.is_main():
            passed = time.time() - started
            line["seconds"] = round(log.seconds + passed, 3)
            log.write(line)
            save(output / checkpoint.NAME, model, ema, parts, train_data, facts, epoch, args)
            say_epoch(line, passed / (epoch + 1 - start_epoch) * (args.epochs - epoch - 1), args)
    distributed.barrier()  # nobody leaves before the last checkpoint is on the disk
    say(f"checkpoint and log: {output}/")


def check_weights(model: nn.Module, line: dict, epoch: int) -> None:
    """Raise InputError where the last step of an epoch has ruined the model, which no loss of that epoch shows."""
    finite = torch.stack([p.isfinite().all() for p in model.state_dict().values()]).all()
    if not finite or not math.isfinite(line.get("val_loss", 0)):
        raise InputError(
            f"weights or validation loss are not finite after epoch {epoch + 1}; stopped before this epoch was saved: the last "
            "checkpoint is good. Try a lower --lr, or --warmup-epochs"
        )


def claim_output(args) -> Path:
    """Make --output_dir and see that it can be written and that no run in it would be lost."""
    output = args.output_dir
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"--output_dir {output}: cannot be written ({error.strerror})")
    own = output / checkpoint.NAME
    going_on = args.resume == "auto" or (args.resume and Path(args.resume).resolve() == own.resolve())
    if going_on and args.overwrite:
        raise InputError(f"--resume goes on with the run in {output}, --overwrite starts anew: give one of them")
    if own.exists() and not going_on and not args.overwrite:
        raise InputError(
            f"--output_dir {output} holds a run already: --resume auto goes on with it, --overwrite replaces it, "
            "another --output_dir leaves it alone"
        )
    distributed.barrier()
    return output


def find_checkpoint(args) -> Path | None:
    if args.resume != "auto":
        return Path(args.resume) if args.resume else None
    path = args.output_dir / checkpoint.NAME
    if path.exists():
        return path
    say(f"--resume auto: no checkpoint in {args.output_dir}, starting fresh")
    return None


def start_from(init: str, model: nn.Module, args) -> None:
    """Load torchvision's ImageNet weights, or a checkpoint's; a classifier of another size keeps its fresh weights."""
    if init == "imagenet":
        if model_facts(args.model, args.input_size, args.width, args.stem_stride).get("small_stem", True):
            raise InputError(
                f"--init imagenet: torchvision has weights for large images, not for {args.model} at {args.input_size} px"
            )
        try:
            with distributed.local_main_first():
                weights = torchvision.models.get_model_weights(args.model)["IMAGENET1K_V1"].get_state_dict(check_hash=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"--init imagenet: cannot be downloaded ({error}); give a file")
    else:
        weights = checkpoint.load(Path(init))["model"]
    own = model.state_dict()
    heads = {key for key in own if key.startswith(("fc.", "linear.", "classifier.")) and key in weights}
    kept = {key for key in heads if weights[key].shape != own[key].shape}
    checkpoint.load_weights(model, weights | {key: own[key] for key in kept}, Path(init))
    say(f"starting from {init}" + (", with a fresh classifier" if kept else ""))


def build_criterion(args, training_images: torch.Tensor) -> nn.Module:
    """The loss that the options name. training_images (K,): how many training images have each label."""
    prior = {"prior": training_images / training_images.sum()} if args.prior == "frequency" else {}
    try:
        criterion = make_loss(args.loss, len(training_images), args.alpha, args.alpha_end, **prior)
    except ValueError as error:
        raise InputError(f"--loss {args.loss}: {error}")
    args.alpha = getattr(criterion, "alpha", args.alpha)
    args.alpha_end = getattr(criterion, "alpha_end", args.alpha_end)
    return criterion


def build_optimizer(model: nn.Module, args) -> torch.optim.Optimizer:
    """SGD; norms and biases, the parameters of one dimension, do not decay."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=args.lr, momentum=args.momentum, nesterov=args.momentum > 0)


def wrap(model: nn.Module, args) -> nn.Module:
    if args.loss == "zipf":
        model = WithDenseLogits(model)
    if distributed.world_size() > 1:
        devices = [torch.cuda.current_device()] if args.device == "cuda" else None
        model = nn.parallel.DistributedDataParallel(model, device_ids=devices)
    return torch.compile(model) if args.compile else model


def save(path: Path, model: nn.Module, ema, parts: dict, train_data, facts: dict, epoch: int, args) -> None:
    """Write the checkpoint of a finished epoch, counted from 0 (design: File formats)."""
    plain = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in vars(args).items()} | facts
    state = {"model": bare_model(model).state_dict(), "model_ema": ema.module.state_dict() if ema else None, "scaler": {}}
    state |= {name: part.state_dict() for name, part in parts.items()}
    state["ema_updates"] = int(ema.n_averaged) if ema else 0
    # Every generator is reseeded from (seed, epoch, step, rank) at each step, so the seed is the whole state of all of them.
    state |= {"epoch": epoch, "rng": {"seed": args.seed}, "args": plain, "classes": train_data.classes}
    if train_data.rows is not None:
        state["training_rows"] = train_data.rows
    if args.label_noise:
        state["training_labels"] = train_data.labels.cpu()
    try:
        checkpoint.save(state, path)
    except OSError as error:
        raise InputError(f"{path}: the checkpoint cannot be written ({error.strerror}); the one before it is kept")


def restore(state: dict, path: Path, model: nn.Module, ema, parts: dict, classes: list[str], steps: int, args) -> int:
    """Put a checkpoint's state back; returns the epoch to go on with. Raises InputError where it is another run's."""
    was = state.get("args", {})
    missing = [key for key in ("epoch", "classes", *parts) if key not in state]
    if missing:
        raise InputError(f"{path}: cannot be resumed, it holds no {', '.join(missing)}; evaluate.py reads it")
    for name in ("model", "width", "stem_stride", "loss"):
        if was.get(name) != getattr(args, name):
            raise InputError(f"{path}: a run with --{name.replace('_', '-')} {was.get(name)}, not {getattr(args, name)}")
    if state["classes"] != classes:
        raise InputError(f"{path}: trained on other classes, {', '.join(map(str, state['classes'][:3]))} ...")
    for name in SETTINGS:
        if name in was and was[name] != getattr(args, name):
            say(f"warning: {name} was {was[name]} in {path}, now it is {getattr(args, name)}")
    checkpoint.load_weights(model, state["model"], path)
    if ema is not None:
        if not state.get("model_ema"):
            raise InputError(f"{path}: holds no moving average; leave --ema-decay away")
        checkpoint.load_weights(ema.module, state["model_ema"], path)
    epoch = state["epoch"] + 1
    if epoch > args.epochs:
        raise InputError(f"{path}: has {epoch} epochs already, more than --epochs {args.epochs}")
    try:
        parts["loss"].load_state_dict(state["loss"])
        # The command line has the last word on rates and decay; of the optimiser, its memory is taken over.
        groups = parts["optimizer"].state_dict()["param_groups"]
        parts["optimizer"].load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        scheduler = parts["lr_scheduler"]
        scheduler.load_state_dict(state["lr_scheduler"])
        ema is None or ema.n_averaged.fill_(state.get("ema_updates", 1))
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: its optimiser, rates or loss do not fit ({(str(error) or repr(error)).splitlines()[0]})")
    scheduler.last_epoch = epoch * steps  # steps; another --batch-size or --holdout makes an epoch of other ones
    scheduler.base_lrs = [args.lr for _ in scheduler.base_lrs]
    scheduler._last_lr = [args.lr * rate(scheduler.last_epoch, steps, args) for _ in scheduler.base_lrs]
    for group, lr in zip(parts["optimizer"].param_groups, scheduler.get_last_lr()):
        group["lr"] = lr
    say(f"resuming {path} after epoch {epoch} of {args.epochs}")
    return epoch


class Log:
    """log.jsonl, a JSON object an epoch, cut back to the epochs that a resumed run keeps; and how long those took.

    Of a run that is replaced the checkpoint goes too: --resume auto must not find it before the new one's first.
    """

    def __init__(self, output: Path, kept_epochs: int):
        self.path, self.seconds = output / "log.jsonl", 0.0
        if distributed.is_main():
            try:
                kept = checkpoint.kept_lines(self.path, kept_epochs)
                self.seconds = float(json.loads(kept[-1])["seconds"]) if kept else 0.0
                temporary = self.path.with_name("log.jsonl.tmp")
                temporary.write_text("".join(kept))
                kept_epochs or (output / checkpoint.NAME).unlink(missing_ok=True)
                os.replace(temporary, self.path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self.path}: not a log of this trainer, or cannot be written ({error}); move it away")

    def write(self, line: dict) -> None:
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); the last checkpoint is good")


def say(text: str) -> None:
    """Print in the main process, at once."""
    if distributed.is_main():
        print(text, flush=True)


def say_setup(model: nn.Module, train_data, val_data, start_epoch: int, args) -> None:
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    alpha = "" if args.alpha is None else f" {args.alpha:g}" + ("" if args.alpha_end is None else f" -> {args.alpha_end:g}")
    steps = len(train_data) // args.batch_size
    epochs = f"{start_epoch + 1} to {args.epochs}, {steps} steps each" if start_epoch < args.epochs else "all done already"
    where = "in memory" if args.data in SMALL else f"in {args.data_path}"
    noise = f", {args.label_noise:.0%} of the training labels replaced" if args.label_noise else ""
    held = f" ({args.holdout:.0%} of the training images, held out)" if args.holdout else ""
    say(
        f"model          {args.model}, {millions:.2f} M parameters, {len(train_data.classes)} classes, {args.input_size} px\n"
        f"loss           {args.loss}{alpha}\n"
        f"data           {args.data}: {len(train_data):,} training and {len(val_data):,} validation images{held} {where}{noise}\n"
        f"processes      {distributed.world_size()} on {args.device}, mixed precision {args.amp}\n"
        f"optimiser      SGD, batch {args.batch_size}, lr {args.lr:g} ({args.sched}), weight decay {args.weight_decay:g}\n"
        f"epochs         {epochs}"
    )


def say_epoch(line: dict, seconds_left: float, args) -> None:
    text = f"epoch {line['epoch']:3d}/{args.epochs}  loss {line['train_loss']:.4f}  train top-1 {line['train_top1']:.2f} %"
    if "val_top1" in line:
        text += f"  val top-1 {line['val_top1']:.2f} %  ECE {line['val_ece']:.3f}"
    if "val_many" in line:
        shots = {name: line[f"val_{name}"] for name in ("many", "medium", "low")}
        text += "  " + " ".join(f"{name} {'-' if value is None else format(value, '.1f')}" for name, value in shots.items())
    left = f"{seconds_left / 60:.0f} min" if seconds_left >= 90 else f"{seconds_left:.0f} s"
    say(f"{text}  {line['train_images_per_second']:,.0f} images/s  {left} left")


if __name__ == "__main__":
    try:
        main(get_parser().parse_args())
    except InputError as error:
        errors.stop(error)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; --resume auto goes on after the last finished epoch")
