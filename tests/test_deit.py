"""Deit/: training, resuming and evaluating on real images, by the real commands, in one process and in two."""

import argparse
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import submitit
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from conftest import ROOT, complains, run
from training import DEIT, DEIT_DEFAULTS, MAIN, PLAIN, SMALL, assert_same, kill_after, load, log, options, torchrun, weights

SUBPROJECT = DEIT
InputError, main = DEIT.load("errors").InputError, DEIT.load("main").main


@pytest.fixture(scope="module")
def trained(few, tmp_path_factory):
    """A finished run of 2 epochs and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    result = run(MAIN, *PLAIN, "--data-path", few, "--output_dir", folder, "--epochs", 2, "--batch-size", 32)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_a_run_says_what_it_does_and_leaves_checkpoint_and_log(trained, few):
    folder, printed = trained
    assert "global batch   32 = 1 x 32" in printed and "learning rate  3.125e-05 (0.0005 x 32 / 512)" in printed
    assert "2 steps each" in printed and "images/s" in printed and "maxsup 0.1" in printed
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pth", "log.jsonl"]
    lines = log(folder)
    assert [line["epoch"] for line in lines] == [1, 2] and all(line["val_images"] == 33 for line in lines)
    state = torch.load(folder / "checkpoint.pth", weights_only=True)
    assert set(state) == {"model", "optimizer", "lr_scheduler", "model_ema", "scaler", "loss", "epoch", "rng", "args", "classes"}
    assert state["classes"] == ["even", "odd"] and state["epoch"] == 1
    facts = {key: state["args"][key] for key in ("model", "input_size", "num_classes", "interpolation", "crop_ratio", "loss")}
    assert facts == {
        "model": "test_vit",
        "input_size": 32,
        "num_classes": 2,
        "interpolation": "bicubic",
        "crop_ratio": 1.0,
        "loss": "maxsup",
    }


def test_the_recipe_warns_about_another_global_batch(few, tmp_path, capsys):
    arguments = [*PLAIN, "--data-path", few, "--epochs", 1, "--batch-size", 32]
    main(options(*arguments, "--output_dir", tmp_path / "a", "--recipe-batch", 1024))
    assert "warning: the global batch is 32, the recipe's is 1024" in capsys.readouterr().out
    main(options(*arguments, "--output_dir", tmp_path / "b", "--recipe-batch", 32))
    assert "warning" not in capsys.readouterr().out


def test_two_processes_equal_one_with_the_same_global_batch(few, tmp_path):
    """Over 20 steps of 64 images the losses agree to 1e-4, because float32 sums are rounded in another order."""
    common = [*PLAIN, "--data-path", few, "--epochs", 20, "--lr", 4e-3, "--eval-every", 20]
    one = run(MAIN, *common, "--batch-size", 64, "--output_dir", tmp_path / "one")
    two = torchrun(2, *common, "--batch-size", 32, "--output_dir", tmp_path / "two")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    a, b = log(tmp_path / "one"), log(tmp_path / "two")
    losses = [line["train_loss"] for line in a]
    assert len(losses) == 20 and losses[-1] < losses[0] - 0.1
    assert losses == pytest.approx([line["train_loss"] for line in b], abs=1e-4)
    assert a[-1]["val_images"] == b[-1]["val_images"] == 33
    assert a[-1]["val_nll"] == pytest.approx(b[-1]["val_nll"], abs=1e-4)
    assert "2 x 32" in two.stdout and two.stdout.count("global batch") == 1


@pytest.mark.parametrize("processes, loss", [(1, "zipf"), (2, "ols")])
def test_killed_and_resumed_ends_bit_identical(few, tmp_path, processes, loss):
    """SIGKILL in the middle of training, twice, with augmentation, mixup, dropout, a moving average and a loader process."""
    words = [*SMALL, "--data-path", few, "--epochs", 10, "--batch-size", 16, "--loss", loss, "--lr", "4e-3", "--model-ema"]
    words += ["--model-ema-decay", "0.9", "--num_workers", "1", "--drop", "0.1", "--clip-grad", "1", "--resume", "auto"]
    command = [sys.executable, MAIN]
    if processes == 2:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = run(*command, *words, "--output_dir", whole)
    assert result.returncode == 0, result.stderr
    for epoch in (2, 5):
        kill_after(epoch, broken, *command, *words, "--output_dir", broken)
        assert len(log(broken)) < 10, "too late: the run had finished"
    result = run(*command, *words, "--output_dir", broken)
    assert result.returncode == 0, result.stderr
    assert re.search(r"resuming .* after epoch [4-9] of 10", result.stdout), result.stdout
    ours, theirs = load(broken), load(whole)
    for key in ("model", "model_ema", "optimizer", "lr_scheduler", "loss", "epoch", "rng", "classes"):
        assert_same(ours[key], theirs[key])
    assert [line["epoch"] for line in log(broken)] == list(range(1, 11))
    for key in ("train_loss", "val_top1", "val_nll", "val_ece", "ema_nll", "lr"):
        assert [line[key] for line in log(broken)] == [line[key] for line in log(whole)]


def test_losses_meet_the_same_weights_images_and_order(few, tmp_path):
    """MaxSup with alpha 0 is cross-entropy: with the same seed and augmentation the two runs give the same weights."""
    common = [*SMALL, "--data-path", few, "--epochs", 2, "--batch-size", 16, "--lr", 4e-3]
    main(options(*common, "--loss", "ce", "--output_dir", tmp_path / "ce"))
    main(options(*common, "--loss", "maxsup", "--alpha", 0, "--output_dir", tmp_path / "maxsup"))
    main(options(*common, "--loss", "maxsup", "--alpha", 0, "--seed", 1, "--output_dir", tmp_path / "seed1"))
    assert_same(weights(tmp_path / "ce"), weights(tmp_path / "maxsup"))
    assert [line["train_top1"] for line in log(tmp_path / "ce")] == [None, None]  # the images are mixed
    with pytest.raises(AssertionError):
        assert_same(weights(tmp_path / "ce"), weights(tmp_path / "seed1"))


@pytest.mark.parametrize("loss", DEIT.load("options").LOSSES)
@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
def test_every_loss_trains(few, tmp_path, loss, model):
    words = ["--data-path", few, "--epochs", 3, "--batch-size", 32, "--lr", 8e-3, "--output_dir", tmp_path, "--loss", loss]
    main(options(*PLAIN, *words, "--model", model, "--eval-every", 3))
    lines = log(tmp_path)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


def test_strengths_published_and_given(few, tmp_path, capsys):
    """Without --alpha the published schedule applies; with only --alpha the strength is constant; ls accepts a negative one."""
    words = [*PLAIN, "--data-path", few, "--epochs", 2, "--batch-size", 64, "--eval-every", 2, "--output_dir"]
    for folder, options_, alphas in (
        ("published", [], [0.1, 0.2]),
        ("constant", ["--alpha", 0.05], [0.05, 0.05]),
        ("ls", ["--loss", "ls"], [0.1, 0.1]),
        ("negative", ["--loss", "ls", "--alpha", -0.5], [-0.5, -0.5]),
    ):
        main(options(*words, tmp_path / folder, *options_))
        assert [line["alpha"] for line in log(tmp_path / folder)] == pytest.approx(alphas)
    assert "maxsup 0.1 -> 0.2" in capsys.readouterr().out
    assert load(tmp_path / "published")["args"]["alpha_end"] == 0.2


def test_the_class_frequencies_as_prior(few, tmp_path):
    """24 of 32 odd digits are removed: the loss smooths towards 32/40 and 8/40. Another prior refuses its state."""
    shutil.copytree(few, tmp_path / "data")
    for image in sorted((tmp_path / "data/train/odd").iterdir())[8:]:
        image.unlink()
    words = [*PLAIN, "--data-path", tmp_path / "data", "--epochs", 1, "--batch-size", 8, "--output_dir", tmp_path / "run"]
    main(options(*words, "--loss", "ls", "--prior", "frequency"))
    assert load(tmp_path / "run")["loss"]["prior"].tolist() == pytest.approx([0.8, 0.2])
    refused("trained with --prior frequency, not uniform", *words, "--loss", "ls", "--resume", "auto")
    words[-1] = tmp_path / "other"
    refused("--prior frequency: for --loss ls, not for maxsup", *words, "--prior", "frequency")


def test_evaluation_against_torchmetrics_in_one_process_and_two(trained, few, tmp_path):
    folder, _ = trained
    words = ["--checkpoint", folder / "checkpoint.pth", "--data-path", few, "--output", tmp_path / "logits.pt"]
    result = run(ROOT / "viz/logits.py", *words)
    assert result.returncode == 0, result.stderr
    content = torch.load(tmp_path / "logits.pt", weights_only=True)
    logits, labels = content["logits"], content["labels"]
    top1 = 100 * MulticlassAccuracy(2, average="micro")(logits, labels).item()
    ece = MulticlassCalibrationError(2, n_bins=15, norm="l1")(logits.softmax(1), labels).item()
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    # With two classes top-5 is 100 by definition; test_one_definition.py has ten.
    for result in (
        run(MAIN, "--eval", "--resume", folder / "checkpoint.pth", "--data-path", few, *SMALL),
        torchrun(2, "--eval", "--resume", folder / "checkpoint.pth", "--data-path", few, *SMALL),
        torchrun(2, "--eval", "--resume", folder / "checkpoint.pth", "--data-path", few, *SMALL, "--no-dist-eval"),
    ):
        assert result.returncode == 0, result.stderr
        found = re.search(r"on 33 images: top-1 (\S+) %  top-5 100.00 %  NLL (\S+)  ECE (\S+)", result.stdout)
        assert float(found[1]) == pytest.approx(top1, abs=0.0051)  # to the digits printed
        assert [float(value) for value in found.groups()[1:]] == pytest.approx([loss, ece], abs=0.000051)


def test_evaluation_follows_the_checkpoints_class_order(trained, few, tmp_path, capsys):
    """A checkpoint whose classes have another order than the folder's scores the same: classes are matched by name."""
    folder, _ = trained
    state = torch.load(folder / "checkpoint.pth", weights_only=True)
    main(options(*SMALL, "--eval", "--resume", folder / "checkpoint.pth", "--data-path", few))
    state["classes"].reverse()
    for name in ("head.weight", "head.bias"):
        state["model"][name] = state["model"][name].flip(0)
    torch.save(state, tmp_path / "reversed.pth")
    main(options(*SMALL, "--eval", "--resume", tmp_path / "reversed.pth", "--data-path", few))
    first, second = (line.split(" on ")[1] for line in capsys.readouterr().out.splitlines() if " on " in line)
    assert first == second


