"""What a checkpoint contains, and the facts about a run in it. states.py writes and reads the file.

model, optimizer   state dicts
loss               the state dict of the loss
epoch              the last finished epoch, counted from 0
rng                {"seed": ...}: all random numbers are functions of the seed and the epoch
classes            class names in label order
vocabulary         a classifier's words, in the order of their numbers; a language model's are its `classes`
args               the options of the run, and the facts below
"""

import hashlib
from pathlib import Path

from data import Texts

NAME = "checkpoint.pth"


def facts(args, texts: Texts) -> dict:
    """The checkpoint's `args`, as plain types: the options of the command line, and what is needed to rebuild the model.

    model "lstm" or "lstm-lm", library "text", num_classes, input_size (tokens per text or window), words (size of the vocabulary,
    special ones included), embedding_size, hidden_size, data_digest (of the numbered training texts, their labels and
    the words). The words themselves are the checkpoint's `vocabulary`, or a language model's `classes`.
    """
    plain = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in vars(args).items()}
    numbers = texts.train.tokens.numpy().tobytes() + texts.train.targets.numpy().tobytes()
    digest = hashlib.sha256(numbers + "\n".join(texts.words).encode()).hexdigest()[:16]
    of_model = {"library": "text", "num_classes": len(texts.classes), "input_size": args.max_tokens, "words": len(texts.words)}
    return plain | of_model | {"data_digest": digest}
