"""viz/: checkpoints of all kinds are read, recognised by their weights, and refused if they would run code or fit no model."""

import argparse
import json
import os
import random

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from subprojects import Subproject

SUBPROJECT = viz = Subproject("viz")
architectures = viz.load("checkpoints.models")
build_model, load_checkpoint = viz.load("checkpoints.read").build_model, viz.load("checkpoints.read").load_checkpoint
InputError = viz.load("common.errors").InputError
torch_file = viz.load("checkpoints.torch_file")
recognise = viz.load("checkpoints.recognise").recognise


@pytest.fixture(scope="module")
def small():
    """The random weights of a torchvision ResNet-18 with 5 classes, two images of 64 px, and their logits."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        return model.state_dict(), images, model(images)


def saved(content, path):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}, "best_prec1": 91.7},
        lambda w: {"model": {f"_orig_mod.module.{k}": v for k, v in w.items()}},
        lambda w: {"net": {f"module._orig_mod.{k}": v for k, v in w.items()}, "epoch": 3},
        lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()} | {"criterion.matrix": torch.ones(5, 5)}},
        lambda w: {"state_dict": {f"network.backbone.{k}": v for k, v in w.items()}},
        lambda w: {k: v for k, v in w.items() if "num_batches_tracked" not in k},
        lambda w: {"model": {k: v.half() if v.is_floating_point() else v for k, v in w.items()}},
    ],
    ids=["bare", "ddp", "compile", "both", "lightning", "attribute", "old", "half"],
)
def test_every_wrapping_gives_the_same_model(small, wrap, tmp_path, request):
    weights, images, logits = small
    checkpoint = load_checkpoint(saved(wrap(weights), tmp_path / "c.pth"), model="resnet18")
    assert checkpoint.facts["num_classes"] == 5
    with torch.inference_mode():
        found = build_model(checkpoint)(images)
    # Half precision keeps 11 bits of each weight: after 18 layers the error is a few thousandths of the logits.
    torch.testing.assert_close(found, logits, **({"rtol": 0, "atol": 2e-2} if "half" in request.node.name else {}))
    if "lightning" in request.node.name:
        assert any("1 tensors do not belong to the model and are ignored (criterion.matrix)" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    "keys",
    [("fc.weight", "fc.bias"), ("encoder.blocks.0.weight", "encoder.head.weight"), ("encoder.blocks.0.weight", "head.weight")],
    ids=["a layer", "timm's", "two"],
)
def test_what_is_no_wrapped_model(keys):
    weights = dict.fromkeys(keys, torch.ones(2, 3))
    assert viz.load("checkpoints.read").without_prefixes(weights) == (weights, [])


def test_safetensors_and_the_moving_average(small, tmp_path):
    weights, images, logits = small
    save_file(weights, tmp_path / "c.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "c.safetensors", model="resnet18").weights["fc.bias"], weights["fc.bias"])
    other = {key: value + 1 for key, value in weights.items()}
    saved({"model": weights, "model_ema": {f"module.{k}": v for k, v in other.items()}}, tmp_path / "c.pth")
    found = load_checkpoint(tmp_path / "c.pth", ema=True, model="resnet18")
    assert torch.equal(found.weights["fc.bias"], other["fc.bias"])
    notes = (load_checkpoint(tmp_path / "c.pth", ema=ema, model="resnet18").notes for ema in (False, True))
    assert [any("also holds a moving average" in note for note in part) for part in notes] == [True, False]


@pytest.mark.parametrize(("size", "crop_ratio"), [(None, 0.875), (65, 0.875), (64, 1.0), (32, 1.0)])
def test_small_images_are_shown_whole(small, tmp_path, size, crop_ratio):
    """The size of the images decides, not the size for which the model was made."""
    saved(small[0], tmp_path / "c.pth")
    assert load_checkpoint(tmp_path / "c.pth", input_size=size, model="resnet18").facts["crop_ratio"] == crop_ratio
    assert load_checkpoint(tmp_path / "c.pth", input_size=size, crop_ratio=0.9, model="resnet18").facts["crop_ratio"] == 0.9


def test_architectures_are_recognised():
    """They are recognised only by keys and shapes, with other classes, sizes and variants; all that fit are listed."""
    cases = {
        ("cifar", "resnet20"): (10, None, {"width": 24}),
        ("torchvision", "resnet50"): (7, None, {"blurpool": True}),
        ("torchvision", "resnet18"): (10, None, {"small_stem": True}),
        ("torchvision", "mobilenet_v2"): (10, None, {}),
        ("timm", "test_vit"): (7, 32, {}),
        ("timm", "vit_tiny_patch16_224"): (10, 160, {}),
    }
    for (library, name), (classes, size, variant) in cases.items():
        weights = architectures.create(library, name, classes, size, **variant).state_dict()
        facts, notes, _ = recognise(weights)
        assert {"library": library, "model": name, "num_classes": classes, **variant}.items() <= facts.items(), name
        assert size is None or facts["input_size"] == size
    assert "vit_tiny_patch16_224, and as well" in notes[0] and "deit_tiny_patch16_224" in notes[0]


@pytest.mark.parametrize(
    ("name", "size", "others"),
    [
        (
            "deit_tiny_distilled_patch16_224",
            96,
            ["deit_tiny_patch16_224", "vit_tiny_patch16_224", "deit_small_distilled_patch16_224"],
        ),
        ("vit_tiny_patch16_384", 384, ["vit_tiny_patch16_224", "deit_tiny_patch16_224"]),
        ("vit_tiny_patch16_224", 224, ["vit_tiny_patch16_384"]),
    ],
)
def test_sizes_and_distillation_tokens_are_told_from_the_weights(name, size, others):
    """A distilled DeiT has two classifiers and tokens; of models that differ only in size, the one with this size is chosen."""
    weights = architectures.create("timm", name, 10, size).state_dict()
    facts, *_ = recognise(weights, [("timm", other) for other in [*others, name]])
    assert facts == {"library": "timm", "model": name, "num_classes": 10, "input_size": size}


def test_deit_says_its_model(tmp_path):
    """An old DeiT checkpoint has its options in an argparse.Namespace, the only accepted type that is not a plain one."""
    weights = architectures.create("timm", "deit_tiny_patch16_224", 10).state_dict()
    options = argparse.Namespace(model="deit_tiny_patch16_224", input_size=224, lr=1e-3)
    path = saved({"model": weights, "args": options, "epoch": 299}, tmp_path / "deit.pth")
    checkpoint = load_checkpoint(path)
    assert checkpoint.facts["model"] == "deit_tiny_patch16_224" and checkpoint.facts["interpolation"] == "bicubic"
    assert build_model(load_checkpoint(path, input_size=160)).patch_embed.img_size == (160, 160)


def test_numpys_scalars_and_paths_beside_weights_are_not_read(small, tmp_path):
    """A best accuracy and an output folder do not prevent loading the weights; each is replaced by an empty object."""
    others = {"best_acc1": np.float64(93.2), "epoch": np.int64(3), "args": argparse.Namespace(output=tmp_path, lr=np.float32(1))}
    checkpoint = load_checkpoint(saved({"model": small[0], **others}, tmp_path / "others.pth"), model="resnet18")
    assert all(torch.equal(checkpoint.weights[key], small[0][key]) for key in small[0])
    content = torch_file.read(tmp_path / "others.pth", "checkpoint")
    found = [content["best_acc1"], content["epoch"], content["args"].output, content["args"].lr]
    assert all(type(value) is torch_file.Unread and not vars(value) for value in found)


class Harmful:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_nothing_in_a_file_is_run(small, tmp_path):
    """No code runs if it is next to weights, in the Namespace that is accepted, or the whole file."""
    marker = tmp_path / "ran"
    for number, harm in enumerate(
        [
            {"model": small[0], "extra": Harmful(marker)},
            {"model": small[0], "args": argparse.Namespace(x=Harmful(marker))},
            {"model": small[0], "args": argparse.Namespace(x=random.Random(0))},
            Harmful(marker),
        ]
    ):
        path = saved(harm, tmp_path / f"{number}.pth")
        with pytest.raises(InputError, match="refused, it holds more than tensors and plain types"):
            load_checkpoint(path)
    assert not marker.exists()


def test_ffcv_imagenets_runs_say_what_they_are(tmp_path):
    """params.json lies next to final_weights.pt; BlurPool's wrapper applies the blur and then the convolution."""
    torch.manual_seed(1)
    model = architectures.create("torchvision", "resnet18", 6, blurpool=True)
    saved({f"module.{key}": value for key, value in model.state_dict().items()}, tmp_path / "final_weights.pt")
    params = {"model.arch": "resnet18", "training.use_blurpool": 1, "validation.resolution": 96, "data.val_dataset": "/x/v.ffcv"}
    (tmp_path / "params.json").write_text(json.dumps(params))
    checkpoint = load_checkpoint(tmp_path / "final_weights.pt")
    assert checkpoint.facts["input_size"] == 96 and checkpoint.facts["data_path"] == "/x/v.ffcv" and checkpoint.facts["blurpool"]
    layer = build_model(checkpoint).layer2[0].conv1
    x = torch.randn(2, 64, 9, 9)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    weigh = [1 / 4, 1 / 2, 1 / 4]
    blurred = sum(weigh[i] * weigh[j] * padded[:, :, i : i + 9, j : j + 9] for i in range(3) for j in range(3))
    torch.testing.assert_close(layer(x), layer.conv(blurred))
    (tmp_path / "params.json").write_text("{")
    with pytest.raises(InputError, match="params.json: does not read as JSON"):
        load_checkpoint(tmp_path / "final_weights.pt")