def test_the_command_line_decides_how_evaluation_shows_the_images(trained, few, capsys):
    """Where it says nothing, the checkpoint decides."""
    words = ["--eval", "--resume", trained[0] / "checkpoint.pth", "--data-path", few, "--device", "cpu", "--num_workers", 0]
    found = []
    for more in (
        [],
        ["--eval-crop-ratio", 0.875, "--input-size", 64],
        ["--mean", 0.5, 0.5, 0.5],
        ["--mean", 0.485, 0.456, 0.406],
    ):
        main(options(*words, *more))
        said = capsys.readouterr().out.splitlines()
        found.append((said[0], said[-1]))
    assert found[0] == found[3] and len({result for _, result in found}) == 3
    assert "images of 32 px, a central crop of 1" in found[0][0] and "images of 64 px, a central crop of 0.875" in found[1][0]


def test_the_papers_recipe_runs_on_digits(few, tmp_path):
    """train_with_MaxSup.sh runs unchanged, with every augmentation; only model, length and batch are smaller."""
    small = ["--model", "test_vit", "--input-size", 160, "--epochs", 2, "--num_workers", 2, "--model-ema", "--tensorboard"]
    here = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in an active environment
    environment = {**os.environ, "PATH": here, "BATCH": "32", "GPUS": "2"}
    command = ["bash", ROOT / "train_with_MaxSup.sh", "--data-path", few, "--output_dir", tmp_path, *small]
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "maxsup 0.1 -> 0.2" in result.stdout and "the recipe's is 1024" in result.stdout and "2 x 16" in result.stdout
    assert [line["alpha"] for line in log(tmp_path)] == pytest.approx([0.1, 0.2])
    assert list(tmp_path.glob("events.out.tfevents.*"))
    recipe = {name: value for name, value in DEIT_DEFAULTS.items() if name not in ("epochs", "batch_size")}
    found = load(tmp_path)["args"]
    assert {name: found[name] for name in recipe} == recipe
    environment["BATCH"] = "33"
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, timeout=300)
    complains(result, "BATCH=33 images per step do not divide among 2")


