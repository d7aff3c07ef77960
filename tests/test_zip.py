"""The ZIP form of an image folder: same images, labels and order; made, resumed and checked by the real commands."""

import argparse
import fcntl
import io
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

import datasets
import zip_dataset
import zip_index
from conftest import ROOT, complains, run
from errors import InputError
from zip_dataset import ZipImages

PREPARE = ROOT / "data/imagenet/prepare.py"


def prepare(root, *words, **more):
    result = run(PREPARE, "--root", root, "--workers", 1, *words, **more)
    assert result.returncode == 0, result.stderr
    return result.stdout


def jpeg(seed, mode="RGB", size=(40, 30), form="JPEG", **options):
    """The bytes of an image file with smooth random content."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA").convert("RGB").resize(size, Image.BICUBIC).convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def deep_png():
    """A greyscale PNG of 16 bits."""
    file = io.BytesIO()
    Image.fromarray(np.arange(0, 60000, 50, dtype=np.uint16).reshape(30, 40)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder with every kind of file that ImageNet holds, and names whose order is easy to get wrong."""
    folder = tmp_path_factory.mktemp("data") / "odd"
    files = {
        "train/n2/a.JPEG": jpeg(1),
        "train/n2/grey.JPEG": jpeg(2, "L"),
        "train/n2/cmyk.JPEG": jpeg(3, "CMYK"),
        "train/n2/png_under.JPEG": jpeg(4, form="PNG"),
        "train/n10/palette.png": jpeg(5, "P", form="PNG"),
        "train/n10/deep.png": deep_png(),
        "train/n10/alpha.png": jpeg(7, "RGBA", form="PNG"),
        "train/n10/B.jpg": jpeg(8),
        "train/n10/progressive.jpg": jpeg(9, progressive=True, quality=95),
        "train/n10/sub-x/1.jpg": jpeg(10),
        "train/n10/sub/2.jpg": jpeg(11),
        "train/n10-b/x.jpg": jpeg(12),
        "train/Übung/é.jpg": jpeg(13),
        "train/Übung/e.jpg": jpeg(14),
        "train/n2/notes.txt": b"no image",
    }
    files |= {f"val/{name}/{name}.jpg": jpeg(20 + i) for i, name in enumerate(("n2", "n10", "n10-b", "Übung"))}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def odd_zips(odd, tmp_path_factory):
    """Its archives and maps, apart from the folder."""
    folder = tmp_path_factory.mktemp("data") / "zips"
    prepare(odd, "--output", folder)
    return folder


