"""Conv/common_resnet on a user's own folders and from weights in any format; its DenseNet-BC, which viz recognises."""

import argparse
import functools
import http.server
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from conftest import ROOT, prepare
from subprojects import Subproject
from training import assert_same, log

SUBPROJECT = conv = Subproject("Conv/common_resnet")
viz = Subproject("viz")
InputError = conv.load("errors").InputError
states, options, train, models, initial, optimizer, evaluate, engine = (
    conv.load(name) for name in ("states", "options", "train", "models", "initial", "optimizer", "evaluate", "engine")
)
distillation, foreign, small_images = (conv.load(name) for name in ("distillation", "foreign", "data.small_images"))
QUICK = "--model resnet8 --width 8 --stem-stride 2 --device cpu --num-workers 0 --warmup-epochs 0 --epochs 1".split()


def trained(folder, *words):
    """The checkpoint of a quick run of one epoch."""
    train.main(options.get_parser().parse_args([str(word) for word in (*QUICK, "--output-dir", folder, *words)]))
    return states.read(folder / "checkpoint.pth")


def pictures(folder, sizes, classes=("ant", "bee", "cat")):
    """An image folder: for each class one training image per size (width, height), and one validation image."""
    random = np.random.default_rng(0)
    for split, count in (("train", len(sizes)), ("val", 1)):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for index, (width, height) in enumerate(sizes[:count]):
                image = random.integers(40 * number, 256 - 40 * number, size=(height, width, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / split / name / f"{index}.png")
    return folder


# ------------------------------------------------------------------------------------------------ a folder of images


def test_small_images_of_one_size_live_in_memory_and_are_measured(tmp_path, capsys):
    """Mean and standard deviation equal NumPy's over the training pixels, to the four digits that are stored."""
    folder = pictures(tmp_path / "own", [(40, 40)] * 4)
    state = trained(tmp_path / "run", "--data", "folder", "--data-path", folder, "--batch-size", 6)
    args, pixels = (
        state["args"],
        np.stack([np.array(Image.open(file)) for file in sorted((folder / "train").glob("*/*.png"))]) / 255,
    )
    np.testing.assert_allclose(args["mean"], pixels.mean((0, 1, 2)), atol=5.1e-5)
    np.testing.assert_allclose(args["std"], pixels.std((0, 1, 2)), atol=5.1e-5)
    assert (args["input_size"], args["crop_ratio"], args["data"], args["padding"]) == (40, 1.0, None, 5)
    assert args["data_path"] == str(folder) and state["classes"] == ["ant", "bee", "cat"] and args["in_memory"]
    words = ["--checkpoint", str(tmp_path / "run/checkpoint.pth"), "--output", str(tmp_path / "r.json")]
    evaluate.main(evaluate.get_parser().parse_args(words))
    train.main(
        options.get_parser().parse_args(["--test-only", "--resume", str(tmp_path / "run/checkpoint.pth"), "--device", "cpu"])
    )
    torch.save(state["model"], tmp_path / "bare.pth")  # says nothing about the model, so the command has to
    words = ["--test-only", "--resume", tmp_path / "bare.pth", "--data", "folder", "--data-path", folder, "--device", "cpu"]
    words += ["--model", args["model"], "--width", args["width"], "--stem-stride", args["stem_stride"]]
    words += ["--mean", *args["mean"], "--std", *args["std"]]
    capsys.readouterr()
    train.main(options.get_parser().parse_args([str(word) for word in words]))
    of_bare = capsys.readouterr().out.splitlines()[-1]
    train.main(options.get_parser().parse_args(["--test-only", "--resume", str(tmp_path / "run/checkpoint.pth")]))
    assert capsys.readouterr().out.splitlines()[-1].split(": ")[1] == of_bare.split(": ")[1]
    for crop in (["--val-resize-size", 40], ["--crop-ratio", 0.8], ["--crop-ratio", 1]):
        train.main(options.get_parser().parse_args([str(word) for word in (*words, "--input-size", 32, *crop)]))
    resized, central, whole = (line for line in capsys.readouterr().out.splitlines() if " images of folder: " in line)
    assert resized == central != whole
    other = {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in state["model"].items()}
    torch.save({"model": other, "model_ema": state["model"]}, tmp_path / "both.pth")
    words[2] = tmp_path / "both.pth"
    train.main(options.get_parser().parse_args([str(word) for word in (*words, "--model-ema")]))
    assert capsys.readouterr().out.splitlines()[-1].split(": ")[1] == of_bare.split(": ")[1]
    words[2] = tmp_path / "bare.pth"
    with pytest.raises(InputError, match="holds no moving average of the weights; omit --model-ema or --ema"):
        train.main(options.get_parser().parse_args([str(word) for word in (*words, "--model-ema")]))
    own = ["--test-only", "--resume", str(tmp_path / "run/checkpoint.pth"), "--data"]
    with pytest.raises(InputError, match="--model resnet20: .*states it; omit the option"):  # the default, but given
        train.main(options.get_parser().parse_args([*own[:-1], "--model", "resnet20"]))
    with pytest.raises(InputError, match="--data imagenet needs --data-path"):
        train.main(options.get_parser().parse_args([*own, "imagenet"]))
    with pytest.raises(InputError, match="digits: has classes that .* was not trained on"):
        train.main(options.get_parser().parse_args([*own, "digits", "--device", "cpu"]))
    words = ["--checkpoint", str(tmp_path / "run/checkpoint.pth"), "--device", "cpu"]
    evaluate.main(evaluate.get_parser().parse_args([*words, "--input-size", "40", "--model", "resnet8"]))  # as the file says
    for option in ("--model resnet20", "--width 16", "--std 1 1 1"):
        with pytest.raises(InputError, match=f"{option.split()[0]} .*: .*checkpoint.pth states it; omit the option"):
            evaluate.main(evaluate.get_parser().parse_args([*words, *option.split()]))
    again = trained(tmp_path / "again", "--data", "folder", "--data-path", folder, "--batch-size", 6, "--holdout", 0.25)
    assert again["training_rows"].shape == (9,)
    Image.new("RGB", (40, 40)).save(folder / "train/ant/0.png")
    with pytest.raises(InputError, match="checkpoint.pth: trained on other images than those of"):
        trained(tmp_path / "run", "--data", "folder", "--data-path", folder, "--batch-size", 6, "--resume", "auto", "--epochs", 2)
    (tmp_path / "hidden/train/.class").mkdir(parents=True)
    with pytest.raises(InputError, match="no class folder in .*hidden/train"):
        trained(tmp_path / "none", "--data", "folder", "--data-path", tmp_path / "hidden", "--batch-size", 6)


def test_numbers_of_an_input_are_three():
    within = conv.load("evaluate_options").within
    assert within([0.5, 0, 1], 0, 1) and within(0.5, 0, 1)
    assert not any(within(value, 0, 1) for value in ([0.5], [0.5] * 2, [], [0.5, 0.5, 2], ["a"] * 3, True))


def test_larger_or_varying_images_are_decoded_as_they_are_needed(tmp_path):
    """The mean over centre crops is exact for images of one colour. A folder and its archives give the same weights."""
    folder = tmp_path / "own"
    for split in ("train", "val"):
        for name, value, size in (("a", 51, (120, 90)), ("b", 102, (70, 110))):
            (folder / split / name).mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", size, (value, value, 255)).save(folder / split / name / f"{index}.png")
    words = [
        "--data",
        "folder",
        "--batch-size",
        2,
        "--input-size",
        40,
        "--model",
        "mobilenet_v2",
        "--width",
        16,
        "--stem-stride",
        1,
    ]
    state = trained(
        tmp_path / "run", *words, "--data-path", folder, "--auto-augment", "ra", "--random-erase", 1, "--clip-grad-norm", 1
    )
    assert state["args"]["mean"] == [0.3, 0.3, 1.0] and state["args"]["std"] == [0.1, 0.1, 1.0]  # the third is constant
    assert state["args"]["crop_ratio"] == 0.875 and not state["args"]["in_memory"]
    prepare(folder, "--output", tmp_path / "zips")
    more = ["--auto-augment", "ra", "--random-erase", 1, "--clip-grad-norm", 1]
    assert_same(state["model"], trained(tmp_path / "zipped", *words, "--data-path", tmp_path / "zips", *more)["model"])


def test_folders_that_do_not_work(tmp_path):
    bad = pictures(tmp_path / "bad", [(20, 20)] * 2)
    (bad / "train/ant/1.png").write_bytes(b"no image")
    shutil.copytree(pictures(tmp_path / "new", [(20, 20)] * 2), tmp_path / "more")
    (tmp_path / "more/val/cat").rename(tmp_path / "more/val/dog")
    (tmp_path / "empty").mkdir()
    cases = {
        f"{bad}": ("bad/train: ant/1.png does not decode",),
        f"{tmp_path}/empty": ("empty/train: no such folder",),
        f"{tmp_path}/more": ("validation has classes that training lacks: dog",),
        f"{tmp_path}/new --batch-size 7": ("6 training images are fewer than one batch of 7",),
        f"{tmp_path}/new --batch-size 2 --auto-augment ra": ("--auto-augment", "in memory"),
        f"{tmp_path}/new --batch-size 2 --input-size 64 --padding 2": ("--padding", "small images"),
        f"{tmp_path}/new --batch-size 2 --superclasses": ("no grouping of its own",),
    }
    for words, pieces in cases.items():
        with pytest.raises(InputError) as error:
            trained(tmp_path / "run", "--overwrite", "--data", "folder", "--data-path", *words.split())
        assert all(piece in str(error.value) for piece in pieces), (words, error.value)


# ------------------------------------------------------------------------------------------------- weights to start from


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    with conv.active():
        trained(folder := tmp_path_factory.mktemp("digits"), "--batch-size", 200)
    return folder / "checkpoint.pth"


def forms(weights):
    """Checkpoints as other programs write them, by file name."""
    return {
        "bare.pth": weights,
        "deit.pth": {"model": weights, "args": argparse.Namespace(model="resnet8", lr=0.1), "epoch": 3},
        "lightning.ckpt": {"state_dict": {f"model.{key}": value for key, value in weights.items()}, "epoch": 3},
        "parallel.th": {"state_dict": {f"module._orig_mod.{key}": value for key, value in weights.items()}},
        "numpy.pth": {"net": weights, "acc": np.float64(93.2), "epoch": np.int64(3), "args": argparse.Namespace(out=Path("out"))},
    }


OTHERS = {"mean": [0, 0, 0], "std": [1, 1, 1]}


def test_a_run_starts_from_weights_in_any_form(digits, tmp_path, capsys):
    weights = states.read(digits)["model"]
    files = forms(weights)
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / "plain.safetensors")
    description = models.model_facts("resnet8", 8, 8, 2)
    for name in [*files, "plain.safetensors"]:
        model = models.create_model(description, 10)
        initial.start_from(str(tmp_path / name), model, description, list("0123456789"), OTHERS)
        assert_same({key: model.state_dict()[key] for key in weights if "num_batches" not in key},
                    {key: weights[key] for key in weights if "num_batches" not in key})  # fmt: skip
        said = capsys.readouterr().out
        assert "fresh classifier" not in said and "was trained with" not in said  # these files state neither


