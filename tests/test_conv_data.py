"""Conv/common_resnet on larger data: birds and cars from archives in the official format, and corruptions."""

import io
import json
import re
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import scipy.io
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from PIL import Image

from conftest import ROOT, complains, run
from subprojects import Subproject
from training import CONV_EVALUATE, CONV_QUICK, CONV_TRAIN, assert_same, load, log

SUBPROJECT = conv = Subproject("Conv/common_resnet")
corruptions, data, pixels = (conv.load(name) for name in ("corruptions", "data", "data.pixels"))
create_model, InputError = conv.load("models").create_model, conv.load("errors").InputError
GROUPINGS = conv.load("data.superclasses").GROUPINGS


def jpeg(value: int) -> bytes:
    image = np.random.default_rng(value).integers(256, size=(90, 110, 3), dtype=np.uint8)
    Image.fromarray(image).save(file := io.BytesIO(), "JPEG")
    return file.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def cub(path, names=("001.Albatross/A_1.jpg", "001.Albatross/A_2.jpg", "002.Auk/B_1.jpg", "002.Auk/B_2.jpg")):
    with tarfile.open(path, "w:gz") as archive:
        for number, name in enumerate(names):
            add(archive, f"CUB_200_2011/images/{name}", jpeg(number))
        add(archive, "CUB_200_2011/images.txt", "".join(f"{n} {name}\n" for n, name in enumerate(names, 1)).encode())
        add(archive, "CUB_200_2011/train_test_split.txt", "".join(f"{n} {n % 2}\n" for n in range(1, len(names) + 1)).encode())


def test_birds(tmp_path):
    """From an archive in the official format to training on large images, with and without a loading process, and evaluation."""
    cub(tmp_path / "CUB_200_2011.tgz")
    prepare = [ROOT / "data/cub/prepare.py", "--archive", tmp_path / "CUB_200_2011.tgz", "--root", tmp_path / "cub"]
    result = run(*prepare)
    assert result.returncode == 0 and "2 training and 2 validation images" in result.stdout, result.stderr
    assert sorted(str(file.relative_to(tmp_path / "cub")) for file in (tmp_path / "cub").rglob("*.jpg")) == [
        "train/001.Albatross/A_1.jpg", "train/002.Auk/B_1.jpg", "val/001.Albatross/A_2.jpg", "val/002.Auk/B_2.jpg",
    ]  # fmt: skip
    assert (tmp_path / "cub/train/002.Auk/B_1.jpg").read_bytes() == jpeg(2)
    complains(run(*prepare), "cub/val exists already; remove val and train, or choose another --root")
    words = "--data cub --model resnet18 --epochs 1 --batch-size 2 --input-size 72 --device cpu".split()
    words += ["--data-path", tmp_path / "cub", "--loss", "maxsup"]
    runs = []
    for workers in (0, 1):
        result = run(CONV_TRAIN, *words, "--num-workers", workers, "--output_dir", tmp_path / str(workers))
        assert result.returncode == 0, result.stderr
        runs.append(load(tmp_path / str(workers)))
    assert_same(runs[0]["model"], runs[1]["model"])  # augmentation depends on the seed, not on the loading process
    assert runs[0]["args"]["crop_ratio"] == 0.875 and runs[0]["classes"] == ["001.Albatross", "002.Auk"]
    result = run(CONV_EVALUATE, "--checkpoint", tmp_path / "0/checkpoint.pth", "--num-workers", 0)
    assert f"top-1 {log(tmp_path / '0')[0]['val_top1']:.2f} %" in result.stdout, result.stderr
    fine = [*words, "--init", tmp_path / "0/checkpoint.pth", "--output_dir", tmp_path / "fine", "--num-workers", 0]
    assert "starting from" in run(CONV_TRAIN, *fine).stdout


def test_small_images_are_enlarged(tmp_path):
    """As when the README trains ImageNet models on CIFAR-10: images are decoded from memory, and cropped like large ones."""
    words = ["--data", "digits", "--input-size", 100, "--model", "resnet8", "--width", 2, "--stem-stride", 2, "--epochs", 1]
    words += ["--imbalance-ratio", 100, "--num-workers", 0, "--device", "cpu", "--output_dir", tmp_path / "run"]
    result = run(CONV_TRAIN, *words)
    assert result.returncode == 0, result.stderr
    facts = load(tmp_path / "run")["args"]
    assert (facts["input_size"], facts["crop_ratio"], facts["in_memory"]) == (100, 0.875, False)
    inputs = data.Inputs("digits", None, 100, 0.875, [0.0] * 3, [1.0] * 3, "cpu", 0, False)
    train, val, _ = data.open_data(inputs)
    assert facts["data_digest"] == train.digest == data.digest(data.open_split(inputs._replace(size=8, in_memory=True), "train"))
    image = Image.fromarray(pixels.read("digits", None, "val", 8)[0][3].numpy()).resize((114, 114), Image.Resampling.BILINEAR)
    first, _ = next(iter(val.evaluation_batches(8)))
    assert torch.equal((first[3] * 255).round(), TF.pil_to_tensor(image.crop((7, 7, 107, 107))).float())
    result = run(CONV_EVALUATE, "--checkpoint", tmp_path / "run/checkpoint.pth", "--num-workers", 0)
    assert f"top-1 {log(tmp_path / 'run')[0]['val_top1']:.2f} %" in result.stdout, result.stderr


