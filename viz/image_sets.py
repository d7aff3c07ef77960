"""Images with labels, from wherever they lie: image folders, ZIP archives of them, torchvision's small sets, the digits.

Order and labels are those of torchvision's ImageFolder: classes by sorted name, files by sorted path.
"""

import gzip
import io
import os
import urllib.error
import zipfile
import zlib
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import ImageNetInfo
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from errors import InputError
from reasons import reason

NAMED = ("digits", "cifar10", "cifar100", "fashion-mnist")
LARGEST = 1 << 30  # bytes of one picture in an archive
TRAIN_DIGITS = 1400  # of scikit-learn's 1,797, in their order; the last 397 validate
FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")


class Images(Dataset):
    """images[i] -> (transform(PIL image in RGB), label).

    `classes`: names in label order, or None; `labels` (N,) int64; `names` (N,) paths as bytes; `notes`: lines worth showing.
    `open_image(i, name)` gives what Image.open takes, or an Image.
    """

    def __init__(self, where: object, names: list[str], labels, classes: list[str] | None, open_image: Callable, left_out=()):
        first = f" ({', '.join(left_out[:3])}{', ...' if len(left_out) > 3 else ''})" if left_out else ""
        if not len(names):
            raise InputError(f"{where}: holds no images ({', '.join(IMG_EXTENSIONS)}), {len(left_out)} other files{first}")
        self.where, self.classes, self.open_image, self.transform = where, classes, open_image, None
        self.names = np.array([os.fsencode(name) for name in names])  # as lists they are copied to each loading process
        self.labels = np.array(labels, dtype=np.int64)
        self.notes = [f"{where}: {len(left_out)} files are no images and are left out{first}"] if left_out else []

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def __getitem__(self, index: int) -> tuple:
        source = self.open_image(index, self.name(index))
        try:
            with source if isinstance(source, Image.Image) else Image.open(source) as image:
                image = image.convert("RGB")
        except Exception as error:  # a damaged picture can fail in any way
            raise InputError(
                f"{self.where}/{self.name(index)}: does not decode as an image ({reason(error)}); replace or remove it"
            )
        return self.transform(image) if self.transform else image, int(self.labels[index])


def open_images(path: Path | None, split: str, data: str | None = None) -> Images:
    """The images of a split: of the named set where `data` is one of NAMED, else of what lies at `path`.

    `path`: a folder holding {split}/<class>/<image> or {split}.zip, an archive, or a folder of class folders. Raises InputError.
    """
    if data in NAMED and split not in ("train", "val", "test"):
        raise InputError(f"{data} has no part {split}: train, val or test")
    if data == "digits":
        return _digits(split)
    archive = path / f"{split}.zip" if path else None
    if path and (path / split).is_dir():
        return _folder(path / split)
    if path and archive.is_file():
        return _archive(archive, split)
    if data in NAMED:
        return _fashion_mnist(path, split) if data == "fashion-mnist" else _cifar(path or Path("data"), split, data)
    if path is None:
        raise InputError(f"no images: --data-path names a folder or archive, --data one of {', '.join(NAMED)}")
    if path.is_file() and zipfile.is_zipfile(path):
        return _archive(path, split)
    if path.is_file():
        raise InputError(f"{path}: neither a folder nor a whole ZIP archive (nor an FFCV file: those end with .beton or .ffcv)")
    if not path.is_dir():
        raise InputError(f"{path}: no such folder or archive; an image folder holds {split}/<class>/<image>")
    if (path / f"{split}_map.txt").exists():
        raise InputError(f"{archive}: no such archive, though {split}_map.txt is there")
    inside = [entry for entry in path.iterdir() if entry.is_dir()]
    if not inside or {"train", "val", "test"} & {entry.name for entry in inside}:
        raise InputError(f"{path / split}: no such folder; an image folder holds {split}/<class>/<image>; see --split")
    return _folder(path)


