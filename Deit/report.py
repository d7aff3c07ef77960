"""What a run tells its user after each epoch, on the screen and in TensorBoard."""

from pathlib import Path

from errors import InputError, say

import distributed


def say_epoch(line: dict, epochs: int, seconds_left: float) -> None:
    """Print a summary of an epoch's log line."""
    text = f"epoch {line['epoch']:3d}/{epochs}  loss {line['train_loss']:.4f}"
    if line["train_top1"] is not None:
        text += f"  train top-1 {line['train_top1']:.2f} %"
    if "val_top1" in line:
        text += f"  val top-1 {line['val_top1']:.2f} %  ECE {line['val_ece']:.3f}"
    left = f"{seconds_left / 60:.0f} min" if seconds_left >= 90 else f"{seconds_left:.0f} s"
    say(f"{text}  {line['train_images_per_second']:,.0f} images/s  {left} left")


def warn_of_batch(global_batch: int, recipe_batch: int) -> None:
    """Warn if the global batch is not the recipe's; recipe_batch 0 disables the warning."""
    if recipe_batch and global_batch != recipe_batch:
        each, rest = divmod(recipe_batch, distributed.world_size())
        mend = f"--batch-size {each} gives the recipe's batch here" if not rest else "Use a number of processes that divides it"
        say(
            f"warning: the global batch is {global_batch}, the recipe's is {recipe_batch}: accuracies will differ from published "
            f"ones by points. {mend} (--recipe-batch 0 silences this)"
        )


class TensorBoard:
    """The log's lines as TensorBoard events; when a run is resumed, events of epochs after the kept ones are purged."""

    def __init__(self, output: Path, kept_epochs: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("--tensorboard: not installed; pip install tensorboard")
        self.writer = SummaryWriter(output, purge_step=kept_epochs + 1)

    def write(self, line: dict) -> None:
        try:
            for key, value in line.items():
                if isinstance(value, (int, float)):
                    self.writer.add_scalar(key.replace("_", "/", 1), value, line["epoch"])
            self.writer.flush()
        except OSError as error:
            raise InputError(f"--tensorboard: its file cannot be written ({error.strerror}); the last checkpoint is good")
