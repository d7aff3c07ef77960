"""Deit/, part by part: schedules, moving average, clipping, augmentation, mixup, and which process sees which image."""

import copy
import itertools
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from training import DEIT, PLAIN, SMALL, Votes, log, options

SUBPROJECT = DEIT
maxsup_loss, models, transforms = (DEIT.load(name) for name in ("maxsup_loss", "models", "data.transforms"))
trainer, engine, loaders, distributed = (DEIT.load(name) for name in ("main", "engine", "data.loaders", "distributed"))

# ------------------------------------------------------------------------------------------------------- optimisation

RATES = {  # from 0.1 to 0.02 over 6 epochs; the first two are a linear warm-up from 0.01
    "cosine": lambda epoch: 0.02 + 0.04 * (1 + math.cos(math.pi * epoch / 6)),
    "step": lambda epoch: 0.1 * 0.5 ** (epoch // 3),
    "poly": lambda epoch: 0.02 + 0.08 * (1 - epoch / 6) ** 0.5,
}


@pytest.mark.parametrize("sched", RATES)
def test_the_log_holds_the_rate_and_the_strength_of_every_epoch(few, tmp_path, sched):
    words = [*SMALL[:-2], *PLAIN[len(SMALL) :], "--data-path", few, "--epochs", 6, "--batch-size", 64, "--eval-every", 6]
    words += ["--unscale-lr", "--lr", 0.1, "--min-lr", 0.02, "--warmup-epochs", 2, "--warmup-lr", 0.01, "--opt", "sgd"]
    words += ["--sched", sched, "--decay-rate", 0.5, "--decay-epochs", 3, "--output_dir", tmp_path]
    trainer.main(options(*words))
    lines = log(tmp_path)
    expected = [0.01, 0.055, *map(RATES[sched], range(2, 6))]
    assert [line["lr"] for line in lines] == pytest.approx(expected, rel=1e-6)
    assert [line["alpha"] for line in lines] == pytest.approx(np.linspace(0.1, 0.2, 6))


def test_the_rate_grows_with_the_batch_and_tanh_falls_to_the_minimum(few, tmp_path):
    words = [*PLAIN, "--data-path", few, "--epochs", 4, "--batch-size", 64, "--eval-every", 4, "--lr", 0.8, "--min-lr", 0.01]
    trainer.main(options(*words, "--sched", "tanh", "--opt", "sgd", "--output_dir", tmp_path))
    low, high = -7, 3  # timm's range of the hyperbolic tangent
    shares = [0.5 * (1 - math.tanh(low + (high - low) * epoch / 4)) for epoch in range(4)]
    expected = [0.01 + (0.8 * 64 / 512 - 0.01) * share for share in shares]
    assert [line["lr"] for line in log(tmp_path)] == pytest.approx(expected, rel=1e-6)


def test_the_moving_average_is_the_recursion(few, tmp_path, monkeypatch):
    """With one step per epoch, the averages and weights saved obey e = 0.7 e + 0.3 w."""
    seen = []
    monkeypatch.setattr(
        trainer.checkpoint,
        "save",
        lambda path, model, averaged, *rest: seen.append(copy.deepcopy((model.state_dict(), averaged.state_dict()))),
    )
    words = [*PLAIN, "--data-path", few, "--epochs", 4, "--batch-size", 64, "--eval-every", 4, "--lr", 0.05, "--unscale-lr"]
    trainer.main(options(*words, "--model-ema", "--model-ema-decay", 0.7, "--opt", "sgd", "--output_dir", tmp_path))
    moved = 0
    for (_, before), (weights, after) in itertools.pairwise(seen):
        for name, value in after.items():
            torch.testing.assert_close(value, 0.7 * before[name] + 0.3 * weights[name], atol=1e-6, rtol=1e-5)
            moved += (value - before[name]).abs().sum().item()
    assert len(seen) == 4 and moved > 0.1


def rows(images=64):
    """A loader of one batch of random images, each with its own class."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(images, 3, 16, 16, generator=generator), torch.arange(images))
    return loaders.train_loader(data, images, False, 0, 0, False)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 64))


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_gradients_are_clipped_at_their_own_scale(amp):
    """A step at rate 1 has the norm of the clipped gradient, whatever factor scales the loss."""
    torch.manual_seed(0)
    model = linear()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=amp == "fp16")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    settings = {"epoch": 0, "epochs": 1, "seed": 0, "device": "cpu", "amp": amp, "clip_grad": 0.05}
    engine.train_one_epoch(model, nn.CrossEntropyLoss(), rows(), optimizer, scaler, **settings)
    step = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert step.norm().item() == pytest.approx(0.05, rel=1e-3)


def test_the_training_accuracy_is_that_of_the_labels_and_online_smoothing_is_renewed():
    """A model whose weights are the images is right about each; 16 of the 64 classes get another's weights."""
    images, criterion = rows().dataset.dataset.tensors[0].flatten(1), maxsup_loss.OnlineLabelSmoothingLoss(64)
    model = linear()
    model[1].bias.data.zero_(), model[1].weight.data.copy_(torch.cat([images[:16].roll(1, 0), images[16:]]))
    settings = {"epoch": 0, "epochs": 1, "seed": 0, "device": "cpu", "amp": "off"}
    scaler, optimizer = torch.amp.GradScaler("cpu", enabled=False), torch.optim.SGD(model.parameters(), 0.0)
    assert engine.train_one_epoch(model, criterion, rows(), optimizer, scaler, **settings)["top1"] == 75
    assert (criterion.table.diag()[16:] > 0.9).all() and (criterion.table[:16] == 1 / 64).all()


# --------------------------------------------------------------------------------------------- augmentation and mixup


def ramp(side=100):
    """Red grows by 2 per column and green by 2 per row, so that a crop shows where it was cut and whether it was mirrored."""
    y, x = np.mgrid[:side, :side]
    return Image.fromarray(np.stack([2 * x, 2 * y, np.full_like(x, 255)], 2).astype(np.uint8))


def augmented(count, *words, size=64):
    """(count, 3, size, size) training images of ramp() in [0, 255]. words: further options."""
    args = options("--data-path", "here", "--device", "cpu", "--input-size", size, "--mean", 0, 0, 0, "--std", 1, 1, 1, *words)
    DEIT.load("options").fill_in(args)
    transform, image = trainer.build_augmentation(args), ramp()
    torch.manual_seed(0)
    loaders.seed_everything(0)
    return 255 * torch.stack([transform(image) for _ in range(count)])


QUIET = ["--aa", "none", "--color-jitter", 0, "--reprob", 0]


@pytest.mark.parametrize("low, high", [(0.08, 0.2), (0.5, 0.6)])
def test_crops_have_the_area_that_was_asked_for(low, high):
    images = augmented(60, *QUIET, "--hflip", 0, "--scale", low, high)
    span = [(images[:, c].amax((1, 2)) - images[:, c].amin((1, 2))) / 2 for c in (0, 1)]
    area = (span[0] + 1) * (span[1] + 1) / 1e4
    assert low - 0.04 < area.min() and area.max() < high + 0.04 and area.max() - area.min() > 0.4 * (high - low)


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_as_many_images_are_flipped_as_were_asked_for(share):
    images = augmented(60, *QUIET, "--hflip", share)
    flipped = (images[:, 0, :, 0].mean(1) > images[:, 0, :, -1].mean(1)).double().mean().item()
    assert flipped == share if share != 0.5 else 0.3 < flipped < 0.7


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_as_many_images_are_erased_as_were_asked_for(share):
    """Blue is 255 except in erased rectangles: one, or up to three, each of 2 % to a third of the image."""
    words = [*QUIET[:4], "--hflip", 0, "--reprob", share, "--remode", "const"]
    holes = augmented(60, *words, "--recount", 1)[:, 2] < 1
    erased = holes.flatten(1).any(1)
    assert erased.double().mean() == share if share != 0.5 else 0.3 < erased.double().mean() < 0.7
    several = 0
    for one, more in zip(holes[erased], augmented(60, *words, "--recount", 3)[:, 2][erased] < 1, strict=True):
        assert one.sum() == one.any(0).sum() * one.any(1).sum() and 0.01 < one.double().mean() < 0.36
        several += bool(more.sum() != more.any(0).sum() * more.any(1).sum())
    assert share == 0 or several > 5


def test_small_images_are_padded_by_an_eighth_and_cropped():
    """A crop of a white image has up to four black rows and columns of padding at its edges."""
    transform = transforms.train_transform(32, [0.0] * 3, [1.0] * 3, hflip=0, color_jitter=0, auto_augment=None, re_prob=0)
    loaders.seed_everything(0)
    white = Image.new("L", (32, 32), 255).convert("RGB")
    images = torch.stack([transform(white) for _ in range(100)])[:, 0]
    black = [(images == 0).all(axis).sum(1) for axis in (1, 2)]
    assert all(set(counts.tolist()) == {0, 1, 2, 3, 4} for counts in black)


def test_evaluation_shows_the_centre_of_the_resized_image():
    expected = TF.center_crop(TF.resize(ramp(), 64, TF.InterpolationMode.BICUBIC), 48)
    found = transforms.eval_transform(48, 0.75, [0.5] * 3, [0.25] * 3)(ramp())
    torch.testing.assert_close(found, (TF.to_tensor(expected) - 0.5) / 0.25)


class Ramps(Dataset):
    """The same image at every index."""

    def __init__(self, transform):
        self.transform, self.image = transform, ramp()

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return self.transform(self.image), index


def test_images_of_a_batch_are_augmented_differently_and_again_in_the_next_epoch():
    args = options("--data-path", "here", "--device", "cpu", "--input-size", 48, *QUIET)
    DEIT.load("options").fill_in(args)
    loader = loaders.train_loader(Ramps(trainer.build_augmentation(args)), 16, False, 0, 0, False)
    batches = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        (batch,) = loader
        batches.append(batch)
    images, order = batches[0]
    flipped = images[:, 0, :, 0].mean(1) > images[:, 0, :, -1].mean(1)
    assert 2 < flipped.sum() < 14 and len(images.flatten(1).unique(dim=0)) == 16
    assert not torch.equal(order, batches[1][1]) and torch.equal(order, batches[2][1]) and torch.equal(images, batches[2][0])
    assert torch.cat([images, batches[1][0]]).flatten(1).unique(dim=0).shape[0] == 32


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_repeated_augmentation_shows_each_index_three_times_over_all_ranks(processes, monkeypatch):
    """As in DeiT, an epoch shows 20 of 60 images, each three times with different seeds, and the next epoch shows others."""
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    epochs = []
    for epoch in (0, 1):
        shown = []
        for rank in range(processes):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            loader = loaders.train_loader(range(60), 4, True, 7, 0, False)
            loader.sampler.set_epoch(epoch)
            shown += list(loader.sampler)
        indices = [index for index, _ in shown]
        assert len(set(indices)) == 20 and all(indices.count(index) == 3 for index in set(indices))
        assert len({seed for _, seed in shown}) == 60
        epochs.append(shown)
    assert {index for index, _ in epochs[0]} != {index for index, _ in epochs[1]}
    assert not {seed for _, seed in epochs[0]} & {seed for _, seed in epochs[1]}


class Recorder(nn.CrossEntropyLoss):
    """Cross-entropy that records the targets it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, logits, targets):
        self.seen.append(targets.clone())
        return super().forward(logits, targets)


@pytest.mark.parametrize("words", [["--mixup", 0.8, "--cutmix", 0], ["--mixup", 0, "--cutmix", 1.0], []])
def test_mixed_targets_hold_two_shares_alone_which_differ_between_epochs(words):
    """A target is lambda at the image's own class, 1 - lambda at that of the image mixed in, and 0 elsewhere."""
    args = options("--data-path", "here", "--device", "cpu", *words)
    DEIT.load("options").fill_in(args)
    args.num_classes = 64
    mixup, recorder, loader = trainer.build_mixup(args), Recorder(), rows()
    model = linear()
    for epoch in range(3):
        settings = {"epoch": epoch, "epochs": 3, "seed": 0, "device": "cpu", "amp": "off", "mixup": mixup}
        scaler, optimizer = torch.amp.GradScaler("cpu", enabled=False), torch.optim.SGD(model.parameters(), 0.0)
        engine.train_one_epoch(model, recorder, loader, optimizer, scaler, **settings)
    shares = []
    for targets in recorder.seen:
        share, classes = targets.topk(2)
        assert (targets > 0).sum() == 128 and (share == share[0]).all() and share[0].sum() == pytest.approx(1)
        assert torch.equal(classes[:, 0], classes[:, 1].flip(0))  # timm mixes a batch with itself reversed
        shares.append(share[0, 0].item())
    orders = {tuple(targets.argmax(1).tolist()) for targets in recorder.seen}
    assert len(orders) == len(set(shares)) == 3 and all(0.5 < share < 1 for share in shares)


def test_the_loss_is_given_the_feature_maps_votes():
    torch.manual_seed(0)
    model, votes = models.wrap(models.create_model("test_resnet", 5, 64, 0.0, 0.0), True, False, "cpu"), Votes()
    loader = DataLoader([(torch.randn(3, 64, 64), label) for label in range(4)], batch_size=4)
    loader.sampler.set_epoch = lambda epoch: None
    scaler, optimizer = torch.amp.GradScaler("cpu", enabled=False), torch.optim.SGD(model.parameters(), 0.0)
    settings = {"epoch": 0, "epochs": 1, "seed": 0, "device": "cpu", "amp": "off"}
    engine.train_one_epoch(model, votes, loader, optimizer, scaler, **settings)
    ((logits, dense),) = votes.seen
    torch.testing.assert_close(dense.mean(2), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name, pooling", [("test_convnext", "avg"), ("test_vit", "avg")])
def test_no_dense_logits_past_a_norm_between_pooling_and_classifier(name, pooling):
    model = timm.create_model(name, num_classes=5, global_pool=pooling)
    assert not models.has_dense_logits(model) and models.wrap(model, True, False, "cpu") is model
    assert models.has_dense_logits(timm.create_model("test_resnet", num_classes=5))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_dense_logits_are_the_classifiers_view_of_each_location(name):
    """If a linear classifier follows mean pooling, their mean is the logits. Tokens without a location have no dense logits."""
    torch.manual_seed(0)
    model = models.create_model(name, 5, 64, 0.0, 0.0).eval()
    images = torch.randn(2, 3, 64, 64)
    logits, dense = models.WithDenseLogits(model)(images)
    features = model.forward_features(images)
    if name == "test_vit":
        features = features[:, model.num_prefix_tokens :]
        torch.testing.assert_close(dense, F.linear(features, model.head.weight, model.head.bias).transpose(1, 2))
        assert dense.shape == (2, 5, 16)
    else:
        torch.testing.assert_close(dense.mean(2), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, model(images))