def _folder(folder: Path) -> Images:
    """<class>/<anything>/<image>, what is no image left out."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    names, labels, left_out = [], [], [entry.name for entry in os.scandir(folder) if not entry.is_dir()]
    if not classes and any(name.lower().endswith(IMG_EXTENSIONS) for name in left_out):
        raise InputError(f"{folder}: its images lie in no class folders, so they have no labels; <class>/<image> is needed")
    for label, name in enumerate(classes):
        for place, _, files in sorted(os.walk(folder / name, followlinks=True)):
            paths = [os.path.relpath(os.path.join(place, file), folder) for file in sorted(files)]
            left_out += [path for path in paths if not path.lower().endswith(IMG_EXTENSIONS)]
            names += [path for path in paths if path.lower().endswith(IMG_EXTENSIONS)]
        labels += [label] * (len(names) - len(labels))
        if not labels or labels[-1] != label:
            raise InputError(f"{folder}: no image in the class folder {name}; remove the folder or add its images")
    return Images(folder, names, labels, classes, FromFolder(folder), left_out)


class FromFolder:
    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, index: int, name: str) -> str:
        return os.path.join(self.folder, name)


def _archive(path: Path, split: str) -> Images:
    """A ZIP archive, labelled by {split}_map.txt beside it or, without one, by sorted class folder names."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise InputError(f"{path}: truncated, or not a ZIP archive ({error}); copy or make it again")
    entries = [entry for entry in entries if not any(part[:1] == "." or part == "__MACOSX" for part in entry.filename.split("/"))]
    if any(entry.filename.startswith(f"{split}/") for entry in entries):
        entries = [entry for entry in entries if entry.filename.startswith(f"{split}/")]
    left_out = [entry.filename for entry in entries if not entry.filename.lower().endswith(IMG_EXTENSIONS)]
    entries = {
        entry.filename.removeprefix(f"{split}/"): entry for entry in entries if entry.filename.lower().endswith(IMG_EXTENSIONS)
    }
    for name, entry in entries.items():
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{path}: {name} is encrypted or compressed in an unusual way; make the archive with zip -r")
        if max(entry.file_size, entry.compress_size) > LARGEST:
            raise InputError(f"{path}: {name} claims to be a picture of {entry.file_size / 1e9:.1f} GB")
    map_file = path.with_name(f"{path.stem}_map.txt")
    if map_file.exists():
        labels, classes = _labels_from_map(path, list(entries), map_file, split)
    else:
        flat = [name for name in entries if "/" not in name]
        if flat:
            raise InputError(f"{path}: {flat[0]} lies in no class folder and {map_file.name} is missing: images without labels")
        classes = sorted({name.split("/")[0] for name in entries})
        labels = {name: classes.index(name.split("/")[0]) for name in entries}
    order = sorted(entries, key=lambda name: (classes[labels[name]] if classes else "", name))
    reader = FromArchive(path, [entries[name] for name in order])
    images = Images(path, order, [labels[name] for name in order], classes, reader, left_out)
    if classes and classes != sorted(classes):
        images.notes.append(f"{map_file}: its labels are not in sorted class order; they are followed, by class name")
    return images


class FromArchive:
    """The bytes of entries, checked; each process opens the archive itself."""

    def __init__(self, path: Path, entries: list[zipfile.ZipInfo]):
        self.path, self.file = path, None
        rows = [(e.header_offset, e.compress_size, e.file_size, e.CRC, e.compress_type) for e in entries]
        self.rows = np.array(rows, dtype=np.int64)

    def __call__(self, index: int, name: str) -> io.BytesIO:
        offset, packed, size, checksum, kind = self.rows[index].tolist()
        try:
            if self.file is None or self.file[0] != os.getpid():
                self.file = os.getpid(), open(self.path, "rb")
            file = self.file[1]
            file.seek(offset)
            header = file.read(30)
            file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
            data = file.read(packed)
            if kind == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-15).decompress(data, size + 1)
            if header[:4] != b"PK\3\4" or len(data) != size or zlib.crc32(data) != checksum:
                raise ValueError("not the size and checksum that the directory states")
        except (OSError, ValueError, zlib.error) as error:
            raise InputError(f"{self.path}: {name} is damaged ({error}); copy or make the archive again")
        return io.BytesIO(data)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "file": None}