def test_a_classifier_for_other_classes_is_replaced_and_that_is_said(digits, capsys):
    """It is replaced if the number or the names of the classes differ; the same names in another order are sorted."""
    state, description = states.read(digits), models.model_facts("resnet8", 8, 8, 2)
    for classes, reason in ((list("abc"), "for 10 classes, these are 3"), (list("abcdefghij"), "for other classes, 0, 1, 2")):
        model = models.create_model(description, len(classes))
        fresh = model.linear.weight.clone()
        initial.start_from(str(digits), model, description, classes, OTHERS)
        assert torch.equal(model.linear.weight, fresh) and torch.equal(model.conv1.weight, state["model"]["conv1.weight"])
        said = capsys.readouterr().out
        assert reason in said and f"warning: {digits} was trained with a std of 0.37" in said and ", this run has 1 1 1\n" in said
    model = models.create_model(description, 10)
    initial.start_from(str(digits), model, description, list("9876543210"), OTHERS)
    assert torch.equal(model.linear.bias, state["model"]["linear.bias"].flip(0))


def test_weights_that_do_not_fit_or_do_not_come(digits, tmp_path):
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html></html>")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "evil.pth")
    cases = {
        "nowhere.pth": ("nowhere.pth: no such checkpoint",),
        f"{tmp_path}/page.pth": ("page.pth", "not a pickle of tensors"),
        f"{tmp_path}/evil.pth": ("refused", "nothing in it was run"),
        f"{digits} --width 16": ("the weights are another model's", "conv1.weight is (8, 3, 3, 3), not (16, 3, 3, 3)"),
        "http://localhost:9/x.pth": ("http://localhost:9/x.pth: cannot be downloaded",),
        "IMAGENET1K_V1": ("weights for large images only",),
    }
    for words, pieces in cases.items():
        with pytest.raises(InputError) as error:
            trained(tmp_path / "run", "--overwrite", "--init", *words.split())
        assert all(piece in str(error.value) for piece in pieces), (words, error.value)


