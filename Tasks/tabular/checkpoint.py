"""What a checkpoint contains, and the facts about a run in it. states.py writes and reads the file.

model, optimizer   state dicts
loss               the state dict of the loss
epoch              the last finished epoch, counted from 0
rng                {"seed": ...}: all random numbers are functions of the seed and the epoch
classes            class names in label order
args               the options of the run, and the facts below
"""

import hashlib
from pathlib import Path

from torch import Tensor

NAME = "checkpoint.pth"


def facts(args, columns: list[str], classes: int, x_train: Tensor, y_train: Tensor) -> dict:
    """The checkpoint's `args`, as plain types: the options of the command line, and what is needed to rebuild the model.

    model "mlp", library "tabular", num_classes, input_size (number of encoded columns), columns (their names), data_digest
    (of the encoded training rows and their labels). The encoding follows from the data, --train-share and the seed.
    """
    plain = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in vars(args).items()}
    digest = hashlib.sha256(x_train.numpy().tobytes() + y_train.numpy().tobytes()).hexdigest()[:16]
    of_model = {"model": "mlp", "library": "tabular", "num_classes": classes, "input_size": len(columns)}
    return plain | of_model | {"columns": columns, "data_digest": digest}
