"""The same archives through every reader of the repository: Deit, Conv/common_resnet, viz, and data/imagenet.

Each image has one grey value, which identifies it. A reader returns [(class name, grey value)] in its own order, or raises.
"""

import io
import shutil
import warnings
import zipfile

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from archives import write_zip
from subprojects import Subproject
from training import DEIT

CONV, VIZ, IMAGENET = Subproject("Conv/common_resnet"), Subproject("viz"), Subproject("data/imagenet")
SIZE = 8  # pixels; Conv/common_resnet reads archives of small images


def png(grey):
    file = io.BytesIO()
    Image.new("L", (SIZE, SIZE), grey).save(file, "PNG")
    return file.getvalue()


def deit(root, split):
    images = DEIT.load("data.zip_images").ZipImages(root, split)
    return [(images.classes[label], image.getpixel((0, 0))[0]) for image, label in images]


def common_resnet(root, split):
    pixels, labels, classes = CONV.load("data.pixels").read("cifar10", root, split, SIZE)
    return [(classes[label], pixel) for pixel, label in zip(pixels[:, 0, 0, 0].tolist(), labels.tolist(), strict=True)]


def viz(root, split):
    images = VIZ.load("images.find").open_images(root, split)
    return [(images.classes[label], image.getpixel((0, 0))[0]) for image, label in images]


def imagenet(root, split):
    archives = IMAGENET.load("archives")
    contents = archives.read_archive(root / f"{split}.zip", split)
    with open(root / f"{split}.zip", "rb") as file:

        def fetch(offset, length):
            file.seek(offset)
            return file.read(length)

        images = [Image.open(io.BytesIO(archives.read_image(fetch, record))) for record in contents.records]
        return [
            (contents.classes[label], image.getpixel((0, 0)))
            for image, label in zip(images, contents.records["label"], strict=True)
        ]


SUBPROJECTS = {deit: DEIT, common_resnet: CONV, viz: VIZ, imagenet: IMAGENET}


@pytest.fixture(params=SUBPROJECTS, ids=lambda reader: reader.__name__)
def read(request):
    """A reader, with its subproject's folder on the path."""
    with SUBPROJECTS[request.param].active():
        yield request.param


