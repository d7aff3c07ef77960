"""Conv/ffcv without FFCV: configurations and their overrides, BlurPool, schedules, and the message without FFCV."""

import os
import re
import subprocess
import sys

import pytest
import torch

from conftest import complains
from subprojects import Subproject

SUBPROJECT = ffcv = Subproject("Conv/ffcv")
engine, errors, models, options = (ffcv.load(name) for name in ("engine", "errors", "models", "options"))
TRAIN, WRITE = ffcv.folder / "train_imagenet.py", ffcv.folder / "write_imagenet.py"


def test_configs_and_losses():
    """The four ImageNet configurations accept any loss, at its published strength."""
    found = {path.stem: options.read(["--config", str(path)])[0] for path in sorted((ffcv.folder / "configs").glob("*.yaml"))}
    assert set(found) == {"rn18", "rn50", "rn18_16", "rn50_16", "digits"}
    for name, config in found.items():
        assert vars(config.loss) | {"name": "maxsup", "prior": "uniform", "alpha": None, "alpha_end": None} == vars(config.loss)
        assert config.logging.folder == f"output/{name.removesuffix('_maxsup')}_maxsup"
    other = options.read(["--config", str(ffcv.folder / "configs/rn18_16.yaml"), "--loss=ls"])[0]
    assert (other.loss.name, other.loss.alpha, other.logging.folder) == ("ls", None, "output/rn18_16_ls")
    original = found["rn50"]
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
    assert (original.resolution.min_res, original.resolution.max_res) == (224, 224) and found["rn18"].model.arch == "resnet18"
    short = found["rn50_16"]  # ffcv-imagenet's 16 epochs
    assert (short.lr.lr, short.lr.for_batch, short.lr.schedule, short.lr.peak_epoch) == (1.7, 4096, "cyclic", 2)
    assert list(vars(short.resolution).values()) == [160, 192, 11, 13] and short.validation.lr_tta
    assert (short.training.epochs, short.training.batch_size, short.training.weight_decay) == (16, 512, 1e-4)
    one, other = ({part: vars(value) for part, value in vars(found[name]).items()} for name in ("rn50", "rn18"))
    different = {f"{part}.{key}" for part in one for key in one[part] if one[part][key] != other[part][key]}
    assert different == {"model.arch", "logging.folder"}


def test_the_command_line_overrides_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: {lr: 1e-3, schedule: cyclic}\nloss: {alpha: null}\nmodel: {blurpool: true}\n")
    found = options.read(["--config", str(tmp_path / "a.yaml"), "--lr.schedule=step", "--training.epochs", "7"])[0]
    assert (found.lr.lr, found.lr.schedule, found.training.epochs, found.loss.alpha) == (1e-3, "step", 7, None)
    assert found.model.blurpool is True
    (tmp_path / "a.yaml").write_text("training: {label_smoothing: 0.1}\n")
    smoothed, other, given = (
        options.read(["--config", str(tmp_path / "a.yaml"), *words])[0].loss
        for words in ([], ["--loss=maxsup"], ["--loss=maxsup", "--alpha=0.3"])
    )
    assert (smoothed.name, smoothed.alpha) == ("ls", 0.1) and (other.name, other.alpha, given.alpha) == ("maxsup", None, 0.3)
    (tmp_path / "a.yaml").write_text("loss: {name: ls, prior: frequency}\n")
    assert options.read(["--config", str(tmp_path / "a.yaml"), "--loss=maxsup"])[0].loss.prior == "uniform"
    (tmp_path / "a.yaml").write_text("data: {gpu: 0}\ntraining: {bn_wd: 0}\n")  # as in ffcv-imagenet's own
    assert options.read(["--config", str(tmp_path / "a.yaml"), "--loss.loss_type=lp"])[0].loss.name == "logit-penalty"
    assert options.read(["--loss.name=ls", "--loss.alpha=-0.5"])[0].loss.alpha == -0.5  # negative label smoothing


