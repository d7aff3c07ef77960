"""Every reader of the repository: how its good inputs are made, which of them are damaged, and how, and how it is called."""

import argparse
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from attack import damage, material
from attack.material import outcome_of_run, said


class Reader(NamedTuple):
    """make(folder) writes good inputs; call(folder) reads them and returns what of the result must not change silently.

    targets: the files that are damaged, one at a time, with the function that does it. A target None stands for the words of a
    command line, which call(folder, words) takes.
    """

    name: str
    make: Callable[[Path], None]
    call: Callable
    targets: list[tuple[str | None, Callable]]


LAST: list[str] = []  # script and words of the command that was called last


def called(script: str, function: Callable) -> Callable:
    """function(words), as call(*words), whose words are kept in LAST."""

    def call(*words: object) -> None:
        LAST[:] = [script, *map(str, words)]
        function(LAST[1:])

    return call


def readers_of(subproject: str) -> list[Reader]:
    return {
        "Deit": deit,
        "Conv/common_resnet": conv,
        "Conv/ffcv": ffcv,
        "Tasks/tabular": tabular,
        "Tasks/text": text,
        "Tasks/segmentation": segmentation,
        "viz": viz,
        "data": data,
    }[subproject]()


WORDS = [
    "nan",
    "inf",
    "-1",
    "0",
    "1e999",
    "1000000000",
    "9" * 5000,
    "x",
    "",
    "²",
    "--",
    "../..",
    "\udce9",
    "a\nb",
    "0x10",
    "1,2",
    "None",
]


def of_options(parser: argparse.ArgumentParser, fixed: str) -> Callable:
    """Damage of a command line: one to three options of the parser, with values that they may not have."""
    actions = [action for action in parser._actions if action.option_strings and action.dest not in ("help", "version")]

    def options(_: object, rng: random.Random) -> tuple[str, list[str]]:
        words = fixed.split()
        for action in rng.sample(actions, rng.choice((1, 1, 2, 3))):
            count = {None: 1, "+": 2, "*": 2, "?": 1}.get(action.nargs, action.nargs)
            words.append(rng.choice(action.option_strings))
            words += [rng.choice(WORDS) for _ in range(rng.choice((count, count, count, 0, count + 1)))]
        return f"~{' '.join(words)!r:.200}", words

    return options


# --------------------------------------------------------------------------------------------------------- the trainers


def deit() -> list[Reader]:
    import main
    import options

    small = "--model test_vit --input-size 32 --recipe-batch 0 --num_workers 0 --device cpu --warmup-epochs 0 --batch-size 4"
    small = [*small.split(), "--no-aug", "--no-repeated-aug", "--drop-path", "0"]

    command = called("Deit/main.py", lambda words: main.main(options.get_parser().parse_args(words)))

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


def of_parser(module, fixed: str, make: Callable = Path.mkdir) -> Reader:
    """The command line of a trainer, up to where the data would be opened."""
    parser = module.get_parser()

    def call(folder, words=()):
        return module.fill_in(parser.parse_args([*fixed.replace("FOLDER", str(folder)).split(), *words]))

    return Reader("options", make, call, [(None, of_options(parser, ""))])


def conv() -> list[Reader]:
    import evaluate
    import options
    import train as trainer

    small = "--model resnet8 --num-workers 0 --device cpu --batch-size 8 --warmup-epochs 0".split()

    command = called("Conv/common_resnet/train.py", lambda words: trainer.main(options.get_parser().parse_args(words)))
    evaluation = called("Conv/common_resnet/evaluate.py", evaluate.main)

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
    import write_imagenet

    small = """--model.arch=resnet18 --resolution.min_res=32 --resolution.max_res=32 --validation.resolution=32
        --validation.crop_ratio=1 --training.batch_size=4 --validation.batch_size=4 --data.num_workers=1 --training.device=cpu"""

    command = called("Conv/ffcv/train_imagenet.py", trainer.main)

    def make(folder):
        import sys

        material.pictures(folder / "data", 32)
        for split in ("train", "val"):
            sys.argv = [
                "write",
                "--data",
                str(folder / "data" / split),
                "--output",
                str(folder / f"{split}.ffcv"),
                "--num-workers",
                "1",
            ]
            write_imagenet.main()
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


# ------------------------------------------------------------------------------------------------------------ the tasks


def task(make: Callable, source: list, small: str) -> list[Reader]:
    """Of a trainer of Tasks/: a run on damaged data, the continuation of a run, and the options. source: what is damaged."""
    import inspect

    import main
    import options

    takes_words = inspect.signature(main.main).parameters.keys() == {"words"}
    parser = options.get_parser()
    script = str(Path(main.__file__).relative_to(Path(__file__).resolve().parents[2]))
    command = called(script, lambda words: main.main(words if takes_words else parser.parse_args(words)))

    def go(folder, *words):
        command(*[word.replace("FOLDER", str(folder)) for word in [*small.split(), *words]])

    def begun(folder):
        make(folder / "data")
        go(folder, "--epochs", "1", "--output_dir", str(folder / "run"))

    def train(folder):
        go(folder, "--epochs", "1", "--output_dir", str(folder / "new"))
        return outcome_of_run(folder / "new")

    def resume(folder):
        go(folder, "--epochs", "2", "--output_dir", str(folder / "run"), "--resume", "auto")
        return outcome_of_run(folder / "run")

    state = [("run/checkpoint.pth", damage.of_torch), ("run/log.jsonl", damage.of_json)]
    return [
        Reader("data", begun, train, source),
        Reader("--resume", begun, resume, state),
        of_parser(options, small, begun),
    ]