def test_a_run_goes_on_from_an_address(digits, tmp_path, monkeypatch):
    """--resume URL downloads into torch.hub's cache, and the run is bit-identical to one resumed from the file."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(digits.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/checkpoint.pth"
        more = ("--batch-size", 200, "--epochs", 2, "--resume")
        (digits.parent / "page.html").write_text("<html></html>")
        with pytest.raises(InputError, match="a page of HTML"):
            trained(tmp_path / "page", *more, url.replace("checkpoint.pth", "page.html"))
        fetched, local = trained(tmp_path / "url", *more, url), trained(tmp_path / "file", *more, digits)
        server.shutdown()
    assert fetched["epoch"] == 1 and len(list((tmp_path / "cache/hub/checkpoints").iterdir())) == 1
    assert_same(fetched["model"], local["model"])


def test_a_run_that_is_complete_elsewhere_replaces_nothing(digits, tmp_path):
    before = trained(tmp_path, "--batch-size", 200, "--seed", 1)
    with pytest.raises(InputError, match="has all its 1 epochs already"):
        trained(tmp_path, "--batch-size", 200, "--overwrite", "--resume", digits)
    assert_same(states.read(tmp_path / "checkpoint.pth")["model"], before["model"])


def test_evaluation_takes_names_and_steps_from_the_file_and_the_command(digits, tmp_path, capsys):
    """Named classes of weights from elsewhere are matched, here in reverse; no step has more images than --batch-size."""
    state = states.read(digits)
    head = {key: value.flip(0) for key, value in state["model"].items() if key.startswith("linear.")}
    torch.save({"model": state["model"] | head, "classes": state["classes"][::-1]}, tmp_path / "reversed.pth")
    words = ["--data", "digits", "--model", "resnet8", "--width", 8, "--stem-stride", 2, "--device", "cpu", "--batch-size", 100]
    words += ["--mean", *state["args"]["mean"], "--std", *state["args"]["std"], "--output", tmp_path / "r.json"]
    parser = evaluate.get_parser()
    evaluate.main(parser.parse_args([str(word) for word in ("--checkpoint", tmp_path / "reversed.pth", *words)]))
    found = json.loads((tmp_path / "r.json").read_text())["clean"]["top1"]
    assert found == pytest.approx(log(digits.parent)[-1]["val_top1"])
    images = small_images.SmallImages(
        torch.zeros(397, 8, 8, 3, dtype=torch.uint8), torch.zeros(397).long(), ["a", "b"], [0.0] * 3, [1.0] * 3, "cpu"
    )
    seen = []
    engine.evaluate(torch.nn.Sequential(Spy(seen), torch.nn.Flatten(), torch.nn.LazyLinear(2)), images, 2, 100)
    assert seen == [100, 100, 100, 97]


class Spy(torch.nn.Module):
    """Records the sizes of batches."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, images):
        self.seen.append(len(images))
        return images


