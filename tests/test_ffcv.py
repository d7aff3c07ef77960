"""Conv/ffcv: real .ffcv files of digits, written and loaded; no part of FFCV is replaced."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from conftest import complains, run
from ffcv_helpers import CPU, WRITE, data, errors, ffcv, ffcv_file, pixels_of, settings, write_imagenet
from subprojects import Subproject
from training import PATIENCE, as_process, assert_same

SUBPROJECT, viz = ffcv, Subproject("viz")
open_ffcv, open_images = viz.load("images.ffcv_files").open_ffcv, viz.load("images.find").open_images
transform = viz.load("images.transforms").transform


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """40 JPEGs of many sizes, like photographs: enlarged digits, all of class "a", as an image folder."""
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
    """The photographs as a .ffcv file at full size, half of them as JPEG."""
    path = photographs / "x.ffcv"
    result = run(WRITE, "--data-path", photographs, "--output", path, "--max-resolution", 0)
    assert result.returncode == 0, result.stderr
    return path


def open_val(ffcv_files, on_device=False, **more):
    file = ffcv_file.read(ffcv_files / "val_500_0_90.ffcv", "")
    whole = {"crops": lambda images, _: data.centre_crops(images, 1.0), "batch_size": 10, "workers": 1, "device": CPU}
    return file, data.Images(file.path, file.records, on_device=on_device, **(whole | more))


def samples_of(path):
    """(mode, width, height, label, bytes) of every sample of a .ffcv file, read by hand."""
    file, content = ffcv_file.read(path, ""), path.read_bytes()
    table = np.frombuffer(content[int.from_bytes(content[16:24], "little") :], "<u8").reshape(-1, 3)
    sizes = {int(start): int(size) for _, start, size in table}
    found = []
    for (mode, width, height, start), label in zip(file.records["f0"].tolist(), file.records["f1"].tolist(), strict=True):
        found.append((mode, width, height, label, content[start : start + sizes[start]]))
    return found


# ------------------------------------------------------------------------------------------------------------- writing


def test_the_files_hold_the_images(ffcv_files, few):
    for split in ("train", "val"):
        pixels, labels = pixels_of(few / split)
        samples = samples_of(ffcv_files / f"{split}_500_0_90.ffcv")
        assert [label for *_, label, _ in samples] == labels
        assert [bytes_ for *_, bytes_ in samples] == [image.tobytes() for image in pixels]
        description = json.loads((ffcv_files / f"{split}_500_0_90.ffcv.json").read_text())
        assert description["classes"] == ["even", "odd"] and description["images"] == len(labels)
        assert description["source"] == str(few / split)


def test_writing_is_the_same_with_any_number_of_processes(photographs, tmp_path):
    """Half of the images are written as JPEG and most are scaled down; each process writes several chunks."""
    words = ["--data-path", photographs, "--max-resolution", 64, "--jpeg-quality", 80]
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
    complains(run(WRITE, "--data-path", tmp_path / "val", "--output", tmp_path / "out/x.ffcv"), broken.name, "does not decode")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kilobytes", [1, 4000])
def test_a_full_disk_leaves_nothing(few, tmp_path, kilobytes):
    """The disk is full at the header, or within a page of 8 MiB, of which FFCV then writes a part without an error."""
    words = [sys.executable, WRITE, "--data-path", few / "val", "--output", tmp_path / "x.ffcv", "--num-workers", 2]
    result = run("bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "bash", *words)
    complains(result, "--output", "cannot be written")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_write_leaves_nothing_under_the_final_name(few, tmp_path, kind):
    (tmp_path / "data/a").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    image = next((few / "val/odd").iterdir())
    for index in range(20_000):
        (tmp_path / f"data/a/{index}.png").symlink_to(image)
    words = [sys.executable, str(WRITE), "--data-path", str(tmp_path / "data"), "--output", str(tmp_path / "out/x.ffcv")]
    child = subprocess.Popen([*words, "--num-workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + PATIENCE
    while not any(path.stat().st_size for path in (tmp_path / "out").iterdir()):
        assert child.poll() is None and time.time() < deadline
        time.sleep(0.01)
    child.send_signal(kind)
    said = child.communicate(timeout=PATIENCE)[1]
    assert child.returncode != 0 and not (tmp_path / "out/x.ffcv").exists() and not (tmp_path / "out/x.ffcv.json").exists()
    if kind == signal.SIGTERM:
        # Python may first report that it ignored the exception during a fork; the exception is then raised again.
        assert said.splitlines()[-1].startswith("interrupted") and not list((tmp_path / "out").iterdir()), said
    deadline = time.time() + 60
    while alive(tmp_path / "out/x.ffcv"):
        assert time.time() < deadline, "a process that writes has outlived the one that started it"
        time.sleep(0.1)


def alive(output):
    """The processes whose command line names the output."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # a process that has just ended
            found += [file.parent.name] * (bytes(output) in file.read_bytes())
    return found


