"""Conv/ffcv/: real .ffcv files of digits, written, loaded, trained on, resumed and evaluated; nothing of FFCV is replaced."""

import contextlib
import importlib
import importlib.util
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from conftest import ROOT, complains, run
from training import assert_same, kill_all, log

FOLDER = ROOT / "Conv/ffcv"
TRAIN, WRITE = FOLDER / "train_imagenet.py", FOLDER / "write_imagenet.py"

if importlib.util.find_spec("ffcv") is None:
    if os.environ.get("FFCV_REQUIRED"):
        raise RuntimeError("FFCV_REQUIRED is set, but FFCV is not installed; bash Conv/ffcv/install.sh says why")
    pytest.skip("FFCV is not installed; bash Conv/ffcv/install.sh installs it", allow_module_level=True)


def import_modules() -> list:
    """The folder's modules, imported as if it were the only one: other folders have modules of the same names."""
    names = [path.stem for path in FOLDER.glob("*.py")]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    try:
        wanted = ("config", "ffcv_file", "loaders", "models", "train_imagenet", "write_imagenet", "checkpoint", "errors")
        return [importlib.import_module(name) for name in wanted]
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(others)


config, ffcv_file, loaders, models, train_imagenet, write_imagenet, checkpoint, errors = import_modules()
CPU = torch.device("cpu")
SMALL = """
    --model.arch=resnet18 --resolution.min_res=8 --resolution.max_res=8 --validation.resolution=8 --validation.crop_ratio=1
    --augmentation.flip=0.5 --lr.lr=0.01 --lr.for_batch=0 --training.batch_size=32 --validation.batch_size=10 --data.num_workers=1
    --training.device=cpu --training.epochs=2
""".split()


