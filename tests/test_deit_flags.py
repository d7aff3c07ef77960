"""DeiT's command line in Deit/: every option is accepted, reported as without effect, or refused with a reason."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

from conftest import ROOT, complains, run
from training import DEIT, DEIT_DEFAULTS, PLAIN, SMALL, log, options

SUBPROJECT = DEIT
InputError, main = DEIT.load("errors").InputError, DEIT.load("main").main
fill_in = DEIT.load("options").fill_in
NAMES = (ROOT / "tests/flags/deit.txt").read_text().split()
# Values that differ from the default, for options where 1 is the default or impossible.
VALUES = """
    --model vit_tiny_patch16_224, --opt sgd, --opt-betas 0.8 0.9, --sched step, --lr-noise 0.4 0.9, --aa original, --remode const,
    --train-interpolation bilinear, --mixup-mode elem, --cutmix-minmax 0.2 0.8, --teacher-model resnet18, --teacher-path P,
    --distillation-type soft, --finetune P, --data-path other, --data-set CIFAR, --inat-category genus, --output_dir other,
    --device cpu, --resume P, --dist_url env://, --drop 0.5, --mixup-prob 0.5, --distillation-tau 2, --cutmix 0.5, --recount 2,
    --lr-noise-std 0.5
"""
VALUES = {words.split()[0]: words.split()[1:] for words in VALUES.split(",")}
SWITCHES = """
    --bce-loss --unscale-lr --model-ema --no-model-ema --model-ema-force-cpu --repeated-aug --no-repeated-aug --train-mode
    --no-train-mode --ThreeAugment --src --resplit --cosub --attn-only --eval --dist-eval --pin-mem --no-pin-mem --distributed
