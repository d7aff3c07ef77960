"""viz/: images from folders, archives and known sets, in one order with the right labels; extraction, in one process or more."""

import gzip
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import ImageFolder

from conftest import ROOT, complains, run
from subprojects import Subproject
from training import torchrun

SUBPROJECT = viz = Subproject("viz")
architectures = viz.load("checkpoints.models")
InputError = viz.load("common.errors").InputError
match_classes = viz.load("images.image_set").match_classes
open_images = viz.load("images.find").open_images
extract = viz.load("logits").extract

LOGITS = ROOT / "viz/logits.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two splits of noise images in three classes, PNG and JPEG, with some files that are not images."""
    root = tmp_path_factory.mktemp("images")
    numbers = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cow", "ant", "bee"):
            (root / split / name / "deep").mkdir(parents=True)
            for file in ("b.png", "a.JPEG", "deep/c.jpg"):
                Image.fromarray(numbers.integers(0, 256, (10, 12, 3), np.uint8)).save(root / split / name / file)
    (root / "val/ant/notes.txt").write_text("none")
    (root / "val/table.csv").write_text("none")
    return root


def zipped(folder, path, prefix="val/", flat=False, kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for number, file in enumerate(sorted((folder / "val").rglob("*.*"), reverse=True)):
            name = f"{number}{file.suffix}" if flat else prefix + str(file.relative_to(folder / "val"))
            archive.write(file, name)
    return path


def same(images, reference):
    assert [int(label) for label in images.labels] == reference.targets and images.classes == reference.classes
    for index, (path, _) in enumerate(reference.samples):
        assert path.endswith(images.name(index))
        assert np.array_equal(np.asarray(images[index][0]), np.asarray(reference[index][0]))


@pytest.mark.parametrize("prefix", ["val/", ""])
def test_folder_and_archive_are_torchvisions_image_folder(folder, tmp_path, prefix):
    reference = ImageFolder(folder / "val")
    for images in (
        open_images(folder, "val"),
        open_images(folder / "val", "val"),
        open_images(zipped(folder, tmp_path / "val.zip", prefix), "val"),
        open_images(tmp_path, "val"),
    ):
        same(images, reference)
        kind = "entries" if images.where.suffix == ".zip" else "files"
        assert len(images.notes) == 1 and f"2 {kind} are not images and are ignored" in images.notes[0]
        if kind == "files":
            assert "table.csv" in images.notes[0] and "notes.txt" in images.notes[0]


def test_maps_give_labels_and_class_order(folder, tmp_path):
    reference = ImageFolder(folder / "val")
    order = ["cow", "ant", "bee"]
    names = [path.split("/val/")[1] for path, _ in reference.samples]
    zipped(folder, tmp_path / "val.zip")
    lines = [f"{name}\t{order.index(name.split('/')[0])}" for name in names]
    for prefix in ("", "val/"):
        (tmp_path / "val_map.txt").write_text("\n".join(prefix + line for line in lines))
        images = open_images(tmp_path, "val")
        assert images.classes == order and "not in sorted class order" in images.notes[-1]
        match_classes(images, reference.classes, 3, "it")
        assert images.labels.tolist() == reference.targets
    (tmp_path / "val_map.txt").write_text("\n".join([*lines[:4], *(f"val/{line}" for line in lines[4:])]))
    with pytest.raises(InputError, match="some paths begin with val/ and others do not"):
        open_images(tmp_path, "val")

    flat = tmp_path / "flat"
    flat.mkdir()
    zipped(folder, flat / "val.zip", flat=True)
    with zipfile.ZipFile(flat / "val.zip") as archive:
        entries = [name for name in archive.namelist() if not name.endswith(("txt", "csv"))]
    files = [file for file in sorted((folder / "val").rglob("*.*"), reverse=True) if file.suffix not in (".txt", ".csv")]
    with pytest.raises(InputError, match="its images are in no class folders and val_map.txt is missing"):
        open_images(flat, "val")
    label = {name: order.index(file.relative_to(folder / "val").parts[0]) for name, file in zip(entries, files, strict=True)}
    (flat / "val_map.txt").write_text("".join(f"{name}\t{value}\n" for name, value in label.items()))
    assert open_images(flat, "val").classes is None
    (flat / "train_map.txt").write_text("".join(f"{name}/1.jpg\t{label}\n" for label, name in enumerate(order)))
    images = open_images(flat, "val")
    assert images.classes == order and all(images.labels[i] == label[images.name(i)] for i in range(9))
    for text, match in {
        "ant/b.png\tx": "line 1: the label 'x' is not an integer of 0 or more",
        "ant/b.png\t0": "val.zip and val_map.txt differ: 8 in the archive but not in the map",
        "": "is empty",
        "\n".join(f"{name}\t0" for name in names): "label 0 is both ant and bee",
    }.items():
        (tmp_path / "val_map.txt").write_text(text)
        with pytest.raises(InputError, match=match):
            open_images(tmp_path, "val")


def test_damaged_archives_and_pictures_are_named(folder, tmp_path):
    whole = zipped(folder, tmp_path / "val.zip", kind=zipfile.ZIP_STORED).read_bytes()
    at = whole.index(b"val/ant/b.png") + 200
    (tmp_path / "val.zip").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    images = open_images(tmp_path / "val.zip", "val")
    broken = [i for i in range(len(images)) if images.name(i) == "ant/b.png"][0]
    with pytest.raises(InputError, match="val.zip: ant/b.png is damaged"):
        images[broken]
    (tmp_path / "cut.zip").write_bytes(whole[:900])
    with pytest.raises(InputError, match="neither a folder nor a whole ZIP archive"):
        open_images(tmp_path / "cut.zip", "val")
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        archive.writestr("val/ant/a.png", b"no picture")
    with pytest.raises(InputError, match="odd.zip/ant/a.png: does not decode as an image"):
        open_images(tmp_path / "odd.zip", "val")[0]
    loose = tmp_path / "loose/val"
    loose.mkdir(parents=True)
    with pytest.raises(InputError, match="holds no images"):
        open_images(tmp_path / "loose", "val")
    (loose / "a.png").write_bytes((folder / "val/ant/b.png").read_bytes())
    with pytest.raises(InputError, match="its images are in no class folders, so they have no labels"):
        open_images(tmp_path / "loose", "val")
    (loose / "ant").mkdir()
    with pytest.raises(InputError, match="no image in the class folder ant"):
        open_images(tmp_path / "loose", "val")


def test_known_sets(tmp_path):
    digits = load_digits()
    images = open_images(None, "val", "digits")
    assert len(images) == 397 and images.labels.tolist() == digits.target[1400:].tolist()
    pixels = np.asarray(images[5][0])
    assert np.array_equal(np.rint(pixels[:, :, 0] * (16 / 255)), digits.images[1405]) and pixels.shape == (8, 8, 3)
    (tmp_path / "own/val/7").mkdir(parents=True)
    Image.new("L", (8, 8), 9).save(tmp_path / "own/val/7/1.png")
    images = open_images(tmp_path / "own", "val", "digits")  # the folder's images, not scikit-learn's
    assert images.classes == ["7"] and np.asarray(images[0][0]).tolist() == [[[9] * 3] * 8] * 8
    numbers = np.random.default_rng(0).integers(0, 256, (4, 28, 28), np.uint8)
    for stem, data in {"images-idx3": b"\0" * 16 + numbers.tobytes(), "labels-idx1": b"\0" * 8 + bytes([3, 9, 0, 1])}.items():
        (tmp_path / f"t10k-{stem}-ubyte.gz").write_bytes(gzip.compress(data))
    images = open_images(tmp_path, "val", "fashion-mnist")
    assert images.labels.tolist() == [3, 9, 0, 1] and images.classes[9] == "Ankle boot"
    assert np.array_equal(np.asarray(images[2][0])[:, :, 1], numbers[2])


def test_labels_are_never_guessed(folder):
    for classes, outputs, match in (
        (["ant", "bee", "dog"], 3, r"its 3 classes are not the 3 of it \(only here: cow; there: ant, bee, dog"),
        (None, 4, "3 classes, but it has 4 outputs and no class names"),
        (None, 2, "3 classes, but it has 2 outputs"),
        (None, 1000, "3 classes, but it has 1000 outputs"),
    ):
        with pytest.raises(InputError, match=match):
            match_classes(open_images(folder, "val"), classes, outputs, "it")
    images = open_images(folder, "val")
    images.classes = None
    with pytest.raises(InputError, match="3 classes, but it has 4 outputs"):
        match_classes(images, list("abcd"), 4, "it")
    match_classes(images, list("abc"), 3, "it")
    assert "no names and are taken as those of it" in images.notes[-1]
    images = open_images(folder, "val")
    match_classes(images, ["cow", "dog", "bee", "ant"], 4, "it")
    assert images.labels[::3].tolist() == [3, 2, 0] and "3 of the 4 classes of it" in images.notes[-1]


def test_wnids_are_imagenets_classes(folder, tmp_path):
    for name in ("n12998815", "n01440764"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "a.png").write_bytes((folder / "val/ant/b.png").read_bytes())
    images = open_images(tmp_path, "val")
    match_classes(images, None, 1000, "it")
    assert images.labels.tolist() == [0, 992]  # tench, and agaric


def our_checkpoint(path, library, name, classes, **facts):
    """Write a checkpoint in the trainers' common format, and return its model."""
    size = facts.get("input_size", 32)
    torch.manual_seed(0)
    variant = {key: facts[key] for key in ("width", "stem_stride", "small_stem", "blurpool") if key in facts}
    model = architectures.create(library, name, len(classes), size if library == "timm" else None, **variant)
    args = {"model": name, "library": library, "num_classes": len(classes), "input_size": size, "crop_ratio": 1.0}
    args |= {"interpolation": "bilinear", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "data_path": None} | facts
    torch.save({"model": model.state_dict(), "model_ema": None, "epoch": 0, "args": args, "classes": classes}, path)
    return model


@pytest.mark.parametrize(
    "library, name, facts",
    [
        ("timm", "test_vit", {"crop_ratio": 0.875, "interpolation": "bicubic"}),
        ("torchvision", "resnet18", {"small_stem": True, "data": "cifar10"}),
        ("torchvision", "resnet18", {"blurpool": True, "crop_ratio": 0.875, "input_size": 64}),
        ("cifar", "resnet8", {"width": 8, "stem_stride": 2, "data": "imagenet"}),
    ],
    ids=["Deit", "common_resnet", "ffcv", "cifar"],
)
def test_every_trainers_checkpoint_against_a_loop_by_hand(folder, tmp_path, library, name, facts):
    """The loop takes one image at a time through torchvision's transforms; labels follow the checkpoint's order of classes."""
    from torchvision import transforms

    classes = ["cow", "ant", "bee"]
    model = our_checkpoint(tmp_path / "c.pth", library, name, classes, **facts)
    content = extract(tmp_path / "c.pth", folder, features=True, batch_size=4)
    size, ratio = facts.get("input_size", 32), facts.get("crop_ratio", 1.0)
    mode = transforms.InterpolationMode(facts.get("interpolation", "bilinear"))
    steps = [transforms.Resize(int(size / ratio), mode), transforms.CenterCrop(size), transforms.ToTensor()]
    shown = transforms.Compose([*steps, transforms.Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])])
    reference = ImageFolder(folder / "val", shown)
    with torch.inference_mode():
        logits = torch.cat([model(image[None]) for image, _ in reference])
    torch.testing.assert_close(content["logits"], logits, atol=1e-4, rtol=1e-4)  # batched float32 sums in another order
    assert content["labels"].tolist() == [classes.index(reference.classes[label]) for label in reference.targets]
    assert content["classes"] == classes and len(content["features"]) == 9


