"""Train and evaluate image classifiers of timm with MaxSup: DeiT's command line, the losses of maxsup_loss.py.

The smallest real run, on 1,400 digits:  python ../data/digits/prepare.py && python main.py --help
The paper's, DeiT-Small on ImageNet-1K:  bash train_with_MaxSup.sh --data-path /path/to/ImageNet
"""

import json
import math
import os
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
import datasets
import distributed
import errors
from datasets import Images
from engine import bare_model, evaluate, train_one_epoch
from errors import InputError
from maxsup_loss import make_loss
from models import WithDenseLogits, create_model, has_dense_logits
from options import check_ranges, get_parser
from zip_dataset import ZipImages, warm

# What should not change between the start of a run and its resumption.
SETTINGS = """
    alpha alpha_end epochs global_batch lr unscale_lr weight_decay sched warmup_epochs warmup_lr min_lr clip_grad seed amp
    decay_epochs decay_rate momentum opt_eps opt_betas input_size mean std drop drop_path model_ema model_ema_decay
    no_aug color_jitter aa hflip scale train_interpolation repeated_aug
    reprob remode recount mixup cutmix mixup_prob mixup_switch_prob mixup_mode
""".split()


def main(args) -> None:
    fill_in(args)
    distributed.start(args.device)
    if args.eval:
        evaluate_checkpoint(args)
    else:
        train(args)
    distributed.stop()


