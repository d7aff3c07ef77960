"""Conv/common_resnet, part by part: models, small images in memory, long tails, superclasses, and all sources of data."""

import gzip
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
import torchvision
import torchvision.transforms.functional as TF
from PIL import Image

from subprojects import Subproject

SUBPROJECT = conv = Subproject("Conv/common_resnet")
distributed, pixels, cifar_resnet = (conv.load(name) for name in ("distributed", "data.pixels", "cifar_resnet"))
Block, CifarResNet, InputError = cifar_resnet.Block, cifar_resnet.CifarResNet, conv.load("errors").InputError
Folder, LargeImages = conv.load("data.large_images").Folder, conv.load("data.large_images").LargeImages
by_shots, long_tailed = conv.load("data.longtail").by_shots, conv.load("data.longtail").long_tailed
create_model, model_facts = conv.load("models").create_model, conv.load("models").model_facts
open_data, Inputs = conv.load("data").open_data, conv.load("data").Inputs
epoch_order, SmallImages = conv.load("data.order").epoch_order, conv.load("data.small_images").SmallImages
GROUPINGS, group = conv.load("data.superclasses").GROUPINGS, conv.load("data.superclasses").group
viz, deit = Subproject("viz"), Subproject("Deit")
open_images = viz.load("images.find").open_images

# ----------------------------------------------------------------------------------------------------------- models


def test_recipes_are_the_customary_ones():
    """ImageNet: torchvision's reference script, with 8 processes of 32 images. CIFAR: 200 epochs with a cosine."""
    recipes = {}
    for name in ("imagenet", "cifar10", "cifar100"):
        source = conv.load("catalogue").SOURCES[name]
        recipes[name] = (source.epochs, source.batch_size, source.lr, source.weight_decay, source.sched, source.decay_epochs)
    assert recipes["imagenet"] == (90, 256, 0.1, 1e-4, "step", (30, 60))
    assert recipes["cifar10"] == recipes["cifar100"] == (200, 128, 0.1, 5e-4, "cosine", ())