@pytest.fixture(scope="module")
def zips(parity, tmp_path_factory):
    """The digits' archives and maps."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(parity, "--output", folder)
    return folder


def write_zip(path, files, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)


@pytest.fixture
def small(tmp_path):
    """Two classes of two images, with maps, to be damaged."""
    files = {f"train/{name}/{i}.jpg": jpeg(10 * k + i) for k, name in enumerate("ab") for i in range(2)}
    write_zip(tmp_path / "train.zip", files)
    write_zip(tmp_path / "val.zip", {"val/1.jpg": files["train/a/1.jpg"], "val/2.jpg": files["train/b/1.jpg"]})
    (tmp_path / "train_map.txt").write_text("a/0.jpg\t0\na/1.jpg\t0\nb/0.jpg\t1\nb/1.jpg\t1\n")
    (tmp_path / "val_map.txt").write_text("1.jpg\t0\n2.jpg\t1\n")
    return tmp_path


def refused(match, root, split="train"):
    with pytest.raises(InputError, match=match) as error:
        data = ZipImages(root, split)
        for index in range(len(data)):
            data[index]
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------- the same as the image folder


@pytest.mark.parametrize("split", ["train", "val"])
def test_same_images_labels_and_order_as_torchvision(odd, odd_zips, split):
    theirs, ours = ImageFolder(odd / split), ZipImages(odd_zips, split)
    assert ours.classes == theirs.classes and ours.labels.tolist() == theirs.targets and ours.labels.dtype == np.int64
    assert [f"{odd}/{ours.name(i)}" for i in range(len(ours))] == [path for path, _ in theirs.samples]
    tensors = ZipImages(odd_zips, split, tensors=True)
    for (image, label), (mine, its), (tensor, _) in zip(theirs, ours, tensors):
        assert mine.mode == "RGB" and mine.size == image.size and mine.tobytes() == image.tobytes() and its == label
        assert tensor.dtype == torch.uint8 and np.array_equal(tensor.permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_made_by_others(odd, tmp_path, method):
    """What other tools write: with and without train/, deflated, folder entries, junk; no map: class folders name the labels."""
    files = {
        str(path.relative_to(odd)): path.read_bytes() for path in reversed(sorted((odd / "train").rglob("*.*"))) if path.is_file()
    }
    junk = {"__MACOSX/train/n2/._a.JPEG": b"x", "train/.DS_Store": b"x", "train/n2/._a.JPEG": b"x"}
    theirs = ImageFolder(odd / "train")
    for number, strip in enumerate(("", "train/")):
        root = tmp_path / str(number)
        root.mkdir()
        write_zip(root / "train.zip", {name.removeprefix(strip): data for name, data in (junk | files).items()}, method)
        ours = ZipImages(root, "train")
        assert ours.classes == theirs.classes and ours.labels.tolist() == theirs.targets
        assert "4 entries are no images" in ours.notes[0]
        for (image, label), (mine, its) in zip(theirs, ours):
            assert mine.tobytes() == image.tobytes() and its == label
    if method == zipfile.ZIP_STORED and shutil.which("zip"):
        (tmp_path / "command").mkdir()
        subprocess.run(["zip", "-qr", tmp_path / "command/train.zip", "train"], cwd=odd, check=True)
        prepare(tmp_path / "command", "--maps-only")
        ours = ZipImages(tmp_path / "command", "train")
        assert ours.classes == theirs.classes and ours.labels.tolist() == theirs.targets


def loader_options(**more):
    defaults = dict(batch_size=64, repeated_aug=False, seed=3, num_workers=0, pin_mem=False, device="cpu", dist_eval=False)
    return argparse.Namespace(**(defaults | more))


@pytest.mark.parametrize("workers, repeated", [(0, False), (2, True)])
def test_batches_are_bit_identical_to_the_folders(parity, zips, workers, repeated):
    """The trainer's own loaders, shuffle and augmentation: loading processes map the archive anew after pickling."""
    words = dict(no_aug=False, input_size=32, color_jitter=0.3, aa="rand-m9-mstd0.5-inc1", hflip=0.5, scale=(0.08, 1.0))
    words |= dict(train_interpolation="bicubic", reprob=0.25, remode="pixel", recount=1, mean=[0.5] * 3, std=[0.2] * 3)
    transform = datasets.train_transform(argparse.Namespace(**words))
    args = loader_options(num_workers=workers, repeated_aug=repeated)
    loaders = [
        datasets.train_loader(data, args)
        for data in (datasets.Images(parity / "train", transform), ZipImages(zips, "train", transform))
    ]
    for loader in loaders:
        loader.sampler.set_epoch(1)
    batches = 0
    for (images, labels), (others, theirs) in zip(*loaders):
        assert torch.equal(images, others) and torch.equal(labels, theirs)
        batches += 1
    assert batches == 1400 // 64 if not repeated else batches > 0
    folder, archive = (datasets.eval_loader(data, args) for data in (datasets.Images(parity / "val"), ZipImages(zips, "val")))
    assert [label for _, label in folder.dataset] == [label for _, label in archive.dataset]


def test_pickling_carries_neither_mapping_nor_index(zips):
    data = ZipImages(zips, "train")
    data[0]
    data.labels = 1 - data.labels
    data.classes.reverse()
    copy = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(data)) < 8 * len(data) + 4000
    assert copy.classes == ["odd", "even"] and copy[5][1] == data[5][1] and copy[5][0].tobytes() == data[5][0].tobytes()


def test_match_classes_takes_it_as_a_folder(small):
    data = ZipImages(small, "train")
    datasets.match_classes(data, ["b", "a"], "a checkpoint")
    assert data.classes == ["b", "a"] and data.labels.tolist() == [1, 1, 0, 0] and data[0][1] == 1
    with pytest.raises(InputError, match="train.zip: 2 classes, not the 1 of x; only here: b"):
        datasets.match_classes(data, ["a"], "x")


# ------------------------------------------------------------------------------------------------------------- the maps


def test_a_map_in_another_order_is_followed_and_remapped_by_name(parity, zips, tmp_path):
    """Labels of a map that counts backwards are followed and said; after remapping by name they are the folder's."""
    for name in ("train.zip", "val.zip"):
        shutil.copy(zips / name, tmp_path)
    for name in ("train_map.txt", "val_map.txt"):
        lines = (zips / name).read_text().splitlines()
        pairs = [line.split("\t") for line in lines]
        np.random.default_rng(0).shuffle(pairs)
        (tmp_path / name).write_text("".join(f"{path}\t{1 - int(label)}\n" for path, label in pairs))
    data, folder = ZipImages(tmp_path, "train"), datasets.Images(parity / "train")
    assert data.classes == ["odd", "even"] and (data.labels == 1 - folder.labels).all()
    assert len(data.notes) == 1 and "not in sorted class order" in data.notes[0]
    assert ZipImages(zips, "train").notes == []
    datasets.match_classes(folder, data.classes, "the archive")
    assert (data.labels == folder.labels).all()
    val = ZipImages(tmp_path, "val")
    datasets.match_classes(val, ["even", "odd"], "a folder")
    assert (val.labels == datasets.Images(parity / "val").labels).all()


