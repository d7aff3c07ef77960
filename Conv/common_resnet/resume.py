"""Resuming a run from its checkpoint."""

from pathlib import Path

from errors import InputError, say

from torch import nn
from torch.optim.swa_utils import AveragedModel

import states

# Settings that should not change when a run is resumed.
SETTINGS = """
    data alpha alpha_end epochs batch_size lr momentum weight_decay sched decay_epochs decay_rate warmup_epochs seed amp
    input_size mean std padding flip cutout imbalance_ratio superclasses holdout ema_decay sync_bn label_noise
    mixup_alpha cutmix_alpha auto_augment ra_magnitude augmix_severity random_erase opt clip_grad_norm layer_decay freeze_backbone
    distillation_type teacher_path teacher_model teacher_logits distillation_alpha distillation_tau
""".split()


def restore(
    state: dict,
    path: Path,
    model: nn.Module,
    ema: AveragedModel | None,
    parts: dict,
    classes: list[str],
    steps: int,
    options: dict,
) -> int:
    """Restore a checkpoint's state; returns the epoch to continue with. Raises InputError if it does not fit this run.

    steps: the number per epoch. parts: optimizer, lr_scheduler (a LambdaLR) and loss. options: this run's options by name.
    """
    was = state.get("args", {})
    missing = [key for key in ("epoch", "classes", *parts) if key not in state]
    if missing:
        raise InputError(f"{path}: cannot be resumed, it holds no {', '.join(missing)}; evaluate.py reads it")
    for name in ("model", "width", "stem_stride", "loss", "prior"):
        if was.get(name) != options[name]:
            raise InputError(f"{path}: a run with --{name.replace('_', '-')} {was.get(name)}, not {options[name]}")
    if was.get("data_digest", options["data_digest"]) != options["data_digest"]:
        raise InputError(f"{path}: trained on other images than those of {options['data_path'] or options['data']}")
    if state["classes"] != classes:
        raise InputError(f"{path}: trained on other classes, {', '.join(map(str, state['classes'][:3]))} ...")
    for name in SETTINGS:
        now = str(options[name].resolve()) if isinstance(options[name], Path) else options[name]  # as checkpoints store it
        if name in was and was[name] != now:
            say(f"warning: {name} was {was[name]} in {path}, now it is {options[name]}")
    states.load_weights(model, state["model"], path)
    if ema is not None:
        if not state.get("model_ema"):
            raise InputError(f"{path}: holds no moving average; omit --ema-decay")
        states.load_weights(ema.module, state["model_ema"], path)
    epoch = state["epoch"] + 1
    if epoch > options["epochs"]:
        raise InputError(f"{path}: has {epoch} epochs already, more than --epochs {options['epochs']}")
    states.load_parts(parts, state, path)
    if ema is not None:
        updates = state.get("ema_updates", 1)
        ema.n_averaged.fill_(updates if type(updates) is int and 0 < updates < 2**53 else 1)
    optimizer, scheduler = parts["optimizer"], parts["lr_scheduler"]
    scheduler.last_epoch = epoch * steps  # in steps of this run, whose batch size may differ
    scheduler._step_count = scheduler.last_epoch + 1
    scheduler._last_lr = [
        lr * share(scheduler.last_epoch) for lr, share in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, lr in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = lr
    say(f"resuming {path} after epoch {epoch} of {options['epochs']}")
    return epoch
