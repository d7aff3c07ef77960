"""All trainers: killed while they write, on a full disk, and two at once in a folder; and damage to all that a run reads."""

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.optim import create_optimizer_v2

from conftest import ROOT, complains, run
from subprojects import Subproject
from test_tasks_segmentation import QUICK, write_scenes
from training import CONV_QUICK, DEIT, PLAIN, assert_same, load, log, torchrun

SUBPROJECT = DEIT
states, run_folder, errors = (DEIT.load(name) for name in ("states", "run_folder", "errors"))
InputError, HOST = errors.InputError, socket.gethostname()
# The option for the folder, and the number of the flushed file that is the first checkpoint, after the log and params.json.
TRAINERS = {
    "Deit/main.py": ("--output_dir", 2),
    "Conv/common_resnet/train.py": ("--output-dir", 2),
    "Conv/ffcv/train_imagenet.py": ("--logging.folder", 3),
    "Tasks/segmentation/main.py": ("--output_dir", 2),
    "Tasks/text/main.py": ("--output_dir", 2),
    "Tasks/tabular/main.py": ("--output_dir", 2),
}


@pytest.fixture(params=TRAINERS, ids=lambda script: script.rpartition("/")[0])
def trainer(request, tmp_path):
    """command(folder, *words), the words for three short epochs of a trainer in a folder, and the number of its checkpoint."""
    script, (option, first) = request.param, TRAINERS[request.param]
    if "Deit" in script:
        words = [*PLAIN, "--data-path", request.getfixturevalue("few"), "--batch-size", 32, "--epochs", 3]
    elif "common" in script:
        words = [*CONV_QUICK, "--epochs", 3, "--ema-decay", 0.9]
    elif "ffcv" in script:
        from ffcv_helpers import SMALL, files

        words = [*SMALL, *files(request.getfixturevalue("ffcv_files")), "--training.epochs=3"]
    elif "segmentation" in script:
        data = write_scenes(tmp_path / "camvid", {"train": 4, "val": 1, "test": 1})
        words = [*QUICK, "--data-path", data, "--epochs", 3, "--warmup-steps", 0]
    elif "text" in script:
        (tmp_path / "prose.txt").write_text("one two three four . " * 100)
        words = [
            "--data",
            "text",
            "--data-path",
            tmp_path / "prose.txt",
            "--embedding-size",
            8,
            "--hidden-size",
            8,
            "--epochs",
            3,
        ]
        words += ["--device", "cpu", "--max-tokens", 16]
    else:
        words = ["--epochs", 3]

    def command(folder, *more):
        place = [f"{option}={folder}"] if "ffcv" in script else [option, folder]
        return [ROOT / script, *words, *place, "--resume", "auto", *more]

    return command, first


def faulty(what, number, words):
    return run(ROOT / "tests/faults.py", what, number, *words)


def test_killed_while_writing_and_on_a_full_disk_ends_bit_identical(trainer, tmp_path):
    command, first = trainer
    result = run(*command(tmp_path / "whole"))
    assert result.returncode == 0, result.stderr
    broken = tmp_path / "broken"
    assert faulty("kill", first + 1, command(broken)).returncode == -9
    assert load(broken)["epoch"] == 0 and list(broken.glob("checkpoint.pth.tmp-*"))
    complains(faulty("fill", first, command(broken)), "checkpoint.pth: cannot be written (File too large)", "is kept")
    assert load(broken)["epoch"] == 1 and not list(broken.glob("*.tmp-*")) and not (broken / run_folder.LOCK).exists()
    # A new process that exits normally, not a fork of a warm one: exactly what a user starts.
    words = [sys.executable, *map(str, command(broken))]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and "after epoch 2 of 3" in result.stdout, result.stderr
    for key in ("model", "optimizer", "loss", "model_ema"):
        assert_same(load(broken).get(key), load(tmp_path / "whole").get(key))
    assert [line["epoch"] for line in log(broken)] == [1, 2, 3]


def test_a_second_run_in_a_folder_is_refused(trainer, tmp_path):
    command, _ = trainer
    with run_folder.locked(tmp_path / "run"):
        message = complains(run(*command(tmp_path / "run")), f"process {os.getpid()} on {HOST} is training there")
    assert str(tmp_path / "run") in message and not (tmp_path / "run/log.jsonl").exists()