def make(root, split, names, **maps):
    """Write an archive whose n-th image (from 1) has the grey value n. maps: the lines of train_map and val_map."""
    write_zip(root / f"{split}.zip", {name: png(number) for number, name in enumerate(names, 1)})
    for name, lines in maps.items():
        (root / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


READ = {
    "with the prefix": (["train/b/1.png", "train/a/2.png"], {}, [("a", 2), ("b", 1)]),
    "without it": (["b/1.png", "a/2.png"], {}, [("a", 2), ("b", 1)]),
    "one class": (["train/a/2.png", "train/a/10.png"], {}, [("a", 2), ("a", 1)]),
    "one class without the prefix": (["a/1.png"], {}, [("a", 1)]),
    "a class called as the split": (["train/1.png", "b/1.png"], {}, [("b", 2), ("train", 1)]),
    "folders inside a class": (
        ["train/", "train/a/x-1/1.png", "train/a/x/1.png", "train/a/1.png"],
        {},
        [("a", 4), ("a", 3), ("a", 2)],
    ),
    "hidden files": (
        ["train/a/1.png", "train/.DS_Store", "__MACOSX/train/a/._1.png", "train/a/.2.png", "train/.c/3.png", "train/a/4.txt"],
        {},
        [("a", 1)],
    ),
    "upper case": (["train/a/1.PNG", "train/a/2.JPEG"], {}, [("a", 1), ("a", 2)]),
    "a map in another order": (
        ["train/a/1.png", "train/b/2.png"],
        {"train_map": ["a/1.png\t1", "b/2.png\t0"]},
        [("a", 1), ("b", 2)],
    ),
    "a map with the prefix": (
        ["a/1.png", "b/2.png"],
        {"train_map": ["train/b/2.png\t1", "train/a/1.png\t0", ""]},
        [("a", 1), ("b", 2)],
    ),
    "a map without class folders": (["a/1.png", "b/2.png"], {"train_map": ["1.png\t0", "2.png\t1"]}, [("a", 1), ("b", 2)]),
    "class folders in the map only": (["1.png", "2.png"], {"train_map": ["b/1.png\t1", "a/2.png\t0"]}, [("a", 2), ("b", 1)]),
}


@pytest.mark.parametrize("case", READ)
def test_archives_that_every_reader_reads_alike(read, tmp_path, case):
    names, maps, expected = READ[case]
    make(tmp_path, "train", names, **maps)
    assert read(tmp_path, "train") == expected


@pytest.mark.parametrize("prefix", ["", "val/"])
@pytest.mark.parametrize("map_prefix", ["", "val/"])
def test_flat_validation_images_get_their_classes_from_the_training_map(read, tmp_path, prefix, map_prefix):
    maps = {"val_map": [f"{map_prefix}1.png\t1", f"{map_prefix}2.png\t0"], "train_map": ["a/x.png\t1", "b/y.png\t0"]}
    make(tmp_path, "val", [f"{prefix}1.png", f"{prefix}2.png"], **maps)
    assert read(tmp_path, "val") == [("a", 1), ("b", 2)]


TWO = ["train/a/1.png", "train/b/2.png"]
REFUSED = {
    "the prefix for some only": (["train/a/1.png", "train/b/2.png", "c/3.png"], {}, "some paths begin with train/"),
    "some in no class folder": (["train/a/1.png", "train/2.png"], {}, "lies in no class folder"),
    "some in no class folder, no prefix": (["a/1.png", "2.png"], {}, "lies in no class folder"),
    "flat without a map": (["train/1.png", "train/2.png"], {}, "are in no class folders and train_map.txt is missing"),
    "a class without images": (["train/a/1.png", "train/b/"], {}, "no image in the class folder b"),
    "no images": (["train/a/1.txt"], {}, "holds no images"),
    "a path outside": (["train/a/../../1.png"], {}, "not a path inside the archive"),
    "an absolute path": (["/train/a/1.png"], {}, "not a path inside the archive"),
    "a path of two lines": (["train/a/1\n.png"], {}, "not a path inside the archive"),
    "a map without tabs": (TWO, {"train_map": ["a/1.png 0", "b/2.png 1"]}, "line 1: no tab"),
    "a map without numbers": (TWO, {"train_map": ["a/1.png\t0", "b/2.png\tb"]}, "line 2: the label 'b'"),
    "an empty map": (TWO, {"train_map": []}, "is empty"),
    "the map's prefix for some only": (TWO, {"train_map": ["train/a/1.png\t0", "b/2.png\t1"]}, "some paths begin with train/"),
    "an image that the map lacks": (TWO, {"train_map": ["a/1.png\t0"]}, "1 in the archive but not in the map"),
    "an image that the archive lacks": (TWO, {"train_map": ["a/1.png\t0", "b/2.png\t1", "b/3.png\t1"]}, "not in the archive"),
    "another image in the map": (TWO, {"train_map": ["a/1.png\t0", "b/9.png\t1"]}, "1 in the map but not in the archive"),
    "a line twice": (TWO, {"train_map": ["a/1.png\t0", "a/1.png\t0", "b/2.png\t1"]}, "a/1.png is there more than once"),
    "two classes of one label": (TWO, {"train_map": ["a/1.png\t0", "b/2.png\t0"]}, "label 0 is both a and b"),
    "a class of two labels": (
        [*TWO, "train/b/3.png"],
        {"train_map": ["a/1.png\t0", "b/2.png\t0", "b/3.png\t1"]},
        "b has the labels 0 and 1",
    ),
    "a label out of range": (TWO, {"train_map": ["a/1.png\t0", "b/2.png\t2"]}, "label 2 of b is out of range"),
}


def refused(read, root, reason):
    with pytest.raises(ValueError) as error:  # each subproject's InputError is a ValueError
        read(root, "train")
    message = str(error.value)
    assert type(error.value).__name__ in ("InputError", "ArchiveError") and reason in message and "\n" not in message, message
    assert "train.zip" in message or "train_map.txt" in message


@pytest.mark.parametrize("case", REFUSED)
def test_archives_that_every_reader_refuses(read, tmp_path, case):
    names, maps, reason = REFUSED[case]
    make(tmp_path, "train", names, **maps)
    refused(read, tmp_path, reason)


def test_entries_that_every_reader_refuses(read, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns about the duplicate name
        with zipfile.ZipFile(tmp_path / "train.zip", "w") as file:
            file.writestr("train/a/1.png", png(1))
            file.writestr("train/a/1.png", png(1))
    refused(read, tmp_path, "a/1.png is there more than once")
    write_zip(tmp_path / "train.zip", {"train/a/1.png": png(1)}, zipfile.ZIP_LZMA)
    refused(read, tmp_path, "train/a/1.png is compressed by method 14")
    make(tmp_path, "train", TWO)
    whole = (tmp_path / "train.zip").read_bytes()
    flags = whole.index(b"PK\1\2") + 8
    damaged = {
        "train/a/1.png is encrypted": whole[:flags] + bytes([whole[flags] | 1]) + whole[flags + 1 :],
        "truncated or damaged": whole[:-30],
        "not the size and checksum that the directory states": whole.replace(png(1), png(1)[:50] + b"?" + png(1)[51:]),
    }
    for reason, content in damaged.items():
        (tmp_path / "train.zip").write_bytes(content)
        if read is imagenet and "checksum" in reason:  # read_image, called directly here, names neither file nor image
            with pytest.raises(ValueError, match=reason):
                read(tmp_path, "train")
        else:
            refused(read, tmp_path, reason)
    (tmp_path / "train.zip").unlink()
    (tmp_path / "train_map.txt").write_text("a/1.png\t0\n")
    if read is not common_resnet:  # it also reads idx files and folders, and its message lists all of these
        refused(read, tmp_path, "no such archive")


def test_deflated_entries_and_names_in_undeclared_utf8(read, tmp_path):
    """The command `zip` does not mark names as UTF-8; here the flag is removed from names that zipfile has marked."""
    write_zip(tmp_path / "train.zip", {"train/Übung/é.png": png(1), "train/z/1.png": png(2)}, zipfile.ZIP_DEFLATED)
    assert read(tmp_path, "train") == [("z", 2), ("Übung", 1)]
    data = bytearray((tmp_path / "train.zip").read_bytes())
    local, central = data.index(b"PK\3\4") + 7, data.index(b"PK\1\2") + 9
    assert data[local] & 8 and data[central] & 8
    data[local] &= ~8
    data[central] &= ~8
    (tmp_path / "train.zip").write_bytes(data)
    assert read(tmp_path, "train") == [("z", 2), ("Übung", 1)]


def test_the_order_is_image_folders(read, tmp_path):
    names = [f"{a}/{b}.png" for a in ("n2", "n10", "n10-b", "B", "n10/sub", "n10/sub-x") for b in ("b", "B", "10", "9")]
    for number, name in enumerate(names, 1):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).write_bytes(png(number))
    folder = ImageFolder(tmp_path / "train")
    expected = [(folder.classes[label], image.getpixel((0, 0))[0]) for image, label in folder]
    make(tmp_path, "train", [f"train/{name}" for name in names])
    shutil.rmtree(tmp_path / "train")
    assert read(tmp_path, "train") == expected


def field(content, signature, number, offset, new):
    """The archive with new bytes at an offset in the number-th header with this signature."""
    place = -1
    for _ in range(number):
        place = content.index(signature, place + 1)
    return content[: place + offset] + new + content[place + offset + len(new) :]


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"


def test_directory_and_entries_must_agree(read, tmp_path):
    """Nothing is read if the directory exchanges two names, or if its sizes, checksums or methods differ from the entries'."""
    make(tmp_path, "train", TWO)
    whole = (tmp_path / "train.zip").read_bytes()
    swapped = field(field(whole, CENTRAL, 1, 46, b"train/b/2.png"), CENTRAL, 2, 46, b"train/a/1.png")
    for content in (
        swapped,
        field(whole, LOCAL, 1, 22, b"\1"),
        field(whole, LOCAL, 2, 14, b"\1"),
        field(whole, LOCAL, 1, 8, b"\x08"),
    ):
        (tmp_path / "train.zip").write_bytes(content)
        with pytest.raises(ValueError, match="not the name, size and checksum that the directory states"):
            read(tmp_path, "train")


def test_a_directory_that_is_short_or_foreign_is_refused(read, tmp_path):
    make(tmp_path, "train", TWO)
    whole = (tmp_path / "train.zip").read_bytes()
    size = 46 + len(TWO[0])  # of one directory entry
    start, end = whole.index(CENTRAL), whole.index(END)
    half = (end - start - size).to_bytes(4, "little")
    cut = field(whole[:start] + whole[start + size :], END, 1, 12, half)  # lacks an entry that the end record counts
    refusals = {
        "2 entries are stated, 1 are there": cut,
        "3 entries are stated": field(whole, END, 1, 10, b"\3"),
        "zip file version 25.5": field(whole, CENTRAL, 1, 6, b"\xff"),
        "can't decode byte 0xe9": field(field(whole, CENTRAL, 1, 9, b"\x08"), CENTRAL, 1, 46 + 8, b"\xe9"),
    }
    for reason, content in refusals.items():
        (tmp_path / "train.zip").write_bytes(content)
        refused(read, tmp_path, reason)


MAPS = {
    "another encoding": ("a/1.png\t0\nb/é.png\t1\n".encode("latin-1"), "is not in UTF-8"),
    "two bytes per character": ("a/1.png\t0\nb/2.png\t1\n".encode("utf-16"), "is not in UTF-8"),
    "a digit that is no number": ("a/1.png\t0\nb/2.png\t²\n".encode(), "line 2: the label '²' is not an integer"),
    "5,000 digits": (b"a/1.png\t0\nb/2.png\t" + b"1" * 5000, "the label 11111111111111111111 is out of range"),
    "a negative label": (b"a/1.png\t0\nb/2.png\t-1\n", "line 2: the label '-1'"),
    "a folder": (None, "cannot be read"),
}


@pytest.mark.parametrize("case", MAPS)
def test_maps_that_every_reader_refuses(read, tmp_path, case):
    content, reason = MAPS[case]
    make(tmp_path, "train", TWO)
    (tmp_path / "train_map.txt").mkdir() if content is None else (tmp_path / "train_map.txt").write_bytes(content)
    refused(read, tmp_path, reason)


def test_images_outside_the_split_are_counted_and_named(read, tmp_path):
    make(tmp_path, "train", [*TWO, "other/a/3.png", "other/a/4.png"])
    refused(read, tmp_path, "others do not: 2, such as other/a/3.png")


def test_what_is_hidden_is_an_image_to_no_reader(tmp_path):
    """Every reader of the folder and of the archive skips the same files, so that stored rows and labels are valid for all."""
    seen = ("b/1.png", "a/2.png", "a/in/3.png")
    unseen = ("a/._2.png", ".cache/4.png", "a/.old/5.png", "__MACOSX/b/6.png", ".7.png")
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        for number, name in enumerate(seen + unseen):
            path = tmp_path / "folder/train" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), number).save(path)
            archive.write(path, f"train/{name}")
    (tmp_path / "zips").mkdir()
    (tmp_path / "zipped.zip").rename(tmp_path / "zips/train.zip")
    deit, conv, viz = (Subproject(name) for name in ("Deit", "Conv/common_resnet", "viz"))
    for folder in (tmp_path / "folder", tmp_path / "zips"):
        for images in (
            deit.load("data.splits").open_images(folder, "train", None),
            conv.load("data.folders").open_folder(folder, "train"),
            viz.load("images.find").open_images(folder, "train"),
        ):
            found = [(image.getpixel((0, 0))[0], images.classes[label]) for image, label in map(images.__getitem__, range(3))]
            assert len(images) == 3 and images.classes == ["a", "b"] and found == [(1, "a"), (2, "a"), (0, "b")]
