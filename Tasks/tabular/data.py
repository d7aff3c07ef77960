"""Tables: read from a CSV file, split into training and test rows, encoded as numbers."""

import csv
import difflib
import io
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from errors import InputError

import numpy as np
import torch
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor

from options import SOURCES

MISSING = {"", "?", "na", "n/a", "nan", "null"}  # compared in lower case
LONGEST = 1000  # characters of a category's name
MOST_CATEGORIES = 1000  # a text column with more is an identifier or free text, and its one-hot encoding would fill the memory
MOST_ENCODED = 5000  # encoded columns; the MLP has 12 F^2 weights


@dataclass
class Table:
    """columns: for each name an array (N,), float64 with NaN for a missing number, or str with "" for a missing category.

    labels: int64 (N,), indices into classes.
    """

    columns: dict[str, np.ndarray]
    labels: np.ndarray
    classes: list[str]


def open_table(args) -> Table:
    """The table that --data names. Raises InputError if it is missing or unsuitable for classification."""
    if args.data == "digits":
        digits = load_digits()
        return Table(dict(zip(digits.feature_names, digits.data.T, strict=True)), digits.target, [str(i) for i in range(10)])
    source = SOURCES.get(args.data)
    path = args.data_path or (None if source else Path(args.data))
    if path is None:
        raise InputError(
            f"--data {args.data}: needs --data-path FILE, its {source.file}; data/{args.data}/README.md has the source"
        )
    target = args.target or (source.target if source else None)
    if target is None:
        names = ", ".join(read_rows(path)[0])
        raise InputError(f"--data {args.data}: needs --target COLUMN, the column to predict; its columns are {names}")
    return read_csv(path, target, args.categorical or (), args.drop or ())


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of a CSV file whose delimiter is a comma, semicolon or tab. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=first.count)
        rows = [
            [cell.strip() for cell in row]
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            if row
        ]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8")
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file ({error})")
    if not rows:
        raise InputError(f"{path}: the file is empty; a CSV file begins with the column names")
    names, rows = rows[0], rows[1:]
    if not rows:
        raise InputError(f"{path}: 0 rows below the column names")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise InputError(f"{path}: column {name!r} appears {times} times; column names must differ")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise InputError(f"{path}: data row {number} has {len(row)} cells, the column names are {len(names)}")
    return names, rows


def as_array(path: Path, name: str, column: tuple[str, ...]) -> np.ndarray:
    """The cells (N,), each as wide in memory as the longest. Raises InputError if one is too long to be a category."""
    longest = max(map(len, column), default=0)
    if longest > LONGEST:
        raise InputError(f"{path}: column {name!r} has a text of {longest:,} characters; leave it out with --drop {name!r}")
    return np.array(column)


def read_csv(path: Path, target: str, categorical: tuple[str, ...] = (), drop: tuple[str, ...] = ()) -> Table:
    """Read a CSV file. A column is numeric if all its values are numbers and `categorical` does not name it.

    Missing values are counted and reported. Rows without a target are omitted. A column that repeats the target is reported.
    """
    names, rows = read_rows(path)
    for option, wanted in (("--target", (target,)), ("--categorical", categorical), ("--drop", drop)):
        for name in wanted:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
                raise InputError(f"{option} {name}: {path} has no such column; the nearest name is {near[0]!r}")
    if target in drop:
        raise InputError(f"--drop {target}: the column is the --target")
    for name in {target, *drop}.intersection(categorical):
        raise InputError(f"--categorical {name}: the column is the --target, or dropped")
    columns = zip(names, zip(*rows, strict=True), strict=True)
    cells = {name: as_array(path, name, column) for name, column in columns if name not in drop}
    missing = {name: np.array([value.lower() in MISSING for value in column]) for name, column in cells.items()}
    known = ~missing[target]
    if not known.all():
        print(f"warning: {path}: {(~known).sum():,} rows have no target and are left out", flush=True)
    values = cells[target][known]
    classes, labels, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        found = f"one value, {str(classes[0])!r}" if len(classes) else "no value"
        raise InputError(f"{path}: the target {target!r} has {found}; at least two classes are needed")
    if counts.min() < 2 or len(classes) > MOST_CATEGORIES:
        raise InputError(
            f"{path}: the target {target!r} has {len(classes):,} values, and {(counts < 2).sum():,} of them occur only once; "
            "classes need at least two rows each, so choose a --target that is not a continuous number"
        )
    columns = {}
    for name in names:
        if name == target or name in drop:
            continue
        column, absent = cells[name][known], missing[name][known]
        if absent.all():
            print(f"warning: {path}: column {name!r} has no values and is left out", flush=True)
            continue
        numbers = None
        if name not in categorical:
            numbers = to_numbers(column, absent)
            if numbers is None and to_numbers(np.char.replace(column, ",", "."), absent) is not None:
                print(
                    f"warning: {path}: column {name!r} is read as text, because its numbers have decimal commas; write points",
                    flush=True,
                )
        columns[name] = np.where(absent, "", column) if numbers is None else numbers
        check_column(path, name, columns[name], absent, labels, target)
    if not columns:
        raise InputError(f"{path}: no columns remain to predict {target!r} from")
    return Table(columns, labels, sort_classes(classes, labels))