@pytest.mark.parametrize("prefix", ["", "val/"])
@pytest.mark.parametrize("in_folders", [False, True])
@pytest.mark.parametrize("map_prefix", ["", "val/"])
@pytest.mark.parametrize("map_folders", [False, True])
def test_validation_archives_of_all_forms(small, prefix, in_folders, map_prefix, map_folders):
    """Flat or in class folders, with the prefix or without it, in archive and map; labels counted backwards from the names."""
    images = {"b/1.jpg": jpeg(1), "a/2.jpg": jpeg(2), "a/10.jpg": jpeg(3)}
    write_zip(small / "val.zip", {prefix + (name if in_folders else name[2:]): data for name, data in images.items()})
    (small / "train_map.txt").write_text("a/0.jpg\t1\r\na/1.jpg\t1\r\nb/0.jpg\t0\r\nb/1.jpg\t0\r\n\r\n")
    lines = [f"{map_prefix}{name if map_folders else name[2:]}\t{int(name[0] == 'a')}\n" for name in images]
    (small / "val_map.txt").write_text("".join(lines))
    data = ZipImages(small, "val")
    assert data.classes == ["b", "a"] and data.labels.tolist() == [1, 1, 0]
    order = ["a/10.jpg", "a/2.jpg", "b/1.jpg"]
    assert [bytes(data.read(i)) for i in range(3)] == [images[name] for name in order]


def test_bad_maps(small):
    good = (small / "train_map.txt").read_text()

    def with_map(text, match, split="train"):
        (small / f"{split}_map.txt").write_text(text)
        refused(match, small, split)

    with_map(good.replace("b/0.jpg\t1", "b/0.jpg 1"), r"train_map.txt, line 3: no tab")
    with_map(good.replace("b/0.jpg\t1", "b/0.jpg\t-1"), r"line 3: the label '-1' is not an integer of 0 or more")
    with_map(good.replace("b/0.jpg\t1", "b/0.jpg\t1.0"), r"line 3: the label '1.0' is not an integer")
    with_map(good.replace("b/0.jpg\t1", "b/0.jpg\t"), r"line 3: the label '' is not an integer")
    with_map(good.replace("\t1", "\t2"), r"label 2 of b is out of range: 2 classes, 0 to 1")
    with_map(good.replace("\t1", "\t" + "9" * 30), r"line 3: the label 9+ is out of range")
    with_map(good + "a/0.jpg\t0\n", r"train_map.txt: 0.jpg is there more than once")
    with_map(good + "../a/9.jpg\t0\n", r"line 5: '../a/9.jpg' is not a path inside the archive")
    with_map(good + "/a/9.jpg\t0\n", r"line 5: '/a/9.jpg' is not a path")
    with_map(good + "train/a/9.jpg\t0\n", r"some paths begin with train/ and others do not")
    with_map(good.replace("b/0.jpg\t1", "b/0.jpg\t0"), r"the class folder b has the labels 1 and 0|b has the labels 0 and 1")
    with_map(good.replace("\t1", "\t0"), r"label 0 is both a and b")
    with_map("", r"train_map.txt: is empty")
    more = "".join(f"b/{i}.jpg\t1\n" for i in range(2, 7))
    with_map(good + more, r"5 in the map but not in the archive \(b/2.jpg, b/3.jpg, b/4.jpg, ...\)")
    with_map("b/0.jpg\t1\n", r"3 in the archive but not in the map \(a/0.jpg, a/1.jpg, b/1.jpg\)")
    (small / "train_map.txt").write_text(good)
    with_map("1.jpg\t0\n2.jpg\t2\n", r"val_map.txt: label 2 is out of range: train_map.txt has 2 classes", "val")
    with_map("1.jpg\t0\n2.jpg\t1\n2.jpg\t1\n", r"2.jpg is there more than once", "val")
    (small / "train_map.txt").unlink()
    with_map("1.jpg\t0\n2.jpg\t1\n", r"no class names, which train_map.txt .*--maps-only", "val")
    (small / "val_map.txt").unlink()
    refused(r"val.zip: its images lie in no class folders and val_map.txt is missing; python data/.* --maps-only", small, "val")


# -------------------------------------------------------------------------------------------------------- bad archives


def test_archive_and_map_belong_together(small):
    (small / "train.zip").unlink()
    refused(r"train.zip: no such archive, though train_map.txt is there; python data/imagenet/prepare.py --root", small)
    (small / "train_map.txt").unlink()
    refused(r"train.zip: no such archive; python data/imagenet/prepare.py", small)


@pytest.mark.parametrize("keep", [0, 1, 10, 22, -1, -22, -60, 0.5, 0.9])
def test_truncated_archives(small, keep):
    data = (small / "train.zip").read_bytes()
    (small / "train.zip").write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(r"train.zip: truncated", small)


def test_no_damage_of_the_directory_is_silent(small):
    """Each single byte of the directory changed: a clear line, or the same images (fields such as dates mean nothing here)."""
    good = (small / "train.zip").read_bytes()
    whole = ZipImages(small, "train")
    same = [(whole[i][0].tobytes(), whole[i][1]) for i in range(4)]
    start = good.index(b"PK\1\2")
    refusals = 0
    for place in range(start, len(good)):
        (small / "train.zip").write_bytes(good[:place] + bytes([good[place] ^ 0x15]) + good[place + 1 :])
        try:
            data = ZipImages(small, "train")
            found = [(data[i][0].tobytes(), data[i][1]) for i in range(len(data))]
        except InputError as error:
            assert "train.zip" in str(error) and "\n" not in str(error)
            refusals += 1
        else:
            assert found == same
    assert refusals > 100


