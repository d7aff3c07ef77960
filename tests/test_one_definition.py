"""Top-1, top-5, NLL and ECE of the same logits by every evaluation in the repository, against scikit-learn and fractions."""

from fractions import Fraction
from math import ceil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from subprojects import ROOT, Subproject
from training import DEIT

BINS = 15


def deit(logits, labels):
    loader = DataLoader(TensorDataset(logits, labels), 64)
    return DEIT.load("engine").evaluate(nn.Identity(), loader, "cpu", "off", False)


class Listed:
    """Batches with the interface that the ConvNet trainers' loops need."""

    device = "cpu"

    def __init__(self, logits, labels):
        self.batches, self.images = list(zip(logits.split(64), labels.split(64), strict=True)), len(labels)

    def __len__(self):
        return self.images

    def evaluation_batches(self, batch):
        return self.batches

    def epoch(self, number, side):
        return self.batches


def conv(logits, labels):
    return Subproject("Conv/common_resnet").load("engine").evaluate(nn.Identity(), Listed(logits, labels), 10, 64)[0]


def ffcv(logits, labels):
    validation = SimpleNamespace(batch_size=64, resolution=8, lr_tta=False)
    engine = Subproject("Conv/ffcv").load("engine")
    return engine.evaluate(nn.Identity(), Listed(logits, labels), validation, "off", torch.device("cpu"))


def tabular(logits, labels):
    metrics = Subproject("Tasks/tabular").load("metrics")
    return metrics.summarise(metrics.outcomes(logits, labels))


def text(logits, labels):
    metrics = Subproject("Tasks/text").load("metrics")
    return metrics.summarise(metrics.outcomes(logits, labels))


def segmentation(logits, labels):
    """Every sample as a pixel of one image."""
    metrics = Subproject("Tasks/segmentation").load("metrics").PixelMetrics(10, "cpu")
    metrics.update(logits.T[None, :, :, None], labels[None, :, None])
    found = metrics.compute()
    return {"top1": found["pixel_accuracy"], "nll": found["nll"], "ece": found["ece"]}


def viz(logits, labels):
    subproject = Subproject("viz")
    with subproject.active():
        return subproject.load("metrics.classification").classification(logits, labels)


EVALUATIONS = [deit, conv, ffcv, tabular, text, segmentation, viz]
SINGLE = {deit, conv, ffcv, segmentation}  # these compute softmax in float32


def sample():
    """300 samples of ten classes; the target's logit is the largest in some and the second to tenth in others."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(300, 10, generator=generator), torch.randint(10, (300,), generator=generator)
    logits[torch.arange(300), labels] += 1.5
    even = (logits.softmax(1).amax(1) * BINS).ceil() % 2 == 0  # every other bin is right, so that the bins' gaps differ
    labels[:150] = torch.where(even, logits.argmax(1), labels)[:150]
    return logits, labels


def ece(confidence, right, single=True):
    """The ECE by its definition, with bins (0, 1/15], (1/15, 2/15], ... at exact edges. A confidence of 1/5 lies on an edge in
    float64; in float32 it is slightly larger, and belongs to the upper bin."""
    shares = [Fraction(c) if single else Fraction(c).limit_denominator(10**9) for c in confidence]
    bins = np.array([ceil(share * BINS) for share in shares])
    gaps = [abs((confidence - right)[bins == b].sum()) for b in range(1, BINS + 1)]
    return sum(gaps) / len(right)


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_ten_classes_against_scikit_learn(evaluate):
    logits, labels = sample()
    found = evaluate(logits, labels)
    p = logits.double().softmax(1).numpy()
    assert found["top1"] == pytest.approx(100 * top_k_accuracy_score(labels, p, k=1), abs=1e-9)
    assert found["nll"] == pytest.approx(log_loss(labels, p), rel=1e-6)
    if "top5" in found:
        top5 = 100 * top_k_accuracy_score(labels, p, k=5)
        assert found["top5"] == pytest.approx(top5, abs=1e-9) and found["top1"] + 5 < top5 < 95
    confidence, right = p.max(1), p.argmax(1) == labels.numpy()
    assert found["ece"] == pytest.approx(ece(confidence, right), abs=1e-6)


def calibration_error(logits, labels):
    """The ECE of viz/measure.py."""
    subproject = Subproject("viz")
    with subproject.active():
        outputs = subproject.load("metrics.outputs").Outputs({"logits": logits, "labels": labels}, "the sample")
        return subproject.load("metrics.calibration_error").measure(outputs, None)


@pytest.mark.parametrize("evaluate", [*EVALUATIONS[:-1], calibration_error])
def test_confidences_on_the_edges_of_bins(evaluate):
    """Confidences of 1, 1/3 and 1/5, as softmax rounds them, lie on edges or next to them. They are wrong, as are those in the
    bin above; those in the bin below are right. The ECE therefore depends on the bin to which an edge belongs."""
    rows, right = [], []
    for classes in (1, 3, 5):
        for shift in (0.0, 0.1, -0.1):
            logits = torch.full((10,), -1e4)
            logits[:classes] = 0.0
            logits[0] += max(shift, 0.0)
            if shift < 0:
                logits[classes] = -3.5 if classes == 1 else -1.0  # another class, which lowers the others' shares
                logits[0] += 1e-3
            rows += [logits] * 4 * classes
            right += [shift < 0] * 4 * classes
    logits, right = torch.stack(rows), torch.tensor(right)
    labels = torch.where(right, 0, 9)
    p = logits.softmax(1) if evaluate in SINGLE else logits.double().softmax(1)
    assert evaluate(logits, labels)["ece"] == pytest.approx(
        ece(p.amax(1).double().numpy(), right.numpy(), evaluate in SINGLE), abs=1e-9
    )


def test_no_definition_is_forgotten():
    """Every file that defines the number of bins is tested above."""
    files = [str(path) for path in ROOT.glob("[CDTrv]*/**/*.py") if "BINS = 15" in path.read_text()]
    assert len(files) == len(EVALUATIONS), files
