"""Images: the folder, its transforms, and the loaders that give each process its share."""

import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

import distributed
from errors import InputError
from zip_dataset import ZipImages

LAYOUT = "an image folder holds train/<class>/<image> and val/<class>/<image>"


def open_images(root: Path, split: str, transform: Callable, archive: bool = False) -> "Images | ZipImages":
    """root/split as a folder, or root/split.zip with `archive` or where there is no such folder."""
    archive = archive or ((root / f"{split}.zip").exists() and not (root / split).is_dir())
    return ZipImages(root, split, transform) if archive else Images(root / split, transform)


class Images(Dataset):
    """An image folder in three arrays, which loading processes receive at once: ImageNet's paths take 100 MB as arrays.

    Images(root / "train")[i] -> (transform(image), label), images as RGB. `classes` are the names in label order.
    """

    def __init__(self, root: Path, transform: Callable | None = None):
        if not root.is_dir():
            raise InputError(f"{root}: no such folder; {LAYOUT}")
        try:
            folder = ImageFolder(root)  # torchvision's rules: sorted class names, known endings
        except FileNotFoundError as error:
            raise InputError(f"{root}: {str(error).splitlines()[0]}; {LAYOUT}")
        self.root, self.classes, self.transform = root, folder.classes, transform
        self.paths = np.array([os.fsencode(os.path.relpath(path, root)) for path, _ in folder.samples])
        self.labels = np.array(folder.targets, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        path = self.root / os.fsdecode(self.paths[index])
        try:
            with Image.open(path) as image:
                image = image.convert("RGB")
        except Exception as error:  # a damaged image can fail in many ways
            raise InputError(f"{path}: does not decode as an image ({error}); replace or remove the file")
        return self.transform(image) if self.transform else image, int(self.labels[index])


def match_classes(dataset: Images | ZipImages, classes: list[str], owner: str) -> None:
    """Make the labels of `dataset` follow `classes`, a list of names in label order, remapping them by name.

    Raises InputError if the names differ. `owner` says in the message whose classes they are.
    """
    if dataset.classes == classes:
        return
    if set(dataset.classes) != set(classes):
        foreign = sorted(set(dataset.classes) - set(classes))[:3]
        missing = sorted(set(classes) - set(dataset.classes))[:3]
        parts = [f"only here: {', '.join(foreign)}"] * bool(foreign) + [f"only there: {', '.join(missing)}"] * bool(missing)
        raise InputError(f"{dataset.root}: {len(dataset.classes)} classes, not the {len(classes)} of {owner}; {'; '.join(parts)}")
    label = {name: index for index, name in enumerate(classes)}
    dataset.labels = np.array([label[name] for name in dataset.classes])[dataset.labels]
    dataset.classes = list(classes)


def train_transform(args) -> transforms.Compose:
    """timm's training transform; up to 32 px, where crops of few pixels say little, DeiT's padded crop opens it."""
    if args.no_aug:
        return eval_transform(args)
    transform = create_transform(
        input_size=args.input_size,
        is_training=True,
        color_jitter=args.color_jitter,
        auto_augment=None if args.aa == "none" else args.aa,
        hflip=args.hflip,
        scale=args.scale,
        interpolation=args.train_interpolation,
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
        mean=args.mean,
        std=args.std,
    )
    if args.input_size <= 32:
        crop = transforms.RandomCrop(args.input_size, padding=args.input_size // 8)
        transform.transforms[0:1] = [_resize(args.input_size), crop]
    return transform


def eval_transform(args) -> transforms.Compose:
    """Resize the shorter side to input_size / eval_crop_ratio (bicubic), crop the centre. Up to 32 px: no crop."""
    ratio = 1.0 if args.input_size <= 32 else args.eval_crop_ratio
    return transforms.Compose(
        [
            _resize(int(args.input_size / ratio)),
            transforms.CenterCrop(args.input_size),
            transforms.ToTensor(),
            transforms.Normalize(args.mean, args.std),
        ]
    )


def _resize(side: int) -> transforms.Resize:
    return transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC)


class SeededSampler(Sampler):
    """This process's share of a shuffle, each index with a seed of its own for the image's augmentation.

    Order and seeds are functions of (seed, epoch, place in the shuffle over all processes): the same on any number of loading
    processes, on one process or several, and in a run that was resumed.
    """

    def __init__(self, sampler: DistributedSampler | RepeatAugSampler, seed: int):
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        numbers = np.random.default_rng([self.seed, self.epoch])
        self.sampler.set_epoch(int(numbers.integers(2**31)))  # both kinds shuffle by the epoch's number
        processes = distributed.world_size()
        seeds = numbers.integers(2**32, size=len(self) * processes)[distributed.rank() :: processes]
        return zip(self.sampler, seeds.tolist())


class Seeded(Dataset):
    """A data set that takes (index, seed) and seeds all that transforms draw from before it loads the image."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]):
        index, seed = item
        _seed_cpu(seed)
        return self.dataset[index]


def seed_everything(*parts: int) -> None:
    """Seed the generators that weights, mixup and dropout draw from, on every device, by a 32-bit mix of the parts."""
    seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    torch.manual_seed(seed)
    _seed_cpu(seed)


def _seed_cpu(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which spends longer on GPUs than an image takes
    random.seed(seed)
    np.random.seed(seed)


def train_loader(dataset: Dataset, args) -> DataLoader:
    """Batches of this process's share of a shuffle of the whole set, the last partial one dropped.

    loader.sampler.set_epoch(epoch) must be called before each epoch. Raises InputError if there is not one full batch.
    """
    share = {"num_replicas": distributed.world_size(), "rank": distributed.rank()}
    if args.repeated_aug:
        # timm rounds the epoch down to a multiple of 256 images, as DeiT does; smaller sets are taken whole.
        sampler = RepeatAugSampler(dataset, selected_round=256 if len(dataset) >= 256 else 0, **share)
    else:
        sampler = DistributedSampler(dataset, drop_last=True, **share)
    if len(sampler) < args.batch_size:
        raise InputError(
            f"{len(dataset)} training images for {share['num_replicas']} processes are less than one batch of "
            f"{args.batch_size} each; lower --batch-size"
        )
    return _loader(Seeded(dataset), args.batch_size, args, sampler=SeededSampler(sampler, args.seed), drop_last=True)


def eval_loader(dataset: Dataset, args) -> DataLoader:
    """Every image exactly once: all of them here, or with --dist-eval every world_size-th from this process's rank on."""
    if args.dist_eval:
        dataset = Subset(dataset, range(distributed.rank(), len(dataset), distributed.world_size()))
    return _loader(dataset, int(1.5 * args.batch_size), args)


def _loader(dataset: Dataset, batch_size: int, args, **options) -> DataLoader:
    if args.num_workers:
        # Not forked from this process: its communication threads may hold a lock that the copy would wait for for ever.
        workers = multiprocessing.get_context("forkserver")
        workers.set_forkserver_preload(["torch", "torchvision", "timm.data"])
        options |= {"multiprocessing_context": workers, "persistent_workers": True, "worker_init_fn": distributed.start_worker}
    pin = args.pin_mem and args.device == "cuda"
    return DataLoader(dataset, batch_size, num_workers=args.num_workers, pin_memory=pin, **options)
