"""Training from ZIP archives with the real commands gives the same run as training from the folder."""

import random
import shutil

import pytest

from conftest import ROOT, complains, run
from training import DEIT, MAIN, PLAIN, SMALL, assert_same, log, options, torchrun, weights

SUBPROJECT = DEIT
main = DEIT.load("main").main

PREPARE = ROOT / "data/imagenet/prepare.py"


@pytest.fixture(scope="module")
def zipped(few, tmp_path_factory):
    """The digits of `few` as archives and maps, without the image folders."""
    folder = tmp_path_factory.mktemp("zipped") / "few"
    shutil.copytree(few, folder)
    result = run(PREPARE, "--root", folder)
    assert result.returncode == 0, result.stderr
    for split in ("train", "val"):
        shutil.rmtree(folder / split)
    return folder


def test_a_run_from_archives_is_the_run_from_the_folder(few, zipped, tmp_path):
    """Weights are bit-identical with augmentation, repeated augmentation and mixup, with loaders, and in two processes."""
    words = [*SMALL, "--epochs", 2, "--batch-size", 16, "--lr", 4e-3, "--output_dir"]
    main(options(*words, tmp_path / "folder", "--data-path", few))
    result = run(MAIN, *words, tmp_path / "zip", "--data-path", zipped, "--cache", "--num_workers", 2)
    assert result.returncode == 0, result.stderr
    assert_same(weights(tmp_path / "folder"), weights(tmp_path / "zip"))
    for name, data in {"folder2": [few], "zip2": [zipped, "--cache"]}.items():
        result = torchrun(2, *words, tmp_path / name, "--data-path", *data)
        assert result.returncode == 0, result.stderr
    assert_same(weights(tmp_path / "folder2"), weights(tmp_path / "zip2"))


def test_a_map_in_another_order_is_followed_and_evaluated_right(few, zipped, tmp_path, capsys):
    """Both maps have shuffled lines and exchanged labels; the checkpoint scores the same on all archives and on the folder."""
    data = tmp_path / "data"
    shutil.copytree(zipped, data, ignore=shutil.ignore_patterns(".*"))
    for name in ("train_map.txt", "val_map.txt"):
        lines = [line.rsplit("\t", 1) for line in (data / name).read_text().splitlines()]
        lines = [f"{path}\t{1 - int(label)}\n" for path, label in lines]
        random.Random(0).shuffle(lines)
        (data / name).write_text("".join(lines))
    words = [*PLAIN, "--epochs", 8, "--batch-size", 32, "--lr", "1.6e-2", "--eval-every", 8, "--output_dir", tmp_path / "run"]
    main(options(*words, "--data-path", data, "--cache"))
    assert "train_map.txt: its labels are not in sorted class order; the classes keep the map's order" in capsys.readouterr().out
    checkpoint = tmp_path / "run/checkpoint.pth"
    for where in (data, few, zipped):
        main(options(*SMALL, "--eval", "--resume", checkpoint, "--data-path", where))
    found = {line.split(" on ")[1] for line in capsys.readouterr().out.splitlines() if " on 33 images" in line}
    assert len(found) == 1 and f"top-1 {log(tmp_path / 'run')[-1]['val_top1']:.2f} %" in found.pop()


def test_cache_without_archives_says_what_makes_them(few, tmp_path):
    result = run(MAIN, *SMALL, "--cache", "--data-path", few, "--output_dir", tmp_path)
    complains(result, "train.zip: no such archive", f"python data/imagenet/prepare.py --root {few}")