def test_bad_options_of_writing(few, ffcv_files, tmp_path, monkeypatch):
    def refused(match, *words):
        monkeypatch.setattr(sys, "argv", ["write_imagenet.py", *[str(word) for word in words]])
        with pytest.raises(errors.InputError, match=match) as error:
            write_imagenet.main(write_imagenet.parse())
        assert "\n" not in str(error.value)

    good = ["--data-path", few / "val", "--output", tmp_path / "x.ffcv"]
    refused("--compress-probability 1.5: must lie between 0 and 1", *good, "--compress-probability", 1.5)
    refused("--compress-probability nan", *good, "--compress-probability", "nan")
    refused("--max-resolution -1", *good, "--max-resolution", -1)
    refused("--max-resolution 60000: .*lower it", *good, "--max-resolution", 60000)
    refused("--jpeg-quality 0", *good, "--jpeg-quality", 0)
    refused("nowhere: no such folder", "--data-path", few / "nowhere", "--output", tmp_path / "x.ffcv")
    refused("<class>/<image>", "--data-path", few / "val/odd", "--output", tmp_path / "x.ffcv")
    refused("is there already; --overwrite", "--data-path", few / "val", "--output", ffcv_files / "val_500_0_90.ffcv")
    refused("no such folder to write to", "--data-path", few / "val", "--output", tmp_path / "no/x.ffcv")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------- loading


