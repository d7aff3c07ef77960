"""data/imagenet/prepare.py: archives and maps made, resumed and checked by the real commands."""

import fcntl
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from archives import jpeg, write_zip
from conftest import PREPARE, ROOT, complains, prepare, run
from subprojects import Subproject
from training import DEIT, PATIENCE

SUBPROJECT = DEIT
ZipImages = DEIT.load("data.zip_images").ZipImages


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


def test_a_kept_training_map_that_is_reversed_gives_the_validation_its_labels(parity, zips, tmp_path):
    for name in ("train.zip", "val.zip"):
        shutil.copy(zips / name, tmp_path)
    lines = [line.split("\t") for line in (zips / "train_map.txt").read_text().splitlines()]
    reversed_map = "".join(f"{name}\t{1 - int(label)}\n" for name, label in reversed(lines))
    (tmp_path / "train_map.txt").write_text(reversed_map)
    prepare(tmp_path, "--maps-only")
    assert (tmp_path / "train_map.txt").read_text() == reversed_map
    expected = [f"{name}\t{1 - int(label)}" for name, label in (row.split("\t") for row in (zips / "val_map.txt").open())]
    assert (tmp_path / "val_map.txt").read_text().splitlines() == expected
    for name in ("train.zip", "val_map.txt"):  # a machine that only evaluates
        (tmp_path / name).unlink()
    prepare(tmp_path, "--maps-only", "--overwrite")
    assert (tmp_path / "train_map.txt").read_text() == reversed_map
    assert (tmp_path / "val_map.txt").read_text().splitlines() == expected


def test_names_in_messages_are_escaped(zips, tmp_path):
    shutil.copy(zips / "val.zip", tmp_path)
    (tmp_path / "train.zip").write_bytes((zips / "train.zip").read_bytes())
    (tmp_path / "train_map.txt").write_text("\x1b[2J/\u2028.png\t0\n\x1b.png\t1\n")
    line = complains(run(PREPARE, "--root", tmp_path, "--maps-only"), "lies in no class folder", "\\x1b")
    assert line.isprintable()


def test_the_four_commands_on_the_digits(parity, tmp_path):
    """They run as in the README, in the folder itself."""
    root = tmp_path / "digits"
    shutil.copytree(parity, root)
    prepare(root)
    maps = [(root / f"{split}_map.txt").read_text() for split in ("train", "val")]
    for split in ("train", "val"):
        (root / f"{split}_map.txt").unlink()
    prepare(root, "--maps-only")
    assert [(root / f"{split}_map.txt").read_text() for split in ("train", "val")] == maps
    assert "no problem found" in prepare(root, "--check")
    lines = (root / "train_map.txt").read_text().splitlines(keepends=True)
    (root / "train_map.txt").write_text("".join(lines[:-1]))
    result = run(PREPARE, "--root", root, "--check")
    assert result.returncode == 1 and "1 in the archive but not in the map" in result.stdout
    (root / "train_map.txt").write_text("".join(lines))
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "val")
    assert len(ZipImages(root, "train")) == 1400 and len(ZipImages(root, "val")) == 397


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    for split, count in (("train", 40), ("val", 4)):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
        for i in range(count):
            (folder / split / "ab"[i % 2] / f"{i:02d}.jpg").write_bytes(jpeg(i, size=(400, 300), quality=95))
    return folder


@pytest.mark.parametrize("words", [[], ["--quality", "50"]])
def test_killed_prepare_leaves_no_half_archive_and_goes_on(many, tmp_path, words):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    prepare(many, "--output", whole, *words)
    part = broken / ("train.zip.q50.part" if words else "train.zip.part")
    command = [sys.executable, PREPARE, "--root", many, "--output", broken, "--workers", 1, *words]
    for image in ("a/20.jpg", "b/21.jpg"):  # a pipe in an image's place blocks the command there until it is killed
        path = many / "train" / image
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        child = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline, pipe = time.time() + PATIENCE, None
        while pipe is None:
            assert child.poll() is None and time.time() < deadline
            try:
                pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # fails until the command reads it
            except OSError:
                time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        os.close(pipe)
        path.unlink()
        path.write_bytes(content)
        assert sorted(path.name for path in broken.iterdir()) == [".prepare.lock", part.name]
    with open(part, "ab") as file:
        file.write(b"PK\3\4" + bytes(40))  # the beginning of another entry
    printed = prepare(many, "--output", broken, *words)
    done = int(re.search(r"continuing after (\d+) of 40", printed)[1])
    assert 10 <= done <= 30
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