def test_superclasses_are_followed(tmp_path):
    grouping = {"even": list("02468"), "odd": list("13579")}
    our_checkpoint(tmp_path / "c.pth", "cifar", "resnet8", list(grouping), input_size=8, data="digits", superclasses=grouping)
    content = extract(tmp_path / "c.pth")
    assert content["labels"].tolist() == (load_digits().target[1400:] % 2).tolist()


def test_several_processes_give_the_file_of_one(folder, tmp_path):
    """viz/logits.py reads 9 images in 2 processes under the real torchrun: each appears once, in order, bit-identical."""
    our_checkpoint(tmp_path / "c.pth", "cifar", "resnet8", ["ant", "bee", "cow"])
    words = ["--checkpoint", tmp_path / "c.pth", "--data-path", folder, "--features", "--device", "cpu", "--batch-size", 1]
    result = run(LOGITS, *words, "--output", tmp_path / "one.pt", "--num-workers", 1)
    assert result.returncode == 0, result.stderr
    assert "9 images of 3 classes: top-1" in result.stdout and "2 files are not images" in result.stdout
    result = torchrun(2, *words, "--output", tmp_path / "two.pt", "--num-workers", 0, script=LOGITS)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("top-1") == 1
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in ("logits", "labels", "features")) and one["paths"] == two["paths"]


