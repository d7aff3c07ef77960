"""Conv/common_resnet: label noise and class-prior smoothing, and the labels and rows that a checkpoint stores."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from subprojects import Subproject

SUBPROJECT = conv = Subproject("Conv/common_resnet")
InputError = conv.load("errors").InputError
states, options, train, noise = (conv.load(name) for name in ("states", "options", "train", "data.label_noise"))
DIGITS = torch.from_numpy(load_digits().target).long()
TRAINING, VALIDATION = DIGITS[:1400], DIGITS[1400:]


def trained(folder, *words):
    """The checkpoint of one quick epoch on the digits."""
    quick = ["--model", "resnet8", "--device", "cpu", "--epochs", "1", "--output_dir", str(folder)]
    train.main(options.get_parser().parse_args([*quick, *(str(word) for word in words)]))
    return states.read(folder / "checkpoint.pth")


@pytest.mark.parametrize(("share", "classes"), [(0, 10), (0.2, 10), (0.4, 2), (0.3333, 3), (1, 10)])
def test_noise_changes_exactly_its_share_and_none_keeps_its_label(share, classes):
    labels = torch.arange(1003) % classes
    noisy = noise.symmetric_noise(labels, classes, share, seed=5)
    assert (noisy != labels).sum() == round(share * 1003) and noisy.dtype == torch.int64
    assert noisy.min() >= 0 and noisy.max() < classes
    assert torch.equal(noisy, noise.symmetric_noise(labels, classes, share, seed=5))
    assert share == 0 or not torch.equal(noisy, noise.symmetric_noise(labels, classes, share, seed=6))


def test_noise_is_uniform_over_the_other_classes_and_over_the_images():
    """Of 180,000 labels 90,000 are replaced; each count is within 5 standard deviations of its binomial mean."""
    classes, count = 10, 180_000
    labels = torch.arange(count) % classes
    changed = noise.symmetric_noise(labels, classes, 0.5, seed=0)
    rows = (changed != labels).nonzero().squeeze(1)
    steps = torch.bincount((changed - labels)[rows] % classes, minlength=classes)
    assert steps[0] == 0 and (steps[1:] - 10_000).abs().max() < 5 * (90_000 * 1 / 9 * 8 / 9) ** 0.5
    quarters = torch.bincount(rows // (count // 4), minlength=4)
    assert (quarters - 22_500).abs().max() < 5 * (90_000 * 3 / 16) ** 0.5


def test_more_noise_replaces_what_less_noise_replaces():
    labels = torch.arange(500) % 7
    little, much = (noise.symmetric_noise(labels, 7, share, seed=1) for share in (0.2, 0.4))
    changed = little != labels
    assert torch.equal(much[changed], little[changed]) and (much != labels).sum() == 200


def test_every_loss_of_a_seed_sees_the_same_wrong_labels_and_clean_validation_labels(tmp_path):
    states = [trained(tmp_path / loss, "--label-noise", 0.2, "--loss", loss) for loss in ("ce", "ls", "maxsup")]
    first = states[0]["training_labels"]
    assert (first != TRAINING).sum() == 280 and first.dtype == torch.int64 and "training_rows" not in states[0]
    assert all(torch.equal(first, state["training_labels"]) for state in states)
    assert states[0]["args"]["label_noise"] == 0.2
    assert states[0]["args"]["training_images"] == torch.bincount(TRAINING).tolist()
    digits = train.Inputs("digits", None, 8, 1.0, [0.3] * 3, [0.4] * 3, "cpu")
    noisy, val, _ = train.open_data(digits, label_noise=0.2)
    assert torch.equal(noisy.labels, first) and torch.equal(val.labels, VALIDATION)
    assert not torch.equal(first, trained(tmp_path / "other", "--label-noise", 0.2, "--seed", 1)["training_labels"])
    assert "training_labels" not in trained(tmp_path / "clean")


def test_noise_acts_on_the_labels_of_the_images_trained_on(tmp_path):
    """With superclasses it changes the coarse label; for a subset the checkpoint stores the rows."""
    state = trained(tmp_path / "coarse", "--label-noise", 0.4, "--superclasses")
    assert (state["training_labels"] != TRAINING % 2).sum() == 560
    state = trained(tmp_path / "tail", "--label-noise", 0.3, "--imbalance-ratio", 10, "--holdout", 0.2)
    rows, labels = state["training_rows"], state["training_labels"]
    assert rows.dtype == torch.int64 and rows.max() < 1400 and (rows.diff() > 0).all() and len(rows) == len(labels)
    assert (labels != TRAINING[rows]).sum() == round(0.3 * len(rows))
    counts = np.bincount(TRAINING[rows].numpy(), minlength=10)
    assert counts[0] == pytest.approx(10 * counts[9], abs=10)  # sizes are rounded down, and the last counts tenfold
    plain = trained(tmp_path / "held", "--holdout", 0.2)
    assert len(plain["training_rows"]) == 1120 and "training_labels" not in plain
    assert set(rows.tolist()) <= set(plain["training_rows"].tolist())


def test_class_prior_smoothing_takes_the_frequencies_of_the_labels_trained_on(tmp_path):
    """The loss equals (1 - alpha) * CE + alpha * the cross-entropy against the frequencies, computed here in float64."""
    counts = torch.tensor([60.0, 30.0, 10.0])
    criterion = train.build_criterion("ls", 0.2, None, "frequency", counts).double()
    logits, targets = torch.randn(8, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    log_p = logits - logits.logsumexp(1, keepdim=True)
    smoothed = 0.8 * torch.eye(3, dtype=torch.float64)[targets] + 0.2 * torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    expected = -(smoothed * log_p).sum(1).mean()
    assert criterion(logits, targets).item() == pytest.approx(expected.item(), abs=1e-7)  # the frequencies are float32
    state = trained(tmp_path, "--loss", "ls", "--prior", "frequency", "--imbalance-ratio", 10)
    counts = torch.tensor(state["args"]["training_images"], dtype=torch.float64)
    torch.testing.assert_close(state["loss"]["prior"].double(), counts / counts.sum(), atol=1e-7, rtol=0)


def test_classes_with_many_or_few_images_are_told_by_their_true_labels(tmp_path):
    state = trained(tmp_path, "--imbalance-ratio", 50, "--label-noise", 0.4)
    inputs = conv.load("data").Inputs("digits", None, 8, 1.0, None, None, "cpu", in_memory=True)
    clean = conv.load("data").open_data(inputs, imbalance_ratio=50)[0]
    assert state["args"]["training_images"] == torch.bincount(clean.labels).tolist()
    assert state["training_labels"].bincount(minlength=10).tolist() != state["args"]["training_images"]


def test_options_of_noise_and_prior_that_mean_nothing():
    for words, piece in {
        "--label-noise 1.5": "--label-noise 1.5: must lie between 0 and 1",
        "--label-noise nan": "--label-noise nan",
        "--prior frequency --loss maxsup": "--prior frequency: for --loss ls, not for maxsup",
        "--alpha -0.1 --loss maxsup": "--alpha -0.1",
    }.items():
        with pytest.raises(InputError, match=piece):
            options.fill_in(options.get_parser().parse_args(words.split()))
    options.fill_in(options.get_parser().parse_args("--alpha -0.5 --loss ls".split()))