@pytest.mark.parametrize("words", [[], ["--quality", "50"]])
def test_a_part_of_other_images_is_not_continued(tmp_path, words):
    """The names are the same but the content is not, as when a data set is exchanged after an interruption."""
    for name, values in {"before": range(4), "now": range(4, 8)}.items():
        for split in ("train", "val"):
            (tmp_path / name / split / "a").mkdir(parents=True)
            for number, value in enumerate(values):
                (tmp_path / name / split / f"a/{number}.jpg").write_bytes(jpeg(value))
        prepare(tmp_path / name, "--output", tmp_path / f"{name} whole", *words)
    with zipfile.ZipFile(tmp_path / "before whole/train.zip") as archive:
        end = archive.infolist()[2].header_offset
    (tmp_path / "out").mkdir()
    part = "train.zip.q50.part" if words else "train.zip.part"
    (tmp_path / "out" / part).write_bytes((tmp_path / "before whole/train.zip").read_bytes()[:end])
    assert "continuing after 2" in prepare(tmp_path / "before", "--output", tmp_path / "out", *words)
    (tmp_path / "out/train.zip").unlink()
    (tmp_path / "out" / part).write_bytes((tmp_path / "before whole/train.zip").read_bytes()[:end])
    assert "continuing after" not in prepare(tmp_path / "now", "--output", tmp_path / "out", *words)
    assert (tmp_path / "out/train.zip").read_bytes() == (tmp_path / "now whole/train.zip").read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (b"caf\xe9.png", "caf\\udce9.png: its name is not in UTF-8"),
        (b"2\n3.png", "not a path inside the archive"),
        (b"a" * 250 + b".png", "more than 255"),
    ],
)
def test_names_that_no_archive_may_hold_are_found_at_once(tmp_path, name, message):
    for split in ("train", "val"):
        (tmp_path / split / "class").mkdir(parents=True)
        (tmp_path / split / "class/0.png").write_bytes(jpeg(0))
    with open(os.path.join(os.fsencode(tmp_path), b"train/class", name), "wb") as file:
        file.write(jpeg(1))
    complains(run(PREPARE, "--root", tmp_path), message)
    assert not list(tmp_path.glob("*.zip*"))


