"""How fast does viz/logits.py run a model over images, compared with timm's validate.py? Images/s and their ratio, in one run.

    python benchmarks/logits.py --data-path /path/to/ImageNet                    # an image folder: val/<class>/<image>

Both read the same files with as many loading processes, resize and crop them in the same way (Pillow), and run the same random
weights in the same precision. timm's wheel does not include validate.py, so its loop is written out here with that script's
defaults: timm's data set, its loader with prefetching, the loss and top-1 and top-5 of each batch. Ours returns logits, features
and labels. Rounds are interleaved; the table shows medians, and the largest difference between the logits of both.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.utils import AverageMeter, accuracy
from tqdm import tqdm

import table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "viz"))
from checkpoints import inference
from images.find import open_images

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--data-path", type=Path, required=True, metavar="FOLDER", help="image folder with <split>/<class>/<image>"
    )
    parser.add_argument("--split", default="val", help="folder of the images in --data-path")
    parser.add_argument("--models", nargs="+", default=["resnet50", "deit_small_patch16_224"], help="timm models")
    parser.add_argument("--batch-size", type=int, default=50, help="images per batch")
    parser.add_argument("--workers", type=int, default=2, help="data-loading workers")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each with both programs once")
    table.add_option(parser)
    args = parser.parse_args()
    if not (args.data_path / args.split).is_dir():
        sys.exit(f"error: --data-path {args.data_path}: no folder {args.split}/ in it")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = f"{args.workers} loading processes, medians of {args.rounds} interleaved rounds; "
    where += f"{table.environment(device)}, timm {timm.__version__}"
    columns = [("model", ""), ("images", ",d"), ("timm, images/s", ".1f"), ("ours, images/s", ".1f"), ("ours / timm", ".2f")]
    columns.append(("largest difference of the logits", ".1e"))
    rows = []
    for name in args.models:
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        times = {"timm": [], "ours": []}
        for round_ in tqdm(range(args.rounds + 1), desc=name, unit="round", leave=False, disable=None):
            logits = {}
            for who, run in (("timm", theirs), ("ours", ours)):
                model.to(memory_format=torch.contiguous_format)
                start = time.perf_counter()
                logits[who] = run(model, args, device)
                if round_:  # the first round fills the caches
                    times[who].append(time.perf_counter() - start)
        speed = {who: len(logits["ours"]) / statistics.median(seconds) for who, seconds in times.items()}
        difference = (logits["ours"] - logits["timm"]).abs().max().item()
        rows.append([name, len(logits["ours"]), speed["timm"], speed["ours"], speed["ours"] / speed["timm"], difference])
    table.report(where, columns, rows, args.json)


def ours(model: torch.nn.Module, args, device: str) -> torch.Tensor:
    images = open_images(args.data_path, args.split)
    facts = {"input_size": 224, "crop_ratio": 0.875, "interpolation": "bicubic", "mean": MEAN, "std": STD}
    batches = inference.run(model, images, facts, "ours", args.batch_size, args.workers, device)
    return torch.cat([batch.logits for batch in batches])


@torch.inference_mode()
def theirs(model: torch.nn.Module, args, device: str) -> torch.Tensor:
    dataset = create_dataset("", str(args.data_path), split=args.split)
    options = {"interpolation": "bicubic", "mean": MEAN, "std": STD, "crop_pct": 0.875, "pin_memory": False}
    loader = create_loader(
        dataset, (3, 224, 224), args.batch_size, num_workers=args.workers, device=torch.device(device), **options
    )
    model, criterion = model.to(device), torch.nn.CrossEntropyLoss().to(device)
    losses, top1, top5, kept = AverageMeter(), AverageMeter(), AverageMeter(), []
    for images, targets in loader:
        logits = model(images)
        loss = criterion(logits, targets)
        acc1, acc5 = accuracy(logits.detach(), targets, topk=(1, 5))
        losses.update(loss.item(), len(images))
        top1.update(acc1.item(), len(images))
        top5.update(acc5.item(), len(images))
        kept.append(logits.float().cpu())
    names = [Path(name).parts for name in dataset.filenames()]
    return torch.cat(kept)[sorted(range(len(names)), key=names.__getitem__)]  # timm sorts numbers in names by value


if __name__ == "__main__":
    main()