def test_a_subset_trains_on_its_own_pixels():
    """The pixels of each image equal its label, and no augmentation is set after the subset is chosen."""
    numbers = torch.arange(10)
    images = small_images.SmallImages(
        numbers.byte().view(10, 1, 1, 1).expand(10, 8, 8, 3), numbers, list("0123456789"), [0.0] * 3, [1 / 255] * 3, "cpu"
    )
    for batch, labels in images.keep(torch.tensor([7, 8, 9])).training_batches(3, seed=0, epoch=0):
        assert torch.equal(batch[:, 0, 0, 0].round().long(), labels) and labels.min() == 7


def test_a_frozen_backbone_keeps_its_weights_and_statistics(digits, tmp_path, capsys):
    before = states.read(digits)["model"]
    state = trained(tmp_path, "--init", digits, "--freeze-backbone", "--lr", 0.01, "--batch-size", 200)
    after = state["model"]
    assert all(torch.equal(after[key], value) == (not key.startswith("linear.")) for key, value in before.items())
    assert len(state["optimizer"]["state"]) == 2 and log(tmp_path)[-1]["val_top1"] > 20  # twice chance
    again = trained(tmp_path, "--init", "other.pth", "--freeze-backbone", "--lr", 0.01, "--batch-size", 200, "--resume", "auto")
    assert "note: --init has no effect" in capsys.readouterr().out and again["args"]["init"] == str(digits)
    with pytest.raises(InputError, match="--freeze-backbone: needs --init"):  # there is no checkpoint to resume yet
        trained(tmp_path / "fresh", "--freeze-backbone", "--resume", "auto")