def test_submitit_runs_two_processes_here(few, tmp_path):
    """The SLURM launcher's own job runs on submitit's local executor."""
    words = ["--cluster", "local", "--ngpus", 2, "--wait", "--output_dir", tmp_path, "--data-path", few, *PLAIN]
    result = run(ROOT / "Deit/run_with_submitit.py", *words, "--epochs", 1, "--batch-size", 16)
    assert result.returncode == 0, result.stderr
    assert load(tmp_path)["args"]["global_batch"] == 32


def test_a_job_that_cannot_be_submitted_is_one_line(tmp_path):
    words = [ROOT / "Deit/run_with_submitit.py", "--output-dir", tmp_path, "--data-path", "x"]
    for more, piece in {
        "": "--cluster local runs",
        "--eval": "--eval: a job trains",
        "--epochs 0": "--epochs 0: must lie between 1",
    }.items():
        complains(run(*words, *more.split()), piece)
    assert not list(tmp_path.iterdir())


def test_a_requeued_job_continues(tmp_path, monkeypatch):
    """So does a fine-tuning job, which starts from its weights if --resume auto finds no checkpoint."""
    job = argparse.Namespace(job_id="731234", global_rank=3, local_rank=1, num_tasks=4, hostnames=["first", "second"])
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: job)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the job adds its folder to this
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    started = []
    monkeypatch.setattr(DEIT.load("main"), "main", started.append)
    launcher = DEIT.load("run_with_submitit")
    words = ["--data-path", "here", "--output_dir", str(tmp_path)]
    for more in ([], ["--finetune", "W"]):
        launcher.Training([*words, *more], None)()
    assert [(args.resume, args.finetune) for args in started] == [("auto", None), ("auto", "W")]
    assert [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")] == [
        "3", "1", "4", "first", "21234"
    ]  # fmt: skip
    again = launcher.Training(words, None).checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission) and again.function.arguments == words


