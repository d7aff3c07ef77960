"""The loaders: each process's share of the images, in an order and with augmentations that depend only on the seed."""

import multiprocessing
import random
from collections.abc import Iterator

from errors import InputError

import numpy as np
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, Subset

import distributed


class SeededSampler(Sampler):
    """This process's share of a shuffle; each index comes with its own seed for the image's augmentation.

    Order and seeds are functions of (seed, epoch, position in the shuffle over all processes). They do not depend on the number
    of loading processes, on the number of processes, or on whether the run was resumed.
    """

    def __init__(self, sampler: DistributedSampler | RepeatAugSampler, seed: int):
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        numbers = np.random.default_rng([self.seed, self.epoch])
        self.sampler.set_epoch(int(numbers.integers(2**31)))  # both kinds seed their shuffle with the epoch
        processes = distributed.world_size()
        seeds = numbers.integers(2**32, size=len(self) * processes)[distributed.rank() :: processes]
        return zip(self.sampler, seeds.tolist(), strict=True)


class Seeded(Dataset):
    """A data set indexed by (index, seed); it seeds all generators that transforms use before it loads the image."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]):
        index, seed = item
        _seed_cpu(seed)
        return self.dataset[index]


def seed_everything(*parts: int) -> None:
    """Seed the generators of weights, mixup and dropout, on every device, with a 32-bit hash of the parts."""
    seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    torch.manual_seed(seed)
    _seed_cpu(seed)


def _seed_cpu(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also seeds GPUs, which takes longer than loading an image
    random.seed(seed)
    np.random.seed(seed)


def train_loader(dataset: Dataset, batch_size: int, repeated_aug: bool, seed: int, workers: int, pin: bool) -> DataLoader:
    """Batches of this process's share of a shuffle of the whole set; an incomplete last batch is dropped.

    loader.sampler.set_epoch(epoch) must be called before each epoch. Raises InputError if there is no full batch.
    """
    share = {"num_replicas": distributed.world_size(), "rank": distributed.rank()}
    if repeated_aug:
        # timm rounds the epoch down to a multiple of 256 images, as DeiT does, unless the set is smaller.
        sampler = RepeatAugSampler(dataset, selected_round=256 if len(dataset) >= 256 else 0, **share)
    else:
        sampler = DistributedSampler(dataset, drop_last=True, **share)
    if len(sampler) < batch_size:
        raise InputError(
            f"{len(dataset)} training images for {share['num_replicas']} processes are fewer than one batch of "
            f"{batch_size} each; lower --batch-size"
        )
    return _loader(Seeded(dataset), batch_size, workers, pin, sampler=SeededSampler(sampler, seed), drop_last=True)


def eval_loader(dataset: Dataset, batch_size: int, shared: bool, workers: int, pin: bool) -> DataLoader:
    """Every image exactly once: all of them in this process or, if `shared`, every world_size-th, starting at its rank."""
    if shared:
        dataset = Subset(dataset, range(distributed.rank(), len(dataset), distributed.world_size()))
    return _loader(dataset, batch_size, workers, pin)


def _loader(dataset: Dataset, batch_size: int, workers: int, pin: bool, **options) -> DataLoader:
    if workers:
        # Not forked from this process: its communication threads may hold a lock, for which a copy would wait forever.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torchvision", "timm.data"])
        options |= {"multiprocessing_context": context, "persistent_workers": True, "worker_init_fn": distributed.start_worker}
    return DataLoader(dataset, batch_size, num_workers=workers, pin_memory=pin, **options)