def _labels_from_map(path: Path, names: list[str], map_file: Path, split: str) -> tuple[dict[str, int], list[str] | None]:
    """The label of each entry, and class names in label order: those of the folders, or of the training map for flat files."""
    lines = _read_map(map_file, split)
    # Where only one of the two knows class folders, file names alone have to do.
    both = all("/" in name for name in [*names, *lines])
    here = {name if both else name.rpartition("/")[2]: name for name in names}
    there = {name if both else name.rpartition("/")[2]: name for name in lines}
    if here.keys() != there.keys() or len(here) != len(names) or len(there) != len(lines):
        odd = sorted(here.keys() ^ there.keys())
        raise InputError(
            f"{path} and {map_file.name} differ in {len(odd)} images{f', such as {odd[0]}' if odd else ' of one name'}"
        )
    labels = {name: lines[there[key]] for key, name in here.items()}
    folder_of = {name: (name if "/" in name else there[key]).rpartition("/")[0].split("/")[0] for key, name in here.items()}
    if all(folder_of.values()):
        return labels, _class_order([(folder_of[name], label) for name, label in labels.items()], map_file)
    training = map_file.with_name("train_map.txt")
    if not training.exists():
        return labels, None
    return labels, _class_order([(name.split("/")[0], label) for name, label in _read_map(training, "train").items()], training)


def _read_map(path: Path, split: str) -> dict[str, int]:
    labels = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})")
    for number, line in enumerate(lines, 1):
        name, tab, label = line.rpartition("\t")
        if line and not (tab and label.isdecimal() and len(label) < 8 and name):
            raise InputError(f"{path}, line {number}: {line[:60]!r} is not a path, a tab, and a label of 0 or more")
        if line:
            labels[name] = int(label)
    if not labels:
        raise InputError(f"{path}: is empty")
    # Before all, or before a class folder: else it is a class of that name, as CIFAR-100's train.
    every, inside = all(name.startswith(f"{split}/") for name in labels), f"{split}/*/*"
    return {
        name.removeprefix(f"{split}/") if every or fnmatchcase(name, inside) else name: label for name, label in labels.items()
    }


def _class_order(pairs: list[tuple[str, int]], where: Path) -> list[str]:
    """Class names in label order. Raises InputError unless classes and labels 0 ... K-1 belong together one to one."""
    pairs = sorted(set(pairs), key=lambda pair: pair[1])
    if [label for _, label in pairs] != list(range(len(pairs))) or len({name for name, _ in pairs}) != len(pairs):
        raise InputError(f"{where}: class folders and labels 0 to {len(pairs) - 1} do not belong together one to one")
    return [name for name, _ in pairs]


class FromArrays:
    """Pictures (N, H, W) or (N, H, W, 3) uint8 in memory."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def __call__(self, index: int, name: str) -> Image.Image:
        return Image.fromarray(self.pixels[index])


def _in_memory(where: str, pixels: np.ndarray, labels, classes: list[str]) -> Images:
    return Images(where, [f"{index:05d}" for index in range(len(pixels))], labels, list(classes), FromArrays(pixels))


def _digits(split: str) -> Images:
    """scikit-learn's handwritten digits, 8x8: the first 1,400 for training, the last 397 for validation."""
    digits = load_digits()
    part = slice(None, TRAIN_DIGITS) if split == "train" else slice(TRAIN_DIGITS, None)
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return _in_memory("digits", pixels[part], digits.target[part], [str(digit) for digit in range(10)])


def _cifar(root: Path, split: str, data: str) -> Images:
    kind = torchvision.datasets.CIFAR10 if data == "cifar10" else torchvision.datasets.CIFAR100
    try:
        here = (root / kind.base_folder).is_dir()
        images = kind(root, train=split == "train", download=not here)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        raise InputError(f"{root / kind.base_folder}: {data} is neither there nor can it be fetched ({reason(error)})")
    return _in_memory(data, images.data, images.targets, images.classes)


