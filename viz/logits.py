"""Extract the logits of a checkpoint: one file that the other commands of viz/ read.

    python viz/logits.py --checkpoint output/digits/ls-seed0/checkpoint.pth --output logits_labels.pt
    python viz/logits.py --checkpoint resnet50.pth --data-path /path/to/ImageNet --output logits_labels.pt
    torchrun --nproc-per-node 8 viz/logits.py ...          # every image once and in order

The file is a dict: logits float32 (N, K), labels int64 (N,), classes, paths, model, args, and features (N, D) with --features.
"""

from pathlib import Path

from common import errors, options, outputs


def main() -> None:
    parser = options.parser("Extract logits and labels from a checkpoint.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of any form: .pth, .pt, .ckpt, .safetensors")
    options.add_output(parser, "file to write, .pt")
    parser.add_argument("--split", default="val", help="images to use: a folder or archive in --data-path")
    parser.add_argument("--features", action="store_true", help="also store the penultimate features")
    options.add_images(parser)
    args = options.parse(parser, shared=True)
    outputs.check_file(args.output, args.overwrite, args.checkpoint)

    from common import distributed, logits_file

    from metrics.classification import classification

    with distributed.together():
        settings = {"features": args.features, "data": args.data, "verbose": True}
        settings |= options.overrides(args) | options.loading(args)
        content = extract(args.checkpoint, args.data_path, args.split, **settings)
        if distributed.rank() > 0:
            return
        logits_file.save(content, args.output)
    found = classification(content["logits"], content["labels"])
    count, classes = content["logits"].shape
    scores = f"top-1 {found['top1']:.2f} %  top-5 {found['top5']:.2f} %"
    errors.say(f"{content['model']} on {count:,} images of {classes} classes: {scores}")
    errors.say(f"logits and labels: {args.output}")


def extract(
    checkpoint: Path,
    data_path: Path | None = None,
    split: str = "val",
    features: bool = False,
    ema: bool = False,
    batch_size: int = 128,
    num_workers: int = 0,
    device: str = "cpu",
    amp: str = "off",
    data: str | None = None,
    verbose: bool = False,
    **overrides,
) -> dict:
    """Run a checkpoint over images in their order; returns the content of a logits file (see above).

    Labels follow the checkpoint's class order, whatever the class order of the images. `overrides`: see load_checkpoint. Under
    torchrun the processes share the work; the first returns the complete content, the others return {}. Raises InputError for
    input that cannot be used.
    """
    from common import distributed

    from checkpoints import inference
    from checkpoints.read import build_model, load_checkpoint, training_said
    from images.find import find_images

    loaded = load_checkpoint(checkpoint, ema, **overrides)
    images = find_images(loaded, data_path, split, data)
    if verbose:
        inference.say_notes(loaded, images)
    wanted = ("logits", "labels", *["features"] * features)
    loading = {"batch_size": batch_size, "num_workers": num_workers, "device": device, "amp": amp}
    share = inference.outputs(build_model(loaded), images, loaded.facts, f"logits of {checkpoint}", wanted, **loading)
    whole = {name: distributed.gather(rows) for name, rows in share.items()}
    if distributed.rank() > 0:
        return {}
    paths = [images.name(index) for index in range(len(images))]
    trained = training_said(loaded.args) | loaded.facts
    return whole | {"classes": images.classes or loaded.classes, "model": loaded.facts["model"], "args": trained, "paths": paths}


if __name__ == "__main__":
    errors.run(main)