@pytest.fixture(scope="module")
def files(few, tmp_path_factory):
    """The few digits as raw .ffcv files, written by two processes."""
    folder = tmp_path_factory.mktemp("ffcv")
    environment = {**os.environ, "IMAGENET_DIR": str(few), "WRITE_DIR": str(folder), "PYTHON": sys.executable}
    words = ["bash", str(FOLDER / "write_imagenet.sh"), "500", "0", "90", "--num-workers", "2"]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "64 images of 2 classes" in result.stdout and "33 images of 2 classes" in result.stdout
    assert len(list(folder.iterdir())) == 4
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """40 JPEGs of many sizes, as photographs have: enlarged digits, all of class "a", as an image folder."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "a").mkdir()
    generator = np.random.default_rng(0)
    for index, digit in enumerate(load_digits().images[:40]):
        size = tuple(int(side) for side in generator.integers(20, 120, 2))
        image = Image.fromarray(np.round(digit * 255 / 16).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        (image if index % 2 else image.convert("RGB")).save(folder / f"a/{index:02d}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def full_size(photographs):
    """Them as a .ffcv file at full size, half of them as JPEG."""
    path = photographs / "x.ffcv"
    result = run(WRITE, "--data", photographs, "--output", path, "--max-resolution", 0)
    assert result.returncode == 0, result.stderr
    return path


def data(files):
    return [f"--data.train_dataset={files}/train_500_0_90.ffcv", f"--data.val_dataset={files}/val_500_0_90.ffcv"]


def settings(*words):
    return config.read([*SMALL, *[str(word) for word in words]])[0]


def train(*words):
    train_imagenet.main([*SMALL, *[str(word) for word in words]])


def open_val(files, on_device=False, **more):
    file = ffcv_file.read(files / "val_500_0_90.ffcv", "")
    whole = {"crops": lambda images, _: loaders.centre_crops(images, 1.0), "batch_size": 10, "workers": 1, "device": CPU}
    return file, loaders.Images(file.path, file.records, on_device=on_device, **(whole | more))


def pixels_of(folder):
    """Every image of a folder in file order, by Pillow: uint8 (N, H, W, 3), and labels."""
    samples = torchvision.datasets.ImageFolder(folder).samples
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in samples]), [label for _, label in samples]


def samples_of(path):
    """(mode, width, height, label, bytes) of every sample of a .ffcv file, read by hand."""
    file, content = ffcv_file.read(path, ""), path.read_bytes()
    table = np.frombuffer(content[int.from_bytes(content[16:24], "little") :], "<u8").reshape(-1, 3)
    sizes = {int(place): int(size) for _, place, size in table}
    found = []
    for (mode, width, height, place), label in zip(file.records["f0"].tolist(), file.records["f1"].tolist()):
        found.append((mode, width, height, label, content[place : place + sizes[place]]))
    return found


# ------------------------------------------------------------------------------------------------------------- writing


def test_the_files_hold_the_images(files, few):
    for split in ("train", "val"):
        pixels, labels = pixels_of(few / split)
        samples = samples_of(files / f"{split}_500_0_90.ffcv")
        assert [label for *_, label, _ in samples] == labels
        assert [bytes_ for *_, bytes_ in samples] == [image.tobytes() for image in pixels]
        description = json.loads((files / f"{split}_500_0_90.ffcv.json").read_text())
        assert description["classes"] == ["even", "odd"] and description["images"] == len(labels)
        assert description["source"] == str(few / split)


def test_writing_is_the_same_with_any_number_of_processes(photographs, tmp_path):
    """Half of the images as JPEG, most of them scaled down; each process writes several chunks."""
    words = ["--data", photographs, "--max-resolution", 64, "--jpeg-quality", 80]
    for name, more in {"one": ["--num-workers", 1], "three": ["--num-workers", 3]}.items():
        result = run(WRITE, *words, "--output", tmp_path / f"{name}.ffcv", *more)
        assert result.returncode == 0, result.stderr
    one, three = (samples_of(tmp_path / f"{name}.ffcv") for name in ("one", "three"))
    assert one == three
    assert 10 < sum(mode == ffcv_file.JPEG for mode, *_ in one) < 30
    assert max(max(width, height) for _, width, height, _, _ in one) == 64


def test_a_broken_image_is_named_and_leaves_no_file(few, tmp_path):
    shutil.copytree(few / "val", tmp_path / "val")
    broken = sorted((tmp_path / "val/odd").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:60])
    (tmp_path / "out").mkdir()
    complains(run(WRITE, "--data", tmp_path / "val", "--output", tmp_path / "out/x.ffcv"), broken.name, "does not decode")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_write_leaves_nothing_under_the_final_name(few, tmp_path, kind):
    (tmp_path / "data/a").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    image = next((few / "val/odd").iterdir())
    for index in range(20_000):
        (tmp_path / f"data/a/{index}.png").symlink_to(image)
    words = [sys.executable, str(WRITE), "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out/x.ffcv")]
    child = subprocess.Popen([*words, "--num-workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not any(path.stat().st_size for path in (tmp_path / "out").iterdir()):
        assert child.poll() is None and time.time() < deadline
        time.sleep(0.01)
    child.send_signal(kind)
    said = child.communicate(timeout=60)[1]
    assert child.returncode != 0 and not (tmp_path / "out/x.ffcv").exists() and not (tmp_path / "out/x.ffcv.json").exists()
    if kind == signal.SIGTERM:
        # Python may say above it that it ignored the exception where it forked; it is then raised once more.
        assert said.splitlines()[-1].startswith("interrupted") and not list((tmp_path / "out").iterdir()), said


def test_bad_options_of_writing(few, files, tmp_path, monkeypatch):
    def refused(match, *words):
        monkeypatch.setattr(sys, "argv", ["write_imagenet.py", *[str(word) for word in words]])
        with pytest.raises(errors.InputError, match=match) as error:
            write_imagenet.main()
        assert "\n" not in str(error.value)

    good = ["--data", few / "val", "--output", tmp_path / "x.ffcv"]
    refused("--compress-probability 1.5: goes from 0 to 1", *good, "--compress-probability", 1.5)
    refused("--compress-probability nan", *good, "--compress-probability", "nan")
    refused("--max-resolution -1", *good, "--max-resolution", -1)
    refused("--max-resolution 60000: .*lower it", *good, "--max-resolution", 60000)
    refused("--jpeg-quality 0", *good, "--jpeg-quality", 0)
    refused("nowhere: no such folder", "--data", few / "nowhere", "--output", tmp_path / "x.ffcv")
    refused("<class>/<image>", "--data", few / "val/odd", "--output", tmp_path / "x.ffcv")
    refused("is there already; --overwrite", "--data", few / "val", "--output", files / "val_500_0_90.ffcv")
    refused("no such folder to write to", "--data", few / "val", "--output", tmp_path / "no/x.ffcv")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------- loading


def test_both_orders_of_device_give_pillows_pixels(files, few):
    """33 images in batches of 10: none is lost, also not the last 3. The order for GPUs runs here on the CPU."""
    pixels, expected_labels = pixels_of(few / "val")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((torch.tensor(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    for on_device in (False, True):
        _, images = open_val(files, on_device)
        batches = [(batch.clone(), labels.clone()) for batch, labels in images.epoch(0, 8)]
        assert [len(labels) for _, labels in batches] == [10, 10, 10, 3] and batches[0][1].dtype == torch.int64
        torch.testing.assert_close(torch.cat([batch for batch, _ in batches]), expected, atol=1e-6, rtol=1e-6)
        assert torch.cat([labels for _, labels in batches]).tolist() == expected_labels


def test_crops_are_cut_and_scaled_as_ffcv_does_it(full_size):
    """JPEG and raw images of many sizes through FFCV's own decoder and ours, to the bit; and mirrored."""
    from ffcv.fields.decoders import CenterCropRGBImageDecoder
    from ffcv.loader import Loader
    from ffcv.transforms import ToTensor

    path = full_size
    theirs = Loader(
        str(path), 40, 1, drop_last=False, pipelines={"image": [CenterCropRGBImageDecoder((24, 24), 0.875), ToTensor()]}
    )
    expected = next(iter(theirs))[0].clone()
    file = ffcv_file.read(path, "")
    flips = np.arange(40) % 3 == 0

    def crops(images, epoch):
        loaders.centre_crops(images, 0.875)
        images["flip"] = flips

    ours = loaders.Images(path, file.records, crops, 40, 1, CPU, on_device=True)
    batch = next(iter(ours.epoch(0, 24)))[0]
    mean, std = torch.tensor(loaders.MEAN).view(3, 1, 1), torch.tensor(loaders.STD).view(3, 1, 1)
    found = ((batch * std + mean) * 255).round().byte().permute(0, 2, 3, 1)
    expected[torch.from_numpy(flips)] = expected[torch.from_numpy(flips)].flip(2)
    assert expected.float().std() > 30 and torch.equal(found, expected)