def test_entries_that_are_refused(small, tmp_path):
    (small / "train_map.txt").unlink()
    image = jpeg(1)
    write_zip(small / "train.zip", {"train/a/../../1.jpg": image, "train/a/2.jpg": image})
    refused(r"'train/a/../../1.jpg' is not a path inside the archive", small)
    write_zip(small / "train.zip", {"/train/a/1.jpg": image})
    refused(r"'/train/a/1.jpg' is not a path inside", small)
    write_zip(small / "train.zip", {"train/a/1.jpg": image}, zipfile.ZIP_LZMA)
    refused(r"train/a/1.jpg is compressed by method 14", small)
    write_zip(small / "train.zip", {"train/a/readme.txt": b"no"})
    refused(r"train.zip: holds no images .* 1 other entries", small)
    write_zip(small / "train.zip", {"train/a/1.jpg": image, "train/b/": b""})
    refused(r"no image in the class folder b", small)
    write_zip(small / "train.zip", {"train/a/1.jpg": image, "b/2.jpg": image})
    refused(r"some paths begin with train/ and others do not, such as those in b", small)
    write_zip(small / "train.zip", {"train/a/" + "x" * 300 + ".jpg": image})
    refused(r"a path of 312 bytes", small)
    write_zip(small / "train.zip", {"train/a/1.jpg": image})
    data = bytearray((small / "train.zip").read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    (small / "train.zip").write_bytes(data)
    refused(r"train/a/1.jpg is encrypted", small)
    (small / "train_map.txt").write_text("a/1.jpg\t0\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the double name
        with zipfile.ZipFile(small / "train.zip", "w") as file:
            file.writestr("train/a/1.jpg", image)
            file.writestr("train/a/1.jpg", image)
    refused(r"train.zip: 1.jpg is there more than once", small)


@pytest.mark.parametrize("tensors", [False, True])
def test_pictures_that_do_not_decode_are_named(small, tensors):
    (small / "train_map.txt").unlink()
    good = jpeg(1)
    broken = {"cut.jpg": good[:-20], "empty.jpg": b"", "text.jpg": b"hello", "png.jpg": jpeg(1, form="PNG")[:60]}
    for name, data in broken.items():
        write_zip(small / "train.zip", {"train/a/0.jpg": good, f"train/a/{name}": data})
        images = ZipImages(small, "train", tensors=tensors)
        images[0]
        with pytest.raises(InputError, match=rf"train.zip: train/a/{name} does not decode as an image") as error:
            images[1]
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_flipped_bytes_of_an_image_are_found(small, method):
    """Most flipped bytes of a JPEG decode all the same, as another picture: the checksum finds them."""
    (small / "train_map.txt").unlink()
    image = jpeg(1, quality=95)
    write_zip(small / "train.zip", {"train/a/0.jpg": image}, method)
    data = bytearray((small / "train.zip").read_bytes())
    data[40 + len(image) // 2] ^= 1
    (small / "train.zip").write_bytes(data)
    refused(r"train.zip: train/a/0.jpg is damaged", small)


def test_an_archive_that_changes_while_it_is_read(small):
    data = ZipImages(small, "train")
    data[0]
    whole = (small / "train.zip").read_bytes()
    with open(small / "train.zip", "r+b") as file:  # in place: touching the pages that are gone would be fatal
        file.truncate(100)
    with pytest.raises(InputError, match=r"train.zip: the archive has changed while it was in use"):
        data[3]
    (small / "train.zip").write_bytes(whole)
    copy = pickle.loads(pickle.dumps(ZipImages(small, "train")))  # a loading process that starts after the archive was replaced
    write_zip(small / "new.zip", {"train/a/0.jpg": jpeg(9)})
    os.replace(small / "new.zip", small / "train.zip")
    with pytest.raises(InputError, match="has changed while it was in use"):
        copy[0]


# ------------------------------------------------------------------------------------------------------------ the index


def test_the_index_is_reused_and_renewed(small, monkeypatch):
    index = small / ".train.zip.index"
    first = ZipImages(small, "train")
    assert index.exists() and not list(small.glob("*.tmp-*"))
    monkeypatch.setattr(zip_index, "build", None)  # opening again builds nothing
    assert ZipImages(small, "train").labels.tolist() == first.labels.tolist() == [0, 0, 1, 1]
    monkeypatch.undo()
    (small / "train_map.txt").write_text("a/0.jpg\t1\na/1.jpg\t1\nb/0.jpg\t0\nb/1.jpg\t0\n")
    assert ZipImages(small, "train").classes == ["b", "a"]
    (small / "train_map.txt").unlink()
    assert ZipImages(small, "train").classes == ["a", "b"]
    write_zip(small / "train.zip", {"train/c/0.jpg": jpeg(1)})
    assert ZipImages(small, "train").classes == ["c"]


def test_flat_validation_follows_a_changed_training_map(small):
    assert ZipImages(small, "val").classes == ["a", "b"]
    (small / "train_map.txt").write_text("a/0.jpg\t1\na/1.jpg\t1\nb/0.jpg\t0\nb/1.jpg\t0\n")
    assert ZipImages(small, "val").classes == ["b", "a"]


def test_an_index_left_by_a_crash_is_made_again(small):
    """Cut short, emptied, foreign, of another version, or with a changed byte anywhere: rebuilt without a word."""
    index = small / ".train.zip.index"
    ZipImages(small, "train")
    good = index.read_bytes()
    bad = [
        b"",
        b"\n",
        b"[]\n",
        b"null\n",
        b"junk" * 100,
        good[:-1],
        good + b"x",
        good[:20],
        good.replace(b'"version": 1', b'"version": 0'),
    ]
    bad += [good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :] for place in range(good.index(b"\n") + 1, len(good))]
    for content in bad:
        index.write_bytes(content)
        assert ZipImages(small, "train").labels.tolist() == [0, 0, 1, 1]
        assert index.read_bytes() == good
    (small / ".train.zip.index.tmp-1").write_bytes(good[:50])  # what a killed process may leave
    assert len(ZipImages(small, "train")) == 4


def test_a_folder_that_cannot_be_written(small, monkeypatch):
    def fails(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(zip_index, "_write_index", fails)
    data = pickle.loads(pickle.dumps(ZipImages(small, "train")))
    assert not list(small.glob(".*")) and data[3][1] == 1


def raw_zip(path, count, name, data, extra=b"", shift=0):
    """An archive of `count` equal entries, as fast as it can be written; `shift`: a hole of bytes before the last."""
    crc, place, directory = zlib.crc32(data), 0, []
    with open(path, "wb", 1 << 20) as file:
        for number in range(count):
            if shift and number == count - 1:
                file.seek(shift, os.SEEK_CUR)
                place += shift
            title = name(number).encode()
            sizes = (len(data), len(data), len(title), len(extra))
            file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, crc, *sizes) + title + extra + data)
            wide = struct.pack("<HHQ", 1, 8, place) if place >= 0xFFFFFFFF else b""
            fixed = (b"PK\1\2", 45, 45, 0, 0, 0, 33, crc, *sizes[:3], len(wide), 0, 0, 0, 0, min(place, 0xFFFFFFFF))
            directory.append(struct.pack("<4s6H3I5H2I", *fixed) + title + wide)
            place += 30 + sum(sizes[1:])
        size = file.write(b"".join(directory))
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, place))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, place + size, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))


