"""Extract the logits of a checkpoint: one file that the other tools of viz/ read.

    python viz/logits.py --checkpoint output/digits/ls-seed0/checkpoint.pth --output logits_labels.pt
    python viz/logits.py --checkpoint resnet50.pth --data-path /path/to/ImageNet --output logits_labels.pt
    torchrun --nproc-per-node 8 viz/logits.py ...          # every image once and in order

The file is a dict: logits float32 (N, K), labels int64 (N,), classes, paths, model, args, and features (N, D) with --features.
"""

import argparse
from pathlib import Path

import torch

import errors
import inference
import processes
from checkpoints import build_model, load_checkpoint
from logits_file import check_output, save
from metrics import classification


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Extract logits and labels from a checkpoint.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights from anywhere: .pth, .pt, .ckpt, .safetensors")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .pt")
    parser.add_argument("--split", default="val", help="folder or archive in --data-path")
    parser.add_argument("--features", action="store_true", help="also store the penultimate features")
    parser.add_argument("--overwrite", action="store_true", help="replace --output where it exists")
    inference.add_options(parser)
    args = parser.parse_args()
    inference.check_options(args)
    check_output(args.output, args.checkpoint, args.overwrite)
    with processes.together():
        content = extract(
            args.checkpoint,
            args.data_path,
            args.split,
            features=args.features,
            data=args.data,
            verbose=True,
            **inference.overrides(args),
            **inference.loading(args),
        )
        if processes.rank() > 0:
            return
        save(content, args.output)
    result = classification(content["logits"], content["labels"])
    count, classes = content["logits"].shape
    print(
        f"{content['model']} on {count:,} images of {classes} classes: top-1 {result['top1']:.2f} %  "
        f"top-5 {result['top5']:.2f} %\nlogits and labels: {args.output}"
    )


def extract(
    checkpoint: Path,
    data_path: Path | None = None,
    split: str = "val",
    features: bool = False,
    ema: bool = False,
    batch_size: int = 128,
    num_workers: int = 0,
    device: str = "cpu",
    amp: str | None = None,
    data: str | None = None,
    verbose: bool = False,
    **overrides,
) -> dict:
    """Run a checkpoint over images in their order; returns the content of a logits file (see above).

    Labels follow the checkpoint's class order, whatever that of the images. `overrides`: what load_checkpoint takes. Under
    torchrun the processes share the work, and the first returns the whole, the others {}. Raises InputError for input that
    cannot be used.
    """
    loaded = load_checkpoint(checkpoint, ema, **overrides)
    images = inference.find_images(loaded, data_path, split, data)
    for note in [*loaded.notes, *images.notes] if verbose and processes.rank() == 0 else []:
        print(note, flush=True)
    count, facts = len(processes.share(len(images))), loaded.facts
    parts = {"logits": torch.empty(count, facts["num_classes"]), "labels": torch.empty(count, dtype=torch.int64)}
    for batch in inference.run(
        build_model(loaded), images, facts, f"logits of {checkpoint}", batch_size, num_workers, device, amp
    ):
        if features and "features" not in parts:
            parts["features"] = torch.empty(count, batch.features.shape[1])
        for name, rows in parts.items():
            rows[batch.rows] = getattr(batch, name)
    whole = {name: processes.gather(rows, len(images)) for name, rows in parts.items()}
    if processes.rank() > 0:
        return {}
    content = {name: rows for name, rows in whole.items() if name != "features"}
    content |= {"classes": images.classes, "model": facts["model"], "args": facts}
    content["paths"] = [images.name(index) for index in range(len(images))]
    return content | ({"features": whole["features"]} if features else {})


if __name__ == "__main__":
    errors.run(main)
