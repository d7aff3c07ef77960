"""The readers of Tasks/, viz/ and data/."""

import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import torch

from attack import damage, material
from attack.material import outcome_of_run, said
from attack.readers import LAST, Reader, called, of_parser


def task(make: Callable, source: list, small: str) -> list[Reader]:
    """The readers of a trainer of Tasks/: a run on damaged data, a resumed run, and the options. source: the files to damage."""
    import main
    import options

    script = str(Path(main.__file__).relative_to(Path(__file__).resolve().parents[2]))
    command = called(script, main, options)

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

OPTIONAL = ("classes", "paths", "features")


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
        return run.classes, run.paths, material.digest({key: run.content[key] for key in ("logits", "labels")})

    def bare(folder):
        return shown(folder, "c.safetensors", model="resnet8")

    def of_logits_file(content, rng):
        name, content = damage.of_torch(content, rng)  # a file without classes, paths or features is as good
        return f"~{name}" if name.removesuffix(" missing").removesuffix(" = None") in OPTIONAL else name, content

    picture, logits_damage = ("data/val/a/0.png", damage.of_picture), [("l.pt", of_logits_file)]
    zips = [("zips/val.zip", damage.of_zip), ("zips/val_map.txt", damage.of_map)]
    return [
        Reader("checkpoint", make, shown, [("c.pth", damage.of_torch), picture]),
        Reader("safetensors", make, bare, [("c.safetensors", damage.unsealed(damage.of_bytes))]),
        Reader("archives", make, lambda folder: shown(folder, images="zips"), zips),
        Reader("logits file", make, logits, logits_damage),
        Reader("report's inputs", make, report, logits_damage),
    ]


def data() -> list[Reader]:
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
        except ValueError as error:  # as the readers of archives do
            raise archives.ArchiveError(error)
        return found.names, found.records["label"].tolist(), found.classes, [hash(one) for one in data]

    def birds(folder):
        LAST[:] = sys.argv[:] = ["data/cub/prepare.py", "--archive", str(folder / "cub.tgz"), "--root", str(folder / "out")]
        said("[0-9].* images", cub.main)
        return sorted((str(path), path.stat().st_size) for path in (folder / "out").rglob("*.png"))

    zips = [("val.zip", damage.of_entries), ("val_map.txt", damage.of_map)]
    return [Reader("archives.py", make, listed, zips), Reader("cub", make, birds, [("cub.tgz", damage.of_bytes)])]
