"""Texts: read from folders, split into tokens by one simple rule, numbered by a vocabulary of the training texts."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from errors import InputError

import numpy as np
import torch
from torch import Tensor

PAD, UNKNOWN, END = 0, 1, 2
SPECIAL = ["<pad>", "<unk>", "<end>"]
# A token is an English ending such as 's or n't's 't, a run of letters, digits and underscores, or one other character.
TOKEN = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|\w+|[^\w\s]")


def tokenise(text: str, limit: int | None = None) -> list[str]:
    """At most `limit` tokens of a text: lower case, <br /> tags removed, split by TOKEN."""
    return [found.group() for found in islice(TOKEN.finditer(text.lower().replace("<br />", " ")), limit)]


@dataclass
class Split:
    """tokens: int32 (N, T), padded with PAD. lengths: int64 (N,). targets: labels int64 (N,), or next words int32 (N, T)."""

    tokens: Tensor
    lengths: Tensor
    targets: Tensor

    def batch(self, rows: Tensor, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """tokens (n, t), cut to the longest of these rows, lengths (n,), and targets (n,) or, of the m real tokens, (m,)."""
        lengths = self.lengths[rows]
        width = int(lengths.max())
        targets = self.targets[rows]
        if targets.ndim == 2:
            targets = targets[:, :width][real_tokens(lengths, width)].long()
        return self.tokens[rows, :width].to(device), lengths.to(device), targets.to(device)


def real_tokens(lengths: Tensor, width: int) -> Tensor:
    """(N, width) bool: True for the tokens of texts of these lengths, False for padding."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)


@dataclass
class Texts:
    """Both splits, the class names in label order (for a language model, the words), and the vocabulary."""

    train: Split
    test: Split
    classes: list[str]
    words: list[str]


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8, or remove it")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})")


def make_vocabulary(texts: Iterable[list[str]], size: int) -> list[str]:
    """SPECIAL and the most frequent words, `size` in all; words of equal frequency in alphabetical order."""
    counts = Counter()
    for text in texts:
        counts.update(text)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return SPECIAL + [word for word, _ in ranked[: max(size - len(SPECIAL), 0)]]


def number(text: list[str], index: dict[str, int]) -> list[int]:
    return [index.get(word, UNKNOWN) for word in text]


# ------------------------------------------------------------------------------------------------------ labelled texts


def open_reviews(folder: Path, max_tokens: int, vocabulary_size: int) -> Texts:
    """Read {train,test}/<class>/*.txt. Raises InputError for another folder layout, a single class, or text that is not UTF-8.

    An empty text is read as one unknown word, so that every text counts; the number of empty texts is printed. Class folders that
    only train/ has, such as IMDB's unsup, are omitted.
    """
    class_names = {}
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            raise InputError(
                f"--data-path {folder}: has no folder {split}/; it must hold train/<class>/*.txt and test/<class>/*.txt"
            )
        class_names[split] = sorted(path.name for path in (folder / split).iterdir() if path.is_dir())
    classes = [name for name in class_names["test"] if not name.startswith(".")]
    foreign = [name for name in classes if name not in class_names["train"]]
    if foreign:
        raise InputError(f"--data-path {folder}: test/{foreign[0]} has no counterpart train/{foreign[0]}")
    if len(classes) < 2:
        raise InputError(f"--data-path {folder}: test/ has {len(classes)} class folder; at least two classes are needed")
    unused = [name for name in class_names["train"] if name not in classes]
    if unused:
        print(f"left out       train/{', train/'.join(unused)}: not in test/", flush=True)
    texts, labels = {}, {}
    for split in ("train", "test"):
        found = [(label, read_class(folder / split / name, max_tokens)) for label, name in enumerate(classes)]
        texts[split] = [text for _, part in found for text in part]
        labels[split] = torch.tensor([label for label, part in found for _ in part])
        empty = sum(not text for text in texts[split])
        if empty:
            print(f"warning: {empty} empty texts in {folder / split}; each counts as one unknown word", flush=True)
    words = make_vocabulary(texts["train"], vocabulary_size)
    index = {word: i for i, word in enumerate(words)}
    splits = {name: pad([number(text, index) or [UNKNOWN] for text in texts[name]], labels[name]) for name in texts}
    return Texts(splits["train"], splits["test"], classes, words)


def read_class(folder: Path, max_tokens: int) -> list[list[str]]:
    """The first max_tokens tokens of each *.txt file of a folder, in the order of file names."""
    paths = sorted(path for path in folder.glob("*.txt") if path.is_file())
    if not paths:
        raise InputError(f"{folder}: holds no .txt file")
    return [tokenise(read_text(path), max_tokens) for path in paths]


