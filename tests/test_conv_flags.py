"""Conv/common_resnet and Conv/ffcv: alternative option names, what torchvision's flags become, contradictions, mixed images."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torchvision import transforms

from conftest import ROOT, complains, run
from subprojects import Subproject
from training import CONV_TRAIN, assert_same, load, log

SUBPROJECT = conv = Subproject("Conv/common_resnet")
InputError = conv.load("errors").InputError
options, flags, mixing, train = (conv.load(name) for name in ("options", "torchvision_flags", "mixing", "train"))
FLAGS = (ROOT / "tests/flags/torchvision.txt").read_text().split()
LARGE = "--data imagenet --data-path p --model resnet18 --device cpu"
# A value for each flag that takes one; it differs from the default here.
VALUES = {
    "--data-path": "q", "--model": "resnet34", "--device": "cpu", "-b": "17", "--batch-size": "17", "--epochs": "31", "-j": "3",
    "--workers": "3", "--opt": "sgd", "--lr": "0.3", "--momentum": "0.8", "--wd": "0.3", "--weight-decay": "0.3",
    "--norm-weight-decay": "0.1", "--bias-weight-decay": "0.1", "--transformer-embedding-decay": "0", "--label-smoothing": "0.1",
    "--mixup-alpha": "0.2", "--cutmix-alpha": "1", "--lr-scheduler": "cosineannealinglr", "--lr-warmup-epochs": "4",
    "--lr-warmup-method": "constant", "--lr-warmup-decay": "0.01", "--lr-step-size": "20", "--lr-gamma": "0.2", "--lr-min": "0.1",
    "--print-freq": "10", "--output-dir": "o", "--resume": "auto", "--start-epoch": "3", "--auto-augment": "ra",
    "--ra-magnitude": "8", "--augmix-severity": "2", "--random-erase": "0.1", "--world-size": "2", "--dist-url": "env://",
    "--model-ema-steps": "16", "--model-ema-decay": "0.9999", "--interpolation": "bicubic", "--val-resize-size": "232",
    "--val-crop-size": "192", "--train-crop-size": "192", "--clip-grad-norm": "1", "--ra-reps": "4", "--backend": "tensor",
    "--weights": "ResNet18_Weights.IMAGENET1K_V1",
}  # fmt: skip
NEEDS = {"--test-only": "--resume x", "--model-ema-steps": "--model-ema", "--model-ema-decay": "--model-ema"}
NEEDS |= {"--ra-magnitude": "--auto-augment ra", "--augmix-severity": "--auto-augment augmix", "--lr-gamma": "--lr-step-size 20"}


def settled(words: str):
    args = options.get_parser().parse_args(words.split())
    del args.said
    args.notes = options.fill_in(args)
    return args


@pytest.mark.parametrize("flag", FLAGS)
def test_each_flag_of_torchvision_changes_an_option_or_says_that_it_does_not(flag):
    """A machine may have only --device cpu, which then changes nothing but must be the option's value."""
    before, words = (
        vars(settled(f"{LARGE} {NEEDS.get(flag, '')}")),
        f"{LARGE} {NEEDS.get(flag, '')} {flag} {VALUES.get(flag, '')}",
    )
    try:
        after = vars(settled(words))
    except InputError as error:
        assert str(error).startswith(f"{flag} ") and "refused: " in str(error) and "\n" not in str(error), error
        assert flag in flags.REFUSED
        return
    note = any(f"note: {flag} has no effect: " in line for line in after["notes"])
    assert note == (flag in flags.WITHOUT_EFFECT)
    assert note or after != before or (flag == "--device" and after["device"] == "cpu"), "accepted and ignored"