BAD_WORDS = {
    "--lr.lrr=1": "no such key 'lr.lrr'; the nearest is 'lr.lr'",
    "--training.epoch=3": "the nearest is 'training.epochs'",
    "--resum=auto": "the nearest is 'resume'",
    "5": "expected --section.key=value",
    "--training.epochs=0": "must lie between 1",
    "--training.epochs=two": "a whole number is expected",
    "--lr.lr=nan": "must lie between",
    "--lr.schedule=cosine": "choose from step, cyclic",
    "--model.blurpool=2": "0 or 1 is expected",
    "--loss.alpha=-1": "loss.alpha=-1: must lie between 0 and 1 for maxsup",
    "--loss.alpha_end=-1": "loss.alpha_end=-1: must lie between 0 and 1 for maxsup",
    "--loss.prior=class": "choose from uniform, frequency",
    "--loss.prior=frequency": "loss.prior=frequency: for ls, not for maxsup",
    "--training.epochs=none": "needs a value",
    "--resolution.min_res=300": "larger than resolution.max_res",
    "--resolution.start_ramp=5": "comes after end_ramp",
}


@pytest.mark.parametrize("word", BAD_WORDS)
def test_bad_words(word):
    with pytest.raises(errors.InputError, match=re.escape(BAD_WORDS[word])):
        options.read([word])


@pytest.mark.parametrize(
    "text, match",
    [
        ("loss: {nam: ce}", "a.yaml: no such key 'loss.nam'; the nearest is 'loss.name'"),
        ("loss: [", "not YAML"),
        ("- 1", "sections of keys"),
        ("loss: ce", "sections of keys"),
        ("training: {epochs: [1]}", "one text or number of at most 18 digits is expected"),
        ("training: {epochs: 1.5}", "a whole number is expected"),
        ("\x00", "not YAML"),
    ],
)
def test_bad_yaml(tmp_path, text, match):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(errors.InputError, match=re.escape(match)) as error:
        options.read(["--config", str(tmp_path / "a.yaml")])
    assert "\n" not in str(error.value)


def test_blurpool_by_hand():
    """An impulse becomes the strided binomial filter; only strided convolutions with 16 inputs or more are blurred."""
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
    step = options.read(["--lr.schedule=step", "--training.epochs=90"])[0]
    found = [engine.rate_factor(epoch, 0.5, step.lr, 90) for epoch in (0, 29, 30, 60, 89)]
    assert found == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    cyclic = options.read(["--lr.schedule=cyclic", "--training.epochs=16", "--lr.peak_epoch=2"])[0]
    found = [engine.rate_factor(epoch, within, cyclic.lr, 16) for epoch, within in ((0, 0), (1, 0), (2, 0), (9, 0), (15, 0.5))]
    assert found == pytest.approx([1e-4, 0.50005, 1, 0.5, 0.5 / 14])
    words = ("min_res=128", "max_res=256", "start_ramp=3", "end_ramp=9")
    ramp = options.read([f"--resolution.{word}" for word in words])[0].resolution
    # 128 + 128 (epoch - 3) / 6 inside the ramp, to the nearest multiple of 32
    expected = [128] * 4 + [160, 160, 192, 224, 224] + [256] * 3
    assert [engine.resolution(epoch, ramp) for epoch in range(12)] == expected


def test_without_ffcv_both_scripts_name_the_line_that_installs_it(tmp_path):
    """A module of that name that cannot be imported precedes the real one on the path."""
    (tmp_path / "ffcv").mkdir()
    (tmp_path / "ffcv/__init__.py").write_text("raise ImportError('libopencv_core.so.406: cannot open shared object file')")
    for words in ([str(TRAIN)], [str(WRITE), "--data-path", "x", "--output", "y"]):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        result = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
        complains(result, "libopencv_core", f"bash {ffcv.folder}/install.sh")
    result = subprocess.run([sys.executable, str(TRAIN), "--help"], env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and "--loss.alpha_end" in result.stdout, result.stderr