def test_zip64_beyond_4_gib_and_headers_of_another_length(tmp_path):
    """The last entry lies beyond 4 GiB, in a sparse file; local headers have extra fields that the directory lacks."""
    raw_zip(tmp_path / "train.zip", 3, lambda i: f"train/a/{i}.jpg", jpeg(1), extra=b"UT\5\0\1abcd", shift=5 << 30)
    data = ZipImages(tmp_path, "train")
    assert data.root.stat().st_size > 5 << 30
    for index in range(3):
        assert bytes(data.read(index)) == jpeg(1) and data.name(index) == f"train/a/{index}.jpg"


OPEN = """
import sys, time
sys.path.insert(0, {deit!r})
from pathlib import Path
import zip_dataset
def memory(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) / 1024
before, start = memory("VmRSS"), time.perf_counter()
data = zip_dataset.ZipImages(Path({root!r}), "train")
print(len(data), data.labels[-1], time.perf_counter() - start, memory("VmHWM") - before)
assert data[len(data) - 1][0].size == (1, 1)
"""


def test_opening_a_million_entries(tmp_path):
    """ImageNet's 1,281,167 entries with a map: 20 s the first time, 1 s after that, 200 MB a process."""
    count, tiny = 1_281_167, jpeg(0, "L", (1, 1), "PNG")
    place = [f"n{k * 7919 % 10**8:08d}" for k in range(1000)]
    paths = [f"{place[i % 1000]}/{place[i % 1000]}_{i}.JPEG" for i in range(count)]
    raw_zip(tmp_path / "train.zip", count, lambda i: "train/" + paths[i], tiny)
    labels = {name: label for label, name in enumerate(sorted(place))}
    (tmp_path / "train_map.txt").write_text("".join(f"{path}\t{labels[path[:9]]}\n" for path in paths))
    command = [sys.executable, "-c", OPEN.format(deit=str(ROOT / "Deit"), root=str(tmp_path))]
    for seconds, megabytes in ((20, 200), (1, 200)):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        found, label, took, grew = result.stdout.split()
        assert (int(found), int(label)) == (count, 999)
        assert float(took) < seconds and float(grew) < megabytes, result.stdout