def test_the_list_is_whole_and_every_spelling_is_known():
    assert len(FLAGS) == len(set(FLAGS)) > 50
    known = set(options.get_parser().spellings()) | set(flags.WITHOUT_EFFECT) | set(flags.REFUSED)
    assert set(FLAGS) <= known


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--label-smoothing 0.2", {"loss": "ls", "alpha": 0.2}),
        ("--label-smoothing 0", {"loss": "ce", "alpha": None}),
        ("--smoothing 0.2 --finetune imagenet", {"loss": "ls", "alpha": 0.2, "init": "imagenet"}),
        ("--mixup 0.8 --cutmix 1", {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}),
        ("--label-smoothing 0 --loss maxsup --alpha 0.3", {"loss": "maxsup", "alpha": 0.3}),
        ("--pretrained", {"init": "imagenet"}),
        ("--weights IMAGENET1K_V2", {"init": "IMAGENET1K_V2"}),
        ("--model wide_resnet50_2 --weights Wide_ResNet50_2_Weights.IMAGENET1K_V2", {"init": "IMAGENET1K_V2"}),
        ("--weights out.dir/checkpoint.pth", {"init": "out.dir/checkpoint.pth"}),
        ("--flip", {"flip": True}),
        ("--no-flip", {"flip": False}),
        ("--epochs 8 --lr-step-size 3 --lr-gamma 0.5", {"sched": "step", "decay_epochs": [3, 6], "decay_rate": 0.5}),
        ("--epochs 9 --lr-warmup-epochs 2 --lr-scheduler steplr --lr-step-size 3", {"decay_epochs": [5, 8], "warmup_epochs": 2}),
        ("--epochs 4 --lr-scheduler exponentiallr --lr-gamma 0.9", {"decay_epochs": [1, 2, 3], "decay_rate": 0.9}),
        ("--lr-scheduler cosineannealinglr", {"sched": "cosine"}),
        ("--train-crop-size 176 --val_crop_size 176", {"input_size": 176}),
        ("--norm-weight-decay 0.0 --lr-min 0 --interpolation bilinear", {"crop_ratio": 0.875}),
        ("--amp", {"amp": "bf16"}),
        ("--batch_size 8 --num_workers 0 --warmup_epochs 3", {"batch_size": 8, "num_workers": 0, "warmup_epochs": 3}),
    ],
)  # fmt: skip
def test_what_flags_become(words, expected):
    found = vars(settled(f"{LARGE} {words}"))
    assert {key: found[key] for key in expected} == expected


def test_resizing_and_averages_become_what_torchvision_does():
    """int(crop / ratio) is the side given to torchvision's Resize; the average decays as fast as torchvision's 32-step one."""
    for resize in (224, 230, 232, 256):
        assert int(224 / settled(f"{LARGE} --val-resize-size {resize}").crop_ratio) == resize
    args = settled(f"{LARGE} --model-ema --epochs 100 -b 128")
    assert args.ema_decay**32 == pytest.approx(1 - (1 - 0.99998) * 128 * 32 / 100, abs=1e-12)


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ("--batch-size 4 -b 8", ("--batch-size 4", "-b 8", "contradict")),
        ("--output-dir a --output_dir b", ("--output-dir a", "--output_dir b")),
        ("--label-smoothing 0.1 --loss maxsup", ("--label-smoothing 0.1", "--loss maxsup")),
        ("--label-smoothing 0.1 --alpha 0.2 --loss ls", ("--label-smoothing 0.1", "--alpha 0.2")),
        ("--pretrained --init x.pth", ("--pretrained", "--init x.pth")),
        ("--lr-scheduler cosineannealinglr --sched step", ("--lr-scheduler cosineannealinglr", "--sched step")),
        ("--train-crop-size 176 --val-crop-size 224", ("--train-crop-size 176", "--val-crop-size 224")),
        ("--lr-step-size 0", ("--lr-step-size 0",)),
        ("--lr-gamma 0.2 --sched cosine", ("--decay-rate 0.2", "cosine")),
        ("--model-ema-decay 0.9", ("--model-ema-decay", "--ema-decay")),
        ("--batch-sise 4", ("--batch-sise: no such option", "--batch-size")),
        ("--label-smothing 0.1", ("--label-smothing: no such option", "--label-smoothing")),
        ("--opt adamw", ("--opt", "adamw")),
        ("--mixup-alpha -1", ("--mixup-alpha -1",)),
        ("--weights ResNet101_Weights.IMAGENET1K_V2", ("ResNet101_Weights", "--model resnet18")),
        ("--flip --no-flip", ("--flip", "--no-flip", "contradict")),
        ("--no-flp", ("--no-flp: no such option", "--no-flip")),
        ("--test-only", ("--test-only", "--resume PATH")),
        ("--lr-scheduler cosineannealinglr --lr-step-size 3", ("--lr-step-size 3", "contradict")),
        ("--ra-magnitude 3", ("--ra-magnitude 3", "--auto-augment ra")),
        ("--data digits --crop-ratio 0.5", ("--crop-ratio 0.5", "large images")),
        ("--data folder", ("--data folder needs --data-path",)),
    ],
)  # fmt: skip
def test_lines_that_contradict_themselves_or_mean_nothing(words, pieces):
    with pytest.raises(InputError) as error:
        settled(words if words.startswith("--data ") else f"{LARGE} {words}")
    assert all(piece in str(error.value) for piece in pieces) and "\n" not in str(error.value), error.value