def test_losses_of_a_seed_meet_the_same_weights_and_data(trainer, tmp_path):
    """MaxSup of strength 0 is cross-entropy: with the same seed the two runs are bit-identical."""
    command, _ = trainer
    for name, words in {"ce": ["--loss=ce"], "maxsup": ["--loss=maxsup", "--alpha=0"]}.items():
        result = run(*command(tmp_path / name, *words))
        assert result.returncode == 0, result.stderr
    assert_same(load(tmp_path / "ce")["model"], load(tmp_path / "maxsup")["model"])


def test_of_two_processes_the_one_that_writes_says_what_is_wrong(few, tmp_path):
    """The other finds only that its peer is gone, which is not worth a message."""
    with run_folder.locked(tmp_path):
        result = torchrun(2, *PLAIN, "--data-path", few, "--batch-size", 16, "--epochs", 1, "--output_dir", tmp_path)
    assert result.returncode != 0 and result.stderr.count("error: --output_dir") == 1, result.stderr
    assert "by peer" not in result.stderr and 'main.py", line' not in result.stderr, result.stderr


@pytest.mark.parametrize("name", ["adamw", "lamb", "adan", "lookahead_adamw"])
def test_optimisers_that_count_their_steps_go_on_counting(name, tmp_path):
    """timm's LAMB and Adan correct their moments by a counter kept among the options; Lookahead has one too."""

    def made():
        model = torch.nn.Linear(4, 3)
        return model, create_optimizer_v2(model, name, lr=0.01, weight_decay=0.1)

    def train(model, optimizer, steps):
        for step in steps:
            images = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()

    model, optimizer = made()
    train(model, optimizer, range(20))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pth")
    train(model, optimizer, range(20, 30))
    again, resumed = made()
    state = torch.load(tmp_path / "c.pth", weights_only=True)
    again.load_state_dict(state["model"])
    states.load_parts({"optimizer": resumed}, state, "c.pth")
    train(again, resumed, range(20, 30))
    assert torch.equal(model.weight, again.weight) and torch.equal(model.bias, again.bias)


def test_machines_that_do_not_share_the_folder_do_not_resume_together(few, tmp_path):
    """One of them sees the checkpoint; the other would start from scratch."""
    words = ["--data-path", few, "--batch-size", 16, "--epochs", 1, "--resume", "auto", "--output_dir"]
    (tmp_path / "0").mkdir()
    (tmp_path / "0/checkpoint.pth").touch()
    alone = f'exec "$@" {tmp_path}/$RANK'
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    result = run(*torchrun, "bash", "-c", alone, "bash", sys.executable, DEIT.folder / "main.py", *PLAIN, *words)
    assert result.returncode != 0 and "all machines must share it" in result.stderr, result.stderr
    assert not (tmp_path / "1/checkpoint.pth").exists()


def test_a_killed_run_keeps_no_lock(tmp_path):
    """Loading processes that it leaves behind do not hold the lock either, and its half-written files are removed."""
    holder = (
        "import os, sys, time, pathlib; sys.path.insert(0, sys.argv[1]); import run_folder\n"
        "with run_folder.locked(pathlib.Path(sys.argv[2])):\n"
        "    os.fork() or (time.sleep(5), os._exit(0))\n    print('locked', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", holder, DEIT.folder, tmp_path], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "locked\n"
    with (
        pytest.raises(InputError, match=f"process {child.pid} on {re.escape(HOST)} is training there"),
        run_folder.locked(tmp_path),
    ):
        raise AssertionError
    (tmp_path / "log.jsonl.tmp-17").write_text("half")
    (tmp_path / "notes.tmp").write_text("the user's")
    child.kill()
    child.wait()
    with run_folder.locked(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.tmp", run_folder.LOCK]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.tmp"]


def test_where_nothing_can_be_locked_the_run_goes_on(tmp_path, monkeypatch, capsys):
    def refuses(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuses)
    with run_folder.locked(tmp_path):
        assert f"note: {tmp_path} cannot be locked ([Errno 37] No locks available)" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- checkpoints