def to_numbers(column: np.ndarray, absent: np.ndarray) -> np.ndarray | None:
    """float64 (N,) with NaN where a value is missing; None if some value is not a finite number."""
    if (np.char.find(column, "_") >= 0).any():  # NumPy reads 18_25 as 1825
        return None
    try:
        numbers = np.where(absent, "nan", column).astype(np.float64)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers[~absent]).all() else None


def check_column(path: Path, name: str, column: np.ndarray, absent: np.ndarray, labels: np.ndarray, target: str) -> None:
    """Report missing values, and whether the column repeats the target. Raises InputError for too many categories."""
    values, codes = np.unique(column, return_inverse=True)
    if column.dtype.kind == "U" and len(values) > MOST_CATEGORIES:
        raise InputError(f"{path}: column {name!r} has {len(values):,} different texts; leave it out with --drop {name!r}")
    if absent.any():
        how = "the most frequent category" if column.dtype.kind == "U" else "the median"
        print(f"column {name!r}: {absent.sum():,} missing values become {how} of the training rows", flush=True)
    pairs = len(np.unique(codes * (labels.max() + 1) + labels))
    if pairs == len(values) == labels.max() + 1:
        print(f"warning: column {name!r} repeats the target {target!r}; --drop {name!r} leaves it out", flush=True)


def sort_classes(classes: np.ndarray, labels: np.ndarray) -> list[str]:
    """Class names in label order; if they are numbers, they are sorted as numbers and `labels` is renumbered in place."""
    try:
        order = np.argsort(classes.astype(np.float64), kind="stable")
    except ValueError:
        order = np.arange(len(classes))
    labels[:] = np.argsort(order)[labels]
    return [str(name) for name in classes[order]]


def split_and_encode(table: Table, train_share: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, list[str]]:
    """Training x float32 (N, F) and y int64 (N,), test x and y, and the names of the F encoded columns.

    The split is stratified and depends on the seed. Numbers are imputed by the median and standardised; categories are imputed by
    the most frequent one and one-hot encoded, and a category that does not occur in training becomes zeros. All statistics come
    from the training rows only. Raises InputError if there are too few rows.
    """
    rows = np.arange(len(table.labels))
    try:
        train, test = train_test_split(rows, train_size=train_share, random_state=seed, stratify=table.labels)
    except ValueError as error:
        raise InputError(f"{len(rows):,} rows cannot be split ({error}); change --train-share, or give more rows")
    train.sort()
    test.sort()
    known = {name: c for name, c in table.columns.items() if not is_missing(c[train]).all()}
    if len(known) < len(table.columns):
        print(f"warning: left out, no value in the training rows: {', '.join(table.columns.keys() - known.keys())}", flush=True)
    if not known:
        raise InputError("no column has a value in the training rows; give more rows, or raise --train-share")
    numbers = [name for name, c in known.items() if c.dtype.kind != "U"]
    categories = [name for name, c in known.items() if c.dtype.kind == "U"]
    parts = []
    if numbers:
        encoder = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
        parts.append(("numbers", encoder, slice(0, len(numbers))))
    if categories:
        encoder = make_pipeline(
            SimpleImputer(strategy="most_frequent", missing_values=""),
            OneHotEncoder(handle_unknown="ignore", sparse_output=False),
        )
        parts.append(("categories", encoder, slice(len(numbers), None)))
    x = np.column_stack([known[name].astype(object) for name in numbers + categories])
    encoder = ColumnTransformer(parts)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # numbers beyond float64's range are reported below
        encoded = [encoder.fit_transform(x[train]), encoder.transform(x[test])]
    # Without the prefixes of the two parts. Names may occur twice: value b of column a has the same name as a column a_b.
    names = [name.partition("__")[2] for name in encoder.get_feature_names_out(numbers + categories)]
    if len(names) > MOST_ENCODED:
        raise InputError(
            f"{len(names):,} columns after encoding are more than the MLP can take ({MOST_ENCODED:,}); leave out columns with "
            "many categories by --drop"
        )
    x_train, x_test = (torch.from_numpy(np.asarray(part, dtype=np.float64)).float() for part in encoded)
    for part in (x_train, x_test):
        broken = (~part.isfinite()).any(0)
        if broken.any():
            name = names[int(broken.nonzero()[0])]
            raise InputError(f"column {name!r}: its numbers are too large to standardise; leave it out with --drop {name!r}")
    y = torch.from_numpy(table.labels.astype(np.int64))
    return x_train, y[train], x_test, y[test], names


def is_missing(column: np.ndarray) -> np.ndarray:
    return column == "" if column.dtype.kind == "U" else np.isnan(column)