def test_a_loss_that_is_not_finite_stops_the_run(few, tmp_path, capsys):
    words = [*PLAIN, "--data-path", few, "--batch-size", 16, "--output_dir", tmp_path, "--opt", "sgd"]
    main(options(*words, "--epochs", 1))
    before = (tmp_path / "checkpoint.pth").read_bytes()
    with pytest.raises(InputError, match=r"the loss is (nan|inf) in epoch 2, step [2-4];.*last checkpoint is good"):
        main(options(*words, "--epochs", 3, "--resume", "auto", "--lr", 1e30))
    assert "warning: lr was 0.0005" in capsys.readouterr().out
    assert (tmp_path / "checkpoint.pth").read_bytes() == before


def test_weights_ruined_by_the_last_step_are_not_saved(few, tmp_path):
    """An epoch is one step: its loss is finite, but the weights after it are not."""
    words = [*PLAIN, "--data-path", few, "--batch-size", 64, "--output_dir", tmp_path, "--opt", "sgd"]
    main(options(*words, "--epochs", 1))
    before = (tmp_path / "checkpoint.pth").read_bytes()
    with pytest.raises(InputError, match="not finite after epoch 2; .*last checkpoint is good"):
        main(options(*words, "--epochs", 2, "--resume", "auto", "--lr", 1e38, "--unscale-lr"))
    assert (tmp_path / "checkpoint.pth").read_bytes() == before and len(log(tmp_path)) == 1


def test_two_processes_evaluate_the_model_that_is_saved(few, tmp_path):
    """Batch norm's statistics differ between the processes; the log's metrics are those of the checkpoint's statistics."""
    words = ["--model", "test_resnet", "--data-path", few, "--epochs", 2, "--batch-size", 16, "--output_dir", tmp_path]
    result = torchrun(2, *PLAIN, *words, "--opt", "sgd", "--lr", 0.1, "--unscale-lr", "--model-ema", "--model-ema-decay", 0.5)
    assert result.returncode == 0, result.stderr
    for average, key in (("--no-model-ema", "val_nll"), ("--model-ema", "ema_nll")):
        result = run(MAIN, *SMALL, "--eval", "--resume", tmp_path / "checkpoint.pth", "--data-path", few, average)
        found = float(re.search(r"NLL (\S+)", result.stdout).group(1))
        assert found == pytest.approx(log(tmp_path)[-1][key], abs=1e-4)


def test_a_model_that_knows_neither_size_nor_stochastic_depth():
    assert DEIT.load("models").create_model("vgg11", 3, 64, 0.0, 0.1).get_classifier().out_features == 3


# --------------------------------------------------------------------------------- bad input: one line, no traceback


def test_the_command_line_prints_one_line(tmp_path):
    complains(run(MAIN, "--data-path", tmp_path / "nowhere", *SMALL), "nowhere", "train/<class>/<image>")


