"""The readers of the three image-classification trainers: evaluation, resumed runs, fine-tuning, archives, configuration."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

from attack import damage, material
from attack.material import outcome_of_run, said
from attack.readers import WORDS, Reader, called, of_parser


def deit() -> list[Reader]:
    import main
    import options

    small = "--model test_vit --input-size 32 --recipe-batch 0 --num_workers 0 --device cpu --warmup-epochs 0 --batch-size 4"
    small = [*small.split(), "--no-aug", "--no-repeated-aug", "--drop-path", "0"]

    command = called("Deit/main.py", main, options)

    def go(*words):
        command(*small, *words)

    def train(folder):
        material.pictures(folder / "data")
        go("--data-path", folder / "data", "--output_dir", folder / "run", "--epochs", 1)
        shutil.copy(folder / "run/checkpoint.pth", folder / "start.pth")

    def evaluate(folder, *words):
        return said("on .* images: .*", go, "--eval", "--resume", folder / "run/checkpoint.pth", "--data-path", *words)

    def resume(folder):
        words = ["--data-path", folder / "data", "--output_dir", folder / "run", "--epochs", 2, "--resume", "auto"]
        go(*words)
        return outcome_of_run(folder / "run")

    def finetune(folder):
        go("--data-path", folder / "data", "--output_dir", folder / "new", "--epochs", 1, "--finetune", folder / "start.pth")
        return outcome_of_run(folder / "new")

    def with_archives(folder):
        train(folder)
        material.archives(folder / "zips")
        evaluate(folder, folder / "zips", "--cache")

    picture = ("data/val/b/0.png", damage.of_picture)
    zips = [("zips/val.zip", damage.of_zip), ("zips/val_map.txt", damage.of_map), ("zips/.val.zip.index", damage.of_bytes)]
    return [
        Reader("--eval", train, lambda f: evaluate(f, f / "data"), [("run/checkpoint.pth", damage.of_torch), picture]),
        Reader("--resume", train, resume, [("run/checkpoint.pth", damage.of_torch), ("run/log.jsonl", damage.of_json)]),
        Reader("--finetune", train, finetune, [("start.pth", damage.of_torch)]),
        Reader("--cache", with_archives, lambda f: evaluate(f, f / "zips", "--cache"), zips),
        of_parser(options, "--data-path here --device cpu"),
    ]


def conv() -> list[Reader]:
    import evaluate
    import options
    import train as trainer

    small = "--model resnet8 --num-workers 0 --device cpu --batch-size 8 --warmup-epochs 0".split()

    command = called("Conv/common_resnet/train.py", trainer, options)
    evaluation = called("Conv/common_resnet/evaluate.py", evaluate)

    def go(*words):
        command(*small, *words)

    def make(folder):
        material.pictures(folder / "data", 16)
        words = ["--data", "folder", "--data-path", folder / "data", "--output_dir", folder / "run", "--epochs", 1]
        go(*words, "--ema-decay", "0.9")
        (folder / "large").mkdir()
        material.pictures(folder / "large", 40, "jpg")
        material.archives(folder / "zips")

    def tested(folder, *words):
        return said("error.*", evaluation, "--checkpoint", folder / "run/checkpoint.pth", *words)

    def resume(folder):
        words = ["--data", "folder", "--data-path", folder / "data", "--output_dir", folder / "run", "--epochs", 2]
        go(*words, "--ema-decay", "0.9", "--resume", "auto")
        return outcome_of_run(folder / "run")

    def large(folder):
        words = ["--data", "cub", "--model", "resnet18", "--input-size", 32, "--data-path", folder / "large", "--epochs", 1]
        go(*words, "--output_dir", folder / "new")
        return outcome_of_run(folder / "new")

    state, log = ("run/checkpoint.pth", damage.of_torch), ("run/log.jsonl", damage.of_json)
    zips = [("zips/val.zip", damage.of_zip), ("zips/val_map.txt", damage.of_map)]
    at = "--data folder --data-path"
    return [
        Reader(
            "evaluate.py", make, lambda f: tested(f, *at.split(), f / "data"), [state, ("data/val/b/0.png", damage.of_picture)]
        ),
        Reader("--resume", make, resume, [state, log, ("data/train/a/1.png", damage.of_picture)]),
        Reader("archives", make, lambda f: tested(f, *at.split(), f / "zips"), zips),
        Reader(
            "large images", make, large, [("large/train/a/0.jpg", damage.of_picture), ("large/val/b/1.jpg", damage.of_picture)]
        ),
        of_parser(options, "--data digits"),
    ]


def ffcv() -> list[Reader]:
    import yaml

    import options
    import train_imagenet as trainer

    small = """--model.arch=resnet18 --resolution.min_res=32 --resolution.max_res=32 --validation.resolution=32
        --validation.crop_ratio=1 --training.batch_size=4 --validation.batch_size=4 --data.num_workers=1 --training.device=cpu"""

    command = called("Conv/ffcv/train_imagenet.py", trainer)

    def make(folder):
        material.pictures(folder / "data", 32)
        for split in ("train", "val"):
            words = ["--data-path", folder / "data" / split, "--output", folder / f"{split}.ffcv", "--num-workers", "1"]
            subprocess.run([sys.executable, Path(trainer.__file__).with_name("write_imagenet.py"), *words], check=True)
        go(folder, "--training.epochs=1", f"--logging.folder={folder}/run")

    def make_config(folder):
        folder.mkdir()
        config, _ = options.read(small.split())
        (folder / "config.yaml").write_text(yaml.safe_dump(options.plain(config)))

    def go(folder, *words):
        files = [f"--data.{split}_dataset={folder}/{split}.ffcv" for split in ("train", "val")]
        command(*small.split(), *files, *words)

    def evaluate(folder):
        return said("on .* images: .*", go, folder, "--eval", f"--resume={folder}/run/checkpoint.pth")

    def resume(folder):
        go(folder, "--training.epochs=2", f"--logging.folder={folder}/run", "--resume=auto")
        return outcome_of_run(folder / "run")

    def config(folder, words=()):
        return options.plain(options.read(["--config", str(folder / "config.yaml"), *words])[0])

    state, log = ("run/checkpoint.pth", damage.of_torch), ("run/log.jsonl", damage.of_json)
    files = [("val.ffcv", damage.unsealed(damage.of_bytes)), ("val.ffcv.json", damage.of_json)]
    words = [f"--{key}=" for key in options.OPTIONS]

    def options_of(_: object, rng: random.Random) -> tuple[str, list[str]]:
        found = [rng.choice(words) + rng.choice(WORDS) for _ in range(2)]
        return f"~{found!r:.200}", found

    return [
        Reader("--eval", make, evaluate, [state, *files]),
        Reader("--resume", make, resume, [state, log]),
        Reader("--config", make_config, config, [("config.yaml", damage.of_text)]),
        Reader("options", make_config, config, [(None, options_of)]),
    ]