def test_what_is_wrong_with_the_images_is_one_line(folder, tmp_path):
    path = tmp_path / "c.pth"
    our_checkpoint(path, "cifar", "resnet8", ["ant", "bee", "cow"])
    bad = tmp_path / "bad/val/ant"
    bad.mkdir(parents=True)
    (bad / "a.png").write_bytes(b"\x89PNG\r\n")
    words = [LOGITS, "--checkpoint", path, "--output", tmp_path / "x.pt", "--num-workers", 1, "--device", "cpu"]
    complains(run(*words, "--data-path", tmp_path / "bad"), "bad/val/ant/a.png: does not decode as an image")
    assert not (tmp_path / "x.pt").exists()
    with pytest.raises(InputError, match="does not say where its images are; --data-path or --data does"):
        extract(path)
    with pytest.raises(InputError, match=r"mean is \[nan, 0, 0\], not three numbers"):
        extract(path, folder, mean=[float("nan"), 0, 0])
    with pytest.raises(InputError, match="v.beton: "):
        extract(path, tmp_path / "v.beton")
    state = torch.load(path, weights_only=True)
    for key, value, match in (
        ("linear.weight", 3e38, "logits are NaN or infinite"),
        ("linear.bias", torch.nan, "linear.bias holds numbers that are NaN or infinite; the weights are damaged"),
        ("bn1.running_var", torch.inf, "bn1.running_var holds numbers that are NaN or infinite"),
    ):
        state["model"][key][:] = value
        torch.save(state, path)
        with pytest.raises(InputError, match=match):
            extract(path, folder)
        state["model"][key][:] = 1