def test_both_orders_of_device_give_pillows_pixels(ffcv_files, few):
    """33 images in batches of 10: none is lost, not even the last 3. The order for GPUs runs here on the CPU."""
    pixels, expected_labels = pixels_of(few / "val")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((torch.tensor(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    for on_device in (False, True):
        _, images = open_val(ffcv_files, on_device)
        batches = [(batch.clone(), labels.clone()) for batch, labels in images.epoch(0, 8)]
        assert [len(labels) for _, labels in batches] == [10, 10, 10, 3] and batches[0][1].dtype == torch.int64
        torch.testing.assert_close(torch.cat([batch for batch, _ in batches]), expected, atol=1e-6, rtol=1e-6)
        assert torch.cat([labels for _, labels in batches]).tolist() == expected_labels


def ffcvs_own(path, side, crop_ratio):
    """All images (N, side, side, 3) uint8 of a .ffcv file through FFCV's own loader and decoder."""
    from ffcv.fields.decoders import CenterCropRGBImageDecoder
    from ffcv.loader import Loader
    from ffcv.transforms import ToTensor

    pipelines = {"image": [CenterCropRGBImageDecoder((side, side), crop_ratio), ToTensor()]}
    return next(iter(Loader(str(path), 40, 1, drop_last=False, pipelines=pipelines)))[0].clone()


def test_crops_are_cut_and_scaled_as_ffcv_does_it(full_size):
    """FFCV's own decoder and ours are bit-identical for JPEG and raw images of many sizes, also mirrored."""
    expected = ffcvs_own(full_size, 24, 0.875)
    file = ffcv_file.read(full_size, "")
    flips = np.arange(40) % 3 == 0

    def crops(images, epoch):
        data.centre_crops(images, 0.875)
        images["flip"] = flips

    ours = data.Images(full_size, file.records, crops, 40, 1, CPU, on_device=True)
    batch = next(iter(ours.epoch(0, 24)))[0]
    mean, std = torch.tensor(data.MEAN).view(3, 1, 1), torch.tensor(data.STD).view(3, 1, 1)
    found = ((batch * std + mean) * 255).round().byte().permute(0, 2, 3, 1)
    expected[torch.from_numpy(flips)] = expected[torch.from_numpy(flips)].flip(2)
    assert expected.float().std() > 30 and torch.equal(found, expected)


@pytest.mark.parametrize("crop_ratio, side", [(1, 16), (0.875, 16), (0.875, 48)])
def test_viz_shows_images_as_ffcv_does(photographs, full_size, tmp_path, crop_ratio, side):
    """viz's `area` and FFCV's own decoder, shrinking and enlarging, differ by at most one, from rounding.

    Raw pixels are read from the folder and the file, JPEG data only from the file: FFCV and Pillow decode it differently.
    """
    raw = tmp_path / "raw.ffcv"
    result = run(WRITE, "--data-path", photographs, "--output", raw, "--max-resolution", 0, "--compress-probability", 0)
    assert result.returncode == 0, result.stderr

    def largest_difference(open_them, *where, path=raw, interpolation="area"):
        with viz.active():
            images = open_them(*where)
            images.transform = transform({"input_size": side, "crop_ratio": crop_ratio, "interpolation": interpolation})
            ours = torch.stack([images[index][0] for index in range(40)]).int().permute(0, 2, 3, 1)
        theirs = ffcvs_own(path, side, crop_ratio).int()
        assert theirs.float().std() > 30
        return (ours - theirs).abs().max()

    assert largest_difference(open_images, photographs, "val") <= 1
    assert largest_difference(open_ffcv, raw) <= 1
    assert largest_difference(open_ffcv, full_size, path=full_size) <= 1
    assert largest_difference(open_images, photographs, "val", interpolation="bilinear") > 10  # the filter matters


def test_viz_reads_damaged_files_safely(full_size, tmp_path):
    """False rows and pointers end in one line, where FFCV's own loader would follow them out of the file."""
    content, path = full_size.read_bytes(), tmp_path / "x.ffcv"
    file = ffcv_file.read(full_size, "")
    jpeg, raw = (int(np.flatnonzero(file.records["f0"]["mode"] == mode)[0]) for mode in (ffcv_file.JPEG, ffcv_file.RAW))
    rows = content.index(file.records.tobytes())
    table = int.from_bytes(content[16:24], "little")

    def damaged(index, field, value):
        records = file.records.copy()
        records["f0"][field][index] = value
        return content[:rows] + records.tobytes() + content[rows + file.records.nbytes :]

    def scrambled():
        start = int(file.records["f0"]["data_ptr"][jpeg])
        return content[: start + 700] + bytes(40) + content[start + 740 :]

    for case, index in (
        (damaged(jpeg, "width", 60_000), jpeg),
        (damaged(jpeg, "mode", ffcv_file.RAW), jpeg),
        (damaged(jpeg, "mode", 7), jpeg),
        (damaged(raw, "mode", ffcv_file.JPEG), raw),
        (damaged(raw, "height", 1), raw),
        (scrambled(), jpeg),
    ):
        path.write_bytes(case)
        with viz.active(), pytest.raises(ValueError, match=f"image {index:08d} is damaged .*; write the file again"):
            open_ffcv(path)[index]
    huge = (1 << 63).to_bytes(8, "little")
    for case in (
        damaged(raw, "data_ptr", 1 << 62),
        damaged(raw, "data_ptr", 1),
        content[: table + 8] + huge * 2 + content[table + 24 :],
        content[:table],
        content[:5000],
        content[:8] + huge + content[16:],
        b"",
    ):
        path.write_bytes(case)
        with viz.active(), pytest.raises(ValueError, match="x.ffcv: damaged, or not an FFCV file of images and labels"):
            open_ffcv(path)


def test_random_crops_have_torchvisions_distribution():
    """20,000 crops of a 100x150 image: each mean is within 5 standard errors of torchvision's."""
    images = np.zeros(20_000, data.IMAGE_TYPE)
    images["height"], images["width"] = 100, 150
    data.random_crops(images, 0, 0, 0.08, 0.5)
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


def test_centre_crops_lie_in_the_middle():
    images = np.zeros(2, data.IMAGE_TYPE)
    images["height"], images["width"], images["flip"] = [60, 101], [100, 40], 1
    data.centre_crops(images, 0.5)
    found = [tuple(int(row[key]) for key in ("top", "left", "crop_height", "crop_width", "flip")) for row in images]
    assert found == [(15, 35, 30, 30, 0), (40, 10, 20, 20, 0)]


def test_crops_are_a_function_of_seed_and_epoch_and_narrow_images_have_one():
    def drawn(seed, epoch):
        images = np.zeros(50, data.IMAGE_TYPE)
        images["height"], images["width"] = 40, 60
        images["height"][0], images["width"][0] = 10, 1000
        data.random_crops(images, seed, epoch, 0.9, 0.5)
        return images

    assert np.array_equal(drawn(0, 3), drawn(0, 3))
    assert not np.array_equal(drawn(0, 3), drawn(0, 4)) and not np.array_equal(drawn(0, 3), drawn(1, 2))
    first = drawn(0, 3)[0]
    # As torchvision's fallback: the full height, 4/3 of it wide, in the centre.
    assert [first[name] for name in ("top", "left", "crop_height", "crop_width")] == [0, (1000 - 13) // 2, 10, 13]


def test_orders_share_one_shuffle():
    """Two processes with batches of 8 together see what one with batches of 16 sees; an epoch shows no image twice."""
    for epoch in (0, 5):
        one = data.EpochOrder(50, 16, 7).sample_order(epoch)
        two = [data.EpochOrder(50, 8, 7, rank, 2).sample_order(epoch).reshape(3, 8) for rank in (0, 1)]
        assert len(one) == 48 == len(set(one.tolist()))
        assert np.array_equal(np.concatenate(two, 1).flatten(), one)
    assert not np.array_equal(data.EpochOrder(50, 16, 7).sample_order(0), data.EpochOrder(50, 16, 7).sample_order(1))
    assert not np.array_equal(data.EpochOrder(50, 16, 7).sample_order(1), data.EpochOrder(50, 16, 8).sample_order(0))


def test_each_process_loads_its_half_of_the_shuffle(ffcv_files, monkeypatch):
    file, config = ffcv_file.read(ffcv_files / "train_500_0_90.ffcv", ""), settings("--training.batch_size=16")
    halves = []
    for rank in (0, 1):
        as_process(monkeypatch, data.distributed, rank, 2)
        images = data.train_images(file, config.training, config.augmentation, 1, True, CPU)
        halves.append(images.loader.next_traversal_order().reshape(2, 16))
    seed = config.training.seed
    assert np.array_equal(np.concatenate(halves, 1).flatten(), data.EpochOrder(64, 32, seed).sample_order(0))


def test_epochs_do_not_depend_on_threads_or_history(ffcv_files, capsys):
    """Epoch 3 from a fresh loader with one thread equals epoch 3 after epoch 0 with two threads, in memory and paged."""
    file = ffcv_file.read(ffcv_files / "train_500_0_90.ffcv", "")
    for in_memory in (1, 0):
        seen = []
        for threads, epochs in ((1, [3]), (2, [0, 3])):
            options = settings("--training.batch_size=16")
            images = data.train_images(file, options.training, options.augmentation, threads, bool(in_memory), CPU)
            for epoch in epochs:
                batches = [(batch.clone(), labels.clone()) for batch, labels in images.epoch(epoch, 8)]
            seen.append((torch.cat([batch for batch, _ in batches]), torch.cat([labels for _, labels in batches])))
        assert len(seen[0][1]) == 64 and sorted(seen[0][1].tolist()) == [0] * 32 + [1] * 32
        assert_same(seen[0], seen[1])


def test_an_image_that_does_not_decode_is_named(full_size, tmp_path):
    path, content = tmp_path / "x.ffcv", bytearray(full_size.read_bytes())
    images = ffcv_file.read(full_size, "").records["f0"]
    number = int(np.flatnonzero(images["mode"] == ffcv_file.JPEG)[3])
    start = int(images["data_ptr"][number])
    content[start : start + 400] = bytes(400)
    path.write_bytes(content)
    file = ffcv_file.read(path, "")
    images = data.Images(path, file.records, lambda images, _: data.centre_crops(images, 1.0), 10, 1, CPU, False)
    with pytest.raises(errors.InputError, match=f"x.ffcv: images that do not decode: number {number} "):
        for _ in images.epoch(0, 16):
            pass


def test_what_the_loading_thread_raises_arrives(ffcv_files):
    """FFCV by itself would wait for its dead thread forever. Here the thread finds no labels."""
    _, images = open_val(ffcv_files)
    images.loader.reader.metadata = {"f0": images.loader.reader.metadata["f0"]}
    with pytest.raises(KeyError, match="f1"):
        next(images.epoch(0, 8))