def pad(rows: list[list[int]], labels: Tensor) -> Split:
    lengths = np.array([len(row) for row in rows])
    tokens = np.full((len(rows), lengths.max()), PAD, np.int32)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.concatenate([np.array(row, np.int32) for row in rows])
    return Split(torch.from_numpy(tokens), torch.from_numpy(lengths), labels)


# ------------------------------------------------------------------------------------------------------ running text


def open_text(path: Path, window: int, vocabulary_size: int) -> Texts:
    """Read one text file, or every .txt and .md file of a folder, as running text for predicting the next word.

    The last tenth of every file is for testing. Each file's part ends with END; the parts are concatenated and cut into windows
    of `window` tokens, the last of which is padded. Raises InputError for too little text, or text that is not UTF-8.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md") and p.is_file() and not hidden(p, path))
    else:
        files = [path]
    documents = [tokenise(read_text(file)) for file in files]
    if not any(documents):
        raise InputError(f"--data-path {path}: holds no words; give a text file, or a folder with .txt or .md files")
    empty = sum(not document for document in documents)
    if empty:
        print(f"warning: {empty} of {len(documents)} files are empty", flush=True)
    cuts = [len(document) - len(document) // 10 for document in documents]
    parts = {
        "train": [document[:cut] for document, cut in zip(documents, cuts, strict=True) if document],
        "test": [document[cut:] for document, cut in zip(documents, cuts, strict=True) if document[cut:]],
    }
    if sum(map(len, parts["train"])) < window or not parts["test"]:
        raise InputError(f"--data-path {path}: {sum(map(len, documents))} tokens are too few for windows of {window} tokens")
    words = make_vocabulary(parts["train"], vocabulary_size)
    index = {word: i for i, word in enumerate(words)}
    splits = {name: windows([[*number(part, index), END] for part in found], window) for name, found in parts.items()}
    return Texts(splits["train"], splits["test"], words, words)


def hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def windows(documents: list[list[int]], window: int) -> Split:
    """Concatenate documents and cut them into rows of `window` tokens; each token's target is the next token."""
    targets = np.concatenate([np.array(document, np.int32) for document in documents])
    tokens = np.concatenate([np.array([END], np.int32), targets[:-1]])
    count = -(-len(targets) // window)
    lengths = np.full(count, window)
    lengths[-1] = len(targets) - window * (count - 1)
    padded = [
        np.pad(part, (0, count * window - len(part)), constant_values=PAD).reshape(count, window) for part in (tokens, targets)
    ]
    return Split(torch.from_numpy(padded[0]), torch.from_numpy(lengths), torch.from_numpy(padded[1]))


# ------------------------------------------------------------------------------------------------------ embeddings


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_embeddings(path: Path, words: list[str], embedding: Tensor) -> int:
    """Copy the vectors of a GloVe file, lines of a word and D numbers, into the rows of `embedding` (V, D); returns how many.

    Words that the file lacks keep their random vectors. Raises InputError for vectors of another width, or another format.
    """
    rows = {word: i for i, word in enumerate(words) if i >= len(SPECIAL)}
    size, found = embedding.shape[1], 0
    try:
        with open(path, encoding="utf-8") as file:
            for line_number, line in enumerate(file, 1):
                parts = line.rstrip().split(" ")
                if line_number == 1 and len(parts) - 1 != size:
                    raise InputError(
                        f"--embeddings {path}: its vectors have {len(parts) - 1} numbers, the model's embeddings {size}; "
                        "give the file of that width, or --embedding-size"
                    )
                word = " ".join(parts[:-size])  # a few words in the larger files contain spaces
                if len(parts) <= size or (parts[0] in rows and word not in rows and _is_number(parts[1])):
                    raise ValueError(f"{len(parts) - 1} numbers")
                if word in rows:
                    vector = torch.tensor([float(part) for part in parts[-size:]])
                    if not vector.isfinite().all():
                        raise ValueError("a number is not finite")
                    embedding[rows[word]] = vector
                    found += 1
    except OSError as error:
        raise InputError(f"--embeddings {path}: cannot be read ({error.strerror})")
    except UnicodeDecodeError as error:
        raise InputError(f"--embeddings {path}: not a text file in UTF-8 ({error.reason})")
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--embeddings {path}: line {line_number} is not a word and {size} numbers ({error})")
    if not found:
        raise InputError(f"--embeddings {path}: has none of the {len(rows):,} words of the training texts")
    return found