""".split()


def outcome(name):
    """accepted: the namespace changes; unneeded: a note says that it has no effect; refused: an error gives the reason."""
    words = ["--data-path", "here", name, *([] if name in SWITCHES else VALUES.get(name, ["1"]))]
    switch = name.removeprefix("--no-").removeprefix("--")
    # Compared with the opposite of a switch, or with the default.
    opposite = [f"--{switch}" if name.startswith("--no-") else f"--no-{switch}"]
    try:
        args = options(*words)
        try:
            other = options("--data-path", "here", *opposite)
        except InputError:
            other = options("--data-path", "here")
    except InputError as error:
        return "refused" if str(error).startswith(f"{name}: ") and len(str(error)) > len(name) + 20 else f"error: {error}"
    if args.notes:
        assert args.notes[0].startswith(f"{name} has no effect: ") and vars(args) | {"notes": []} == vars(other)
        return "unneeded"
    return "accepted" if vars(args) != vars(other) else "ignored"


def test_every_name_of_deits_command_line():
    found = {name: outcome(name) for name in NAMES}
    assert len(NAMES) == len(set(NAMES)) == 75
    unneeded = {"--dist_url", "--world_size", "--distributed", "--cooldown-epochs", "--patience-epochs", "--resplit"}
    expected = {name: "unneeded" if name in unneeded else "refused" if name == "--cosub" else "accepted" for name in NAMES}
    assert found == expected


def settled(*words):
    args = options("--data-path", "here", "--device", "cpu", *words)
    fill_in(args)
    return args


def test_options_reach_what_is_built():
    """Each option, at a value other than its default, is found in the optimiser, the schedule, the mixing or the model."""
    build = DEIT.load("main")
    words = "--opt sgd --momentum 0.7 --weight-decay 0.03 --lr 0.5 --unscale-lr --min-lr 0.001 --warmup-epochs 2 --warmup-lr 0.1"
    words += " --lr-noise 0.1 0.9 --lr-noise-pct 0.3 --lr-noise-std 0.4 --sched step --decay-epochs 7 --decay-rate 0.2"
    args = settled_for(*words.split())
    model = timm.create_model("test_vit", num_classes=2)
    optimizer, scheduler = build.build_optimizer(model, args)
    group = next(group for group in optimizer.param_groups if group["weight_decay"])
    assert (group["momentum"], group["weight_decay"], group["initial_lr"]) == (0.7, 0.03, 0.5)
    kept = (scheduler.noise_pct, scheduler.noise_std, scheduler.warmup_t, scheduler.decay_t, scheduler.decay_rate)
    assert kept == (0.3, 0.4, 2, 7, 0.2) and scheduler.noise_range_t == [30, 270]
    cosine = build.build_optimizer(model, settled_for("--min-lr", 0.001, "--warmup-lr", 0.1))[1]
    assert (cosine.lr_min, cosine.warmup_lr_init) == (0.001, 0.1)
    betas = build.build_optimizer(model, settled_for("--opt-betas", 0.8, 0.95))[0]
    assert betas.param_groups[0]["betas"] == (0.8, 0.95)

    words = "--mixup 0.3 --cutmix 0.6 --mixup-prob 0.5 --mixup-switch-prob 0.2 --mixup-mode elem"
    mixup = build.build_mixup(settled_for(*words.split()))
    found = (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob, mixup.mode)
    assert found == (0.3, 0.6, 0.5, 0.2, "elem") and mixup.label_smoothing == 0
    assert build.build_mixup(settled_for("--cutmix-minmax", 0.2, 0.8)).cutmix_minmax == [0.2, 0.8]
    crop = build.build_augmentation(settled("--train-interpolation", "bilinear")).transforms[0]
    assert crop.interpolation == transforms.InterpolationMode.BILINEAR

    dropped = DEIT.load("models").create_model("test_vit", 2, 160, 0.25, 0.3)
    rates = [module.drop_prob for module in dropped.modules() if isinstance(module, timm.layers.DropPath)]
    assert dropped.head_drop.p == 0.25 and max(rates) == pytest.approx(0.3) and rates == sorted(rates)


def settled_for(*words):
    """The options as main.py settles them before it builds: two classes and an unscaled learning rate."""
    args = settled(*words)
    args.num_classes, args.scaled_lr = 2, args.lr
    return args


def test_defaults_are_those_of_deits_paper():
    args = options("--data-path", "here")
    assert {name: getattr(args, name) for name in DEIT_DEFAULTS} == DEIT_DEFAULTS


def test_both_names_of_one_thing_mean_the_same():
    for left, right in (
        (["--smoothing", 0.1], ["--loss", "ls", "--alpha", 0.1]),
        (["--label-smoothing", 0.2, "--loss", "ls"], ["--loss", "ls", "--alpha", 0.2]),
        (["--smoothing", 0], ["--loss", "ce"]),
        (["--bce-loss", "--smoothing", 0], ["--loss", "bce"]),
        (["--smoothing", 0, "--loss", "maxsup", "--alpha", 0.3], ["--alpha", 0.3]),
        (["--model", "our_patch16_224"], []),  # the MaxSup repository's name for the default
        (["--output-dir", "o", "--num-workers", 3, "--batch_size=8"], ["--output_dir", "o", "-j", 3, "-b", 8]),
        (["--dr", 0.2, "--no-aug"], ["--decay-rate", 0.2, "--no-aug", "--no-repeated-aug", "--mixup", 0, "--cutmix", 0]),
        (["--wd", 0.1, "--workers", 2], ["--weight-decay", 0.1, "--num_workers", 2]),
        (["--init", "P", "--clip-grad-norm", 1], ["--finetune", "P", "--clip-grad", 1]),
        (["--crop-ratio", 0.9, "--random-erase", 0.1], ["--eval-crop-ratio", 0.9, "--reprob", 0.1]),
        (["--model-ema", "--ema-decay", 0.9], ["--model-ema", "--model-ema-decay", 0.9]),
    ):
        one, other = (vars(settled(*words)) | {"notes": []} for words in (left, right))
        assert one == other
    assert "--smoothing 0 is --loss ce; for MaxSup, omit it" in settled("--smoothing", 0).notes[0]
    assert not settled("--smoothing", 0, "--loss", "ce").notes
    assert "--model-ema-decay: no effect without --model-ema" in settled("--model-ema-decay", 0.99).notes
    three = settled("--ThreeAugment")
    assert (three.aa, three.reprob) == ("3a", 0) and "takes the place of --aa" in three.notes[0]
    assert settled().loss == "maxsup" and settled("--lr", 1, "--lr", 2).lr == 2
    assert settled("--weight-decay", 0.05, "--wd", 0.1).weight_decay == 0.1  # overrides the recipe of a script


CONTRADICTIONS = {
    "--smoothing 0.1 --loss maxsup": "--smoothing 0.1 and --loss maxsup",
    "--smoothing 0.1 --alpha 0.2": "--smoothing 0.1 and --alpha 0.2",
    "--smoothing 0 --alpha 0.2": "--smoothing 0 and --alpha 0.2",
    "--bce-loss --loss ce": "--bce-loss and --loss ce",
    "--bce-loss --smoothing 0.1": "--bce-loss and --smoothing 0.1",
    "--finetune P --resume Q": "--finetune P and --resume Q",
    "--loss maxsupp": "--loss maxsupp: choose from ce,",
    "--freeze-backbone --attn-only": "--freeze-backbone and --attn-only",
    "--teacher-path P": "--teacher-path without --distillation-type",
    "--distillation-type soft": "needs --teacher-path",
    "--distillation-type soft --teacher-path P --distillation-alpha 1.5": "--distillation-alpha 1.5: must lie between 0 and 1",
    "--inat-category genus": "--inat-category genus is for",
    "--data-set CIFAR --cache": "--cache reads archives",
    "--cutmix-minmax 0.8 0.2": "--cutmix-minmax 0.8 0.2: the smaller",
    "--smoothign 0.1": "--smoothign: no such option; the nearest is --smoothing",
    "--distilation-type=soft": "the nearest is --distillation-type",
    "--epoch 1": "--epoch: no such option; the nearest is --epochs",
    "--lr much": "--lr: invalid float value",
}


@pytest.mark.parametrize("words", CONTRADICTIONS)
def test_contradictions_name_both_and_unknown_options_the_nearest(words):
    with pytest.raises(InputError) as error:
        settled(*words.split())
    assert CONTRADICTIONS[words] in str(error.value) and "\n" not in str(error.value)


def test_options_of_a_training_that_change_nothing_are_named():
    small = settled(*"--input-size 32 --scale 0.3 1 --train-interpolation bilinear --eval-crop-ratio 0.9".split()).notes
    assert small == [
        "--scale, --train-interpolation, --eval-crop-ratio: no effect, images of up to 32 px are padded and shifted, not cropped"
    ]
    assert settled("--src", "--scale", 0.3, 1).notes == ["--scale: no effect, --src crops squares of one size"]
    (short,) = settled("--epochs", 5).notes
    assert short.startswith("--epochs 5 ends within the warm-up, --warmup-epochs 5")
    assert settled("--distillation-tau", 2, "--distillation-alpha", 0.3).notes == [
        "--distillation-alpha: no effect with --distillation-type none",
        "--distillation-tau: no effect with --distillation-type none",
    ]
    assert settled("--distillation-type", "soft", "--teacher-path", "P", "--distillation-tau", 2).notes == []
    assert settled("--epochs", 6).notes == settled("--input-size", 32).notes == settled("--scale", 0.3, 1).notes == []


@pytest.mark.parametrize("script, words, piece", [
    ("Deit/main.py", "--data-path x --epochs 0", "--epochs 0: must lie between 1"),
    ("Deit/main.py", "--data-path x --loss maxsupp", "--loss maxsupp: choose from"),
    ("Conv/ffcv/train_imagenet.py", "--training.epoch=3", "the nearest is 'training.epochs'"),
])  # fmt: skip
def test_mistakes_are_answered_before_what_takes_seconds_is_imported(script, words, piece):
    result = run(sys.executable, "-X", "importtime", ROOT / script, *words.split())
    assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith("error: ") and piece in result.stderr
    assert not re.findall(r"\| +(?:torch|torchvision|timm|ffcv)$", result.stderr, re.MULTILINE)


@pytest.mark.parametrize("script", ["Deit/train_with_MaxSup.sh", "Conv/ffcv/train.sh"])
def test_a_launcher_starts_by_a_relative_path_and_without_pytorch_says_so(script, tmp_path):
    """With CDPATH set, cd prints its target, which would end up in a variable."""
    environment = os.environ | {"CDPATH": ".", "GPUS": "1", "PYTHON": sys.executable}
    words = ["bash", script, "--data-path", tmp_path, "--data.train_dataset=none.ffcv"][: 4 if "Deit" in script else 2]
    result = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True, env=environment)
    complains(result, f"{tmp_path}/train: no such folder" if "Deit" in script else "data.train_dataset is missing")
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # -S hides what is installed
    (tmp_path / "python").chmod(0o755)
    environment["PYTHON"] = str(tmp_path / "python")
    result = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True, env=environment)
    complains(result, "has no PyTorch")
    result = subprocess.run(["bash", script, "--data-path", "x", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.startswith("The paper's r") and "GPUS" in result.stdout and result.returncode == 0


@pytest.mark.parametrize("processes, advice", [(2, "--batch-size 512 gives"), (3, "Use a number of processes that divides it")])
def test_the_warning_about_the_batch_gives_advice_that_helps(processes, advice, monkeypatch, capsys):
    report = DEIT.load("report")
    monkeypatch.setattr(report.distributed, "world_size", lambda: processes)
    report.warn_of_batch(1023, 1024)
    assert f"by points. {advice}" in capsys.readouterr().out


def test_a_launcher_that_sets_half_of_the_variables_is_told_which(monkeypatch):
    monkeypatch.setattr(os, "environ", {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "here"})
    with pytest.raises(InputError, match="RANK is set, but not LOCAL_RANK, MASTER_PORT; torchrun"):
        DEIT.load("distributed").start("cpu")


def test_the_papers_script_runs_under_python_too(tmp_path):
    """It passes itself to bash, with the interpreter that ran it, and is valid in both languages."""
    script = ROOT / "Deit/train_with_MaxSup.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    command = [sys.executable, script.name, "--data-path", str(tmp_path), "--cache"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"} | {"GPUS": "1"}
    result = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, env=environment)
    complains(result, f"{tmp_path}/train.zip: no such archive")


def test_augmentations_of_deit_three():
    """A simple crop, by torchvision's steps and padded by reflection, becomes a grey, solarised or blurred image."""
    args = settled("--ThreeAugment", "--src", "--input-size", 64)
    steps = DEIT.load("main").build_augmentation(args).transforms
    assert isinstance(steps[0], transforms.Resize) and steps[1].padding == 4 and steps[1].padding_mode == "reflect"
    operations = [type(step).__name__ for step in steps]
    assert "AutoAugment" in operations and "ColorJitter" in operations and "RandomErasing" not in operations
    assert DEIT.load("main").build_augmentation(args)(Image.new("RGB", (90, 70), "red")).shape == (3, 64, 64)