def test_random_crops_have_torchvisions_distribution():
    """20,000 crops of a 100x150 image: the mean of each quantity within 5 standard errors of torchvision's mean."""
    images = np.zeros(20_000, loaders.IMAGE_TYPE)
    images["height"], images["width"] = 100, 150
    loaders.random_crops(images, 0, 0, 0.08, 0.5)
    torch.manual_seed(0)
    tensor = torch.empty(3, 100, 150)
    draw = torchvision.transforms.RandomResizedCrop.get_params
    theirs = np.array([draw(tensor, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(20_000)], float)
    ours = np.stack([images[name].astype(float) for name in ("top", "left", "crop_height", "crop_width")], 1)
    for a, b in (
        (ours, theirs),
        (ours[:, 2:].prod(1), theirs[:, 2:].prod(1)),
        (ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3]),
    ):
        error = np.sqrt((a.var(0) + b.var(0)) / 20_000)
        assert (np.abs(a.mean(0) - b.mean(0)) < 5 * error).all()
        assert np.abs(a.std(0) / b.std(0) - 1).max() < 0.03
    assert (ours[:, 0] + ours[:, 2] <= 100).all() and (ours[:, 1] + ours[:, 3] <= 150).all() and ours[:, 2:].min() > 0
    assert abs(images["flip"].mean() - 0.5) < 5 * 0.5 / 20_000**0.5