def test_bad_bird_archives(tmp_path):
    prepare = ROOT / "data/cub/prepare.py"

    def refused(*pieces):
        line = complains(run(prepare, "--archive", tmp_path / "a.tgz", "--root", tmp_path / "out"), *pieces)
        assert not list((tmp_path / "out").rglob("*")) if (tmp_path / "out").exists() else True
        return line

    refused("a.tgz", "no such file")
    (tmp_path / "a.tgz").write_bytes(b"nothing")
    refused("a.tgz", "damaged")
    cub(tmp_path / "a.tgz", ("001.A/../../../evil.jpg", "b/c.jpg"))
    refused("evil.jpg", "not a path that an image may have")
    cub(tmp_path / "a.tgz")
    content = (tmp_path / "a.tgz").read_bytes()
    (tmp_path / "a.tgz").write_bytes(content[: len(content) // 2])
    refused("a.tgz", "damaged")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        add(archive, "CUB_200_2011/images.txt", b"1 a/b.jpg\n")
    refused("train_test_split.txt")
    with tarfile.open(tmp_path / "a.tgz", "w") as archive:
        add(archive, "CUB_200_2011/images.txt", b"1 a/b.jpg\n" * 500)
    (tmp_path / "a.tgz").write_bytes((tmp_path / "a.tgz").read_bytes()[:3000])  # cut in the middle of the list
    refused("damaged, or ends too early")
    cub(tmp_path / "a.tgz", ("001.A/\x1b[2J/evil.jpg", "b/c.jpg"))
    assert "\x1b" not in refused("\\x1b[2J", "not a path that an image may have")


def test_cars(tmp_path):
    names = np.array(["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"], dtype=object)

    def annotations(prefix, classes):
        rows = [(f"{prefix}{n:05}.jpg", label) for n, label in enumerate(classes, 1)]
        table = np.array(rows, dtype=[("fname", object), ("class", object)])
        scipy.io.savemat(file := io.BytesIO(), {"annotations": table})
        return file.getvalue()

    scipy.io.savemat(meta := io.BytesIO(), {"class_names": names})
    with tarfile.open(tmp_path / "car_devkit.tgz", "w:gz") as archive:
        add(archive, "devkit/cars_meta.mat", meta.getvalue())
        add(archive, "devkit/cars_train_annos.mat", annotations("", [2, 1, 2]))
    (tmp_path / "cars_test_annos_withlabels.mat").write_bytes(annotations("", [1, 2]))
    for name, count in (("cars_train", 3), ("cars_test", 2)):
        with tarfile.open(tmp_path / f"{name}.tgz", "w:gz") as archive:
            for number in range(1, count + 1):
                add(archive, f"{name}/{number:05}.jpg", jpeg(number))
    prepare = [ROOT / "data/cars/prepare.py", "--archives", tmp_path, "--root", tmp_path / "cars"]
    result = run(*prepare)
    assert result.returncode == 0 and "3 training and 2 validation images" in result.stdout, result.stderr
    assert sorted(str(file.relative_to(tmp_path / "cars/train")) for file in (tmp_path / "cars/train").rglob("*.jpg")) == [
        "AM General Hummer SUV 2000/00002.jpg",
        "Ram C-V Cargo Van Minivan 2012/00001.jpg",
        "Ram C-V Cargo Van Minivan 2012/00003.jpg",
    ]
    words = ["--data", "cars", "--data-path", tmp_path / "cars", "--epochs", 1, "--batch-size", 2, "--input-size", 72]
    result = run(
        CONV_TRAIN, *words, "--model", "mobilenet_v2", "--num-workers", 0, "--device", "cpu", "--output_dir", tmp_path / "run"
    )
    assert result.returncode == 0 and len(log(tmp_path / "run")) == 1, result.stderr
    (tmp_path / "cars_test_annos_withlabels.mat").write_bytes(b"x")
    shutil.rmtree(tmp_path / "cars")
    complains(run(*prepare), "cars_test_annos_withlabels.mat", "damaged")


# -------------------------------------------------------------------------------------------------- corruptions


@pytest.fixture(scope="module")
def cifar_like(tmp_path_factory):
    """40 training and 30 test images of 32 px in 10 classes, as archives, and a model trained on them for one epoch."""
    folder = tmp_path_factory.mktemp("cifar")
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for label, name in enumerate(sorted(sum(GROUPINGS["cifar10"].values(), []))):
                for number in range(count):
                    pixel = random.integers(0, 256, (32, 32, 3)) // 4 + 19 * label
                    Image.fromarray(pixel.astype(np.uint8)).save(file := io.BytesIO(), "PNG")
                    archive.writestr(f"{split}/{name}/{number}.png", file.getvalue())
    words = ["--data", "cifar10", "--data-path", folder, "--batch-size", 20, "--epochs", 1, "--output_dir", folder / "run"]
    assert run(CONV_TRAIN, *CONV_QUICK, *words, "--warmup-epochs", 0).returncode == 0
    return folder


def test_published_corruptions(cifar_like, tmp_path):
    """One array is brighter with each severity and the others are clean; each result equals that of a forward pass made here."""
    images, labels, classes = pixels.read("cifar10", cifar_like, "val", 32)
    five = np.concatenate([images.numpy()] * 5)
    brighter = np.concatenate([np.clip(images.numpy().astype(int) + 20 * s, 0, 255).astype(np.uint8) for s in range(1, 6)])
    for name in corruptions.NAMES:
        np.save(tmp_path / f"{name}.npy", brighter if name == "brightness" else five)
    np.save(tmp_path / "labels.npy", np.tile(labels.numpy(), 5))
    words = ["--checkpoint", cifar_like / "run/checkpoint.pth", "--corruptions", tmp_path, "--output", tmp_path / "r.json"]
    result = run(CONV_EVALUATE, *words)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    state = load(cifar_like / "run")
    model = create_model(state["args"], 10)
    model.load_state_dict(state["model"])
    for severity in range(5):
        rows = torch.from_numpy(brighter[30 * severity : 30 * (severity + 1)]).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            logits = model.eval()(TF.normalize(rows, state["args"]["mean"], state["args"]["std"]))
        expected = found["corruptions"]["brightness"][severity]
        assert expected["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
        assert expected["nll"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-4)
        assert found["corruptions"]["fog"][severity]["nll"] == pytest.approx(found["clean"]["nll"], abs=1e-6)
    every = [metrics["top1"] for severities in found["corruptions"].values() for metrics in severities]
    assert len(every) == 75 and found["corrupted"]["top1"] == pytest.approx(sum(every) / 75)
    assert len(re.findall(r"^\w+ +top-1", result.stdout, re.M)) == 16

    # Labels are indices into the sorted class names, so a checkpoint with another class order reads them alike.
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    head = {key: value[order] for key, value in state["model"].items() if key.startswith("linear.")}
    names = [classes[index] for index in order]
    torch.save(state | {"model": state["model"] | head, "classes": names}, tmp_path / "reordered.pth")
    again = [*words[:1], tmp_path / "reordered.pth", *words[2:-1], tmp_path / "again.json"]
    assert run(CONV_EVALUATE, *again).returncode == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["corrupted"]["top1"] == pytest.approx(found["corrupted"]["top1"])
    assert again["corrupted"]["nll"] == pytest.approx(found["corrupted"]["nll"], abs=1e-6)

    np.save(tmp_path / "labels.npy", np.tile(labels.numpy() // 2, 5))  # as from another data set
    complains(run(CONV_EVALUATE, *words), "labels from 0 to 4, the model has 10 classes")
    np.save(tmp_path / "snow.npy", five[:10])
    complains(run(CONV_EVALUATE, *words), "snow.npy", "(150, 32, 32, 3)")
    (tmp_path / "fog.npy").write_bytes(b"x")
    complains(run(CONV_EVALUATE, *words), "fog.npy", "damaged")
    (tmp_path / "frost.npy").unlink()
    complains(run(CONV_EVALUATE, *words), "frost.npy", "no such file")


def test_generated_corruptions_are_seeded_and_grow():
    pytest.importorskip("imagecorruptions", reason="pip install --no-deps imagecorruptions-imaug==1.1.5")
    images = torch.from_numpy(np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8))
    made = {}
    for _ in range(2):
        for name, severity, corrupted, labels in corruptions.generated(images, torch.tensor([0, 1])):
            assert corrupted.shape == images.shape and corrupted.dtype == torch.uint8 and labels.tolist() == [0, 1]
            assert torch.equal(made.setdefault((name, severity), corrupted), corrupted)
    assert len(made) == 75
    change = {key: (value.float() - images.float()).abs().mean().item() for key, value in made.items()}
    for name in ("gaussian_noise", "contrast", "defocus_blur"):
        assert 0 < change[name, 1] < change[name, 5]
    with pytest.raises(InputError, match="at least 32x32 is needed"):
        next(corruptions.generated(images[:, :28, :28], torch.zeros(2)))