def test_options_that_only_deit_had_train(few, tmp_path, capsys):
    """Binary cross-entropy, noise on the rate, --cutmix-minmax and a later start: two runs with the same seed are the same."""
    words = [*SMALL, "--data-path", few, "--epochs", 3, "--start_epoch", 1, "--batch-size", 16, "--bce-loss", "--ThreeAugment"]
    words += ["--no-train-mode", "--model-ema", "--model-ema-force-cpu", "--cutmix-minmax", 0.2, 0.8, "--lr-noise", 0.3]
    for name in ("a", "b"):
        main(options(*words, "--world-size", 4, "--output_dir", tmp_path / name))
    a, b = log(tmp_path / "a"), log(tmp_path / "b")
    assert [line["epoch"] for line in a] == [2, 3] and a[0]["alpha"] is None
    assert [line["train_loss"] for line in a] == [line["train_loss"] for line in b] and "ema_top1" in a[0]
    main(options(*words, "--lr-noise", 1.0, "--output_dir", tmp_path / "c"))
    assert log(tmp_path / "c")[0]["lr"] != a[0]["lr"]
    assert "--world_size has no effect: torchrun's" in capsys.readouterr().out
    with pytest.raises(InputError, match="--start_epoch 3: .*beyond --epochs 3"):
        main(options(*words, "--start_epoch", 3, "--output_dir", tmp_path / "d"))