def test_warming(small, monkeypatch):
    assert zip_dataset.warm(small / "train.zip", small / "val.zip", show=False) is None
    monkeypatch.setattr(zip_dataset, "available_memory", lambda: 1000)
    line = zip_dataset.warm(small / "train.zip", show=False)
    assert line.startswith("warning: the archives take 0.0 GB, the free memory is 0.0 GB") and "\n" not in line
    monkeypatch.undo()
    assert 1 << 20 < zip_dataset.available_memory() < 1 << 50


# ----------------------------------------------------------------------------------------------------------- prepare.py


def test_prepare_writes_plain_archives_and_maps(parity, zips):
    for split, count in (("train", 1400), ("val", 397)):
        with zipfile.ZipFile(zips / f"{split}.zip") as file:
            assert file.testzip() is None and len(file.infolist()) == count
            names = sorted(str(path.relative_to(parity)) for path in (parity / split).rglob("*.png"))
            assert file.namelist() == names
            assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}
            assert all(file.read(name) == (parity / name).read_bytes() for name in names[::50])
        lines = (zips / f"{split}_map.txt").read_text().splitlines()
        assert lines == [f"{name.removeprefix(split + '/')}\t{int('/odd/' in name)}" for name in names]


def test_prepare_again_keeps_everything_and_overwrite_gives_the_same_bytes(parity, zips, tmp_path):
    for name in ("train.zip", "val.zip"):
        shutil.copy(zips / name, tmp_path)
    (tmp_path / "train_map.txt").write_text("mine/1.png\t0\n")
    printed = prepare(parity, "--output", tmp_path)
    assert printed.count("is there already and kept") == 3 and (tmp_path / "train_map.txt").read_text() == "mine/1.png\t0\n"
    (tmp_path / "train.zip").write_bytes(b"old")
    prepare(parity, "--output", tmp_path, "--overwrite")
    for name in ("train.zip", "val.zip", "train_map.txt", "val_map.txt"):
        assert (tmp_path / name).read_bytes() == (zips / name).read_bytes()