def test_crops_are_a_function_of_seed_and_epoch_and_narrow_images_have_one():
    def drawn(seed, epoch):
        images = np.zeros(50, loaders.IMAGE_TYPE)
        images["height"], images["width"] = 40, 60
        images["height"][0], images["width"][0] = 10, 1000
        loaders.random_crops(images, seed, epoch, 0.9, 0.5)
        return images

    assert np.array_equal(drawn(0, 3), drawn(0, 3))
    assert not np.array_equal(drawn(0, 3), drawn(0, 4)) and not np.array_equal(drawn(0, 3), drawn(1, 2))
    first = drawn(0, 3)[0]
    # torchvision's way out as well: the full height, 4/3 of it wide, in the centre
    assert [first[name] for name in ("top", "left", "crop_height", "crop_width")] == [0, (1000 - 13) // 2, 10, 13]


def test_orders_share_one_shuffle():
    """Two processes with 8 images a batch see together what one with 16 sees; an epoch shows each image at most once."""
    for epoch in (0, 5):
        one = loaders.EpochOrder(50, 16, 7).sample_order(epoch)
        two = [loaders.EpochOrder(50, 8, 7, rank, 2).sample_order(epoch).reshape(3, 8) for rank in (0, 1)]
        assert len(one) == 48 == len(set(one.tolist()))
        assert np.array_equal(np.concatenate(two, 1).flatten(), one)
    assert not np.array_equal(loaders.EpochOrder(50, 16, 7).sample_order(0), loaders.EpochOrder(50, 16, 7).sample_order(1))
    assert not np.array_equal(loaders.EpochOrder(50, 16, 7).sample_order(1), loaders.EpochOrder(50, 16, 8).sample_order(0))


def test_epochs_do_not_depend_on_threads_or_history(files, capsys):
    """Epoch 3 from a fresh loader with one thread equals epoch 3 after epoch 0 from one with two, in memory and paged."""
    file = ffcv_file.read(files / "train_500_0_90.ffcv", "")
    for in_memory in (1, 0):
        seen = []
        for threads, epochs in ((1, [3]), (2, [0, 3])):
            options = settings(f"--data.in_memory={in_memory}", f"--data.num_workers={threads}", "--training.batch_size=16")
            images = loaders.train_images(file.path, file.records, options, CPU)
            for epoch in epochs:
                batches = [(batch.clone(), labels.clone()) for batch, labels in images.epoch(epoch, 8)]
            seen.append((torch.cat([batch for batch, _ in batches]), torch.cat([labels for _, labels in batches])))
        assert len(seen[0][1]) == 64 and sorted(seen[0][1].tolist()) == [0] * 32 + [1] * 32
        assert_same(seen[0], seen[1])


def test_an_image_that_does_not_decode_is_named(full_size, tmp_path):
    path, content = tmp_path / "x.ffcv", bytearray(full_size.read_bytes())
    images = ffcv_file.read(full_size, "").records["f0"]
    number = int(np.flatnonzero(images["mode"] == ffcv_file.JPEG)[3])
    place = int(images["data_ptr"][number])
    content[place : place + 400] = bytes(400)
    path.write_bytes(content)
    file = ffcv_file.read(path, "")
    images = loaders.Images(path, file.records, lambda images, _: loaders.centre_crops(images, 1.0), 10, 1, CPU, False)
    with pytest.raises(errors.InputError, match=f"x.ffcv: images that do not decode: number {number} "):
        for _ in images.epoch(0, 16):
            pass


def test_what_the_loading_thread_raises_arrives(files):
    """FFCV alone would wait for its dead thread for ever. Here the thread finds no labels."""
    _, images = open_val(files)
    images.loader.reader.metadata = {"f0": images.loader.reader.metadata["f0"]}
    with pytest.raises(KeyError, match="f1"):
        next(images.epoch(0, 8))


# ------------------------------------------------------------------------------------------------------------ training


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    """A finished run of 2 epochs, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    with contextlib.redirect_stdout(open(folder.parent / "printed", "w")) as file, file:
        train(*data(files), f"--logging.folder={folder}", "--model.blurpool=1", "--loss.alpha_end=0.2")
    return folder, (folder.parent / "printed").read_text()


def test_a_run_says_what_it_does_and_leaves_checkpoint_params_and_log(trained, files, few):
    folder, printed = trained
    assert "global batch   32 = 1 x 32" in printed and "2 steps each" in printed and "maxsup 0.1 -> 0.2" in printed
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pth", "log.jsonl", "params.json"]
    params = json.loads((folder / "params.json").read_text())
    assert {f"{section}.{key}" for section, keys in params.items() for key in keys} == set(config.OPTIONS)
    assert params["loss"] == {"name": "maxsup", "alpha": 0.1, "alpha_end": 0.2} and params["model"]["num_classes"] == 2
    lines = log(folder)
    assert [line["epoch"] for line in lines] == [1, 2] and all(line["val_images"] == 33 for line in lines)
    assert [line["alpha"] for line in lines] == pytest.approx([0.1, 0.2]) and lines[0]["train_images_per_second"] > 0
    state = torch.load(folder / "checkpoint.pth", weights_only=True)
    assert set(state) == {"model", "optimizer", "lr_scheduler", "model_ema", "scaler", "loss", "epoch", "rng", "args", "classes"}
    assert state["classes"] == ["even", "odd"] and state["epoch"] == 1 and state["model_ema"] is None
    facts = {"library": "torchvision", "model": "resnet18", "num_classes": 2, "input_size": 8, "crop_ratio": 1.0}
    facts |= {"interpolation": "bilinear", "blurpool": True, "small_stem": False, "data_path": str(few), "loss": "maxsup"}
    assert {key: state["args"][key] for key in facts} == facts
    assert state["args"]["mean"] == [0.485, 0.456, 0.406] and state["args"]["std"] == [0.229, 0.224, 0.225]
    assert "layer2.0.conv1.conv.weight" in state["model"] and "layer2.0.conv1.blur_filter" in state["model"]


def test_weight_decay_spares_norms_and_biases(trained):
    groups = torch.load(trained[0] / "checkpoint.pth", weights_only=True)["optimizer"]["param_groups"]
    model = models.create_model("resnet18", 2, blurpool=True)
    matrices = sum(isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) for module in model.modules())
    assert {group["weight_decay"]: len(group["params"]) for group in groups} == {
        1e-4: matrices,
        0.0: len([*model.parameters()]) - matrices,
    }


def test_pillow_and_ffcv_give_the_same_numbers(trained, few):
    """Top-1, loss and ECE of the log from logits that Pillow's pixels and a model built here from the checkpoint's names give."""
    folder, _ = trained
    model = models.create_model("resnet18", 2, blurpool=True)
    model.load_state_dict(torch.load(folder / "checkpoint.pth", weights_only=True)["model"])
    pixels, labels = pixels_of(few / "val")
    images = (torch.tensor(pixels) / 255 - torch.tensor(loaders.MEAN)) / torch.tensor(loaders.STD)
    with torch.no_grad():
        logits = model.eval()(images.permute(0, 3, 1, 2))
    labels, last = torch.tensor(labels), log(folder)[-1]
    assert last["val_top1"] == pytest.approx(100 * MulticlassAccuracy(2, average="micro")(logits, labels).item(), abs=1e-4)
    assert last["val_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-4)
    assert last["val_ece"] == pytest.approx(MulticlassCalibrationError(2, 15)(logits.softmax(1), labels).item(), abs=1e-4)


def test_train_sh_killed_and_run_again_ends_bit_identical(files, tmp_path):
    """SIGKILL in the middle of the paper's row, then the same command: what it leaves equals a run that nothing disturbed."""
    words = [*SMALL, *data(files), "--training.epochs=4", "--model.blurpool=0"]
    train("--config", FOLDER / "configs/rn18_ols.yaml", *words, "--data.num_workers=2", f"--logging.folder={tmp_path}/whole")
    environment = {**os.environ, "LOSSES": "ols", "OUTPUT": str(tmp_path), "PYTHON": sys.executable, "ARCH": "rn18", "GPUS": "1"}
    command, broken = ["bash", str(FOLDER / "train.sh"), *words], tmp_path / "rn18_ols"
    with open(tmp_path / "printed", "w") as printed:
        child = subprocess.Popen(command, stdout=printed, stderr=printed, env=environment)
        deadline = time.time() + 120
        while not (broken / "log.jsonl").exists() or len(log(broken)) < 2:
            assert child.poll() is None and time.time() < deadline, (tmp_path / "printed").read_text()
            time.sleep(0.01)
        kill_all(broken)
        child.wait()
    assert len(log(broken)) < 4, "too late: the run had finished"
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert re.search(r"resuming .*rn18_ols/checkpoint.pth after epoch [1-3] of 4", result.stdout), result.stdout
    ours, theirs = (torch.load(folder / "checkpoint.pth", weights_only=True) for folder in (broken, tmp_path / "whole"))
    for key in ("model", "optimizer", "lr_scheduler", "loss", "epoch", "rng", "classes"):
        assert_same(ours[key], theirs[key])
    for key in ("epoch", "train_loss", "val_top1", "val_loss", "val_ece", "lr"):
        assert [line[key] for line in log(broken)] == [line[key] for line in log(tmp_path / "whole")]


def test_two_processes_count_each_image_once(files, tmp_path):
    """33 images do not divide among two; what they log is what one process finds for the checkpoint. Steps: 64 / (2 x 16)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", TRAIN]
    result = run(
        *command, *SMALL, *data(files), "--training.batch_size=16", f"--logging.folder={tmp_path}", "--training.epochs=1"
    )
    assert result.returncode == 0, result.stderr
    assert "2 x 16" in result.stdout and "2 steps each" in result.stdout and result.stdout.count("global batch") == 1
    last = log(tmp_path)[-1]
    assert last["val_images"] == 33
    assert evaluated(tmp_path / "checkpoint.pth", files)[1:] == pytest.approx(
        [last["val_top1"], last["val_top5"], last["val_loss"], last["val_ece"]], abs=0.006
    )


def evaluated(path, files, *words):
    """What --eval prints: images, top-1, top-5, loss, ECE."""
    with contextlib.redirect_stdout(open(os.devnull, "w")), pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(train_imagenet.distributed, "say", said.append)
        train_imagenet.main([*SMALL, "--eval", "--resume", str(path), data(files)[1], *words])
    found = re.search(r"on (\S+) images: top-1 (\S+) %  top-5 (\S+) %  loss (\S+)  ECE (\S+)", said[-1])
    return [float(value) for value in found.groups()]


def test_checkpoints_of_the_originals_forms_are_evaluated(trained, files, tmp_path):
    """Bare weights, DistributedDataParallel's and Lightning's names: BlurPool is seen by its buffers, the classes by the bias."""
    folder, _ = trained
    weights = torch.load(folder / "checkpoint.pth", weights_only=True)["model"]
    last = log(folder)[-1]
    expected = [33, last["val_top1"], last["val_top5"], last["val_loss"], last["val_ece"]]
    lightning = {
        "state_dict": {f"model.{key}": value for key, value in weights.items()},
        "epoch": 89,
        "pytorch-lightning_version": "2",
    }
    forms = {"ours": None, "ddp": {f"module.{key}": value for key, value in weights.items()}, "lightning": lightning}
    for name, content in forms.items():
        if content:
            torch.save(content, tmp_path / f"{name}.pt")
        found = evaluated(tmp_path / f"{name}.pt" if content else folder / "checkpoint.pth", files)
        assert found == pytest.approx(expected, abs=0.006)
    mirrored = evaluated(folder / "checkpoint.pth", files, "--validation.lr_tta=1")
    assert mirrored[0] == 33 and mirrored[3] != expected[3]


def test_every_loss_trains(files):
    """Three epochs each over the same images, from the same weights; Zipf's ranks come from the feature map."""
    options = settings("--training.epochs=3", "--training.amp=off", "--lr.lr=2e-3")
    file = ffcv_file.read(files / "train_500_0_90.ffcv", "")
    batches = loaders.train_images(file.path, file.records, options, CPU)
    for name in ("ce", "ls", "ols", "zipf", "logit-penalty", "maxsup"):
        options.loss.name, options.loss.alpha, options.model.num_classes = name, None, 2
        torch.manual_seed(0)
        model, criterion = models.create_model("resnet18", 2), train_imagenet.build_criterion(options)
        wrapped = train_imagenet.wrap(model, options)
        assert isinstance(wrapped, models.WithDenseLogits) == (name == "zipf")
        optimizer = train_imagenet.build_optimizer(model, 2e-3, options.training)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        arguments = [wrapped, criterion, batches, optimizer, scaler, 2e-3, 8, options]
        losses = [train_imagenet.train_one_epoch(*arguments, epoch, CPU)["loss"] for epoch in range(3)]
        assert losses[-1] < losses[0], name


def test_the_dense_logits_average_to_the_logits():
    """The classifier is linear and the pooling a mean, so the mean of the locations' logits is the image's logits."""
    torch.manual_seed(0)
    model = models.create_model("resnet18", 5, small_stem=True).eval()
    logits, dense = models.WithDenseLogits(model)(torch.randn(2, 3, 32, 32))
    assert dense.shape == (2, 5, 16)
    torch.testing.assert_close(dense.mean(2), logits.detach(), atol=1e-5, rtol=1e-5)


def test_blurpool_by_hand():
    """An impulse comes out as the binomial filter, sampled with the stride; only strides with 16 inputs or more are blurred."""
    conv = torch.nn.Conv2d(16, 16, 1, stride=2, bias=False)
    conv.weight.data = torch.eye(16).view(16, 16, 1, 1)
    image = torch.zeros(1, 16, 7, 7)
    image[0, 4, 2, 3] = 16
    expected = torch.zeros(7, 7)
    expected[1:4, 2:5] = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    found = models.BlurPool(conv)(image)
    assert torch.equal(found[0, 4], expected[::2, ::2]) and found.sum() == found[0, 4].sum()
    names = {
        name
        for name, module in models.create_model("resnet50", 10, blurpool=True).named_modules()
        if isinstance(module, models.BlurPool)
    }
    assert names == {f"layer{i}.0.{end}" for i in (2, 3, 4) for end in ("conv2", "downsample.0")}


def test_rates_and_resolutions():
    step = settings("--lr.schedule=step", "--training.epochs=90")
    found = [train_imagenet.rate_factor(epoch, 0.5, step) for epoch in (0, 29, 30, 60, 89)]
    assert found == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    cyclic = settings("--lr.schedule=cyclic", "--training.epochs=16", "--lr.peak_epoch=2")
    found = [train_imagenet.rate_factor(epoch, within, cyclic) for epoch, within in ((0, 0), (1, 0), (2, 0), (9, 0), (15, 0.5))]
    assert found == pytest.approx([1e-4, 0.50005, 1, 0.5, 0.5 / 14])
    ramp = settings(
        "--resolution.min_res=160", "--resolution.max_res=192", "--resolution.start_ramp=11", "--resolution.end_ramp=13"
    )
    assert [train_imagenet.resolution(epoch, ramp.resolution) for epoch in (0, 11, 13, 15)] == [160, 160, 192, 192]
    assert all(train_imagenet.resolution(epoch, ramp.resolution) % 32 == 0 for epoch in range(16))


def test_sizes_grow_while_training(files):
    """One loader, two resolutions: the decoder follows."""
    file = ffcv_file.read(files / "train_500_0_90.ffcv", "")
    images = loaders.train_images(file.path, file.records, settings(), CPU)
    assert [next(iter(images.epoch(epoch, side)))[0].shape for epoch, side in ((0, 8), (1, 16))] == [
        (32, 3, 8, 8),
        (32, 3, 16, 16),
    ]


# ------------------------------------------------------------------------------------------------------- configurations


def test_configs_agree_in_all_but_what_they_are_named_for():
    paths = {path.stem: config.read(["--config", str(path)])[0] for path in sorted((FOLDER / "configs").glob("*.yaml"))}
    losses = ("ce", "ls", "ols", "zipf", "logit-penalty", "maxsup")
    assert set(paths) == {f"{arch}_{loss}" for arch in ("rn18", "rn50", "rn18_16", "rn50_16") for loss in losses} | {
        "digits_maxsup"
    }
    strengths = {"ls": (0.1, None), "maxsup": (0.1, 0.2)}
    for name, found in paths.items():
        arch, _, loss = name.rpartition("_")
        assert (found.loss.name, found.logging.folder) == (loss, f"output/{name}")
        assert (found.loss.alpha, found.loss.alpha_end) == strengths.get(loss, (None, None))
        first = config.plain(paths[f"{arch}_maxsup"])
        assert {**config.plain(found), "loss": 0, "logging": 0} == {**first, "loss": 0, "logging": 0}
    original = paths["rn50_maxsup"]
    assert (original.model.arch, original.model.blurpool, original.validation.resolution) == ("resnet50", True, 256)
    assert vars(original.lr) == {
        "lr": 0.8,
        "for_batch": 2048,
        "schedule": "step",
        "step_ratio": 0.1,
        "step_length": 30,
        "peak_epoch": 2,
    }
    assert (original.training.epochs, original.training.batch_size, original.training.weight_decay) == (90, 512, 1e-4)
    assert (original.resolution.min_res, original.resolution.max_res) == (224, 224) and paths[
        "rn18_maxsup"
    ].model.arch == "resnet18"


def test_the_command_line_overrides_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: {lr: 1e-3, schedule: cyclic}\nloss: {alpha: null}\nmodel: {blurpool: true}\n")
    found = config.read(["--config", str(tmp_path / "a.yaml"), "--lr.schedule=step", "--training.epochs", "7"])[0]
    assert (found.lr.lr, found.lr.schedule, found.training.epochs, found.loss.alpha) == (1e-3, "step", 7, None)
    assert found.model.blurpool is True


BAD_WORDS = {
    "--lr.lrr=1": "no such key 'lr.lrr'; the nearest is 'lr.lr'",
    "--training.epoch=3": "the nearest is 'training.epochs'",
    "--resum=auto": "the nearest is 'resume'",
    "5": "expected --section.key=value",
    "--training.epochs=0": "goes from 1",
    "--training.epochs=two": "a whole number is expected",
    "--lr.lr=nan": "goes from",
    "--lr.schedule=cosine": "choose from step, cyclic",
    "--model.blurpool=2": "0 or 1 is expected",
    "--loss.alpha=-1": "goes from 0 to 1",
    "--training.epochs=none": "needs a value",
    "--resolution.min_res=300": "larger than resolution.max_res",
    "--resolution.start_ramp=5": "comes after end_ramp",
}


@pytest.mark.parametrize("word", BAD_WORDS)
def test_bad_words(word):
    with pytest.raises(errors.InputError, match=re.escape(BAD_WORDS[word])):
        config.read([word])


@pytest.mark.parametrize(
    "text, match",
    [
        ("loss: {nam: ce}", "a.yaml: no such key 'loss.nam'; the nearest is 'loss.name'"),
        ("loss: [", "not YAML"),
        ("- 1", "sections of keys"),
        ("loss: ce", "sections of keys"),
        ("training: {epochs: [1]}", "a whole number is expected"),
        ("training: {epochs: 1.5}", "a whole number is expected"),
        ("\x00", "not YAML"),
    ],
)
def test_bad_yaml(tmp_path, text, match):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(errors.InputError, match=re.escape(match)) as error:
        config.read(["--config", str(tmp_path / "a.yaml")])
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------- bad input: one line, no traceback


def refused(match, *words):
    with pytest.raises(errors.InputError, match=match) as error:
        train(*words)
    assert "\n" not in str(error.value)


def test_bad_files(files, few, tmp_path):
    good = (files / "train_500_0_90.ffcv").read_bytes()
    val, out = data(files)[1], f"--logging.folder={tmp_path}/run"

    def refused_file(match, content, description=None):
        (tmp_path / "bad.ffcv").write_bytes(content)
        (tmp_path / "bad.ffcv.json").unlink(missing_ok=True)
        if description is not None:
            (tmp_path / "bad.ffcv.json").write_text(description)
        refused(match, f"--data.train_dataset={tmp_path}/bad.ffcv", val, out)

    refused("none.ffcv: no such file", f"--data.train_dataset={tmp_path}/none.ffcv", val, out)
    refused("data.train_dataset .*: a folder", f"--data.train_dataset={tmp_path}", val, out)
    refused("data.val_dataset is missing", data(files)[0], out)
    for length in (0, 10, 1000, 3000, len(good) // 2, len(good) - 1):
        refused_file("truncated|not a .ffcv file", good[:length])
    refused_file("not a .ffcv file", b"text" * 1000)
    place = ffcv_file.HeaderType.itemsize + 2 * ffcv_file.FieldDescType.itemsize
    refused_file("its fields are not", good[:24] + b"\5" + good[25:])  # the first field's number
    for field, value in (("data_ptr", 2**60), ("width", 60000), ("mode", 7)):
        records = ffcv_file.read(files / "train_500_0_90.ffcv", "").records.copy()
        records["f0"][field][3] = value
        refused_file("damaged", good[:place] + records.tobytes() + good[place + records.nbytes :])
    records["f0"], records["f1"] = ffcv_file.read(files / "train_500_0_90.ffcv", "").records["f0"], -5
    refused_file("labels below 0", good[:place] + records.tobytes() + good[place + records.nbytes :])
    refused_file("description bad.ffcv.json is unreadable", good, "{")
    refused_file("description bad.ffcv.json is of another file", good, '{"classes": ["a"], "images": 64, "source": null}')
    refused_file("classes, or their order", good, '{"classes": ["odd", "even"], "images": 64, "source": null}')
    refused("labels up to 1, but the model has 1 outputs", *data(files), out, "--model.num_classes=1")
    refused("64 training images do not fill one batch of 65", *data(files), out, "--training.batch_size=65")


def test_files_from_elsewhere_have_numbers_for_classes(files, tmp_path):
    shutil.copy(files / "val_500_0_90.ffcv", tmp_path)
    assert ffcv_file.read(tmp_path / "val_500_0_90.ffcv", "").classes == ["0", "1"]


def test_a_file_larger_than_memory_is_warned_of(files, tmp_path, capsys):
    """A sparse file, its table a terabyte away."""
    content = bytearray((files / "val_500_0_90.ffcv").read_bytes())
    start, far = int.from_bytes(content[16:24], "little"), 10**12
    content[16:24] = far.to_bytes(8, "little")
    with open(tmp_path / "huge.ffcv", "wb") as file:
        file.write(content[:start])
        file.seek(far)
        file.write(content[start:])
    huge = ffcv_file.read(tmp_path / "huge.ffcv", "")
    train_imagenet.warn_of_memory(settings(), huge)
    said = capsys.readouterr().out
    assert said.startswith("warning: data.in_memory=1, but the files take 1000.0 GB and the memory is ") and said.count("\n") == 1
    train_imagenet.warn_of_memory(settings("--data.in_memory=0"), huge)
    train_imagenet.warn_of_memory(settings(), ffcv_file.read(files / "val_500_0_90.ffcv", ""))
    assert capsys.readouterr().out == ""


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


def test_bad_checkpoints(trained, files, tmp_path, monkeypatch):
    folder, _ = trained
    monkeypatch.chdir(tmp_path)
    good = (folder / "checkpoint.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(good[: len(good) // 2])
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Malicious()}))
    torch.save([1], tmp_path / "list.pth")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "empty.pth")
    torch.save({"model": {"fc.bias": torch.zeros(2)}}, tmp_path / "bare.pth")
    out = f"--logging.folder={tmp_path}/run"
    for how in ([], ["--eval"]):
        refused("half.pth: damaged", *data(files), out, "--resume", tmp_path / "half.pth", *how)
        refused("evil.pth: refused, .*nothing in it was run", *data(files), out, "--resume", tmp_path / "evil.pth", *how)
        refused("list.pth: a checkpoint is a dict", *data(files), out, "--resume", tmp_path / "list.pth", *how)
        refused("none.pth: no such checkpoint", *data(files), out, "--resume", tmp_path / "none.pth", *how)
    assert not (tmp_path / "was-run").exists()
    refused("empty.pth: holds no weights of a classifier", *data(files), "--eval", "--resume", tmp_path / "empty.pth")
    refused("bare.pth: the weights are another model's", *data(files), "--eval", "--resume", tmp_path / "bare.pth")
    refused("bare.pth: cannot be resumed", *data(files), out, "--resume", tmp_path / "bare.pth")
    refused("--eval needs --resume", *data(files), "--eval")
    refused("trained with model.blurpool=True, not False", *data(files), out, "--resume", folder / "checkpoint.pth")
    blurred = [*data(files), "--model.blurpool=1"]
    refused("trained with loss.name=maxsup, not ce", *blurred, out, "--resume", folder / "checkpoint.pth", "--loss.name=ce")
    refused(
        "2 epochs already, more than training.epochs=1",
        *blurred,
        out,
        "--resume",
        folder / "checkpoint.pth",
        "--training.epochs=1",
    )
    refused("holds a run already: --resume auto", *blurred, f"--logging.folder={folder}")
    refused("cannot be written", *blurred, f"--logging.folder={files}/val_500_0_90.ffcv/run")