def test_two_at_once(parity, tmp_path):
    with open(tmp_path / ".prepare.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # what a running prepare.py holds
        for words in (["--root", parity, "--output", tmp_path], ["--root", tmp_path, "--maps-only"]):
            complains(run(PREPARE, *words), "another prepare.py is running here")
    prepare(parity, "--output", tmp_path)


def test_re_encoding(odd, tmp_path):
    """Large images shrink to the size asked for, small ones keep their bytes, and the order of entries stays the same."""
    prepare(odd, "--output", tmp_path / "s", "--shorter-side", "20")
    data, folder = ZipImages(tmp_path / "s", "train"), ImageFolder(odd / "train")
    assert {image.size for image, _ in data} == {(27, 20)} and data.labels.tolist() == folder.targets
    difference = np.asarray(data[0][0].resize((40, 30)), float) - np.asarray(folder[0][0])
    assert abs(difference).mean() < 10
    small_zips = tmp_path / "few"
    for split in ("train", "val"):
        (small_zips / split / "a").mkdir(parents=True)
        (small_zips / split / "a/1.jpg").write_bytes(jpeg(1, size=(200, 80)))
        (small_zips / split / "a/2.jpg").write_bytes(jpeg(2, "CMYK", size=(80, 60)))
    prepare(small_zips, "--output", tmp_path / "max", "--max-side", 100)
    data = ZipImages(tmp_path / "max", "train")
    assert data[0][0].size == (100, 40) and bytes(data.read(1)) == (small_zips / "train/a/2.jpg").read_bytes()
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(small_zips / "train/a/3.png")
    prepare(small_zips, "--output", tmp_path / "deep", "--quality", 95)
    deep = np.asarray(ZipImages(tmp_path / "deep", "train")[2][0], float)
    assert abs(deep - ramp[..., None] / 257).max() < 8  # JPEG loss; Pillow's own conversion makes most of it white
    Image.fromarray(np.zeros((4, 4), np.float32)).save(small_zips / "train/a/3.png", "TIFF")
    result = run(PREPARE, "--root", small_zips, "--check", "--workers", 1)
    assert "broken: " in result.stdout and "3.png" in result.stdout and "floating-point" in result.stdout
    (small_zips / "train/a/3.png").unlink()
    (small_zips / "train/a/2.jpg").write_bytes(jpeg(2)[:300])
    words = ["--output", tmp_path / "bad", "--quality", "50", "--workers", 1]
    complains(run(PREPARE, "--root", small_zips, *words), "a/2.jpg: does not decode as an image")
    assert not (tmp_path / "bad/train.zip").exists()
    (small_zips / "train/a/2.jpg").write_bytes(jpeg(2))
    assert "continuing after 1 of 2" in prepare(small_zips, "--output", tmp_path / "bad", "--quality", 50)


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
    """A small official download: a tar of tars, flat validation images, and a kit that numbers the classes differently."""
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
    """A flat val.zip made by hand gets its labels from the kit, as does a flat folder val/."""
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
    complains(run(PREPARE, "--root", official), "ILSVRC2012_img_train.tar: truncated, or not a tar archive")
    tar.write_bytes(b"")
    complains(run(PREPARE, "--root", official), "ILSVRC2012_img_train.tar: truncated, or not a tar archive")
    tar.write_bytes(whole)
    kit = official / "ILSVRC2012_devkit_t12.tar.gz"
    kit.write_bytes(kit.read_bytes()[:200])
    complains(run(PREPARE, "--root", official), "ILSVRC2012_devkit_t12.tar.gz: damaged")
    kit.unlink()
    complains(run(PREPARE, "--root", official), "put ILSVRC2012_devkit_t12.tar.gz there")
    assert not (official / "train.zip").exists()


def test_check_names_each_broken_image(small_zips, tmp_path):
    good = jpeg(1)
    write_zip(
        small_zips / "train.zip",
        {"train/a/0.jpg": good, "train/a/1.jpg": good[:-30], "train/b/2.jpg": b"x", "train/b/3.jpg": good},
    )
    write_zip(small_zips / "val.zip", {"val/a/0.jpg": good, "val/b/1.jpg": good})
    for split in ("train", "val"):
        (small_zips / f"{split}_map.txt").unlink()  # they belong to other archives
    data = bytearray((small_zips / "train.zip").read_bytes())
    data[data.rindex(good) + 300] ^= 1  # in the last image's bytes: it may still decode, but to another image
    (small_zips / "train.zip").write_bytes(data)
    result = run(PREPARE, "--root", small_zips, "--check", "--workers", 2)
    assert result.returncode == 1 and result.stderr.count("Traceback") == 0
    broken = [line for line in result.stdout.splitlines() if line.startswith("broken: ")]
    assert [re.search(r"train.zip: (\S+) \(", line)[1] for line in broken] == ["a/1.jpg", "b/2.jpg", "b/3.jpg"]
    assert "checksum" in broken[2] and "4 images in 2 classes, 3 broken" in result.stdout and "3 problems found" in result.stdout


def test_check_knows_imagenet(official):
    """It reports missing and unknown classes, wrong counts, and a mean file size unlike the original's."""
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
    for name in ("train/n99999999", "val/n99999999", "train/n99999998"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.JPEG").write_bytes(jpeg(1))
    result = run(PREPARE, "--root", folder, "--check", "--workers", 1)
    assert "val: 1 classes are not of ImageNet-1K: n99999999" in result.stdout
    assert "train and val have different classes: 1 are in only one of them (n99999998)" in result.stdout


def test_prepare_on_bad_input(small_zips, tmp_path):
    complains(run(PREPARE, "--root", tmp_path / "nowhere"), "no such folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    complains(run(PREPARE, "--root", empty), "no folder train/ and no ILSVRC2012_img_train.tar")
    complains(run(PREPARE, "--root", empty, "--maps-only"), "no train.zip and no val.zip")
    complains(run(PREPARE, "--root", empty, "--check"), "no train.zip and no folder train/")
    (empty / "train").mkdir()
    result = run(PREPARE, "--root", empty, "--check")
    assert "images" not in result.stdout  # fails at once, not after hours
    complains(result, "no val.zip and no folder val/")
    (empty / "train/x.txt").write_text("")
    complains(run(PREPARE, "--root", empty), "train: no images")
    (empty / "train/a").mkdir()
    (empty / "train/a/again").symlink_to("../../train")
    complains(run(PREPARE, "--root", empty), "train/a/again: is a link to a folder that it lies in")
    (empty / "train/a/again").unlink()
    (empty / "train.zip").write_bytes((small_zips / "train.zip").read_bytes()[:500])
    complains(run(PREPARE, "--root", empty, "--maps-only"), "train.zip: truncated or damaged")
    shutil.copy(small_zips / "val.zip", empty)
    result = run(PREPARE, "--root", empty, "--check")
    assert result.stdout.count("train.zip: truncated or damaged") == 1 and f"{empty}/val.zip: " in result.stdout
    (empty / "val.zip").unlink()
    write_zip(empty / "train.zip", {"1.jpg": jpeg(1)})
    complains(run(PREPARE, "--root", empty, "--maps-only"), "are in no class folders")
    write_zip(empty / "train.zip", {"a/../../1.jpg": jpeg(1)})
    complains(run(PREPARE, "--root", empty, "--maps-only"), "not a path inside the archive")
    assert not (empty / "train_map.txt").exists()
    (small_zips / "val_map.txt").unlink()
    complains(run(PREPARE, "--root", small_zips, "--maps-only"), "put ILSVRC2012_devkit_t12.tar.gz there")
    for words in (
        ["--quality", "0"],
        ["--maps-only", "--check"],
        ["--maps-only", "--quality", "50"],
        ["--shorter-side", "0"],
        ["--check", "--output", tmp_path],
    ):
        result = run(PREPARE, "--root", small_zips, *words)
        assert result.returncode == 2 and "Traceback" not in result.stderr


def test_a_split_without_class_folders_or_images(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    (tmp_path / "train/1.jpg").write_bytes(jpeg(1))
    complains(run(PREPARE, "--root", tmp_path), "train: its images are in no class folders, which hold the labels")
    result = run(PREPARE, "--root", tmp_path, "--check")
    assert result.returncode == 1 and "val: no images" in result.stdout and "ImageNet-1K" not in result.stdout


def test_digits_that_are_there_already(ten):
    """A second call says so and succeeds; a folder with other labels is refused and not changed."""
    before = sorted(path.stat().st_mtime_ns for path in ten.rglob("*"))
    result = run(ROOT / "data/digits/prepare.py", "--output", ten)
    assert result.returncode == 0 and f"the digits are in {ten}/ already" in result.stdout
    complains(run(ROOT / "data/digits/prepare.py", "--output", ten, "--labels", "parity"), "does not hold these digits")
    assert sorted(path.stat().st_mtime_ns for path in ten.rglob("*")) == before


def test_two_that_write_the_digits_at_once_both_succeed(tmp_path):
    command = [sys.executable, ROOT / "data/digits/prepare.py", "--output", tmp_path / "ten"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [child.communicate()[0] for child in both]
    assert [child.returncode for child in both] == [0, 0], said
    assert [path.name for path in tmp_path.iterdir()] == ["ten"]


@pytest.mark.parametrize("script", sorted(path.parent.name for path in (ROOT / "data").glob("*/prepare.py")))
def test_a_missing_package_ends_a_preparation_with_one_line(script):
    """-S hides what is installed; scripts that need only the standard library show their help."""
    done = subprocess.run([sys.executable, "-S", ROOT / f"data/{script}/prepare.py", "--help"], capture_output=True, text=True)
    if done.returncode:
        assert re.fullmatch(r"error: the package '\w+' is not installed for \S+; .+\n", done.stderr)
    else:
        assert script in ("bank", "shoppers")
    assert (ROOT / "data/errors.py").read_bytes() == (ROOT / "results/errors.py").read_bytes()


def test_tables_are_taken_out_of_nested_archives_and_counted(tmp_path, monkeypatch, capsys):
    """As in the UCI repository, an archive lies inside an archive, next to another table."""
    tables = Subproject("data").load("tables")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("bank/t.csv", "a;y\n1;no\n2;no\n3;yes\n")
    with zipfile.ZipFile(tmp_path / "uci.zip", "w") as archive:
        archive.writestr("other.csv", "a;y\n")
        archive.writestr("inner.zip", inner.getvalue())
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--archive", str(tmp_path / "uci.zip"), "--root", str(tmp_path / "bank")])
    tables.main(tmp_path, "t.csv", "y", rows=3, columns=2, rarest=1)
    assert (tmp_path / "bank/t.csv").read_text() == "a;y\n1;no\n2;no\n3;yes\n"
    assert "3 rows, 2 columns, y: 2 no, 1 yes" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="not the published table: 1 rows of the smaller class, not 2"):
        tables.main(tmp_path, "t.csv", "y", rows=3, columns=2, rarest=2)
    with pytest.raises(SystemExit, match="holds no s.csv, not even in an archive inside it"):
        tables.main(tmp_path, "s.csv", "y", rows=3, columns=2, rarest=1)


def test_annotated_images_are_counted_and_their_values_checked(tmp_path, monkeypatch, capsys):
    annotated = Subproject("data").load("annotated")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number, values in enumerate(([0, 1, 1, 255], [1, 1, 1, 1])):
        Image.new("RGB", (2, 2)).save(tmp_path / f"images/{number}.jpg")
        Image.fromarray(np.array(values, np.uint8).reshape(2, 2)).save(tmp_path / f"labels/{number}.png")
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--root", str(tmp_path)])
    what = ("toy", {"train": ("images", "labels", 2)}, (".jpg",), ".png")
    annotated.run(*what, {"classes": range(3), "ignored": [255]})
    assert "train: 2 images, 2 classes, 12.5% of the pixels without a label" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0.png: holds the value 255, which is not a class"):
        annotated.run(*what, {"classes": range(3), "ignored": []})
    for folder in ("images", "labels"):  # as in archives made on a Mac
        (tmp_path / f"{folder}/._0.{'jpg' if folder == 'images' else 'png'}").write_bytes(b"x")
    annotated.run(*what, {"classes": range(3), "ignored": [255]})
    shutil.copy(tmp_path / "labels/0.png", tmp_path / "labels/2.png")
    with pytest.raises(SystemExit, match="labels/2.png: its image in .*images is missing"):
        annotated.run(*what, {"classes": range(3), "ignored": [255]})
    (tmp_path / "labels/2.png").unlink()
    shutil.copy(tmp_path / "images/0.jpg", tmp_path / "images/0.png")
    with pytest.raises(SystemExit, match="images/0.png: another image has the same name, 0.jpg"):
        annotated.run(
            "toy", {"train": ("images", "labels", 2)}, (".jpg", ".png"), ".png", {"classes": range(3), "ignored": [255]}
        )