def test_strengths_are_recorded_under_one_name():
    build = DEIT.load("main").build_criterion
    for name, default in {"focal": 2, "logit-penalty": 2e-3, "maxsup": 0.1, "ols": 0.5, "ce": None}.items():
        for given in [None, 0.25] if default else [None]:
            args = settled("--loss", name, *([] if given is None else ["--alpha", given]))
            args.num_classes = 3
            build(args, torch.zeros(1))
            assert args.alpha == (given or default)


def test_every_optimiser_gets_the_epsilon():
    for name in ("adamw", "lamb", "rmsprop", "adabelief"):
        args = settled("--opt", name, "--opt-eps", 1e-3)
        args.scaled_lr = 0.1
        assert DEIT.load("main").build_optimizer(torch.nn.Linear(2, 2), args)[0].param_groups[0]["eps"] == 1e-3
    args = settled("--opt", "sgd")
    args.scaled_lr = 0.1
    DEIT.load("main").build_optimizer(torch.nn.Linear(2, 2), args)  # SGD has none


def test_binary_cross_entropy_against_its_formula():
    """Every class of a mixed image counts as present."""
    criterion = DEIT.load("main").build_criterion(settled("--bce-loss"), torch.zeros(1))
    z = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    there = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    expected = -(there * z.sigmoid().log() + (1 - there) * (1 - z.sigmoid()).log()).mean()
    assert criterion(z, torch.tensor([[0.3, 0.0, 0.7]], dtype=torch.float64)).item() == pytest.approx(expected.item(), abs=1e-12)