def fill_in(args) -> None:
    """Settle the options that hang on the machine or on one another. Raises InputError for values that mean nothing."""
    check_ranges(args)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no GPU that PyTorch can use")
    args.amp = args.amp or ("bf16" if args.device == "cuda" else "off")
    if args.num_workers is None:
        args.num_workers = min(10, os.cpu_count() or 1)
    if args.loss == "ce" and args.alpha is not None:
        raise InputError(f"--alpha {args.alpha}: cross-entropy has no strength to set")
    if args.no_aug:
        args.mixup = args.cutmix = 0.0
    args.interpolation = "bicubic"
    args.crop_ratio = 1.0 if args.input_size <= 32 else args.eval_crop_ratio
    torch.set_float32_matmul_precision("highest" if args.deterministic else "high")
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def train(args) -> None:
    output = claim_output(args)
    resume = find_checkpoint(args)
    state = checkpoint.load(resume) if resume else None

    train_set, val_set = open_images(args, train=datasets.train_transform(args), val=datasets.eval_transform(args))
    classes = state.get("classes", train_set.classes) if state else train_set.classes
    if state:
        datasets.match_classes(train_set, classes, str(resume))
    datasets.match_classes(val_set, classes, str(args.data_path / "train"))
    settle_num_classes(args, len(classes))
    train_loader, val_loader = datasets.train_loader(train_set, args), datasets.eval_loader(val_set, args)

    datasets.seed_everything(args.seed)
    model = create_model(args.model, args.num_classes, args.input_size, args.drop, args.drop_path).to(args.device)
    ema = ModelEmaV3(model, decay=args.model_ema_decay) if args.model_ema else None
    criterion = build_criterion(args).to(args.device)
    args.global_batch = args.batch_size * distributed.world_size()
    args.scaled_lr = args.lr if args.unscale_lr else args.lr * args.global_batch / 512
    optimizer, scheduler = build_optimizer(model, args)
    scaler = torch.amp.GradScaler(args.device, enabled=args.amp == "fp16")
    parts = {"optimizer": optimizer, "lr_scheduler": scheduler, "scaler": scaler, "loss": criterion}
    mixup = build_mixup(args)

    start_epoch = 0
    if state:
        start_epoch = restore(state, resume, model, ema, parts, args)
        del state
    say_setup(model, train_loader, len(val_set), start_epoch, args)
    wrapped = wrap(model, args)
    goes_on = resume is not None and resume.resolve() == (output / checkpoint.NAME).resolve()
    log = Log(output, start_epoch if goes_on else 0, args.tensorboard)

    scheduler.step(start_epoch)
    started = time.time()
    for epoch in range(start_epoch, args.epochs):
        training = train_one_epoch(wrapped, criterion, train_loader, optimizer, scaler, mixup, ema, args, epoch)
        line = {"epoch": epoch + 1, **{f"train_{key}": value for key, value in training.items()}}
        line |= {"lr": optimizer.param_groups[0]["lr"], "alpha": getattr(criterion, "alpha", None)}
        if (epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs:
            for evaluated in (model, ema.module) if ema is not None else (model,):
                distributed.share_buffers(evaluated)
            line |= {f"val_{key}": value for key, value in evaluate(model, val_loader, args).items()}
            if ema is not None:
                line |= {f"ema_{key}": value for key, value in evaluate(ema.module, val_loader, args).items()}
        scheduler.step(epoch + 1)
        check_weights(model, line, epoch)
        if distributed.is_main():
            passed = time.time() - started
            line["seconds"] = round(log.seconds + passed, 3)
            log.write(line)
            save(output / checkpoint.NAME, model, ema, parts, classes, epoch, args)
            say_epoch(line, passed / (epoch + 1 - start_epoch) * (args.epochs - epoch - 1), args)
    distributed.barrier()  # nobody leaves before the last checkpoint is on the disk
    say(f"checkpoint and log: {output}/")


def check_weights(model: nn.Module, line: dict, epoch: int) -> None:
    """Raise InputError where the last step of an epoch has ruined the model, which no loss of that epoch shows."""
    finite = torch.stack([p.isfinite().all() for p in model.state_dict().values()]).all()
    if not finite or not math.isfinite(line.get("val_loss", 0)):
        raise InputError(
            f"weights or validation loss are not finite after epoch {epoch + 1}; stopped before this epoch was saved: the last "
            "checkpoint is good. Try a lower --lr, --clip-grad 1 or --amp off"
        )


def evaluate_checkpoint(args) -> None:
    """--eval --resume X: print top-1, top-5, loss and ECE of the validation images; the model is the checkpoint's own."""
    if args.resume in (None, "auto"):
        raise InputError("--eval needs --resume PATH, the checkpoint to evaluate")
    path = Path(args.resume)
    state = checkpoint.load(path)
    for fact in ("model", "num_classes", "input_size", "mean", "std"):
        setattr(args, fact, state.get("args", {}).get(fact, getattr(args, fact)))
    args.eval_crop_ratio = state.get("args", {}).get("crop_ratio", args.eval_crop_ratio)
    (val_set,) = open_images(args, val=datasets.eval_transform(args))
    if "classes" in state:
        datasets.match_classes(val_set, state["classes"], str(path))
    settle_num_classes(args, len(val_set.classes))
    model = create_model(args.model, args.num_classes, args.input_size, args.drop, args.drop_path)
    weights = ("model_ema" if args.model_ema else "model", "the moving average" if args.model_ema else "the weights")
    if not isinstance(state.get(weights[0]), dict):
        raise InputError(f"{path}: holds no {weights[0]!r}; leave --model-ema away")
    checkpoint.load_weights(model, state[weights[0]], path)
    result = evaluate(model.to(args.device), datasets.eval_loader(val_set, args), args)
    say(
        f"{weights[1]} of {path} on {result['images']} images: top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %  "
        f"loss {result['loss']:.4f}  ECE {result['ece']:.4f}"
    )


def open_images(args, **transforms) -> list[Images | ZipImages]:
    """The splits of --data-path with their transforms; with --cache their archives, read into memory once a node."""
    with distributed.local_main_first():  # it writes the archives' index, which the others find
        sets = [datasets.open_images(args.data_path, split, transform, args.cache) for split, transform in transforms.items()]
        archives = [images for images in sets if isinstance(images, ZipImages)]
        for note in sum((images.notes for images in archives), []):
            say(note)
        if args.cache and distributed.is_local_main():
            warning = warm(*(images.root for images in archives), show=distributed.is_main())
            if warning:
                print(warning, flush=True)
    return sets


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


def settle_num_classes(args, found: int) -> None:
    args.num_classes = args.num_classes or found
    if found > args.num_classes:
        raise InputError(
            f"{args.data_path}: {found} classes, so labels up to {found - 1}, but the model has {args.num_classes} outputs; "
            "see --num-classes"
        )


def build_criterion(args) -> nn.Module:
    try:
        criterion = make_loss(args.loss, args.num_classes, args.alpha, args.alpha_end)
    except ValueError as error:
        raise InputError(f"--loss {args.loss}: {error}")
    args.alpha = getattr(criterion, "alpha", args.alpha)
    return criterion


def build_optimizer(model: nn.Module, args):
    """timm's optimiser and schedule, stepped once an epoch as DeiT does."""
    options = {"eps": args.opt_eps} if "adam" in args.opt else {}
    if args.opt_betas:
        options["betas"] = tuple(args.opt_betas)
    try:
        optimizer = create_optimizer_v2(
            model, args.opt, lr=args.scaled_lr, weight_decay=args.weight_decay, momentum=args.momentum, **options
        )
    except (ValueError, AssertionError) as error:
        raise InputError(f"--opt {args.opt}: {error}")
    if args.sched not in ("cosine", "step", "tanh", "poly"):
        raise InputError(f"--sched {args.sched}: choose cosine, step, tanh or poly")
    scheduler, _ = create_scheduler_v2(
        optimizer,
        args.sched,
        num_epochs=args.epochs,
        decay_epochs=args.decay_epochs,
        decay_rate=args.decay_rate,
        min_lr=args.min_lr,
        warmup_lr=args.warmup_lr,
        warmup_epochs=args.warmup_epochs,
    )
    return optimizer, scheduler


def build_mixup(args) -> Mixup | None:
    """timm's mixup and cutmix; smoothing is the loss's business, so the mixed targets have none."""
    if args.mixup <= 0 and args.cutmix <= 0:
        return None
    if args.batch_size % 2:
        raise InputError(f"--batch-size {args.batch_size}: mixup pairs the images of a batch, so it must be even")
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=0.0,
        num_classes=args.num_classes,
    )