def state():
    """A state in this project's format, and its model and optimiser."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loss": {}, "scaler": {}, "epoch": 0}
    return content | {"classes": ["a", "b"], "args": {}, "model_ema": None}, model, optimizer


def test_a_flipped_bit_is_noticed_wherever_it_is_in_the_weights(tmp_path, capsys):
    content, _, _ = state()
    path = tmp_path / "checkpoint.pth"
    states.write(content, path)
    good = path.read_bytes()
    assert_same(states.read(path), content)
    at = good.index(content["model"]["weight"].numpy().tobytes())
    for offset in (at, at + 11, len(good) - 30):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 4]) + good[offset + 1 :])
        with pytest.raises(InputError, match="checkpoint.pth: damaged"):
            states.read(path)
    assert capsys.readouterr().out == ""
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert_same(states.read(path), content)
    assert "has no checksums, so damage cannot be detected" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["Tasks/tabular/main.py", "--data", "digits", "--resume", f"{'a' * 300}.pth"],
        ["Conv/common_resnet/train.py", "--data", "digits", "--output-dir", "a" * 300],
        ["Tasks/segmentation/main.py", "--data", "camvid", "--data-path", "a" * 300],
        ["data/bank/prepare.py", "--root", "a" * 300],
        ["data/camvid/prepare.py", "--root", "a" * 300],
    ],
    ids=lambda words: words[0].rpartition("/")[0],
)
def test_a_name_that_is_too_long_is_one_line(words):
    complains(run(ROOT / words[0], *words[1:]), "File name too long")


NESTED = []
NESTED.append(NESTED)
WRONG = {
    "a tensor for a dict": ("optimizer", torch.ones(2), "unexpected content under optimizer"),
    "a list": ("args", [1], "unexpected content under args"),
    "an epoch below 0": ("epoch", -1, "unexpected content under epoch"),
    "an epoch of 30 digits": ("epoch", 10**30, "unexpected content under epoch"),
    "a truth value": ("epoch", True, "unexpected content under epoch"),
    "numbers for names": ("classes", [1, 2], "unexpected content under classes"),
    "text for a tensor": ("model", {"weight": "w"}, "unexpected content under model"),
    "a tensor among the options": ("args", {"lr": torch.ones(3)}, "unexpected content under args"),
    "lists without end": ("args", {"lr": NESTED}, "unexpected content under args"),
    "a number of 200 digits": ("args", {"lr": 10**200}, "unexpected content under args"),
    "empty shells": ("model", {"weight": torch.ones(2, 3, device="meta")}, "empty shells"),
    "sparse": ("optimizer", {"state": {0: torch.ones(2).to_sparse()}}, "sparse tensors"),
}


@pytest.mark.parametrize("key, value, message", WRONG.values(), ids=WRONG)
def test_a_checkpoint_that_holds_something_else(key, value, message, tmp_path):
    states.write(state()[0] | {key: value}, tmp_path / "c.pth")
    with pytest.raises(InputError, match=message):
        states.read(tmp_path / "c.pth")


def change(memory):
    content, model, optimizer = state()
    content["optimizer"] = memory(content["optimizer"])
    return content, model, optimizer


MEMORIES = {
    "no groups": lambda was: {"state": was["state"]},
    "other groups": lambda was: {"state": {}, "param_groups": was["param_groups"] * 2},
    "text": lambda was: was | {"state": {0: {"exp_avg": "x", "step": torch.tensor(1.0)}}},
    "a list": lambda was: was | {"state": [1, 2]},
    "another shape": lambda was: was | {"state": {0: was["state"][0] | {"exp_avg": torch.ones(7, 5)}}},
    "one number": lambda was: was | {"state": was["state"] | {0: was["state"][0] | {"exp_avg": torch.ones(1)}}},
    "another type": lambda was: was | {"state": was["state"] | {0: was["state"][0] | {"exp_avg": torch.ones(2, 3) > 0}}},
    "a step below 0": lambda was: was | {"state": was["state"] | {0: was["state"][0] | {"step": torch.tensor(-1.0)}}},
    "a step of 22 digits": lambda was: was | {"state": was["state"] | {0: was["state"][0] | {"step": torch.tensor(2.0**70)}}},
    "not finite": lambda was: was | {"state": {0: was["state"][0] | {"exp_avg": torch.full((2, 3), torch.nan)}}},
}


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_an_optimisers_memory_that_does_not_fit(memory):
    content, _, optimizer = change(memory)
    with pytest.raises(InputError, match="c.pth: the state of its optimizer does not fit"):
        states.load_parts({"optimizer": optimizer, "loss": torch.nn.Module()}, content, "c.pth")


@pytest.mark.parametrize("value", [{"scale": "x"}, {"scale": torch.ones(2)}, torch.ones(2), None])
def test_a_scaler_that_does_not_fit(value):
    with pytest.raises(InputError, match="c.pth: the state of its scaler does not fit"):
        states.load_parts({"scaler": torch.amp.GradScaler("cpu")}, {"scaler": value}, "c.pth")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value):
    content, model, _ = state()
    content["model"]["bias"] = torch.tensor([0.0, value])
    with pytest.raises(InputError, match="bias holds numbers that are not finite"):
        states.load_weights(model, content["model"], "c.pth")
    with pytest.raises(InputError, match="bias is not a tensor"):
        states.load_weights(model, content["model"] | {"bias": "x"}, "c.pth")


# --------------------------------------------------------------------------------------------------------------- logs

FOREIGN = ["x", "[1]", '{"epoch": NaN}', '{"epoch": "1"}', '{"epoch": true}', '{"epoch": 1e999}', f'{{"epoch": {"9" * 5000}}}']


def test_foreign_lines_of_a_log_are_left_out(tmp_path):
    lines = [*FOREIGN, "[" * 100_000, '{"epoch": 1, "seconds": 1e999}', '{"epoch": 2}']
    (tmp_path / "log.jsonl").write_bytes("\n".join(lines).encode() + b'\n\xe9\xff\n{"epoch": 1')
    found = run_folder.Log(tmp_path, tmp_path / "checkpoint.pth", 1, 2)
    assert (tmp_path / "log.jsonl").read_text() == '{"epoch": 1, "seconds": 1e999}\n' and found.seconds == 0
    (tmp_path / "folder/log.jsonl").mkdir(parents=True)
    with pytest.raises(InputError, match="log.jsonl: cannot be read or replaced"):
        run_folder.Log(tmp_path / "folder", None, 0, 2)


def test_a_full_disk_ends_a_log_in_one_line(tmp_path):
    found = run_folder.Log(tmp_path, None, 0, 1)
    found.path = Path("/dev/full")
    with pytest.raises(InputError, match="cannot be written .No space left on device.; the last checkpoint is good"):
        found.write({"epoch": 1})


# ------------------------------------------------------------------------------------------- names, help, options


def test_any_name_and_any_locale(few, tmp_path):
    """A run works in a folder whose name has a space, quotes, a line break and a byte that is not UTF-8, with ASCII output."""
    name = os.fsdecode(b"a 'b\"\nc\xe9")
    data, output = tmp_path / name, tmp_path / f"out {name}"
    data.symlink_to(few)
    command = [sys.executable, ROOT / "Deit/main.py", *PLAIN, "--batch-size", 32, "--epochs", 1, "--output_dir"]
    for folder, where in ((output, data), (tmp_path / "plain", few)):
        environment = os.environ | ({"LC_ALL": "C", "PYTHONIOENCODING": "ascii"} if folder == output else {})
        words = [str(word) for word in (*command, folder, "--data-path", where, "--resume", "auto")]
        result = subprocess.run(words, capture_output=True, env=environment, timeout=300)
        assert result.returncode == 0, result.stderr
    assert_same(load(output)["model"], load(tmp_path / "plain")["model"])
    words = [str(word) for word in (*command, output, "--data-path", tmp_path / f"no {name}", "--resume", "auto")]
    result = subprocess.run(words, capture_output=True, timeout=300)
    assert result.returncode == 1 and result.stderr.count(b"\n") == 1, result.stderr
    assert rb"no a 'b" + b'"' + rb"\nc\xe9/train: no such folder" in result.stderr


@pytest.mark.parametrize("script", [*TRAINERS, "Conv/common_resnet/evaluate.py", "Conv/ffcv/write_imagenet.py",
                                    "Tasks/segmentation/uncertainty_maps.py", "Deit/run_with_submitit.py"])  # fmt: skip
def test_help_comes_without_the_packages_that_take_seconds(script):
    result = run(sys.executable, "-X", "importtime", ROOT / script, "--help")
    assert result.returncode == 0 and "usage: " in result.stdout
    assert not re.findall(r"\| +(?:torch|torchvision|timm|sklearn|ffcv|matplotlib)$", result.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    "folder", ["Deit", "Conv/common_resnet", "Conv/ffcv", "Tasks/segmentation", "Tasks/text", "Tasks/tabular"]
)
def test_the_command_line_lists_every_loss(folder):
    subproject = Subproject(folder)
    names = subproject.load("catalogue" if "common" in folder else "options").LOSSES
    assert tuple(name for name in names if name != "bce") == subproject.load("maxsup_loss").LOSS_NAMES


@pytest.mark.parametrize("words", ["--num_workers 1000000000", "--recount 1000000000", "--epochs 1000000000"])
def test_numbers_beyond_reason_are_refused(words):
    options = DEIT.load("options")
    with pytest.raises(InputError, match=f"{words}: must lie between [01] and"):
        options.fill_in(options.get_parser().parse_args(["--data-path", "x", *words.split()]))


CONFIGS = {
    "deep.yaml": ("[" * 3000, "not YAML"),
    "deep.toml": ("a = " + "[" * 3000, "not TOML"),
    "long.yaml": (f"training:\n  epochs: {'9' * 5000}\n", "not YAML"),
    "hex.yaml": (f"training:\n  epochs: 0x{'f' * 5000}\n", "at most 18 digits"),
    "bomb.yaml": ("a: &a [1, 1]\nb: &b [*a, *a]\nmodel:\n  arch: *b\n", "must hold sections of keys"),
    "list.yaml": ("model:\n  arch: [resnet18]\n", "one text or number"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_of_ffcv_that_no_one_writes_by_hand(name, tmp_path):
    content, message = CONFIGS[name]
    (tmp_path / name).write_text(content)
    subproject = Subproject("Conv/ffcv")
    read, kind = subproject.load("options").read_config, subproject.load("errors").InputError
    with pytest.raises(kind, match=message):
        read(tmp_path / name)


def test_an_index_of_an_archive_is_checked_header_and_all(small_zips):
    """The index is rebuilt after a changed letter of a class name in its header, and after a flipped bit of a label."""
    index = DEIT.load("data.index")
    path = small_zips / "train.zip"
    header, records = index.open_index(path, "train")
    file = index.index_path(path)
    good = file.read_bytes()
    for changed in (good.replace(b'["a", "b"]', b'["a", "c"]'), good[:-2] + bytes([good[-2] ^ 1]) + good[-1:]):
        assert changed != good
        file.write_bytes(changed)
        found, again = index.open_index(path, "train")
        assert found == header and (again == records).all() and file.read_bytes() == good


def test_inaturalist_without_its_images(tmp_path):
    inat = DEIT.load("data.inat")
    taxa = [{"name": "a"}, {"name": "b"}]
    listing = {"annotations": [{"category_id": 0}, {"category_id": 1}], "images": [{"file_name": "t/x/0/1.jpg"}]}
    for name, content in {"categories": taxa, "train2018": listing, "val2018": listing}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="lists 1 images that are not in"):
        inat.INatImages(tmp_path, "train", 2018, "name")
    (tmp_path / "t/x/0").mkdir(parents=True)
    (tmp_path / "t/x/0/1.jpg").write_bytes(b"")
    assert len(inat.INatImages(tmp_path, "train", 2018, "name")) == 1


# ----------------------------------------------------------------------------------------------------------- pictures


def test_pictures_of_16_bits_are_scaled_by_every_reader(tmp_path):
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    write_scenes(tmp_path / "camvid", {"train": 1})
    for path in (tmp_path / "train/a/1.png", tmp_path / "camvid/train/0.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ramp).save(path)
    (tmp_path / "camvid/train/0.jpg").unlink()
    Image.new("L", (8, 8)).save(tmp_path / "camvid/trainannot/0.png")
    conv, seg = Subproject("Conv/common_resnet"), Subproject("Tasks/segmentation")
    pairs = seg.load("data").Images(SimpleNamespace(data="camvid", data_path=tmp_path / "camvid"), "train")
    folders = DEIT.load("data.folder").FolderImages(tmp_path / "train"), conv.load("data.folders").Folder(tmp_path / "train")
    for image in (pairs.read(0)[0], *(folder[0][0] for folder in folders)):
        assert np.array_equal(np.asarray(image)[..., 0], np.rint(ramp / 257))
    for path in (tmp_path / "camvid/train/0.png", tmp_path / "camvid/trainannot/0.png"):
        Image.new("L", (2000, 4)).save(path)
    with pytest.raises(seg.load("errors").InputError, match="0.png: 2000 x 4 pixels; no side"):
        pairs.read(0)
