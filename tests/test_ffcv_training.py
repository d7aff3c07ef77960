"""Conv/ffcv: training, killed and resumed, evaluation, checkpoints, and bad input, on real .ffcv files of digits."""

import contextlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from ffcv_helpers import (
    CPU,
    FOLDER,
    SMALL,
    TRAIN,
    data,
    engine,
    errors,
    ffcv,
    ffcv_file,
    files,
    models,
    options,
    pixels_of,
    settings,
    train,
    train_imagenet,
)
from training import PATIENCE, assert_same, kill_after, kill_all, log, torchrun

SUBPROJECT = ffcv


@pytest.fixture(scope="module")
def trained(ffcv_files, tmp_path_factory):
    """A finished run of 2 epochs and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    with contextlib.redirect_stdout(open(folder.parent / "printed", "w")) as file, file:
        train(*files(ffcv_files), f"--logging.folder={folder}", "--model.blurpool=1", "--loss.alpha_end=0.2")
    return folder, (folder.parent / "printed").read_text()


def test_a_run_says_what_it_does_and_leaves_checkpoint_params_and_log(trained, ffcv_files, few):
    folder, printed = trained
    assert "global batch   32 = 1 x 32" in printed and "2 steps each" in printed and "maxsup 0.1 -> 0.2" in printed
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pth", "log.jsonl", "params.json"]
    params = json.loads((folder / "params.json").read_text())
    assert {f"{section}.{key}" for section, keys in params.items() for key in keys} == set(options.OPTIONS)
    assert (
        params["loss"] == {"name": "maxsup", "alpha": 0.1, "alpha_end": 0.2, "prior": "uniform"}
        and params["model"]["num_classes"] == 2
    )
    lines = log(folder)
    assert [line["epoch"] for line in lines] == [1, 2] and all(line["val_images"] == 33 for line in lines)
    assert [line["alpha"] for line in lines] == pytest.approx([0.1, 0.2]) and lines[0]["train_images_per_second"] > 0
    state = torch.load(folder / "checkpoint.pth", weights_only=True)
    assert set(state) == {"model", "optimizer", "lr_scheduler", "model_ema", "scaler", "loss", "epoch", "rng", "args", "classes"}
    assert state["classes"] == ["even", "odd"] and state["epoch"] == 1 and state["model_ema"] is None
    facts = {"library": "torchvision", "model": "resnet18", "num_classes": 2, "input_size": 8, "crop_ratio": 1.0}
    facts |= {"interpolation": "area", "blurpool": True, "small_stem": False, "data_path": str(few), "loss": "maxsup"}
    facts |= {"epochs": 2, "seed": 0, "alpha_end": 0.2}
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
    """The log's top-1, NLL and ECE equal those of logits computed here from Pillow's pixels and the checkpoint's weights."""
    folder, _ = trained
    model = models.create_model("resnet18", 2, blurpool=True)
    model.load_state_dict(torch.load(folder / "checkpoint.pth", weights_only=True)["model"])
    pixels, labels = pixels_of(few / "val")
    images = (torch.tensor(pixels) / 255 - torch.tensor(data.MEAN)) / torch.tensor(data.STD)
    with torch.no_grad():
        logits = model.eval()(images.permute(0, 3, 1, 2))
    labels, last = torch.tensor(labels), log(folder)[-1]
    assert last["val_top1"] == pytest.approx(100 * MulticlassAccuracy(2, average="micro")(logits, labels).item(), abs=1e-4)
    assert last["val_nll"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-4)
    assert last["val_ece"] == pytest.approx(MulticlassCalibrationError(2, 15)(logits.softmax(1), labels).item(), abs=1e-4)