def wrap(model: nn.Module, args) -> nn.Module:
    if args.loss == "zipf":
        if has_dense_logits(model):
            model = WithDenseLogits(model)
        else:
            say("zipf: this model's classifier cannot read its feature map, so the ranks come from the logits")
    if distributed.world_size() > 1:
        devices = [torch.cuda.current_device()] if args.device == "cuda" else None
        model = nn.parallel.DistributedDataParallel(model, device_ids=devices)
    return torch.compile(model) if args.compile else model


def save(path: Path, model: nn.Module, ema, parts: dict, classes: list[str], epoch: int, args) -> None:
    """Write the checkpoint of a finished epoch, counted from 0 (design: File formats)."""
    plain = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in vars(args).items()}
    state = {"model": bare_model(model).state_dict(), "model_ema": ema.module.state_dict() if ema else None}
    state |= {name: part.state_dict() for name, part in parts.items()}
    # Every generator is reseeded from (seed, epoch, step, rank) at each step, so the seed is the whole state of all of them.
    state |= {"epoch": epoch, "rng": {"seed": args.seed}, "args": plain, "classes": classes}
    try:
        checkpoint.save(state, path)
    except OSError as error:
        raise InputError(f"{path}: the checkpoint cannot be written ({error.strerror}); the one before it is kept")


def restore(state: dict, path: Path, model: nn.Module, ema, parts: dict, args) -> int:
    """Put a checkpoint's state back; returns the epoch to go on with. Raises InputError where it is another run's."""
    was = state.get("args", {})
    missing = [key for key in ("epoch", "classes", *parts) if key not in state]
    if missing:
        raise InputError(f"{path}: cannot be resumed, it holds no {', '.join(missing)}; --eval reads it")
    if was.get("model", args.model) != args.model:
        raise InputError(f"{path}: a checkpoint of {was['model']}, not of --model {args.model}")
    checkpoint.load_weights(model, state["model"], path)
    if was.get("loss") != args.loss:
        raise InputError(f"{path}: trained with --loss {was.get('loss')}, not {args.loss}")
    if was.get("opt") != args.opt:
        raise InputError(f"{path}: trained with --opt {was.get('opt')}, not {args.opt}, which cannot use its state")
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
    if ema is not None:
        if not state.get("model_ema"):
            raise InputError(f"{path}: holds no moving average; leave --model-ema away")
        checkpoint.load_weights(ema.module, state["model_ema"], path)
    if state["epoch"] + 1 > args.epochs:
        raise InputError(f"{path}: has {state['epoch'] + 1} epochs already, more than --epochs {args.epochs}")
    say(f"resuming {path} after epoch {state['epoch'] + 1} of {args.epochs}")
    return state["epoch"] + 1