def test_the_same_said_twice_is_no_contradiction():
    assert settled(f"{LARGE} -b 8 --batch_size 8 --lr 1 --lr 2 --output-dir a --output_dir a").lr == 2
    complains(run(CONV_TRAIN, "--epoch", 3), "--epoch: no such option", "--epochs")


# ------------------------------------------------------------------------------------------------- mixup and cutmix


def test_automatic_augmentation_scales_bilinearly():
    """This is what torchvision's reference script does; the default of its transforms differs."""
    for kind in ("ra", "ta_wide", "augmix", "imagenet", "cifar10", "svhn"):
        found = train.auto_augment(SimpleNamespace(auto_augment=kind, ra_magnitude=None, augmix_severity=None))
        assert found.interpolation == transforms.InterpolationMode.BILINEAR
    assert train.auto_augment(SimpleNamespace(auto_augment=None)) is None


def test_mixup_is_a_function_of_seed_epoch_and_step():
    images, targets = torch.rand(16, 3, 8, 8, dtype=torch.float64), torch.arange(16) % 5
    mixup = mixing.Mixing(0.4, 0.0, 5, seed=3)
    before = torch.get_rng_state()
    mixed, soft = mixup(images, targets, 1, 2)
    assert torch.equal(torch.get_rng_state(), before), "dropout must not see that images were mixed"
    torch.rand(7)
    again = mixup(images, targets, 1, 2)
    assert torch.equal(mixed, again[0]) and torch.equal(soft, again[1])
    assert not torch.equal(soft, mixup(images, targets, 1, 3)[1]) and not torch.equal(soft, mixup(images, targets, 2, 2)[1])
    # One share per batch, found from the images, rebuilds both by mixup's definition (in float64, up to rounding).
    share = ((mixed - images.roll(1, 0)) / (images - images.roll(1, 0))).median()
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0), atol=1e-12, rtol=0)
    one_hot = F.one_hot(targets, 5).double()
    torch.testing.assert_close(soft.double(), share * one_hot + (1 - share) * one_hot.roll(1, 0), atol=1e-6, rtol=0)


def test_cutmix_gives_targets_the_share_of_their_pixels():
    images, targets = torch.rand(8, 3, 16, 16), torch.arange(8)
    mixed, soft = mixing.Mixing(0.0, 1.0, 8, seed=0)(images, targets, 0, 0)
    kept = (mixed == images).all(1).double().mean((1, 2))
    torch.testing.assert_close(soft.gather(1, targets[:, None])[:, 0].double(), kept, atol=1e-6, rtol=0)
    assert 0 < kept[0] < 1 and not mixing.Mixing(0.0, 0.0, 8, 0)


# ------------------------------------------------------------------------------------------------------ Conv/ffcv

ffcv = Subproject("Conv/ffcv")
ffcv_options, ffcv_error = ffcv.load("options"), ffcv.load("errors").InputError