def test_the_four_commands_on_the_digits(parity, tmp_path):
    """As the README says them, in the folder itself."""
    root = tmp_path / "digits"
    shutil.copytree(parity, root)
    prepare(root)
    maps = [(root / f"{split}_map.txt").read_text() for split in ("train", "val")]
    for split in ("train", "val"):
        (root / f"{split}_map.txt").unlink()
    prepare(root, "--maps-only")
    assert [(root / f"{split}_map.txt").read_text() for split in ("train", "val")] == maps
    assert "no problem found" in prepare(root, "--check")
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "val")
    assert len(ZipImages(root, "train")) == 1400 and len(ZipImages(root, "val")) == 397


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder large enough to be killed while it is being read: 2,000 links to 100 images."""
    folder = tmp_path_factory.mktemp("data") / "many"
    for split, count in (("train", 2000), ("val", 20)):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
        for i in range(count):
            path = folder / split / "ab"[i % 2] / f"{i:05d}.jpg"
            if i < 100:
                path.write_bytes(jpeg(i, size=(400, 300), quality=95))
            else:
                os.link(folder / "train" / "ab"[i % 2] / f"{i % 100:05d}.jpg", path)
    return folder


@pytest.mark.parametrize("words", [[], ["--quality", "50"]])
def test_killed_prepare_leaves_no_half_archive_and_goes_on(many, tmp_path, words):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    prepare(many, "--output", whole, *words)
    part = broken / ("train.zip.q50.part" if words else "train.zip.part")
    command = [sys.executable, PREPARE, "--root", many, "--output", broken, "--workers", 1, *words]
    for round_ in range(2):
        child = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        size = (whole / "train.zip").stat().st_size * (round_ + 1) // 4
        deadline = time.time() + 60
        while not part.exists() or part.stat().st_size < size:
            assert child.poll() is None and time.time() < deadline, "too late: it had finished"
            time.sleep(0.001)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert sorted(path.name for path in broken.iterdir()) == [".prepare.lock", part.name]
    with open(part, "ab") as file:
        file.write(b"PK\3\4" + bytes(40))  # and the beginning of an entry
    printed = prepare(many, "--output", broken, *words)
    done = int(re.search(r"going on after ([\d,]+) of 2,000", printed)[1].replace(",", ""))
    assert done > 500
    for name in ("train.zip", "val.zip", "train_map.txt", "val_map.txt"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert not list(broken.glob("*part*"))


def test_damage_of_a_part_is_found(zips, parity, tmp_path):
    good = (zips / "train.zip").read_bytes()
    with zipfile.ZipFile(zips / "train.zip") as file:
        ends = [info.header_offset for info in file.infolist()]
    for damaged in (good[: ends[700]] + bytes(5000), good[: ends[500] + 45] + b"!" + good[ends[500] + 46 : ends[900]], b"", good):
        (tmp_path / "train.zip.part").write_bytes(damaged)
        prepare(parity, "--output", tmp_path)
        assert (tmp_path / "train.zip").read_bytes() == good
        (tmp_path / "train.zip").unlink()


def test_two_at_once(parity, tmp_path):
    with open(tmp_path / ".prepare.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # what a running prepare.py holds
        for words in (["--root", parity, "--output", tmp_path], ["--root", tmp_path, "--maps-only"]):
            complains(run(PREPARE, *words), "another prepare.py is at work here")
    prepare(parity, "--output", tmp_path)


def test_re_encoding(odd, tmp_path):
    """Shrunk to the size asked and smaller; images that are small enough keep their bytes; the order of entries stays."""
    prepare(odd, "--output", tmp_path / "s", "--shorter-side", "20")
    data, folder = ZipImages(tmp_path / "s", "train"), ImageFolder(odd / "train")
    assert {image.size for image, _ in data} == {(27, 20)} and data.labels.tolist() == folder.targets
    difference = np.asarray(data[0][0].resize((40, 30)), float) - np.asarray(folder[0][0])
    assert abs(difference).mean() < 10
    small = tmp_path / "few"
    for split in ("train", "val"):
        (small / split / "a").mkdir(parents=True)
        (small / split / "a/1.jpg").write_bytes(jpeg(1, size=(200, 80)))
        (small / split / "a/2.jpg").write_bytes(jpeg(2, "CMYK", size=(80, 60)))
    prepare(small, "--output", tmp_path / "max", "--max-side", 100)
    data = ZipImages(tmp_path / "max", "train")
    assert data[0][0].size == (100, 40) and bytes(data.read(1)) == (small / "train/a/2.jpg").read_bytes()
    (small / "train/a/2.jpg").write_bytes(jpeg(2)[:300])
    words = ["--output", tmp_path / "bad", "--quality", "50", "--workers", 1]
    complains(run(PREPARE, "--root", small, *words), "a/2.jpg: does not decode as an image")
    assert not (tmp_path / "bad/train.zip").exists()
    (small / "train/a/2.jpg").write_bytes(jpeg(2))
    assert "going on after 1 of 2" in prepare(small, "--output", tmp_path / "bad", "--quality", 50)


def tar_of(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


WNIDS = ["n01440764", "n01443537", "n01484850"]


@pytest.fixture
def official(tmp_path):
    """The official download in small: a tar of tars, flat validation images, and a kit that numbers classes in its own way."""
    from scipy.io import savemat

    root = tmp_path / "official"
    root.mkdir()
    inner = {
        f"{wnid}.tar": tar_of({f"{wnid}_{n}.JPEG": jpeg(10 * k + n) for n in (11, 2)})
        for k, wnid in reversed(list(enumerate(WNIDS)))
    }
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    val = {f"ILSVRC2012_val_{n:08d}.JPEG": jpeg(100 + n) for n in (3, 1, 2, 4)}
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(val))
    types = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O"), ("num_train_images", "O")]
    rows = [(1, WNIDS[2], 0, 2), (2, WNIDS[0], 0, 2), (3, WNIDS[1], 0, 3), (4, "n00001740", 3, 0)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=types).reshape(-1, 1)})
    kit = {"data/meta.mat": meta.getvalue(), "data/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n3\n1\n"}
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name, data in kit.items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return root


VAL_WNIDS = {1: WNIDS[0], 2: WNIDS[2], 3: WNIDS[1], 4: WNIDS[2]}


def test_official_tars(official):
    prepare(official)
    data = ZipImages(official, "train")
    assert data.classes == WNIDS and data.labels.tolist() == [0, 0, 1, 1, 2, 2] and data.notes == []
    assert [data.name(i) for i in (0, 1)] == [f"train/{WNIDS[0]}/{WNIDS[0]}_11.JPEG", f"train/{WNIDS[0]}/{WNIDS[0]}_2.JPEG"]
    assert bytes(data.read(3)) == jpeg(12)
    val = ZipImages(official, "val")
    assert val.classes == WNIDS and val.labels.tolist() == [0, 1, 2, 2]
    assert [bytes(val.read(i)) for i in range(4)] == [jpeg(100 + n) for n in (1, 3, 2, 4)]
    assert val.name(0) == f"val/{WNIDS[0]}/ILSVRC2012_val_00000001.JPEG"


def test_flat_validation_archive_with_the_kit(official):
    """A flat val.zip made by hand gets its labels from the kit; a flat folder val/ too."""
    prepare(official)
    for name in ("val.zip", "val_map.txt"):
        (official / name).unlink()
    images = {f"ILSVRC2012_val_{n:08d}.JPEG": jpeg(100 + n) for n in range(1, 5)}
    write_zip(official / "val.zip", {f"val/{name}": data for name, data in images.items()})
    prepare(official, "--maps-only")
    assert (official / "val_map.txt").read_text().splitlines()[1] == "ILSVRC2012_val_00000002.JPEG\t2"
    data = ZipImages(official, "val")
    assert data.classes == WNIDS and data.labels.tolist() == [0, 1, 2, 2] and bytes(data.read(1)) == jpeg(103)
    (official / "val.zip").unlink()
    (official / "val").mkdir()
    for name, content in images.items():
        (official / "val" / name).write_bytes(content)
    prepare(official)
    assert ZipImages(official, "val").name(0) == f"val/{WNIDS[0]}/ILSVRC2012_val_00000001.JPEG"


def test_official_tars_that_are_damaged(official):
    tar = official / "ILSVRC2012_img_train.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:9000])
    complains(run(PREPARE, "--root", official), "ILSVRC2012_img_train.tar: truncated or no tar")
    tar.write_bytes(b"")
    complains(run(PREPARE, "--root", official), "ILSVRC2012_img_train.tar: truncated or no tar")
    tar.write_bytes(whole)
    kit = official / "ILSVRC2012_devkit_t12.tar.gz"
    kit.write_bytes(kit.read_bytes()[:200])
    complains(run(PREPARE, "--root", official), "ILSVRC2012_devkit_t12.tar.gz: damaged")
    kit.unlink()
    complains(run(PREPARE, "--root", official), "put ILSVRC2012_devkit_t12.tar.gz there")
    assert not (official / "train.zip").exists()


def test_check_names_each_broken_image(small, tmp_path):
    good = jpeg(1)
    write_zip(
        small / "train.zip", {"train/a/0.jpg": good, "train/a/1.jpg": good[:-30], "train/b/2.jpg": b"x", "train/b/3.jpg": good}
    )
    write_zip(small / "val.zip", {"val/a/0.jpg": good, "val/b/1.jpg": good})
    data = bytearray((small / "train.zip").read_bytes())
    data[data.rindex(good) + 300] ^= 1  # the last image's own bytes: it may decode, but not as what was archived
    (small / "train.zip").write_bytes(data)
    result = run(PREPARE, "--root", small, "--check", "--workers", 2)
    assert result.returncode == 1 and result.stderr.count("Traceback") == 0
    broken = [line for line in result.stdout.splitlines() if line.startswith("broken: ")]
    assert [re.search(r"train.zip: (\S+) \(", line)[1] for line in broken] == ["a/1.jpg", "b/2.jpg", "b/3.jpg"]
    assert "checksum" in broken[2] and "4 images in 2 classes, 3 broken" in result.stdout and "3 problems found" in result.stdout


def test_check_knows_imagenet(official):
    """Missing and foreign classes, wrong counts, other classes in validation, and a mean file size unlike the original's."""
    prepare(official)
    result = run(PREPARE, "--root", official, "--check", "--workers", 1)
    assert result.returncode == 1
    for piece in (
        "train: 997 of ImageNet-1K's 1,000 classes are missing: n01491361",
        "train: 6 images; ImageNet-1K has 1,281,167",
        "train: 1 classes have another number of images than in ImageNet-1K: n01443537 2 (not 3)",
        "n01440764 1 (not 50)",
        "hint: ",
        "looks re-encoded",
    ):
        assert piece in result.stdout, result.stdout
    folder = official / "folder"
    for split in ("train", "val"):
        (folder / split / "n99999999").mkdir(parents=True)
        (folder / split / "n99999999/1.JPEG").write_bytes(jpeg(1))
    result = run(PREPARE, "--root", folder, "--check", "--workers", 1)
    assert "1 classes are not of ImageNet-1K: n99999999" in result.stdout