def test_two_processes_say_it_once(tmp_path):
    """Around the one error line are torchrun's own messages about failed processes."""
    result = torchrun(2, *SMALL, "--data-path", tmp_path / "nowhere", "--output_dir", tmp_path)
    layout = "an image folder holds train/<class>/<image> and val/<class>/<image>"
    line = f"error: {tmp_path / 'nowhere/train'}: no such folder; {layout}\n"
    assert result.returncode != 0 and result.stderr.count(line) == 1, result.stderr
    assert "closed by peer" not in result.stderr and 'main.py", line' not in result.stderr


def refused(match, *words):
    with pytest.raises(InputError, match=match) as error:
        main(options(*SMALL, *words))
    assert "\n" not in str(error.value)


def test_bad_data_folders(few, tmp_path):
    here = ["--output_dir", tmp_path / "run", "--data-path"]
    (tmp_path / "empty/train").mkdir(parents=True)
    (tmp_path / "empty/val").mkdir()
    refused("empty/train: .*train/<class>/<image>", *here, tmp_path / "empty")
    shutil.copytree(few, tmp_path / "noval")
    shutil.rmtree(tmp_path / "noval/val")
    refused("noval/val: no such folder", *here, tmp_path / "noval")
    shutil.copytree(few, tmp_path / "other")
    (tmp_path / "other/val/odd").rename(tmp_path / "other/val/strange")
    refused("only here: strange; only there: odd", *here, tmp_path / "other")
    shutil.rmtree(tmp_path / "other/val/strange")  # validation may have fewer classes than training
    main(
        options(*PLAIN, "--epochs", 1, "--batch-size", 16, "--output_dir", tmp_path / "fewer", "--data-path", tmp_path / "other")
    )
    assert log(tmp_path / "fewer")[-1]["val_top1"] is not None
    shutil.copytree(few, tmp_path / "hollow")
    for image in (tmp_path / "hollow/train/odd").iterdir():
        image.unlink()
    refused("hollow/train: .*odd", *here, tmp_path / "hollow")
    refused("2 classes, so labels up to 1, but the model has 1", *here, few, "--num-classes", 1)
    refused("64 training images .* fewer than one batch of 256", *here, few, "--batch-size", 256, "--no-repeated-aug")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named(few, tmp_path, workers):
    shutil.copytree(few, tmp_path / "data")
    broken = sorted((tmp_path / "data/train/odd").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:60])
    words = [*PLAIN, "--data-path", tmp_path / "data", "--output_dir", tmp_path / "run", "--batch-size", 64, "--epochs", 1]
    complains(run(MAIN, *words, "--num_workers", workers), broken.name, "does not decode")


def test_bad_checkpoints(trained, few, tmp_path):
    folder, _ = trained
    good = (folder / "checkpoint.pth").read_bytes()
    common = ["--data-path", few, "--output_dir", tmp_path / "run", "--resume"]
    (tmp_path / "truncated.pth").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    for how in ([], ["--eval"]):
        refused("truncated.pth: damaged", *common, tmp_path / "truncated.pth", *how)
        refused("empty.pth: damaged", *common, tmp_path / "empty.pth", *how)
        refused("text.pth: (damaged|refused)", *common, tmp_path / "text.pth", *how)
        refused("list.pth: a checkpoint is a dict", *common, tmp_path / "list.pth", *how)
        refused("none.pth: no such checkpoint", *common, tmp_path / "none.pth", *how)
    refused("a checkpoint of test_vit, not of --model test_vit2", *common, folder / "checkpoint.pth", "--model", "test_vit2")
    refused("trained with --loss maxsup, not ce", *common, folder / "checkpoint.pth", "--loss", "ce")
    state = torch.load(folder / "checkpoint.pth", weights_only=True)
    state["model"]["head.weight"] = torch.zeros(7, 64)
    del state["model"]["head.bias"]
    torch.save(state, tmp_path / "head.pth")
    match = r"another model's: head.bias is missing; head.weight is \(7, 64\), not \(2, 64\)"
    refused(match, *common, tmp_path / "head.pth")
    refused(match, *common, tmp_path / "head.pth", "--eval")
    refused("--eval needs --resume", "--data-path", few, "--eval")


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_malicious_checkpoint_is_refused_and_not_run(few, tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    if legacy:
        (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Malicious()}))
    else:
        torch.save({"model": Malicious()}, tmp_path / "evil.pth")
    refused("evil.pth: refused, .*nothing in it was run", "--data-path", few, "--eval", "--resume", tmp_path / "evil.pth")
    assert not (tmp_path / "was-run").exists()


