"""Conv/ffcv: the configurations, and the words that override them."""

import re

import pytest

from subprojects import Subproject

SUBPROJECT = ffcv = Subproject("Conv/ffcv")
options, errors = ffcv.load("options"), ffcv.load("errors")


def test_configs_agree_in_all_but_what_they_are_named_for():
    paths = {path.stem: options.read(["--config", str(path)])[0] for path in sorted((ffcv.folder / "configs").glob("*.yaml"))}
    losses = ("ce", "ls", "ols", "zipf", "logit-penalty", "maxsup")
    assert set(paths) == {f"{arch}_{loss}" for arch in ("rn18", "rn50", "rn18_16", "rn50_16") for loss in losses} | {
        "digits_maxsup"
    }
    strengths = {"ls": (0.1, None), "maxsup": (0.1, 0.2)}
    for name, found in paths.items():
        arch, _, loss = name.rpartition("_")
        assert (found.loss.name, found.logging.folder) == (loss, f"output/{name}")
        assert (found.loss.alpha, found.loss.alpha_end) == strengths.get(loss, (None, None))
        first = options.plain(paths[f"{arch}_maxsup"])
        assert {**options.plain(found), "loss": 0, "logging": 0} == {**first, "loss": 0, "logging": 0}
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
    found = options.read(["--config", str(tmp_path / "a.yaml"), "--lr.schedule=step", "--training.epochs", "7"])[0]
    assert (found.lr.lr, found.lr.schedule, found.training.epochs, found.loss.alpha) == (1e-3, "step", 7, None)
    assert found.model.blurpool is True
    assert options.read(["--loss.name=ls", "--loss.alpha=-0.5"])[0].loss.alpha == -0.5  # negative label smoothing


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
    "--loss.alpha=-1": "loss.alpha=-1: goes from 0 to 1 for maxsup",
    "--loss.alpha_end=-1": "loss.alpha_end=-1: goes from 0 to 1 for maxsup",
    "--loss.prior=class": "choose from uniform, frequency",
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
        ("training: {epochs: [1]}", "a whole number is expected"),
        ("training: {epochs: 1.5}", "a whole number is expected"),
        ("\x00", "not YAML"),
    ],
)
def test_bad_yaml(tmp_path, text, match):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(errors.InputError, match=re.escape(match)) as error:
        options.read(["--config", str(tmp_path / "a.yaml")])
    assert "\n" not in str(error.value)