def test_inaturalist(tmp_path):
    """Labels of each rank follow the order of the training annotations; files may lie in an intermediate folder or not."""
    taxa = [{"name": f"s{i}", "genus": f"g{i // 2}"} for i in range(4)]
    (tmp_path / "categories.json").write_text(json.dumps(taxa))
    for year, between in ((2018, "Aves/"), (2019, "")):
        files = [f"train_val{year}/Aves/{i}/{n}.jpg" for n, i in enumerate((3, 0, 2))]
        for split in ("train", "val"):
            annotations = [{"category_id": i} for i in (3, 0, 2)]
            content = {"images": [{"file_name": name} for name in files], "annotations": annotations}
            (tmp_path / f"{split}{year}.json").write_text(json.dumps(content))
        for number, name in enumerate(files):
            path = tmp_path / name.replace("Aves/", between)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(path, quality=100)
    open_images = DEIT.load("data.splits").open_images
    names = open_images(tmp_path, "val", None, kind="INAT")
    assert names.classes == ["s3", "s0", "s2"] and names.labels.tolist() == [0, 1, 2]
    genera = open_images(tmp_path, "train", None, kind="INAT19", inat_category="genus")
    assert genera.classes == ["g1", "g0"] and genera.labels.tolist() == [0, 1, 0]
    assert genera[2][0].getpixel((4, 4))[0] == pytest.approx(80, abs=3) and genera[2][1] == 0
    with pytest.raises(InputError, match="see --inat-category"):
        open_images(tmp_path, "train", None, kind="INAT", inat_category="kingdom")
    (tmp_path / "val2018.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        open_images(tmp_path, "val", None, kind="INAT")
    with pytest.raises(InputError, match="cannot be read .*No such file"):
        open_images(Path(tmp_path / "none"), "val", None, kind="INAT")


def test_cifar_that_is_damaged(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(InputError, match="cifar-100-python: CIFAR100 is neither there"):
        main(options(*PLAIN, "--data-path", tmp_path, "--data-set", "CIFAR", "--output_dir", tmp_path / "run"))