def test_torchuncertaintys_resnets_are_torchvisions(small, tmp_path):
    weights, images, logits = small
    named = {key.replace("downsample", "shortcut").replace("fc.", "linear."): value for key, value in weights.items()}
    checkpoint = load_checkpoint(saved({"state_dict": {f"model.{k}": v for k, v in named.items()}}, tmp_path / "last.ckpt"))
    assert checkpoint.facts["model"] == "resnet18"
    with torch.inference_mode():
        torch.testing.assert_close(build_model(checkpoint)(images), logits)


def test_the_cifar_resnet_against_a_forward_pass_by_hand():
    torch.manual_seed(2)
    model = architectures.create("cifar", "resnet8", 3, width=4)
    for layer in model.modules():  # statistics that differ from those of a fresh model
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    w, x = model.state_dict(), torch.randn(2, 3, 8, 8)

    def conv(x, name, norm, stride=1):
        x = torch.nn.functional.conv2d(x, w[f"{name}.weight"], stride=stride, padding=1)
        mean, var, scale, shift = (w[f"{norm}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    y = conv(x, "conv1", "bn1").relu()
    for stage, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer3.0", 2)):
        short = y[:, :, ::stride, ::stride]
        if stride == 2:
            zero = torch.zeros_like(short)[:, : short.shape[1] // 2]
            short = torch.cat([zero, short, zero], 1)
        z = conv(y, f"{stage}.conv1", f"{stage}.bn1", stride).relu()
        y = (conv(z, f"{stage}.conv2", f"{stage}.bn2") + short).relu()
    logits = y.mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]
    with torch.inference_mode():
        torch.testing.assert_close(model(x), logits)
        torch.testing.assert_close(architectures.logits_and_features(model, x)[1], y.mean((2, 3)))


def test_features_are_what_the_classifier_reads():
    for library, name in (("timm", "test_vit"), ("timm", "test_convnext"), ("torchvision", "squeezenet1_1")):
        model = architectures.create(library, name, 5)
        size = 224 if library == "torchvision" else 160
        with torch.inference_mode():
            logits, features = architectures.logits_and_features(model, torch.randn(2, 3, size, size))
        head = architectures.classifier(model)
        assert features.shape == (2, head.weight.shape[1])
        if name != "squeezenet1_1":  # its classifier is followed by other layers
            torch.testing.assert_close(logits, features @ head.weight.detach().T + head.bias.detach())


def test_classifiers_that_are_blocks():
    """timm's LeViT normalises before the layer, RepViT has two heads in one block; CrossViT, with two heads, is refused."""
    for name in ("levit_128s", "repvit_m0_9"):
        model = architectures.create("timm", name, 5).eval()
        with torch.inference_mode():
            logits, features = architectures.logits_and_features(model, torch.randn(2, 3, 224, 224))
        weight = architectures.templates(model)
        assert logits.shape == (2, 5) and weight.shape == (5, features.shape[1])
        if name == "levit_128s":
            again = features @ weight.float().T + architectures.classifier(model).bias
            torch.testing.assert_close(logits, again, atol=1e-3, rtol=0)  # float32, in another order of summation
        weights = {key: value.clone() for key, value in architectures.create("timm", name, 7).state_dict().items()}
        assert recognise(weights, [("timm", name)])[0]["num_classes"] == 7
    with pytest.raises(InputError, match="several classifiers side by side"):
        architectures.classifier(architectures.create("timm", "crossvit_tiny_240", 5))


def test_what_fits_nothing_is_told(small, tmp_path):
    weights, *_ = small
    odd = weights | {"layer1.0.conv1.weight": torch.zeros(63, 64, 3, 3)}
    with pytest.raises(InputError) as told:
        load_checkpoint(saved(odd, tmp_path / "odd.pth"))
    assert "nearest by keys and shapes in common: torchvision's resnet18" in str(told.value)
    assert "layer1.0.conv1.weight is (63, 64, 3, 3), not (64, 64, 3, 3)" in str(told.value)
    assert "\n" not in str(told.value)
    refusals = {
        "no key in common with any model": {"gate.weight": torch.zeros(3, 4)},
        "holds no weights, neither bare": {"weights": 1, "loss": torch.zeros(())},
        "holds a list": [torch.zeros(2, 2)],
    }
    for match, content in refusals.items():
        with pytest.raises(InputError, match=match):
            load_checkpoint(saved(content, tmp_path / "bad.pth"))
    good = saved(weights, tmp_path / "good.pth")
    for match, options in {
        "--model resnet51: no model of timm": {"model": "resnet51"},
        "its weights fit no model; nearest": {"model": "resnet34"},
        "input_size is 0, not a number": {"input_size": 0, "model": "resnet18"},
        "std is .*, not three numbers": {"std": [1.0, 0.0, 1.0], "model": "resnet18"},
        "holds no moving average": {"ema": True},
    }.items():
        with pytest.raises(InputError, match=match):
            load_checkpoint(good, **options)
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:9000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    for name in ("cut.pth", "cut.safetensors"):
        with pytest.raises(InputError, match="damaged, or not a"):
            load_checkpoint(tmp_path / name)


def test_a_trainers_facts_are_checked(small, tmp_path):
    """A checkpoint that states impossible facts ends in one line, not in a wrong number."""
    args = dict(model="resnet18", library="torchvision", num_classes=5, input_size=64, crop_ratio=1.0, interpolation="bilinear")
    args |= dict(mean=[0.5] * 3, std=[0.5] * 3, data_path=None)
    for match, change in {
        "its model is 'resnet19', not one of torchvision": {"model": "resnet19"},
        "its model is 7, not one": {"model": 7},
        "interpolation is 'nearest'": {"interpolation": "nearest"},
        "mean is 'nan'": {"mean": "nan"},
        "crop_ratio is 2": {"crop_ratio": 2},
        "its weights do not fit resnet18: fc.weight is": {"num_classes": 6},
        "none of its weights has the 9,999,999 rows of its num_classes": {"num_classes": 9_999_999},
        "superclasses is .animals., not class": {"superclasses": "animals"},
        "width is -1": {"library": "cifar", "model": "resnet20", "width": -1},
        "a model of Tasks/, no classifier of images": {"library": "smp", "input_size": [144, 192]},
    }.items():
        with pytest.raises(InputError, match=match):
            path = saved({"model": small[0], "args": args | change, "classes": list("abcde")}, tmp_path / "bad.pth")
            build_model(load_checkpoint(path))
    path = saved({"model": small[0], "args": args, "classes": list("abcdefg")}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="names 7 classes for a model of 5"):
        load_checkpoint(path)


def test_timm_models_load_as_timm_loads_them(tmp_path):
    model = timm.create_model("test_efficientnet", num_classes=4).eval()
    checkpoint = load_checkpoint(saved(model.state_dict(), tmp_path / "c.pth"), model="test_efficientnet")
    x = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(build_model(checkpoint)(x), model(x))