def test_ffcv_files_give_the_folders_logits(few, tmp_path):
    """At the images' own size nothing is scaled: logits, and labels by class name, are those of the original folder."""
    pytest.importorskip("ffcv")
    path = tmp_path / "val.ffcv"
    words = ["--data-path", few / "val", "--output", path, "--max-resolution", 0, "--compress-probability", 0]
    result = run(ROOT / "Conv/ffcv/write_imagenet.py", *words)
    assert result.returncode == 0, result.stderr
    our_checkpoint(tmp_path / "c.pth", "torchvision", "resnet18", ["odd", "even"], small_stem=True, input_size=8)
    theirs, ours = (extract(tmp_path / "c.pth", where, batch_size=10) for where in (path, few))
    torch.testing.assert_close(theirs["logits"], ours["logits"])
    assert torch.equal(theirs["labels"], ours["labels"]) and theirs["labels"].tolist() == [1] * 17 + [0] * 16
    (tmp_path / "val.ffcv.json").write_text('{"classes": ["even"]}')
    with pytest.raises(InputError, match="val.ffcv.json: does not name the classes of val.ffcv"):
        extract(tmp_path / "c.pth", path)
    (tmp_path / "val.ffcv.json").unlink()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="val.ffcv: damaged, or not an FFCV file"):
        extract(tmp_path / "c.pth", path)