def test_cifar_resnets_are_the_papers():
    """The parameter counts, in millions, are those of Table 6 of He et al. (2016); the keys are those of public checkpoints."""
    for name, millions in {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}.items():
        model = create_model(model_facts(name, 32), 10)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    assert create_model(model_facts("resnet20", 32), 10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    keys = set(CifarResNet(20, 10).state_dict())
    assert {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer3.2.bn2.running_var", "linear.bias"} <= keys
    assert not [key for key in keys if "shortcut" in key or "downsample" in key]


@pytest.mark.parametrize("size", [6, 7])
def test_a_block_that_adds_nothing_is_its_shortcut(size):
    """It passes every second pixel and its gradient, which stays channels-last, so that the backward pass is fast."""
    block = Block(4, 8, stride=2).to(memory_format=torch.channels_last).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x, gradients = torch.randn(2, 4, size, size).to(memory_format=torch.channels_last).requires_grad_() * 1, []
    x.register_hook(gradients.append)
    y = block(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2].relu()) and y[:, :2].abs().sum() + y[:, 6:].abs().sum() == 0
    y.backward(torch.ones_like(y))
    expected = torch.zeros_like(x)
    expected[:, :, ::2, ::2] = (x[:, :, ::2, ::2] > 0).float()
    assert torch.equal(gradients[0], expected) and gradients[0].is_contiguous(memory_format=torch.channels_last)


def test_more_processes_than_gpus(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "99")
    with pytest.raises(InputError, match="process 100 of this machine finds .*: start one process per GPU"):
        distributed.start("cuda")


@pytest.mark.parametrize("flip", [True, False])
def test_large_images_flip_where_asked(tmp_path, flip):
    """The image is dark on the left and bright on the right, so that a flipped crop can be recognised."""
    (tmp_path / "a").mkdir()
    ramp = np.tile(np.arange(0, 240, 2, dtype=np.uint8), (60, 1))
    Image.fromarray(ramp).save(tmp_path / "a/0.png")
    images = LargeImages(Folder(tmp_path), 24, 1.0, [0.0] * 3, [1.0] * 3, "cpu")
    images.flip = flip
    crops = [crop for epoch in range(30) for crop, _ in images.training_batches(1, 0, epoch)]
    flipped = [bool(crop[..., 0].mean() > crop[..., -1].mean()) for crop in crops]
    assert len(flipped) == 30 and (5 < sum(flipped) < 25 if flip else not any(flipped))


def test_small_images_keep_their_resolution_at_the_entrance():
    for name, stage in (("resnet18", "layer1"), ("mobilenet_v2", "features")):
        for size, side in ((32, {"layer1": 32, "features": 2}), (224, {"layer1": 56, "features": 7})):
            model = create_model(model_facts(name, size), 10).eval()
            inner = torch.nn.Sequential(*list(model.children())[: list(dict(model.named_children())).index(stage) + 1])
            assert inner(torch.zeros(1, 3, size, size)).shape[-1] == side[stage]
            assert model(torch.zeros(1, 3, size, size)).shape == (1, 10)
    with pytest.raises(InputError, match="resnet18"):
        model_facts("resnet81", 32)


# ------------------------------------------------------------------------------------------- small images in memory


def test_augmented_images_are_crops_and_flips_of_their_own():
    """Every image of a batch is one of the (2p + 1)^2 * 2 that torchvision makes of it, and all of them occur over the epochs."""
    images = torch.randint(256, (12, 6, 6, 3), dtype=torch.uint8)
    data = SmallImages(images, torch.arange(12), list("abcdefghijkl"), [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], "cpu").augment(
        1, True, 0
    )
    candidates = {}
    for row, image in enumerate(images.permute(0, 3, 1, 2)):
        padded = TF.pad(image, [1])
        crops = [TF.crop(padded, y, x, 6, 6) for y in range(3) for x in range(3)]
        crops = [crop for cropped in crops for crop in (cropped, TF.hflip(cropped))]
        candidates[row] = TF.normalize(torch.stack(crops) / 255, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    seen = set()
    for epoch in range(40):
        for batch, labels in data.training_batches(12, seed=0, epoch=epoch):
            assert batch.is_contiguous(memory_format=torch.channels_last) and sorted(labels.tolist()) == list(range(12))
            for image, row in zip(batch, labels.tolist(), strict=True):
                distance = (candidates[row] - image).abs().amax((1, 2, 3))
                assert distance.min() < 1e-5  # float32: (x - mean) / std and x * scale + shift round differently
                seen.add(int(distance.argmin()))
    assert seen == set(range(18))


def test_cutout_is_a_square_around_a_pixel():
    data = SmallImages(torch.full((64, 8, 8, 3), 255, dtype=torch.uint8), torch.zeros(64), ["a"], [0.5] * 3, [0.5] * 3, "cpu")
    ((batch, _),) = data.augment(0, False, 4).training_batches(64, 0, 0)
    sizes = set()
    for hole in batch[:, 0] == 0:
        rows, columns = hole.any(1).nonzero().squeeze(1), hole.any(0).nonzero().squeeze(1)
        assert hole.sum() == len(rows) * len(columns)  # a rectangle, cut off only by the edges
        for span in (rows, columns):
            assert len(span) == 4 or (2 <= len(span) < 4 and (span[0] == 0 or span[-1] == 7))
        sizes.add(int(hole.sum()))
    assert 16 in sizes and (batch[batch != 0] - 1).abs().max() < 1e-6


def test_an_epoch_is_a_shuffle_of_its_own():
    orders = [epoch_order(103, 10, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert order.shape == (10, 10) and len(order.unique()) == 100 and order.max() < 103
    assert torch.equal(orders[0], epoch_order(103, 10, 0, 0))
    assert all(not torch.equal(a, b) for index, a in enumerate(orders) for b in orders[:index])


# ------------------------------------------------------------------------------------------ long tails, superclasses


def test_long_tails_are_the_published_ones():
    """The class sizes are those of long-tailed CIFAR-10 (Cui et al. 2019) at imbalance 100 and 50."""
    labels = torch.arange(10).repeat(5000)
    for ratio, sizes in {
        100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
        50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
    }.items():
        rows = long_tailed(labels, 10, ratio)
        assert torch.bincount(labels[rows]).tolist() == sizes and len(rows.unique()) == len(rows)
    shots = by_shots(torch.tensor([8, 3, 1]), torch.tensor([10, 10, 10]), torch.tensor([101, 100, 20]))
    assert shots == {"many": 80.0, "medium": 20.0, "low": None}


def test_groupings_name_every_class_once(tmp_path):
    assert sorted(len(members) for members in GROUPINGS["cifar100"].values()) == [5] * 20
    classes = sorted(name for members in GROUPINGS["cifar100"].values() for name in members)
    table, _, names = group("cifar100", classes, "default")
    assert len(set(classes)) == 100 and names[table[classes.index("maple_tree")]] == "trees"
    for content, match in (
        ('{"a": ["0", "1"], "b": ["1"]}', "twice: 1"),
        ('{"a": ["0"], "b": ["2"]}', "in no group: 1"),
        ('{"a": ["0", "1", "2"]}', "1 groups"),
        ('{"a": "0"}', "expects JSON"),
        ("[", "Expecting"),
    ):
        (tmp_path / "groups.json").write_text(content)
        with pytest.raises(InputError, match=match):
            group("digits", ["0", "1", "2"], str(tmp_path / "groups.json"))
    with pytest.raises(InputError, match="no grouping of its own"):
        group("imagenet", ["0"], "default")


# ----------------------------------------------------------------------------------------------- where images come from


def zipped(folder, target, split, order=None, flat=False):
    """Write the folder's split as an archive in `target`. order: the class order of a map; flat: without class folders."""
    target.mkdir(exist_ok=True)
    lines = []
    with zipfile.ZipFile(target / f"{split}.zip", "w") as archive:
        for file in sorted((folder / split).rglob("*.png")):
            name = file.name if flat else f"{file.parent.name}/{file.name}"
            archive.write(file, f"{split}/{name}")
            if order:
                lines.append(f"{name}\t{order.index(file.parent.name)}\n")
    if order:
        (target / f"{split}_map.txt").write_text("".join(lines))


def test_the_same_digits_from_everywhere(ten, tmp_path):
    def sums(path, split="val"):
        """Every image's bytes with its class name, sorted: these must agree for all sources; and the classes."""
        images, labels, classes = pixels.read("digits", path, split, 8)
        assert images.shape[1:] == (8, 8, 3) and images.dtype == torch.uint8
        return sorted(
            (classes[label], image.numpy().tobytes()) for image, label in zip(images, labels.tolist(), strict=True)
        ), classes

    built_in, classes = sums(None)
    zipped(ten, tmp_path / "plain", "val")
    shuffled = list("3108529764")
    zipped(ten, tmp_path / "mapped", "train", shuffled)
    zipped(ten, tmp_path / "mapped", "val", shuffled, flat=True)
    assert sums(ten) == sums(tmp_path / "plain") == (built_in, classes) and len(built_in) == 397
    assert sums(tmp_path / "mapped") == (built_in, shuffled)
    assert sums(tmp_path / "mapped", "train")[0] == sums(None, "train")[0]


@pytest.mark.parametrize("mapped", [True, False])
def test_a_class_may_have_the_splits_name(ten, tmp_path, mapped):
    """CIFAR-100 has a class "train"."""
    shutil.copytree(ten / "val", tmp_path / "folder/train")
    (tmp_path / "folder/train/7").rename(tmp_path / "folder/train/train")
    classes = [*"01234568", "9", "train"]
    zipped(tmp_path / "folder", tmp_path / "zips", "train", classes if mapped else None)
    images, labels, names = pixels.read("digits", tmp_path / "zips", "train", 8)
    expected = pixels.read("digits", tmp_path / "folder", "train", 8)
    assert names == classes and torch.equal(labels, expected[1]) and torch.equal(images, expected[0])
    if mapped:
        with viz.active():
            found = open_images(tmp_path / "zips", "train")
        assert found.classes == classes and found.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("name, classes", [("cifar10", 10), ("cifar100", 100)])
def test_each_split_of_torchvisions_cifar_is_its_own_in_all_readers(name, classes, tmp_path, monkeypatch):
    """Files in the authors' format with different images in each split; their checksums are not the real ones."""
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    folder, random = tmp_path / kind.base_folder, np.random.default_rng(0)
    folder.mkdir()
    expected = {"train": ([], []), "val": ([], [])}
    for split, files in (("train", kind.train_list), ("val", kind.test_list)):
        for file, _ in files:
            planes, labels = random.integers(256, size=(4, 3072), dtype=np.uint8), random.integers(classes, size=4).tolist()
            (folder / file).write_bytes(pickle.dumps({"data": planes, "labels" if classes == 10 else "fine_labels": labels}))
            expected[split][0].append(planes.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1))
            expected[split][1].extend(labels)
    names = [f"class {number}" for number in range(classes)]
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))
    cifar = deit.load("data.cifar")
    for split, (planes, labels) in expected.items():
        images, found, theirs = pixels.read(name, tmp_path, split, 32)
        assert np.array_equal(images.numpy(), np.concatenate(planes)) and found.tolist() == labels and theirs == names
        read = cifar.CifarImages(tmp_path, split, kind)
        assert np.array_equal(np.stack([read[i][0] for i in range(len(read))]), images.numpy()) and read.labels.tolist() == labels
        with viz.active():
            read = open_images(tmp_path, split, name)
        assert np.array_equal(np.stack([read[i][0] for i in range(len(read))]), images.numpy()) and read.labels.tolist() == labels


def test_idx_files(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(5, 28, 28), dtype=np.uint8)
    header = bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes()
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(header + images.tobytes())
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 5, 9, 0, 3, 3, 1])
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    found, targets, classes = pixels.read("fashion-mnist", tmp_path, "val", 28)
    assert np.array_equal(found.numpy(), images[..., None].repeat(3, 3)) and targets.tolist() == [9, 0, 3, 3, 1]
    assert classes[9] == "Ankle boot"
    raw = tmp_path / "download/FashionMNIST/raw"  # torchvision's layout, which viz/ finds by the checkpoint's data_path
    raw.mkdir(parents=True)
    for stem, content in {"train": labels[:8] + bytes(5), "t10k": labels}.items():
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(content)
    assert pixels.read("fashion-mnist", tmp_path / "download", "train", 28)[1].tolist() == [0] * 5
    again = pixels.read("fashion-mnist", tmp_path / "download", "val", 28)
    assert torch.equal(again[0], found) and torch.equal(again[1], targets) and again[2] == classes
    with viz.active():
        assert open_images(tmp_path / "download", "val", "fashion-mnist").labels.tolist() == targets.tolist()
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="fashion-mnist: is damaged in .*download"):
        pixels.read("fashion-mnist", tmp_path / "download", "val", 28)
    with pytest.raises(InputError, match=r"wanted are \(N, 32, 32\)"):
        pixels.read("fashion-mnist", tmp_path, "val", 32)
    with pytest.raises(InputError, match="holds neither"):  # its class names are not CIFAR's
        pixels.read("cifar10", tmp_path, "val", 28)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels)[:-9])
    with pytest.raises(InputError, match="labels-idx1-ubyte.gz: damaged"):
        pixels.read("fashion-mnist", tmp_path, "val", 28)