def test_outputs(trained, few, tmp_path, capsys):
    folder, _ = trained
    refused("holds a run already: --resume auto goes on", "--data-path", few, "--output_dir", folder)
    replaced = tmp_path / "replaced"
    shutil.copytree(folder, replaced)
    words = [*PLAIN, "--data-path", few, "--output_dir", replaced, "--batch-size", 16, "--overwrite", "--opt", "sgd"]
    with pytest.raises(InputError, match="epoch 1"):  # it ends before its first checkpoint, and the old one is gone
        main(options(*words, "--lr", 1e30, "--unscale-lr"))
    assert [path.name for path in replaced.iterdir()] == ["log.jsonl"] and log(replaced) == []
    (tmp_path / "file").write_text("")
    refused("file/run: cannot be written", "--data-path", few, "--output_dir", tmp_path / "file/run")
    fresh = ["--output_dir", tmp_path / "new", "--epochs", 1, "--batch-size", 32, "--resume", "auto"]
    main(options(*PLAIN, "--data-path", few, *fresh))
    assert f"no checkpoint in {tmp_path / 'new'}, starting fresh" in capsys.readouterr().out


def test_resuming_another_run(trained, few, tmp_path, capsys):
    folder, _ = trained
    other = tmp_path / "other"
    words = [*PLAIN, "--data-path", few, "--batch-size", 32, "--output_dir", other]
    main(options(*words, "--epochs", 1))
    refused("other holds a run already", *words, "--resume", folder / "checkpoint.pth")
    refused("trained with --opt adamw, not sgd", *words, "--resume", "auto", "--opt", "sgd")
    refused("its parameter groups differ", *words, "--resume", "auto", "--weight-decay", 0)
    refused("has 2 epochs already, more than --epochs 1", *PLAIN, "--data-path", few, "--batch-size", 32, "--epochs", 1,
            "--output_dir", tmp_path / "third", "--resume", folder / "checkpoint.pth")  # fmt: skip
    capsys.readouterr()
    main(options(*words, "--epochs", 1, "--resume", "auto"))
    assert "all done already" in capsys.readouterr().out
    main(options(*words, "--epochs", 2, "--resume", "auto", "--amp", "fp16"))
    assert "warning: amp was off" in capsys.readouterr().out
    torch.save({"model": weights(folder)}, tmp_path / "bare.pth")
    words[-1] = tmp_path / "fourth"
    refused("bare.pth: cannot be resumed, it holds no epoch, classes", *words, "--resume", tmp_path / "bare.pth")
    torch.save({"model": weights(folder), "classes": 3}, tmp_path / "odd.pth")
    refused("odd.pth: .*unexpected content under classes", *words, "--resume", tmp_path / "odd.pth")


NOTHING = """
    --epochs 0, --batch-size 0, --num_workers -1, --eval-every 0, --seed -1, --input-size 0, --drop 1.5, --lr nan, --min-lr nan,
    --mixup -1, --cutmix nan, --alpha nan, --alpha -1, --opt-betas 0.9, --aa foo, --std 0 0 0, --mean nan 0 0, --scale 1 0.5,
    --eval-crop-ratio 0, --clip-grad -1, --num-classes 0, --model-ema-decay 2
"""


@pytest.mark.parametrize("words", [words.strip() for words in NOTHING.split(",")])
def test_values_that_mean_nothing(few, tmp_path, words):
    refused(f"{words.split()[0]} ?", *words.split(), "--data-path", few, "--output_dir", tmp_path)


def test_sizes_that_a_model_cannot_have(few, tmp_path):
    refused("test_vit cannot have --input-size 50", "--input-size", 50, "--data-path", few, "--output_dir", tmp_path)


def test_unknown_names_list_near_ones(few, tmp_path):
    common = ["--data-path", few, "--output_dir", tmp_path]
    refused("deit_smal_patch16_224: .*near names: .*deit_small_patch16_224", *common, "--model", "deit_smal_patch16_224")
    refused("--loss maxsupp: .*maxsup", *common, "--loss", "maxsupp")
    refused("--opt adamx", *common, "--opt", "adamx")
    refused("--sched zigzag", *common, "--sched", "zigzag")
    refused("--alpha-end 0.2: for --loss ls and maxsup, not for ce", *common, "--loss", "ce", "--alpha-end", "0.2")
    refused("--batch-size 7: mixup", *common, "--batch-size", "7")