def test_bad_models_and_losses(files, tmp_path):
    common = [*data(files), f"--logging.folder={tmp_path}/run"]
    refused("model.arch=resnet5: .*near names: resnet50", *common, "--model.arch=resnet5")
    refused("model.small_stem=1: for ResNets", *common, "--model.arch=vgg11", "--model.small_stem=1")
    refused("model.arch=alexnet cannot take images of 8 px", *common, "--model.arch=alexnet")
    refused("loss.name=maxsupp: .*maxsup", *common, "--loss.name=maxsupp")
    refused("loss.name=ce: .*no schedule", *common, "--loss.name=ce", "--loss.alpha_end=0.2")


def test_a_loss_that_is_not_finite_stops_the_run(files, tmp_path):
    words = [*data(files), f"--logging.folder={tmp_path}", "--lr.lr=1e30"]
    refused(r"the loss is (nan|inf) in epoch 1, step 2;.*last checkpoint is good", *words)
    assert not (tmp_path / "checkpoint.pth").exists()


def test_without_ffcv_both_scripts_name_the_line_that_installs_it(tmp_path):
    """A module of that name that cannot be imported stands before the real one."""
    (tmp_path / "ffcv").mkdir()
    (tmp_path / "ffcv/__init__.py").write_text("raise ImportError('libopencv_core.so.406: cannot open shared object file')")
    for script in (TRAIN, WRITE):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        result = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120)
        complains(result, "libopencv_core", f"bash {FOLDER}/install.sh")