class Log:
    """log.jsonl, a JSON object an epoch, cut back to the epochs that a resumed run keeps; and TensorBoard where asked.

    Of a run that is replaced the checkpoint goes too: --resume auto must not find it before the new one's first.
    """

    def __init__(self, output: Path, kept_epochs: int, tensorboard: bool):
        self.path, self.seconds, self.board = output / "log.jsonl", 0.0, None
        if not distributed.is_main():
            return
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError("--tensorboard: not installed; pip install tensorboard")
            self.board = SummaryWriter(output, purge_step=kept_epochs + 1)
        kept = checkpoint.kept_lines(self.path, kept_epochs)
        self.seconds = json.loads(kept[-1]).get("seconds", 0.0) if kept else 0.0
        temporary = self.path.with_name("log.jsonl.tmp")
        temporary.write_text("".join(kept))
        kept_epochs or (output / checkpoint.NAME).unlink(missing_ok=True)
        os.replace(temporary, self.path)

    def write(self, line: dict) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if self.board:
            for key, value in line.items():
                if isinstance(value, (int, float)):
                    self.board.add_scalar(key.replace("_", "/", 1), value, line["epoch"])
            self.board.flush()


def say(text: str) -> None:
    """Print in the main process, at once."""
    if distributed.is_main():
        print(text, flush=True)


def say_setup(model: nn.Module, loader, val_images: int, start_epoch: int, args) -> None:
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    scaling = "taken as it is" if args.unscale_lr else f"{args.lr:g} x {args.global_batch} / 512"
    alpha = "" if args.alpha is None else f" {args.alpha:g}" + ("" if args.alpha_end is None else f" -> {args.alpha_end:g}")
    epochs = f"{start_epoch + 1} to {args.epochs}, {len(loader)} steps each" if start_epoch < args.epochs else "all done already"
    say(
        f"model          {args.model}, {millions:.2f} M parameters, {args.num_classes} classes, {args.input_size} px\n"
        f"loss           {args.loss}{alpha}\n"
        f"data           {len(loader.dataset):,} training and {val_images:,} validation images in {args.data_path}\n"
        f"processes      {distributed.world_size()} on {args.device}, mixed precision {args.amp}, "
        f"{args.num_workers} loading processes each\n"
        f"global batch   {args.global_batch} = {distributed.world_size()} x {args.batch_size}\n"
        f"learning rate  {args.scaled_lr:g} ({scaling})\n"
        f"epochs         {epochs}"
    )
    if args.recipe_batch and args.global_batch != args.recipe_batch:
        say(
            f"warning: the global batch is {args.global_batch}, the recipe's is {args.recipe_batch}: published accuracies are "
            f"missed by points that way. --batch-size {args.recipe_batch // distributed.world_size()} gives it here "
            "(--recipe-batch 0 silences this)"
        )


def say_epoch(line: dict, seconds_left: float, args) -> None:
    text = f"epoch {line['epoch']:3d}/{args.epochs}  loss {line['train_loss']:.4f}"
    if line["train_top1"] is not None:
        text += f"  train top-1 {line['train_top1']:.2f} %"
    if "val_top1" in line:
        text += f"  val top-1 {line['val_top1']:.2f} %  ECE {line['val_ece']:.3f}"
    left = f"{seconds_left / 60:.0f} min" if seconds_left >= 90 else f"{seconds_left:.0f} s"
    say(f"{text}  {line['train_images_per_second']:,.0f} images/s  {left} left")


if __name__ == "__main__":
    try:
        main(get_parser().parse_args())
    except InputError as error:
        errors.stop(error)
    except KeyboardInterrupt:
        sys.exit("interrupted; --resume auto goes on after the last finished epoch")