def test_layer_decay_lowers_the_rate_by_a_factor_per_stage():
    model = models.create_model(models.model_facts("resnet8", 8), 10)
    groups = optimizer.build_optimizer(model, 0.8, 0.9, 5e-4, layer_decay=0.5).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    found = {optimizer.stage(name): rates[id(p)] for name, p in model.named_parameters()}
    assert found == {"stem": 0.05, "layer1": 0.1, "layer2": 0.2, "layer3": 0.4, "linear": 0.8}
    assert all((p.ndim > 1) == (group["weight_decay"] > 0) for group in groups for p in group["params"])
    plain = optimizer.build_optimizer(model, 0.8, 0.9, 5e-4, nesterov=False)
    assert [group["lr"] for group in plain.param_groups] == [0.8, 0.8] and not plain.param_groups[0]["nesterov"]


# ------------------------------------------------------------------------------------------------------- DenseNet-BC


def test_densenet_bc_has_the_published_size_and_viz_recognises_it(tmp_path):
    """Huang et al. (2017) state 0.8 M parameters: with 10 classes, 769,162. Both implementations give bit-identical logits."""
    model = models.create_model(models.model_facts("densenet_bc100", 32), 10).eval()
    assert sum(p.numel() for p in model.parameters()) == 769_162
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images)
        dense = models.WithDenseLogits(model)(images)[1]
    # Averaging the classifier's view of each location gives the logits, up to float32's rounding.
    torch.testing.assert_close(dense.mean(2), expected, atol=1e-4, rtol=1e-4)
    with viz.active():
        facts, _, weights = viz.load("checkpoints.recognise").recognise(model.state_dict())
        theirs = viz.load("checkpoints.models").create(facts["library"], facts["model"], facts["num_classes"])
        theirs.load_state_dict(weights)
        with torch.no_grad():
            assert torch.equal(theirs.eval()(images), expected)
    assert facts == {"library": "cifar", "model": "densenet_bc100", "num_classes": 10, "input_size": 32}


def test_it_and_resnet152_are_named_in_the_help():
    text = options.get_parser().format_help()
    assert "densenet_bc100" in text and "resnet152" in text and str(ROOT) not in text


@pytest.mark.parametrize("reverse", [False, True])
def test_imagenets_outputs_without_names_are_the_wnids_in_sorted_order(reverse, tmp_path):
    """This holds for any order of the archive's map: in evaluation, for an initial classifier, and for a teacher."""
    wnids = sorted((f"n{number:08d}" for number in range(1000)), reverse=reverse)
    order = [wnids.index(name) for name in sorted(wnids)]
    images = small_images.SmallImages(torch.zeros(1000, 8, 8, 3, dtype=torch.uint8), torch.arange(1000), wnids, None, None, "cpu")
    facts = {"superclasses": None, "num_classes": 1000}
    evaluate.match_classes(images, facts, None, "a", tmp_path)
    assert images.labels[order].tolist() == list(range(1000)) and images.classes == sorted(wnids)
    description = {"model": "resnet8", "library": "cifar", "width": 8, "stem_stride": 2}
    model, start = (models.create_model(description, 1000) for _ in range(2))
    torch.save({"model": start.state_dict()}, tmp_path / "c.pth")
    initial.start_from(str(tmp_path / "c.pth"), model, description, wnids, OTHERS)
    torch.testing.assert_close(model.linear.weight[order], start.linear.weight, rtol=0, atol=0)
    names = foreign.class_names(None, 1000, wnids)
    assert distillation.match_columns(names, 1000, wnids, "t") == ([999 - i for i in range(1000)] if reverse else None)
    assert foreign.class_names(None, 10, wnids[:10]) is None and foreign.class_names(["a"], 1000, wnids) == ["a"]


def test_superclasses_of_classes_that_the_data_lacks(tmp_path):
    images = small_images.SmallImages(torch.zeros(3, 8, 8, 3, dtype=torch.uint8), torch.arange(3), [*"dba"], None, None, "cpu")
    facts = {"superclasses": {"x": ["a", "b"], "y": ["c", "d"]}, "num_classes": 2}
    evaluate.match_classes(images, facts, ["x", "y"], "p", tmp_path)
    assert images.labels.tolist() == [1, 0, 0] and images.classes == ["x", "y"]
    with pytest.raises(InputError, match="its class x is in no superclass"):
        evaluate.match_classes(images, facts | {"superclasses": {"y": ["y"], "z": ["z"]}}, None, "p", tmp_path)