def test_bad_data(ten, tmp_path):
    def refused(match, path, data="digits", size=8):
        with pytest.raises(InputError, match=match) as error:
            pixels.read(data, path, "val", size)
        assert "\n" not in str(error.value)

    refused("no such folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("holds neither .*val.zip$", tmp_path / "empty")
    (tmp_path / "empty/test").mkdir()
    refused("val.zip; rename its folder test to val", tmp_path / "empty")
    refused(r"0/0_\d+.png has 8x8 pixels, not 28x28", ten, "fashion-mnist", 28)
    zipped(ten, tmp_path / "stray", "val", flat=True)
    refused("are in no class folders", tmp_path / "stray")
    (tmp_path / "stray/val_map.txt").write_text("0_1402.png 0\n")
    refused("val_map.txt, line 1", tmp_path / "stray")
    (tmp_path / "stray/val_map.txt").write_text("0_1402.png\t0\n0_1402.png\t1\n")
    refused("val_map.txt: 0_1402.png is there more than once", tmp_path / "stray")
    (tmp_path / "stray/val_map.txt").write_text("0_1402.png\t0\n")
    refused("397 in the archive but not in the map", tmp_path / "stray")
    (tmp_path / "wrapped").mkdir()
    for split in ("train", "val"):
        with zipfile.ZipFile(tmp_path / f"wrapped/{split}.zip", "w") as archive:
            for file in sorted((ten / "val").rglob("*.png")):
                archive.write(file, f"data/{split}/{file.parent.name}/{file.name}")
    with pytest.raises(InputError, match="one class, data; images are train/<class>/<image>, of two classes or more"):
        open_data(Inputs("digits", tmp_path / "wrapped", 8, 1.0, [0.0] * 3, [1.0] * 3, "cpu"))
    content = (tmp_path / "stray/val.zip").read_bytes()
    (tmp_path / "stray/val.zip").write_bytes(content[:-40])
    refused("val.zip: truncated or damaged", tmp_path / "stray")
    shutil.copytree(ten / "val", tmp_path / "broken/val")
    (tmp_path / "broken/val/4/4_1404.png").write_bytes(b"not a picture")
    refused("4_1404.png does not decode", tmp_path / "broken")
    (tmp_path / "broken/val/4/4_1404.png").unlink()
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "broken/val/4/4_1404.tif")
    refused("4_1404.tif does not decode .*floating-point", tmp_path / "broken")