def test_prepare_on_bad_input(small, tmp_path):
    complains(run(PREPARE, "--root", tmp_path / "nowhere"), "no such folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    complains(run(PREPARE, "--root", empty), "no folder train/ and no ILSVRC2012_img_train.tar")
    complains(run(PREPARE, "--root", empty, "--maps-only"), "no train.zip and no val.zip")
    complains(run(PREPARE, "--root", empty, "--check"), "no train.zip and no folder train/")
    (empty / "train").mkdir()
    (empty / "train/x.txt").write_text("")
    complains(run(PREPARE, "--root", empty), "train: no images")
    (empty / "train.zip").write_bytes((small / "train.zip").read_bytes()[:500])
    complains(run(PREPARE, "--root", empty, "--maps-only"), "train.zip: truncated or damaged")
    write_zip(empty / "train.zip", {"1.jpg": jpeg(1)})
    complains(run(PREPARE, "--root", empty, "--maps-only"), "lie in no class folders")
    write_zip(empty / "train.zip", {"a/../../1.jpg": jpeg(1)})
    complains(run(PREPARE, "--root", empty, "--maps-only"), "not a path inside the archive")
    assert not (empty / "train_map.txt").exists()
    (small / "val_map.txt").unlink()
    complains(run(PREPARE, "--root", small, "--maps-only"), "put ILSVRC2012_devkit_t12.tar.gz there")
    for words in (["--quality", "0"], ["--maps-only", "--check"], ["--maps-only", "--quality", "50"], ["--shorter-side", "0"]):
        result = run(PREPARE, "--root", small, *words)
        assert result.returncode == 2 and "Traceback" not in result.stderr