def test_keys_of_the_original_map(tmp_path):
    config = tmp_path / "original.toml"
    config.write_text(
        '[model]\narch = "resnet18"\npretrained = 0\n[lr]\nlr_schedule_type = "step"\n[training]\nuse_blurpool = 1\nepochs = 3\n'
        '[dist]\nworld_size = 4\n[loss]\nloss_type = "ms"\n'
    )
    found, command = ffcv_options.read(["--config-file", str(config), "--mixup-alpha", "0.2", "--logging.folder=x", "--epochs=5"])
    assert found.loss.name == "maxsup" and found.model.blurpool and found.lr.schedule == "step" and found.training.epochs == 5
    assert found.augmentation.mixup_alpha == 0.2 and found.logging.folder == "x" and not command.eval
    assert any("dist.world_size has no effect: torchrun" in note for note in command.notes)
    found, command = ffcv_options.read("--deterministic --compile --sync-bn=0 --crop_ratio 0.9 --test-only".split())
    training = found.training
    assert (training.deterministic, training.compile, training.sync_bn, found.validation.crop_ratio) == (True, True, False, 0.9)
    assert command.eval and not command.notes and {"validation.crop_ratio", "training.compile"} <= command.given
    smoothed, command = ffcv_options.read(["--training.label_smoothing=0.1", "--training.eval_only=1"])
    assert (smoothed.loss.name, smoothed.loss.alpha, command.eval) == ("ls", 0.1, True)


def test_ffcv_starts_from_other_classes_mixes_and_resumes_bit_identically(ffcv_files, tmp_path, capsys):
    """Two epochs with an interruption between them give the weights of a whole run; training accuracy is not reported."""
    pytest.importorskip("ffcv")
    with ffcv.active():
        trainer, models = ffcv.load("train_imagenet"), ffcv.load("models")
        weights = {f"module.{key}": value for key, value in models.create_model("resnet18", 7).state_dict().items()}
        torch.save({"state_dict": weights}, tmp_path / "foreign.pth")
        words = f"""
            --model resnet18 --init {tmp_path}/foreign.pth --mixup-alpha 0.3 --cutmix_alpha 1 --epochs=2 --resolution.min_res=8
            --resolution.max_res=8 --validation.resolution=8 --training.batch_size=32 --data.num_workers=1 --device=cpu --seed=3
            --data.train_dataset={ffcv_files}/train_500_0_90.ffcv --data.val_dataset={ffcv_files}/val_500_0_90.ffcv
            --lr.lr=0.01 --lr.for_batch=0
        """.split()
        trainer.main(*trainer.options.read([*words, f"--logging.folder={tmp_path}/whole"]))
        assert "starting from" in (said := capsys.readouterr().out) and "its own is for 7 classes, these are 2" in said
        save = trainer.checkpoint.save

        def interrupted(*parts, **more):
            save(*parts, **more)
            raise KeyboardInterrupt

        trainer.checkpoint.save = interrupted
        try:
            with pytest.raises(KeyboardInterrupt):
                trainer.main(*trainer.options.read([*words, f"--output-dir={tmp_path}/broken"]))
        finally:
            trainer.checkpoint.save = save
        trainer.main(*trainer.options.read([*words, f"--output-dir={tmp_path}/broken", "--resume=auto"]))
    whole, broken = (load(tmp_path / name) for name in ("whole", "broken"))
    assert_same(whole["model"], broken["model"])
    assert [line["train_top1"] for line in log(tmp_path / "broken")] == [None, None]


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ("--loss.loss_type=ms --loss.name=ls", ("loss.loss_type=ms", "loss.name=ls")),
        ("--training.optimizer=adam", ("training.optimizer=adam", "SGD")),
        ("--batch-size 8", ("batch-size=8", "training.batch_size")),
        ("--training.lable_smoothing=1", ("training.label_smoothing",)),
        ("--config", ("--config", "expected one argument")),
        ("--augmentation.mixup_alpha=-1", ("mixup_alpha=-1",)),
    ],
)
def test_bad_keys(words, pieces):
    with pytest.raises(ffcv_error) as error:
        ffcv_options.read(words.split())
    assert all(piece in str(error.value) for piece in pieces), error.value