def tabular() -> list[Reader]:
    def make(folder):
        folder.mkdir(parents=True)
        material.table(folder / "t.csv")

    small = "--data FOLDER/data/t.csv --target bought --device cpu --batch-size 16"
    return task(make, [("data/t.csv", damage.of_text)], small)


def text() -> list[Reader]:
    source = [("data/train/pos/1.txt", damage.of_text), ("data/test/neg/1.txt", damage.of_text)]
    small = "--data imdb --data-path FOLDER/data --embedding-size 4 --hidden-size 4 --batch-size 4 --amp off --device cpu"
    return task(material.reviews, source, small)


def segmentation() -> list[Reader]:
    source = [(f"data/{name}/1.png", damage.of_picture) for name in ("train", "trainannot", "test", "testannot")]
    small = "--data camvid --data-path FOLDER/data --model deeplabv3plus_test_resnet --size 32 32 --crop 32 32 --batch-size 2"
    return task(material.scenes, source, small + " --device cpu --amp off --warmup-steps 0 --eval-every 1")


# ---------------------------------------------------------------------------------------------------------- viz and data


def viz() -> list[Reader]:
    from common import logits_file

    from safetensors.torch import save_file

    from checkpoints import inference, models
    from checkpoints.read import build_model, load_checkpoint
    from images.find import find_images
    from metrics.classification import classification

    def make(folder):
        torch.manual_seed(0)
        model = models.create("cifar", "resnet8", 2, width=8)
        args = {"model": "resnet8", "library": "cifar", "width": 8, "num_classes": 2, "input_size": 16, "crop_ratio": 1.0}
        args |= {"interpolation": "bilinear", "mean": [0.3] * 3, "std": [0.4] * 3, "data": None, "data_path": None}
        (folder / "zips").mkdir(parents=True)
        torch.save({"model": model.state_dict(), "args": args, "classes": ["a", "b"], "epoch": 3}, folder / "c.pth")
        save_file(model.state_dict(), folder / "c.safetensors")
        material.pictures(folder / "data")
        material.archives(folder / "zips")
        content = {"logits": torch.randn(40, 5), "labels": torch.arange(40) % 5, "features": torch.randn(40, 8)}
        torch.save(content | {"classes": list("abcde"), "paths": [str(n) for n in range(40)]}, folder / "l.pt")

    def shown(folder, name="c.pth", images="data", **more):
        checkpoint = load_checkpoint(folder / name, **more)
        found = find_images(checkpoint, folder / images, "val", None)
        options = {"batch_size": 4, "num_workers": 0, "device": "cpu"}
        content = inference.outputs(build_model(checkpoint), found, checkpoint.facts, "images", ("logits", "labels"), **options)
        print(*checkpoint.notes, *found.notes, sep="\n")
        return material.digest({"logits": content["logits"], "labels": content["labels"]})

    def logits(folder):
        content = logits_file.load(folder / "l.pt")
        return classification(content["logits"], content["labels"])

    def report(folder):
        from report_page.inputs import of_logits

        run = of_logits("x", folder / "l.pt", 0.1)
        return run.classes, run.paths, material.digest({key: run.content[key] for key in ("logits", "labels", "features")})

    def bare(folder):
        return shown(folder, "c.safetensors", model="resnet8")

    picture, logits_damage = ("data/val/a/0.png", damage.of_picture), [("l.pt", damage.of_torch)]
    zips = [("zips/val.zip", damage.of_zip), ("zips/val_map.txt", damage.of_map)]
    return [
        Reader("checkpoint", make, shown, [("c.pth", damage.of_torch), picture]),
        Reader("safetensors", make, bare, [("c.safetensors", damage.unsealed(damage.of_bytes))]),
        Reader("archives", make, lambda folder: shown(folder, images="zips"), zips),
        Reader("logits file", make, logits, logits_damage),
        Reader("report's inputs", make, report, logits_damage),
    ]


def data() -> list[Reader]:
    import io
    import sys
    import tarfile

    sys.path[:0] = [str(Path(sys.path[0]) / name) for name in ("cub", "imagenet")]
    import archives
    import prepare as cub  # of data/cub

    def make(folder):
        material.archives(folder)
        with tarfile.open(folder / "cub.tgz", "w:gz") as archive:
            names = [f"{name}/{number}.png" for name in "ab" for number in range(2)]
            content = {f"images/{name}": (folder / "folder/val" / name).read_bytes() for name in names}
            content["images.txt"] = "".join(f"{number} {name}\n" for number, name in enumerate(names)).encode()
            content["train_test_split.txt"] = b"0 1\n1 0\n2 1\n3 0\n"
            for name, data in content.items():
                entry = tarfile.TarInfo(f"CUB_200_2011/{name}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))

    def listed(folder):
        found = archives.read_archive(folder / "val.zip", "val")
        content = (folder / "val.zip").read_bytes()
        try:
            data = [bytes(archives.read_image(lambda at, size: content[at : at + size], row)) for row in found.records]
        except ValueError as error:  # as its readers do
            raise archives.ArchiveError(error)
        return found.names, found.records["label"].tolist(), found.classes, [hash(one) for one in data]

    def birds(folder):
        (folder / "out").mkdir()
        return cub.prepare(folder / "cub.tgz", folder / "out"), sorted(
            (str(p), p.stat().st_size) for p in (folder / "out").rglob("*.png")
        )

    zips = [("val.zip", damage.of_entries), ("val_map.txt", damage.of_map)]
    return [Reader("archives.py", make, listed, zips), Reader("cub", make, birds, [("cub.tgz", damage.of_bytes)])]