def test_train_sh_killed_and_run_again_ends_bit_identical(ffcv_files, tmp_path):
    """After SIGKILL in the middle of training, the same command gives the results of an uninterrupted run."""
    words = [*SMALL, *files(ffcv_files), "--training.epochs=4", "--model.blurpool=0"]
    train(
        "--config",
        FOLDER / "configs/rn18.yaml",
        "--loss=ols",
        *words,
        "--data.num_workers=2",
        f"--logging.folder={tmp_path}/whole",
    )
    environment = {**os.environ, "LOSSES": "ols", "OUTPUT": str(tmp_path), "PYTHON": sys.executable, "ARCH": "rn18", "GPUS": "1"}
    command, broken = ["bash", str(FOLDER / "train.sh"), *words], tmp_path / "rn18_ols"
    with open(tmp_path / "printed", "w") as printed:
        child = subprocess.Popen(command, stdout=printed, stderr=printed, env=environment)
        deadline = time.time() + PATIENCE
        while not (broken / "log.jsonl").exists() or len(log(broken)) < 2:
            assert child.poll() is None and time.time() < deadline, (tmp_path / "printed").read_text()
            time.sleep(0.01)
        kill_all(child.pid)
        child.wait()
    assert len(log(broken)) < 4, "too late: the run had finished"
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert re.search(r"resuming .*rn18_ols/checkpoint.pth after epoch [1-3] of 4", result.stdout), result.stdout
    ours, theirs = (torch.load(folder / "checkpoint.pth", weights_only=True) for folder in (broken, tmp_path / "whole"))
    for key in ("model", "optimizer", "lr_scheduler", "loss", "epoch", "rng", "classes"):
        assert_same(ours[key], theirs[key])
    for key in ("epoch", "train_loss", "val_top1", "val_nll", "val_ece", "lr"):
        assert [line[key] for line in log(broken)] == [line[key] for line in log(tmp_path / "whole")]


