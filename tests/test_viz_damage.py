"""viz/ on a full disk, in other locales, at odd paths, and with invalid files and options."""

import contextlib
import json
import os
import pickle
import resource
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT
from subprojects import Subproject

SUBPROJECT = viz = Subproject("viz")
InputError = viz.load("common.errors").InputError
load = viz.load("common.logits_file").load
load_checkpoint = viz.load("checkpoints.read").load_checkpoint
architectures = viz.load("checkpoints.models")

FACTS = {
    "model": "resnet8",
    "library": "cifar",
    "num_classes": 3,
    "input_size": 8,
    "crop_ratio": 1.0,
    "interpolation": "bilinear",
}
FACTS |= {"mean": [0.5] * 3, "std": [0.5] * 3, "data_path": None}


def logits_of(folder, name="a.pt", count=60, **more):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=generator)
    content = {"logits": torch.randn(count, 3, generator=generator), "labels": labels}
    torch.save(content | more, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return architectures.create("cifar", "resnet8", 3, width=4).state_dict()


def checkpoint_of(folder, weights, name="c.pth", **args):
    content = {"model": weights, "args": FACTS | {"width": 4} | args, "classes": ["a", "b", "c"]}
    torch.save(content, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four images of each of three classes, in train/ and val/."""
    root = tmp_path_factory.mktemp("images")
    for index in range(24):
        path = root / ("train", "val")[index % 2] / "abc"[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return root


@contextlib.contextmanager
def largest_file(size):
    """While this is active, no file can grow beyond `size` bytes, as on a full disk."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def command(monkeypatch, name, *words):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
    viz.load(name).main()


# -------------------------------------------------------------------------------------------------------- a full disk

WRITERS = {
    "analysis figure": ("analysis", 20_000, "near_zero_histogram.png"),
    "analysis table": ("analysis", 100, "summary.json"),
    "calibration": ("calibration", 20_000, "reliability.png"),
    "selective": ("selective", 20_000, "risk_coverage.png"),
    "report": ("report", 8_000, "risk_coverage.pdf"),
    "report page": ("report", 20_000, "index.html"),
    "measure": ("measure", 100, "measured.json"),
    "suppression": ("suppression", 20_000, "suppression.png"),
}


@pytest.mark.parametrize("case", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(case, tmp_path, monkeypatch):
    name, size, target = WRITERS[case]
    out = tmp_path / "out"
    words = ["--output", out / "measured.json" if name == "measure" else out]
    if name != "suppression":
        words += ["--input", logits_of(tmp_path)]
    words += {"selective": ["--bootstrap", 0], "report": ["--only", "selective"]}.get(name, [])
    with largest_file(size), pytest.raises(InputError, match=f"{target}: cannot be written .File too large.") as error:
        command(monkeypatch, name, *words)
    assert "\n" not in str(error.value)
    left = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in left if ".tmp" in path.name or path.name == target]
    assert all(path.stat().st_size < size for path in left)


def test_a_full_disk_ends_the_extraction_with_one_line(tmp_path, weights, images):
    """It runs as a process of its own; the file that was there stays."""
    out = tmp_path / "logits.pt"
    out.write_text("mine")
    words = ["--checkpoint", checkpoint_of(tmp_path, weights), "--data-path", images, "--output", out, "--overwrite"]
    words = [sys.executable, ROOT / "viz/logits.py", *words, "--num-workers", 0, "--device", "cpu"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # noqa: E731
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, preexec_fn=limit)
    assert result.returncode == 1 and result.stderr == f"error: {out}: cannot be written (File too large)\n"
    assert out.read_text() == "mine" and {path.name for path in tmp_path.iterdir()} == {"c.pth", "logits.pt"}


def test_a_full_disk_for_what_is_printed_is_one_line():
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, ROOT / "viz/download.py", "--list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert result.returncode == 1 and result.stderr == "error: the output: No space left on device\n"


# ------------------------------------------------------------------------------------------------ locales and odd paths

ODD = os.fsdecode(b"odd \n'\" \xe9 \xc3\xa9")  # 0xe9 is not UTF-8, but the last two bytes are
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def ascii_run(name, *words):
    words = [sys.executable, ROOT / "viz" / f"{name}.py", *words]
    result = subprocess.run(list(map(str, words)), capture_output=True, env=os.environ | ASCII, timeout=300)
    assert b"Traceback" not in result.stderr, result.stderr.decode("utf-8", "replace")
    return result.returncode, result.stdout.decode("ascii"), result.stderr.decode("ascii")


def test_any_path_works_in_any_locale(tmp_path, weights, images):
    """The paths of images, checkpoint, logits file and outputs contain a line break, quotes and bytes that are not characters."""
    folder = tmp_path / ODD
    folder.mkdir()
    os.symlink(images, folder / "images")
    checkpoint = checkpoint_of(folder, weights, f"{ODD}.pth")
    device = ["--device", "cpu", "--num-workers", 0]
    logits = folder / f"{ODD}.pt"
    words = ["--checkpoint", checkpoint, "--data-path", folder / "images", "--output", logits, *device]
    code, out, err = ascii_run("logits", *words)
    assert code == 0, err
    assert "odd \\n'\" \\udce9" in out.splitlines()[-1]
    words = ["--input", logits, "--output", folder / "report", "--names", "a\nb", "--skip", "gradcam"]
    code, out, err = ascii_run("report", *words)
    assert code == 0, err
    page = (folder / "report/index.html").read_text("utf-8")
    assert "a\\nb" in page and json.loads((folder / "report/report.json").read_text("ascii"))["models"]["a\\nb"]
    code, out, err = ascii_run("analysis", "--input", logits, folder / "none.pt", "--output", folder / "out")
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1 and "odd \\n'\" \\udce9" in err


# -------------------------------------------------------------------------------------------- damaged and hostile files


def flipped(path):
    """The same file with one bit flipped in the middle of its largest member."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)
    return path


def test_a_flipped_bit_is_noticed_before_a_file_is_used(tmp_path, weights):
    with pytest.raises(InputError, match=r"a.pt: damaged, or not a logits file \(damaged in 'a/data/0' \(Bad CRC-32"):
        load(flipped(logits_of(tmp_path, count=5000)))
    with pytest.raises(InputError, match="c.pth: damaged, or not a checkpoint .*Bad CRC-32"):
        load_checkpoint(flipped(checkpoint_of(tmp_path, weights)))


def test_a_file_without_checksums_is_used_with_a_warning(tmp_path, weights, capsys):
    torch.save({"model": weights, "args": FACTS | {"width": 4}}, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    assert load_checkpoint(tmp_path / "c.pth").facts["model"] == "resnet8"
    assert (
        capsys.readouterr().err
        == f"warning: {tmp_path}/c.pth: a file of its format has no checksums, so damage cannot be noticed\n"
    )
    assert not viz.load("report_page.inputs").is_logits(tmp_path / "c.pth")  # a first look, which gives no warning
    assert not capsys.readouterr().err


HUGE, DEEP = 10**500, []  # values that torch.save can write
for _ in range(300):
    DEEP = [DEEP]
HOSTILE_FACTS = {
    "input_size": [HUGE, 0, "8", None, True, torch.tensor(8), DEEP],
    "num_classes": [HUGE, -1, 2.0, {}, float("nan")],
    "crop_ratio": [float("nan"), float("inf"), HUGE, "1", []],
    "mean": [[HUGE] * 3, [0.5] * 2, ["a"] * 3, float("inf"), DEEP, [float("nan")] * 3, torch.zeros(3)],
    "std": [[0, 1, 1], [-1.0] * 3, [float("inf")] * 3, "abc"],
    "model": ["resnet²", "resnet" + "1" * 5000, HUGE, ["resnet8"], DEEP, "../resnet8"],
    "library": ["numpy", ["cifar"], HUGE],
    "interpolation": ["nearest", ["bilinear"], 7],
    "width": [HUGE, 0, "16", -4],
    "superclasses": ["animals", {"a": "b"}, {1: ["a"]}, {"x": [["a"]]}, {"x": ["a", "a"]}, [["a"]]],
}


@pytest.mark.parametrize("key", HOSTILE_FACTS)
def test_facts_of_a_checkpoint_that_mean_nothing_are_one_line(key, tmp_path, weights):
    for value in HOSTILE_FACTS[key]:
        with pytest.raises(InputError) as error:
            load_checkpoint(checkpoint_of(tmp_path, weights, **{key: value}))
        assert f"c.pth: its {key} is " in str(error.value) and len(str(error.value)) < 400, error.value


def test_weights_and_parts_of_a_checkpoint_that_mean_nothing_are_one_line(tmp_path, weights):
    shell, vast = torch.empty(16, 3, 3, 3, device="meta"), torch.zeros(1).expand(10**6, 10**6)
    row, key = torch.zeros(2, dtype=torch.int64), "layer1.0.conv1.weight"
    good = {"model": weights, "args": FACTS | {"width": 4}}
    for match, content in {
        "holds no weights": {"model": "weights"},
        "holds a list": [weights],
        f"{key} is not an ordinary tensor": good | {"model": weights | {key: shell}},
        f"{key} is not an ordinary": good | {"model": weights | {key: vast}},
        f"{key} is not an": good | {"model": weights | {key: weights[key].to(torch.complex64)}},
        f"{key} is": good | {"model": weights | {key: weights[key].to_sparse()}},
        f"{key} holds numbers that are NaN or infinite": good | {"model": weights | {key: weights[key] / 0}},
        "names 4 classes": good | {"classes": list("abcd")},
        "names 3 classes for a model of 3, or one of them twice": good | {"classes": ["a", "a", "b"]},
        "names 3 classes for": good | {"classes": ["a", "b", ["c"]]},
        "training_rows are not whole numbers": good | {"training_rows": row.expand(10**7, 2)},
        "training_labels are not whole numbers": good | {"training_labels": row.to("meta")},
        "training_labels reach from 0 to 3": good | {"training_labels": row + torch.tensor([0, 3])},
        r"holds a Tensor": torch.zeros(3),
    }.items():
        torch.save(content, tmp_path / "c.pth")
        with pytest.raises(InputError, match=match):
            load_checkpoint(tmp_path / "c.pth")
    assert load_checkpoint(checkpoint_of(tmp_path, weights)).classes == ["a", "b", "c"]


def test_parameters_of_a_foreign_run_that_mean_nothing_are_one_line(tmp_path, weights):
    torch.save({"state_dict": weights}, tmp_path / "c.pth")
    for content in (b"\xff\xfe{}", b"[" * 10**5, b'{"model.arch": ', b"\0"):
        (tmp_path / "params.json").write_bytes(content)
        with pytest.raises(InputError, match="params.json: does not read as JSON"):
            load_checkpoint(tmp_path / "c.pth")
    for size in ("NaN", "Infinity", "1e400", '"8"', "null", "[]"):
        (tmp_path / "params.json").write_text(f'{{"model.arch": "resnet8", "validation.resolution": {size}}}')
        assert load_checkpoint(tmp_path / "c.pth").facts["input_size"] == 32


def test_logits_files_that_mean_nothing_are_one_line(tmp_path):
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    good = {"logits": logits, "labels": labels}
    for match, content in {
        "must be ordinary tensors": good | {"logits": torch.zeros(1).expand(10**7, 10**6)},
        "must be ordinary": good | {"labels": torch.zeros(1, dtype=torch.int64).expand(10**13)},
        "must be": good | {"logits": torch.empty(4, 3, device="meta")},
        "not sparse": good | {"logits": logits.to_sparse()},
        "complex": good | {"logits": logits.to(torch.complex64)},
        "torch.float8_e4m3fn, not": good | {"logits": logits.to(torch.float8_e4m3fn)},
        "torch.int64, not": good | {"logits": logits.long()},
        "'labels' is .4,. torch.float32": good | {"labels": labels.float()},
        "'labels' is .3,. torch.int64, not .4,. class": good | {"labels": labels[:3]},
        "paths are not a list of 4 names": good | {"paths": ["a"]},
        "classes are not a list of up to 3 names": good | {"classes": "abc"},
        "classes are not": good | {"classes": [["a"], ["b"]]},
        "features are not a floating-point tensor": good | {"features": torch.zeros(3, 2)},
        "features are not a floating": good | {"features": [1, 2]},
        "features are": good | {"features": torch.zeros(1).expand(4, 10**12)},
        "1 samples have features that are NaN": good | {"features": torch.tensor([[1.0], [2.0], [torch.nan], [3.0]])},
        "1 samples have logits": good | {"logits": torch.cat([logits[:3], torch.full((1, 3), 1e300, dtype=torch.float64)])},
        "its logits are probabilities": good | {"logits": logits.softmax(1)},
        "are probabilities": good | {"logits": torch.randn(3000, 3).softmax(1).half(), "labels": torch.zeros(3000).long()},
        "labels from -1 to 2": good | {"labels": labels - torch.tensor([1, 0, 0, 0])},
    }.items():
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(InputError, match=match):
            load(tmp_path / "a.pt")
    pixels = torch.randn(2, 3, 40, 40)
    torch.save({"logits": pixels.softmax(1), "labels": pixels.argmax(1)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="its logits are probabilities"):
        load(tmp_path / "a.pt", 255)
    with open(tmp_path / "a.pt", "wb") as file:
        pickle.dump(SimpleNamespace(logits=1), file)
    with pytest.raises(InputError, match="refused, it holds more than tensors and plain types"):
        load(tmp_path / "a.pt")
    torch.save(good | {"best": np.float64(3.1)}, tmp_path / "a.pt")
    assert torch.equal(load(tmp_path / "a.pt")["logits"], logits)  # a NumPy scalar is left unread, an array is refused
    torch.save(good | {"best": np.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="plain types .numpy.*; nothing in it was run; if you trust it, read it with torch.load"):
        load(tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", logits=logits.numpy(), labels=labels.numpy())
    np.save(tmp_path / "a.npy", logits.numpy())
    (tmp_path / "a.csv").write_text("0.1,0.2\n")
    for name in ("a.npz", "a.npy", "a.csv"):
        with pytest.raises(InputError, match=f"{name}: not a file of PyTorch; torch.save"):
            load(tmp_path / name)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(InputError, match="script.pt: a TorchScript program; torch.save.model.state_dict"):
        load(tmp_path / "script.pt")
    with pytest.raises(InputError, match="no such logits file"):
        load(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        "--num-workers 1000000000",
        "--batch-size 0",
        "--seed -1",
        "--crop-ratio nan",
        "--input-size 99999",
        "--std 0 1 1",
        "--mean inf 0 0",
        "--mean -0.5 0 0",
    ]
    + ["--threshold 0", "--threshold nan"],
)
def test_numbers_out_of_range_are_refused_by_option(words, tmp_path, monkeypatch):
    option, number, *_ = words.split()
    name = "selective" if option == "--seed" else "report"
    with pytest.raises(InputError, match=f"{option} .*: a number from .* to .* is needed"):
        command(monkeypatch, name, "--input", logits_of(tmp_path), "--output", tmp_path / "out", *words.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", ["--bootstrap 1000000000", "--repeats 1000000000", "--val-fraction 1", "--ignore-index 99999999999"]
)
def test_resamples_and_splits_out_of_range_are_refused(words, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="a number from .* to .* is needed"):
        command(monkeypatch, "selective", "--input", logits_of(tmp_path), "--output", tmp_path / "out", *words.split())


def test_two_names_that_read_alike_are_refused(tmp_path, monkeypatch):
    words = [
        "--input",
        logits_of(tmp_path),
        logits_of(tmp_path, "b.pt"),
        "--names",
        "a\nb",
        "a\\nb",
        "--output",
        tmp_path / "out",
    ]
    with pytest.raises(InputError, match="need different names"):
        command(monkeypatch, "analysis", *words)


def test_labels_of_a_known_set_beyond_its_classes_are_refused(tmp_path):
    for kind, content in (("images-idx3", bytes(16 + 2 * 784)), ("labels-idx1", bytes(8) + bytes([3, 77]))):
        (tmp_path / f"t10k-{kind}-ubyte").write_bytes(content)
    with pytest.raises(InputError, match="fashion-mnist: labels from 3 to 77, but 10 classes"):
        viz.load("images.find").open_images(tmp_path, "val", "fashion-mnist")


def test_a_part_of_cifar_that_is_not_whole_is_downloaded_anew(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-batches-py").mkdir()
    asked = []

    def download(self):
        asked.append(self.root)
        raise RuntimeError("no network")

    known_sets = viz.load("images.known_sets")
    monkeypatch.setattr(known_sets.torchvision.datasets.CIFAR10, "download", download)
    with pytest.raises(InputError, match=r"cifar10 is neither there nor can it be downloaded \(no network\)"):
        known_sets.open_known("cifar10", tmp_path, "val")
    assert asked == [tmp_path]


# ------------------------------------------------------------------------------------------------------------- pictures


def test_pictures_of_16_bits_are_scaled_and_of_unknown_range_refused(tmp_path, weights, monkeypatch):
    """An image of 8 bits and the same one of 16 give equal logits. The extraction and Grad-CAM refuse other pixel types."""
    extract = viz.load("logits").extract
    grey = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    for name, pixels in {
        "a/8.png": grey,
        "b/16.png": grey.astype(np.uint16) * 257,
        "c/16.tif": grey.astype(np.uint16) * 257,
    }.items():
        path = tmp_path / "val" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
    checkpoint = checkpoint_of(tmp_path, weights)
    found = extract(checkpoint, tmp_path)["logits"]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]) and found[0].std() > 0
    for pixels, kind in ((grey.astype(np.float32), "floating-point numbers"), (grey.astype(np.int32), "32-bit integers")):
        Image.fromarray(pixels).save(tmp_path / "val/c/16.tif")
        with pytest.raises(InputError, match=f"val/c/16.tif: does not decode as an image .its pixels are {kind}, whose range"):
            extract(checkpoint, tmp_path, num_workers=1)
        words = ["--checkpoint", checkpoint, "--images", tmp_path / "val/c/16.tif", "--output", tmp_path / "cam.png"]
        with pytest.raises(InputError, match=f"--images .*16.tif: does not decode as an image .its pixels are {kind}"):
            command(monkeypatch, "gradcam", *words)
    assert not (tmp_path / "cam.png").exists()


def test_a_damaged_picture_of_an_odd_name_is_one_line_from_a_loading_process(tmp_path, weights):
    for name in "abc":
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / f"{ODD}.png").write_bytes(b"no picture")
    with pytest.raises(InputError) as error:
        viz.load("logits").extract(checkpoint_of(tmp_path, weights), tmp_path, num_workers=1)
    assert str(error.value).startswith(f"{tmp_path}/val/a/odd \\n'\" \\udce9") and "does not decode" in str(error.value)


def test_pipes_and_circles_of_links_in_a_folder_are_one_line(tmp_path, weights):
    """The command does not wait for either."""
    for name in "abc":
        (tmp_path / "val" / name).mkdir(parents=True)
        os.mkfifo(tmp_path / "val" / name / "1.png")
    with pytest.raises(InputError, match="val/a/1.png: no such file, or not an ordinary one"):
        viz.load("logits").extract(checkpoint_of(tmp_path, weights), tmp_path)
    os.symlink(tmp_path / "val/a", tmp_path / "val/a/again")
    with pytest.raises(InputError, match="val/a/again: is a link to a folder that has been read already"):
        viz.load("images.find").open_images(tmp_path, "val")