def _fashion_mnist(root: Path | None, split: str) -> Images:
    """Fashion-MNIST's idx files, packed or not, in a folder or in torchvision's place under it; else torchvision's download."""
    roots = [root] if root else [Path("data"), Path("/usr/share/datasets/fashion-mnist")]
    stem = "train" if split == "train" else "t10k"
    for place in (folder for root in roots for folder in (root, root / "FashionMNIST/raw", root / "raw")):
        files = [_idx_file(place / f"{stem}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
        if all(files):
            try:
                pixels, labels = (
                    np.frombuffer(data, np.uint8, offset=start) for data, start in zip(map(_unpacked, files), (16, 8))
                )
                return _in_memory("fashion-mnist", pixels.reshape(len(labels), 28, 28), labels, FASHION)
            except (OSError, ValueError, EOFError, zlib.error) as error:
                raise InputError(f"{place}: its idx files are damaged ({error})")
    try:
        images = torchvision.datasets.FashionMNIST(roots[0], train=split == "train", download=True)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        raise InputError(f"{roots[0]}: fashion-mnist is neither there nor can it be fetched ({reason(error)})")
    return _in_memory("fashion-mnist", images.data.numpy(), images.targets, FASHION)


def _idx_file(path: Path) -> Path | None:
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def _unpacked(path: Path) -> bytes:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        return file.read()


def check_different(train: Images, test: Images) -> None:
    """Raise InputError where both splits are the same images: a folder of class folders, an archive or a file without splits."""
    if str(train.where) == str(test.where) and np.array_equal(train.names, test.names):
        raise InputError(f"{train.where}: the same images for training and test; --data-path wants a folder that holds both")


def match_classes(images: Images, classes: list[str] | None, outputs: int, owner: object) -> None:
    """Make labels follow `classes`, the owner's names in label order, by name; without names they stay as they are.

    1,000 outputs without names are ImageNet's wnids in sorted order where the images' classes are such. Raises InputError where
    a class is unknown to the owner, or where labels would have to be guessed.
    """
    imagenet = ImageNetInfo().label_names() if outputs == 1000 and classes is None else []
    if imagenet and images.classes and set(images.classes) <= set(imagenet):
        classes = list(imagenet)
    if images.classes is None or classes is None:
        count = len(images.classes) if images.classes else int(images.labels.max()) + 1
        if count != outputs:
            raise InputError(
                f"{images.where}: {count} classes, but {owner} has {outputs} outputs and no class names to tell them by"
            )
        if images.classes is None:
            images.notes.append(f"{images.where}: its labels have no names and are taken as those of {owner}")
        return
    foreign = sorted(set(images.classes) - set(classes))
    if foreign:
        raise InputError(
            f"{images.where}: its {len(images.classes)} classes are not the {len(classes)} of {owner} "
            f"(only here: {', '.join(foreign[:3])}; there: {', '.join(classes[:3])}, ...)"
        )
    if len(images.classes) < len(classes):
        images.notes.append(f"{images.where}: {len(images.classes)} of the {len(classes)} classes of {owner}")
    label = {name: index for index, name in enumerate(classes)}
    images.labels = np.array([label[name] for name in images.classes])[images.labels]
    images.classes = list(classes)


def group_classes(images: Images, grouping: dict[str, list[str]], owner: object) -> None:
    """Replace classes by the superclasses {name: [class, ...]} that the owner was trained on. Raises InputError."""
    group = {name: index for index, names in enumerate(grouping.values()) for name in names}
    foreign = [name for name in images.classes if name not in group]
    if foreign:
        raise InputError(f"{images.where}: its class {foreign[0]} is in no superclass of {owner} ({', '.join(grouping)})")
    images.labels = np.array([group[name] for name in images.classes])[images.labels]
    images.classes = list(grouping)