def test_two_processes_killed_and_run_again_end_bit_identical(ffcv_files, tmp_path):
    """torchrun and both of its processes get SIGKILL in the middle of training; the same command continues the run."""
    words = [*SMALL, *files(ffcv_files), "--training.epochs=4", "--training.batch_size=16", "--resume=auto"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = torchrun(2, *words, f"--logging.folder={whole}", script=TRAIN)
    assert result.returncode == 0, result.stderr
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", TRAIN, *words]
    kill_after(2, broken, *command, f"--logging.folder={broken}")
    assert len(log(broken)) < 4, "too late: the run had finished"
    result = torchrun(2, *words, f"--logging.folder={broken}", script=TRAIN)
    assert result.returncode == 0 and "resuming" in result.stdout, result.stderr
    ours, theirs = (torch.load(folder / "checkpoint.pth", weights_only=True) for folder in (broken, whole))
    for key in ("model", "optimizer", "lr_scheduler", "loss", "epoch", "rng", "classes"):
        assert_same(ours[key], theirs[key])


def test_two_processes_count_each_image_once(ffcv_files, tmp_path):
    """33 is not divisible by two, but the log equals what one process finds for the checkpoint. Steps: 64 / (2 x 16)."""
    words = [*SMALL, *files(ffcv_files), "--training.batch_size=16", f"--logging.folder={tmp_path}", "--training.epochs=1"]
    result = torchrun(2, *words, script=TRAIN)
    assert result.returncode == 0, result.stderr
    assert "2 x 16" in result.stdout and "2 steps each" in result.stdout and result.stdout.count("global batch") == 1
    last = log(tmp_path)[-1]
    assert last["val_images"] == 33
    same_metrics(evaluated(tmp_path / "checkpoint.pth", ffcv_files), last)


def same_metrics(found, line):
    """Assert that what --eval prints equals a line of a log, to the digits printed."""
    assert found[:3] == pytest.approx([line["val_images"], line["val_top1"], line["val_top5"]], abs=0.0051)
    assert found[3:] == pytest.approx([line["val_nll"], line["val_ece"]], abs=0.000051)


def evaluated(path, ffcv_files, *words):
    """What --eval prints: images, top-1, top-5, NLL, ECE."""
    with contextlib.redirect_stdout(open(os.devnull, "w")), pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(train_imagenet, "say", said.append)
        train_imagenet.main(*train_imagenet.options.read([*SMALL, "--eval", "--resume", str(path), files(ffcv_files)[1], *words]))
    found = re.search(r"on (\S+) images: top-1 (\S+) %  top-5 (\S+) %  NLL (\S+)  ECE (\S+)", said[-1])
    return [float(value) for value in found.groups()]


def test_checkpoints_of_the_originals_forms_are_evaluated(trained, ffcv_files, tmp_path):
    """BlurPool is recognised by buffers, the classes by the bias, under DistributedDataParallel's and Lightning's names."""
    folder, _ = trained
    weights = torch.load(folder / "checkpoint.pth", weights_only=True)["model"]
    last = log(folder)[-1]
    lightning = {
        "state_dict": {f"model.{key}": value for key, value in weights.items()},
        "epoch": 89,
        "pytorch-lightning_version": "2",
    }
    forms = {"ours": None, "ddp": {f"module.{key}": value for key, value in weights.items()}, "lightning": lightning}
    for name, content in forms.items():
        if content:
            torch.save(content, tmp_path / f"{name}.pt")
        found = evaluated(tmp_path / f"{name}.pt" if content else folder / "checkpoint.pth", ffcv_files)
        same_metrics(found, last)
    save_file(
        {key: value.contiguous() for key, value in weights.items()}, tmp_path / "a.safetensors"
    )  # in alphabetical order of the names
    same_metrics(evaluated(tmp_path / "a.safetensors", ffcv_files), last)
    assert abs(evaluated(folder / "checkpoint.pth", ffcv_files, "--validation.resolution=16")[3] - last["val_nll"]) > 0.001
    mirrored = evaluated(folder / "checkpoint.pth", ffcv_files, "--validation.lr_tta=1")
    assert mirrored[0] == 33 and abs(mirrored[3] - last["val_nll"]) > 0.0001
    own = torch.load(folder / "checkpoint.pth", weights_only=True)
    own["args"]["config"]["validation"]["lr_tta"] = True  # as if validated with mirror images, a setting that is kept
    torch.save(own, tmp_path / "mirrored.pth")
    assert evaluated(tmp_path / "mirrored.pth", ffcv_files) == mirrored
    same_metrics(evaluated(tmp_path / "mirrored.pth", ffcv_files, "--validation.lr_tta=0"), last)
    own["args"]["std"] = [0.5, 0.5, 0.5]
    torch.save(own, tmp_path / "others.pth")
    refused("others.pth: trained with a std of .*0.5.*only ImageNet's", "--eval", "--resume", tmp_path / "others.pth")


def test_every_loss_trains(ffcv_files):
    """Each trains for three epochs on the same images from the same weights; Zipf's ranks come from the feature map."""
    config = settings("--training.epochs=3", "--training.amp=off", "--lr.lr=2e-3")
    file = ffcv_file.read(ffcv_files / "train_500_0_90.ffcv", "")
    batches = data.train_images(file, config.training, config.augmentation, 1, True, CPU)
    for name in ffcv.load("maxsup_loss").LOSS_NAMES:
        config.loss.name, config.loss.alpha, config.loss.alpha_end = name, None, None
        torch.manual_seed(0)
        model = models.create_model("resnet18", 2)
        criterion = train_imagenet.build_criterion(config.loss, file.records["f1"], 2)
        wrapped = models.wrap(model, name == "zipf", False, CPU)
        assert isinstance(wrapped, models.WithDenseLogits) == (name == "zipf")
        optimizer = train_imagenet.build_optimizer(model, 2e-3, config.training.momentum, config.training.weight_decay)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        arguments = [wrapped, criterion, batches, optimizer, scaler, 2e-3, config.lr, config.training]
        losses = [engine.train_one_epoch(*arguments, epoch, 8)["loss"] for epoch in range(3)]
        assert losses[-1] < losses[0], name


def test_class_prior_smoothing_takes_the_training_files_frequencies():
    loss = settings("--loss.name=ls", "--loss.prior=frequency").loss
    criterion = train_imagenet.build_criterion(loss, np.array([0, 0, 0, 2]), 3)
    assert criterion.prior.tolist() == [0.75, 0, 0.25] and (loss.alpha, loss.alpha_end) == (0.1, None)


def test_sizes_grow_while_training(ffcv_files):
    """One loader decodes at two resolutions."""
    file = ffcv_file.read(ffcv_files / "train_500_0_90.ffcv", "")
    config = settings()
    images = data.train_images(file, config.training, config.augmentation, 1, True, CPU)
    assert [next(iter(images.epoch(epoch, side)))[0].shape for epoch, side in ((0, 8), (1, 16))] == [
        (32, 3, 8, 8),
        (32, 3, 16, 16),
    ]


# --------------------------------------------------------------------------------- bad input: one line, no traceback


def refused(match, *words):
    with pytest.raises(errors.InputError, match=match) as error:
        train(*words)
    assert "\n" not in str(error.value)


def test_bad_files(ffcv_files, few, tmp_path):
    good = (ffcv_files / "train_500_0_90.ffcv").read_bytes()
    val, out = files(ffcv_files)[1], f"--logging.folder={tmp_path}/run"

    def refused_file(match, content, description=None):
        (tmp_path / "bad.ffcv").write_bytes(content)
        (tmp_path / "bad.ffcv.json").unlink(missing_ok=True)
        if description is not None:
            (tmp_path / "bad.ffcv.json").write_text(description)
        refused(match, f"--data.train_dataset={tmp_path}/bad.ffcv", val, out)

    refused("none.ffcv: no such file", f"--data.train_dataset={tmp_path}/none.ffcv", val, out)
    refused("data.train_dataset .*: a folder", f"--data.train_dataset={tmp_path}", val, out)
    refused("data.val_dataset is missing", files(ffcv_files)[0], out)
    for length in (0, 10, 1000, 3000, len(good) // 2, len(good) - 1):
        refused_file("truncated|not a .ffcv file", good[:length])
    refused_file("not a .ffcv file", b"text" * 1000)
    start = ffcv_file.HeaderType.itemsize + 2 * ffcv_file.FieldDescType.itemsize
    refused_file("its fields are not", good[:24] + b"\5" + good[25:])  # the first field's number
    for field, value in (("data_ptr", 2**60), ("width", 60000), ("mode", 7)):
        records = ffcv_file.read(ffcv_files / "train_500_0_90.ffcv", "").records.copy()
        records["f0"][field][3] = value
        refused_file("damaged", good[:start] + records.tobytes() + good[start + records.nbytes :])
    for label in (-5, 10**6, 2**32, 2**63 - 1):
        records = ffcv_file.read(ffcv_files / "train_500_0_90.ffcv", "").records.copy()
        records["f1"][1] = label
        match = "labels below 0, such as -5" if label < 0 else f"has the label {label}; up to 999,999"
        refused_file(match, good[:start] + records.tobytes() + good[start + records.nbytes :])
    refused_file("description bad.ffcv.json is unreadable", good, "{")
    refused_file("description bad.ffcv.json is of another file", good, '{"classes": ["a"], "images": 64, "source": null}')
    refused_file("classes, or their order", good, '{"classes": ["odd", "even"], "images": 64, "source": null}')
    refused("labels up to 1, but the model has 1 outputs", *files(ffcv_files), out, "--model.num_classes=1")
    refused("64 training images do not fill one batch of 65", *files(ffcv_files), out, "--training.batch_size=65")


def test_files_from_elsewhere_have_numbers_for_classes(ffcv_files, tmp_path):
    """Checkpoints of runs on them store no names, rather than these numbers."""
    for split in ("train", "val"):
        shutil.copy(ffcv_files / f"{split}_500_0_90.ffcv", tmp_path)
    assert ffcv_file.read(tmp_path / "val_500_0_90.ffcv", "").classes == ["0", "1"]
    words = [*files(tmp_path), f"--logging.folder={tmp_path}/run"]
    train(*words, "--training.epochs=1")
    assert "classes" not in torch.load(tmp_path / "run/checkpoint.pth", weights_only=True)
    train(*words, "--training.epochs=2", "--resume", "auto")
    assert torch.load(tmp_path / "run/checkpoint.pth", weights_only=True)["epoch"] == 1


def test_a_file_larger_than_memory_is_warned_of(ffcv_files, tmp_path, capsys):
    """The file is sparse, with its table a terabyte away."""
    content = bytearray((ffcv_files / "val_500_0_90.ffcv").read_bytes())
    start, far = int.from_bytes(content[16:24], "little"), 10**12
    content[16:24] = far.to_bytes(8, "little")
    with open(tmp_path / "huge.ffcv", "wb") as file:
        file.write(content[:start])
        file.seek(far)
        file.write(content[start:])
    huge = ffcv_file.read(tmp_path / "huge.ffcv", "")
    train_imagenet.warn_of_memory(True, huge)
    said = capsys.readouterr().out
    assert said.startswith("warning: data.in_memory=1, but the files take 1000.0 GB and the memory is ") and said.count("\n") == 1
    train_imagenet.warn_of_memory(False, huge)
    train_imagenet.warn_of_memory(True, ffcv_file.read(ffcv_files / "val_500_0_90.ffcv", ""))
    assert capsys.readouterr().out == ""


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


def test_bad_checkpoints(trained, ffcv_files, tmp_path, monkeypatch):
    folder, _ = trained
    monkeypatch.chdir(tmp_path)
    good = (folder / "checkpoint.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(good[: len(good) // 2])
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Malicious()}))
    torch.save([1], tmp_path / "list.pth")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "empty.pth")
    torch.save({"model": {"fc.bias": torch.zeros(2), "fc.weight": torch.zeros(2, 3)}}, tmp_path / "bare.pth")
    out = f"--logging.folder={tmp_path}/run"
    for how in ([], ["--eval"]):
        refused("half.pth: damaged", *files(ffcv_files), out, "--resume", tmp_path / "half.pth", *how)
        refused("evil.pth: refused, .*nothing in it was run", *files(ffcv_files), out, "--resume", tmp_path / "evil.pth", *how)
        refused("list.pth: a checkpoint is a dict", *files(ffcv_files), out, "--resume", tmp_path / "list.pth", *how)
        refused("none.pth: no such checkpoint", *files(ffcv_files), out, "--resume", tmp_path / "none.pth", *how)
    assert not (tmp_path / "was-run").exists()
    refused("empty.pth: holds no weights", *files(ffcv_files), "--eval", "--resume", tmp_path / "empty.pth")
    refused("bare.pth: the weights are another model's", *files(ffcv_files), "--eval", "--resume", tmp_path / "bare.pth")
    refused("bare.pth: cannot be resumed", *files(ffcv_files), out, "--resume", tmp_path / "bare.pth")
    refused("--eval needs --resume", *files(ffcv_files), "--eval")
    refused("trained with model.blurpool=True, not False", *files(ffcv_files), out, "--resume", folder / "checkpoint.pth")
    blurred = [*files(ffcv_files), "--model.blurpool=1"]
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
    refused("cannot be written", *blurred, f"--logging.folder={ffcv_files}/val_500_0_90.ffcv/run")


def test_bad_models_and_losses(ffcv_files, tmp_path):
    common = [*files(ffcv_files), f"--logging.folder={tmp_path}/run"]
    refused("model.arch=resnet5: .*near names: resnet50", *common, "--model.arch=resnet5")
    refused("model.small_stem=1: for ResNets", *common, "--model.arch=vgg11", "--model.small_stem=1")
    refused("model.arch=alexnet cannot take images of 8 px", *common, "--model.arch=alexnet")
    refused("loss.name=maxsupp: .*maxsup", *common, "--loss.name=maxsupp")
    refused("loss.alpha_end=0.2: for ls and maxsup, not for ce", *common, "--loss.name=ce", "--loss.alpha_end=0.2")


def test_a_loss_that_is_not_finite_stops_the_run(ffcv_files, tmp_path):
    words = [*files(ffcv_files), f"--logging.folder={tmp_path}", "--lr.lr=1e30"]
    refused(r"the loss is (nan|inf) in epoch 1, step 2;.*last checkpoint is good", *words)
    assert not (tmp_path / "checkpoint.pth").exists()
