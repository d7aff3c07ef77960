"""Deit/: checkpoints from elsewhere evaluated, continued and fine-tuned; downloads from a real server on this machine."""

import argparse
import functools
import hashlib
import http.server
import re
import shutil
import threading

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from training import DEIT, PLAIN, SMALL, assert_same, load, log, options, weights

SUBPROJECT = DEIT
InputError, main = DEIT.load("errors").InputError, DEIT.load("main").main
foreign = DEIT.load("foreign")


def refused(match, *words):
    with pytest.raises(InputError, match=match) as error:
        main(options(*SMALL, *words))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def trained(few, tmp_path_factory):
    """A run of one epoch at 32 px with two classes."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    with DEIT.active():
        main(options(*PLAIN, "--data-path", few, "--output_dir", folder, "--epochs", 1, "--batch-size", 32, "--lr", 4e-3))
    return folder


def as_from_elsewhere(state, folder):
    """Write the same weights in the formats of DeiT, Lightning, DataParallel with torch.compile, bare files and safetensors."""
    model = state["model"]
    said = argparse.Namespace(model="test_vit", input_size=32, teacher_path="", device="cuda")
    contents = {
        "deit.pth": {"model": model, "args": said, "epoch": 0, "optimizer": state["optimizer"], "lr_scheduler": {}},
        "lightning.ckpt": {
            "state_dict": {f"model.{key}": value for key, value in model.items()},
            "pytorch-lightning_version": "2",
        },
        "parallel.pth": {
            "net": {f"module._orig_mod.{key}": value for key, value in model.items()} | {"loss.q": torch.ones(2, 2)}
        },
        "attribute.ckpt": {"state_dict": {f"network.backbone.{key}": value for key, value in model.items()}},
        "bare.th": model,
    }
    for name, content in contents.items():
        torch.save(content, folder / name)
    save_file(model, folder / "flat.safetensors")
    return [*contents, "flat.safetensors"]


def test_files_from_elsewhere_score_as_ours(trained, few, tmp_path, capsys):
    words = [*SMALL, "--data-path", few, "--eval", "--resume"]
    main(options(*words, trained / "checkpoint.pth"))
    score = capsys.readouterr().out.split(" on 33 images: ")[1]
    for name in as_from_elsewhere(load(trained), tmp_path):
        main(options(*words, tmp_path / name))
        printed = capsys.readouterr().out
        assert printed.split(" on 33 images: ")[1] == score and "is taken for test_vit" in printed, name
    assert foreign.read(tmp_path / "parallel.pth").notes == ["1 tensors do not belong to the model and are ignored (loss.q)"]


def test_a_file_of_deit_is_continued(trained, few, tmp_path, capsys):
    """Its optimiser and epoch are used: the resumed run ends like a run resumed from our own file."""
    as_from_elsewhere(load(trained), tmp_path)
    words = [*PLAIN, "--data-path", few, "--epochs", 2, "--batch-size", 32, "--lr", 4e-3, "--resume"]
    main(options(*words, trained / "checkpoint.pth", "--output_dir", tmp_path / "ours"))
    main(options(*words, tmp_path / "deit.pth", "--output_dir", tmp_path / "theirs"))
    assert "is another trainer's: weights, optimiser and epoch are continued" in capsys.readouterr().out
    assert_same(load(tmp_path / "ours")["model"], load(tmp_path / "theirs")["model"])
    assert log(tmp_path / "theirs")[-1]["epoch"] == 2
    refused("flat.safetensors: cannot be resumed, it holds no epoch", *words[len(SMALL) :], tmp_path / "flat.safetensors",
            "--output_dir", tmp_path / "none")  # fmt: skip


def test_finetuning_at_another_size_with_other_classes(trained, few, ten, tmp_path, capsys):
    """Position embeddings are resized as in DeiT's code, the classifier is new, and everything else is the checkpoint's."""
    words = [*PLAIN, "--data-path", few, "--input-size", 48, "--epochs", 1, "--batch-size", 32, "--freeze-backbone"]
    without = "--freeze-backbone: needs --finetune or a checkpoint to --resume"
    refused(without, *words[len(PLAIN) :], "--output_dir", tmp_path / "no")
    state = load(trained)
    state["model"] |= {"head.weight": torch.zeros(7, 64), "head.bias": torch.zeros(7)}
    del state["classes"], state["args"]
    torch.save(state, tmp_path / "seven.pth")
    words += ["--finetune", tmp_path / "seven.pth", "--resume", "auto", "--output_dir", tmp_path / "run"]
    main(options(*words))  # the run has no checkpoint yet
    printed = capsys.readouterr().out
    assert "the classifier is new: 7 classes" in printed and "position embeddings resized from 5 to 10 tokens" in printed
    assert "trained are 130 of" in printed
    before, after = state["model"], weights(tmp_path / "run")
    grid = before["pos_embed"][:, 1:].reshape(1, 2, 2, 64).permute(0, 3, 1, 2)  # what DeiT's main.py does
    grid = F.interpolate(grid, size=(3, 3), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(after["pos_embed"], torch.cat([before["pos_embed"][:, :1], grid], 1))
    for key in before.keys() - {"pos_embed", "head.weight", "head.bias"}:
        assert torch.equal(before[key], after[key]), key  # a linear probe does not change them
    assert after["head.weight"].shape == (2, 64) and after["head.weight"].abs().sum() > 0
    assert load(tmp_path / "run")["args"]["finetune"].endswith("seven.pth")
    (tmp_path / "seven.pth").unlink()
    main(options(*words, "--epochs", 2))
    assert [line["epoch"] for line in log(tmp_path / "run")] == [1, 2]
    assert load(tmp_path / "run")["args"]["finetune"].endswith("seven.pth")


def test_a_classifier_in_another_order_is_sorted_by_names(trained, few, tmp_path, capsys):
    """A model with its classes reversed, fine-tuned at a negligible learning rate, scores as before."""
    words = [*PLAIN, "--data-path", few, "--epochs", 1, "--batch-size", 64, "--lr", 1e-20, "--min-lr", 0, "--unscale-lr"]
    state = load(trained)
    state["classes"].reverse()
    for name in ("head.weight", "head.bias"):
        state["model"][name] = state["model"][name].flip(0)
    torch.save(state, tmp_path / "reversed.pth")
    main(options(*words, "--weight-decay", 0, "--finetune", tmp_path / "reversed.pth", "--output_dir", tmp_path / "run"))
    torch.testing.assert_close(weights(tmp_path / "run"), weights(trained), atol=1e-6, rtol=0)
    assert log(tmp_path / "run")[-1]["val_nll"] == pytest.approx(log(trained)[-1]["val_nll"], abs=1e-5)
    state["classes"] = ["cats", "dogs"]
    torch.save(state, tmp_path / "animals.pth")
    main(options(*words, "--finetune", tmp_path / "animals.pth", "--output_dir", tmp_path / "other"))
    assert "the classifier is new: other classes" in capsys.readouterr().out


def test_rates_of_the_layers_and_what_is_trained():
    """A block's rate is --layer-decay times that of the next; --attn-only trains attention, positions and the classifier."""
    create, freeze = DEIT.load("models").create_model, DEIT.load("weights").freeze
    args = options("--data-path", "here", "--layer-decay", 0.5, "--warmup-epochs", 0, "--device", "cpu", "--lr", 0.1)
    DEIT.load("options").fill_in(args)
    args.scaled_lr = args.lr
    model = create("test_vit", 3, 32, 0.0, 0.0)
    optimizer, scheduler = DEIT.load("main").build_optimizer(model, args)
    scheduler.step(0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    last = max(int(name.split(".")[1]) for name in rates if name.startswith("blocks."))
    assert rates["head.weight"] == pytest.approx(0.1)
    for block in range(last):
        name = "blocks.{}.attn.qkv.weight"
        assert rates[name.format(block)] == pytest.approx(0.5 * rates[name.format(block + 1)])
    freeze(model, attention_too=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"pos_embed", "head.weight", "head.bias", "blocks.0.attn.qkv.weight"} <= trained
    assert all(".attn." in name or name in ("pos_embed", "head.weight", "head.bias") for name in trained)


def test_weights_that_do_not_fit(few, tmp_path):
    other = timm.create_model("test_resnet", num_classes=2).state_dict()
    torch.save(other, tmp_path / "resnet.pth")
    words = ["--data-path", few, "--output_dir", tmp_path / "run"]
    refused("resnet.pth: the weights are another model's", *words, "--finetune", tmp_path / "resnet.pth")
    refused("resnet.pth: the weights are another model's", *words, "--eval", "--resume", tmp_path / "resnet.pth")
    torch.save({"model": {"x": torch.zeros(3)}}, tmp_path / "odd.pth")
    refused("odd.pth: holds no weights, neither bare", *words, "--finetune", tmp_path / "odd.pth")
    refused("holds no moving average .*omit --model-ema", *words, "--eval", "--model-ema", "--resume", tmp_path / "resnet.pth")


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server for the folder `served`, and an empty torch.hub cache."""
    (tmp_path / "served").mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    handler = functools.partial(Silent, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_downloads(trained, few, server, tmp_path, capsys):
    """Files are cached once and checked against the hash in their name; a wrong hash, HTML or no answer leaves no file."""
    served, cache = tmp_path / "served", tmp_path / "cache/hub/checkpoints"
    digest = hashlib.sha256((trained / "checkpoint.pth").read_bytes()).hexdigest()[:8]
    good = f"model-{digest}.pth"
    for name in (good, "model-00000000.pth", "checkpoint.pth"):
        shutil.copy(trained / "checkpoint.pth", served / name)
    (served / "page.pth").write_text("<!DOCTYPE html><html>log in first</html>")
    words = ["--data-path", few, "--eval", "--resume"]
    for _ in range(2):
        main(options(*SMALL, *words, f"{server}/{good}"))
    printed = capsys.readouterr().out
    assert printed.count("downloading ") == 1 and printed.count(" on 33 images: ") == 2
    main(options(*SMALL, *words, f"{server}/checkpoint.pth?download=1"))
    files = [path.name for path in cache.iterdir()]
    assert len(files) == 2 and good in files and any(re.fullmatch(r"checkpoint\.[0-9a-f]{8}\.pth", name) for name in files)
    refused("model-00000000.pth: invalid hash value .* was not kept", *words, f"{server}/model-00000000.pth")
    refused("page.pth: the server sent a page of HTML", *words, f"{server}/page.pth")
    refused("none.pth: the server answers 404", "--data-path", few, "--finetune", f"{server}/none.pth",
            "--output_dir", tmp_path / "run")  # fmt: skip
    refused("cannot be downloaded .*refused", *words, "http://127.0.0.1:9/model.pth")
    assert sorted(path.name for path in cache.iterdir()) == sorted(files)