@pytest.mark.parametrize(("form", "options", "tolerance"), [("png", {}, 0), ("webp", {"lossless": True}, 0), ("jpeg", {}, 64)])
def test_archives_of_every_format_give_the_folders_pixels(ten, tmp_path, form, options, tolerance):
    """Entries are stored or deflated, and hidden ones are ignored. The pixels equal Pillow's, or are within JPEG's loss."""
    folder = tmp_path / "folder/val"
    files = sorted((ten / "val").rglob("*.png"), key=lambda file: (file.parent.name, file.name))[::5]
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
        for number, file in enumerate(files):
            target = folder / file.parent.name / f"{file.stem}.{form}"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(file).save(target, form.upper(), **options)
            method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            archive.write(target, f"val/{target.relative_to(folder)}", method)
            for hidden in (target.with_name(f"._{target.name}"), folder / ".cache" / target.name):
                hidden.parent.mkdir(exist_ok=True)
                hidden.write_bytes(b"no image")
                archive.write(hidden, f"val/{hidden.relative_to(folder)}")
    images, labels, classes = pixels.read("digits", tmp_path, "val", 8)
    expected = pixels.read("digits", tmp_path / "folder", "val", 8)
    assert torch.equal(images, expected[0]) and torch.equal(labels, expected[1]) and classes == expected[2] == list("0123456789")
    originals = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]).astype(int)
    assert np.abs(images.numpy() - originals).max() <= tolerance and len(images) == 80
