"""maxsup_loss.py against closed forms in float64, brute force, PyTorch's losses, and finite differences."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from subprojects import ROOT, Subproject
from training import torchrun

maxsup_loss = Subproject("Deit").load("maxsup_loss")
LOSS_NAMES, make_loss, max_sup_loss = maxsup_loss.LOSS_NAMES, maxsup_loss.make_loss, maxsup_loss.max_sup_loss
FocalLoss, LabelSmoothingLoss, LogitPenaltyLoss = (
    maxsup_loss.FocalLoss,
    maxsup_loss.LabelSmoothingLoss,
    maxsup_loss.LogitPenaltyLoss,
)
MaxSupLoss, OnlineLabelSmoothingLoss = maxsup_loss.MaxSupLoss, maxsup_loss.OnlineLabelSmoothingLoss
ZipfLabelSmoothingLoss = maxsup_loss.ZipfLabelSmoothingLoss

TRAINERS = ("Deit", "Conv/common_resnet", "Conv/ffcv", "Tasks/segmentation", "Tasks/tabular", "Tasks/text")
SHAPES = {"vector": (7,), "batch": (5, 7), "two classes": (6, 2), "image": (2, 4, 3, 5)}


def make(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    k = shape[0] if len(shape) == 1 else shape[1]
    targets = torch.randint(k, shape[2:] if len(shape) == 1 else (shape[0], *shape[2:]), generator=generator)
    return logits, targets


def soft_targets(logits, seed=1):
    dim = 0 if logits.ndim == 1 else 1
    return torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(dim)


def original(logits, targets, alpha, **options):
    """The authors' formula, per sample: an ordinary cross-entropy plus the penalty on the logits."""
    dim = 0 if logits.ndim == 1 else 1
    penalty = logits.topk(1, dim=dim).values.squeeze(dim) - logits.mean(dim)
    return F.cross_entropy(logits, targets, reduction="none", **options) + alpha * penalty


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_formula_and_gradient(shape, soft):
    logits, targets = make(shape)
    targets = soft_targets(logits) if soft else targets
    ours, theirs = max_sup_loss(logits, targets, 0.15, reduction="none"), original(logits, targets, 0.15)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(theirs)
    (gradient,) = torch.autograd.grad(ours, logits, direction)
    (expected,) = torch.autograd.grad(theirs, logits, direction)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    for reduction, value in {"mean": theirs.mean(), "sum": theirs.sum()}.items():
        torch.testing.assert_close(max_sup_loss(logits, targets, 0.15, reduction=reduction), value)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_finite_differences(soft):
    logits, targets = make((4, 6))
    targets = soft_targets(logits) if soft else targets
    assert gradcheck(lambda z: max_sup_loss(z, targets, 0.3), logits)
    assert gradcheck(lambda z: max_sup_loss(z, targets, 0.3, reduction="none"), logits)
    assert gradgradcheck(lambda z: max_sup_loss(z, targets, 0.3, reduction="none"), logits)


@pytest.mark.parametrize("alpha", [0.0, 0.15])
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_targets_that_do_not_sum_to_one(scale, alpha):
    """A row of targets is used unnormalised, in the loss and in its gradient, as in F.cross_entropy."""
    logits, _ = make((6, 5))
    targets = soft_targets(logits) * torch.tensor([scale, 1.0, scale, 3.0, 0.1, 1.0], dtype=torch.float64)[:, None]
    for ours in (max_sup_loss(logits, targets, alpha), maxsup_loss.max_sup_from_formula(logits, targets, alpha).mean()):
        theirs = original(logits, targets, alpha).mean()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_finite_differences_through_mixup_targets():
    logits, _ = make((4, 6))
    targets = soft_targets(logits).requires_grad_()
    weight = torch.rand(6, dtype=torch.float64) + 0.5
    assert gradcheck(lambda z, y: max_sup_loss(z, y, 0.3, weight), (logits, targets))


def test_is_a_cross_entropy_against_q():
    """L = CE(z, q) with q = y - alpha onehot(argmax) + alpha / K, and dL/dz = softmax(z) - q."""
    logits, targets = make((64, 10))
    alpha, k = 0.2, 10
    q = F.one_hot(targets, k).double() - alpha * F.one_hot(logits.argmax(1), k) + alpha / k
    torch.testing.assert_close(q.sum(1), torch.ones(64, dtype=torch.float64))
    loss = max_sup_loss(logits, targets, alpha, reduction="sum")
    torch.testing.assert_close(loss, -(q * logits.log_softmax(1)).sum())
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, (logits.softmax(1) - q).detach())


def test_equals_label_smoothing_where_every_prediction_is_right():
    logits, _ = make((64, 10))
    right, wrong = logits.argmax(1), logits.argmin(1)
    smoothed = F.cross_entropy(logits, right, label_smoothing=0.1)
    torch.testing.assert_close(max_sup_loss(logits, right, 0.1), smoothed)
    assert max_sup_loss(logits, wrong, 0.1) > F.cross_entropy(logits, wrong, label_smoothing=0.1)


@pytest.mark.parametrize("options", [{}, {"weight": True}, {"ignore_index": 3}, {"weight": True, "ignore_index": 3}])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_weights_and_ignored_targets(options, reduction, alpha):
    """A sample's weight scales its whole loss; the mean divides by the weights' sum, as cross_entropy does."""
    logits, targets = make((40, 7))
    weight = torch.rand(7, dtype=torch.float64) if options.get("weight") else None
    ignore = options.get("ignore_index", -100)
    kept = (targets != ignore).double() * (1 if weight is None else weight[targets])
    assert (kept > 0).any() and (ignore == -100 or (kept == 0).any())
    each = original(logits, targets, alpha) * kept
    expected = {"none": each, "sum": each.sum(), "mean": each.sum() / kept.sum()}[reduction]
    ours = max_sup_loss(logits, targets, alpha, weight, ignore, reduction)
    torch.testing.assert_close(ours, expected)
    if alpha == 0:
        torch.testing.assert_close(
            ours, F.cross_entropy(logits, targets, weight, ignore_index=ignore, reduction=reduction), rtol=0, atol=0
        )


def test_ignored_targets_may_lie_outside_the_classes():
    logits, targets = make((2, 4, 3, 5), torch.float32)
    targets[0, 0] = 255
    loss = MaxSupLoss(0.1, ignore_index=255)(logits, targets)
    loss.backward()
    assert loss.isfinite() and (logits.grad[0, :, 0] == 0).all() and (logits.grad[1] != 0).any()


@pytest.mark.parametrize(
    "loss", [MaxSupLoss(0.1, ignore_index=255), torch.compile(MaxSupLoss(0.1, ignore_index=255), backend="eager")]
)
def test_a_label_of_minus_100_is_refused_where_another_is_to_be_ignored(loss):
    with pytest.raises(IndexError, match="-100 is out of bounds"):
        loss(torch.zeros(4, 3), torch.tensor([1, -100, 2, 255]))


def test_one_hot_probabilities_equal_indices_with_class_weights():
    logits, targets = make((30, 7))
    weight = torch.rand(7, dtype=torch.float64)
    one_hot = F.one_hot(targets, 7).double()
    torch.testing.assert_close(
        max_sup_loss(logits, one_hot, 0.2, weight, reduction="sum"), max_sup_loss(logits, targets, 0.2, weight, reduction="sum")
    )


@pytest.mark.parametrize(
    "logits, targets, options",
    [
        (torch.randn(4, 3), torch.randint(3, (5,)), {}),
        (torch.randn(4, 3), torch.randint(3, (4, 1)), {}),
        (torch.randn(4, 3), torch.randint(3, (4, 3)), {}),
        (torch.randn(4, 3, 2), torch.randint(3, (4, 3)), {}),
        (torch.randn(4, 3), torch.tensor([0, 1, 2, 3]), {}),
        (torch.randn(4, 3), torch.tensor([0, 1, 2, -1]), {}),
        (torch.randn(4, 3), torch.rand(4), {}),
        (torch.randn(4, 3), torch.rand(4, 3), {"ignore_index": 1}),
        (torch.randn(4, 3), torch.randint(3, (4,)), {"weight": torch.ones(4)}),
        (torch.randn(4, 3), torch.randint(3, (4,)), {"reduction": "average"}),
        (torch.randint(3, (4, 3)), torch.randint(3, (4,)), {}),
    ],
)
def test_bad_arguments_fail_as_in_cross_entropy(logits, targets, options):
    with pytest.raises(Exception) as theirs:
        F.cross_entropy(logits, targets, **options)
    with pytest.raises(theirs.type) as ours:
        max_sup_loss(logits, targets, 0.1, **options)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("shape", [(40, 1000), (9, 8200), (6, 512), (3, 640)])
@pytest.mark.parametrize("values", [3, 10**9], ids=["many ties", "few ties"])
def test_large_logits_take_the_first_maximum(shape, values):
    """From 512 classes the maximum is searched for in blocks; value, index and gradient equal those of torch's own max."""
    logits = torch.randint(values, shape, generator=torch.Generator().manual_seed(0)).float() / values * 9
    logits[0], logits[1, -1], logits[2, -30] = 0, 50, 50
    top, index = maxsup_loss._first_max(logits, 1)
    assert torch.equal(top, logits.amax(1, keepdim=True)) and torch.equal(index, logits.argmax(1, keepdim=True))
    logits.requires_grad_()
    targets = torch.arange(len(logits))
    (ours,) = torch.autograd.grad(max_sup_loss(logits, targets, 0.2), logits)
    (expected,) = torch.autograd.grad(original(logits.double(), targets, 0.2).mean(), logits)
    if values > 3:
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-8)


def test_logits_far_from_zero():
    logits, targets = make((20, 600), torch.float32)
    exact = max_sup_loss(logits.double(), targets, 0.1)
    torch.testing.assert_close(max_sup_loss(logits + 2048, targets, 0.1).double(), exact, rtol=1e-4, atol=0)


def test_ties_take_one_index():
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0]], requires_grad=True)
    targets = torch.tensor([1, 3])
    max_sup_loss(logits, targets, 0.4, reduction="sum").backward()
    q = F.one_hot(targets, 4) - 0.4 * F.one_hot(logits.argmax(1), 4) + 0.1
    torch.testing.assert_close(logits.grad, (logits.softmax(1) - q).detach())


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, soft):
    logits, targets = make((64, 1000), dtype)
    targets = soft_targets(logits) if soft else targets
    exact = max_sup_loss(logits.double(), targets, 0.1)
    plain = max_sup_loss(logits, targets, 0.1)
    assert plain.dtype == dtype
    assert soft or F.cross_entropy(logits, targets).dtype == dtype
    torch.testing.assert_close(plain.double(), exact, rtol=torch.finfo(dtype).eps, atol=0)
    with torch.autocast("cpu", dtype):
        loss = max_sup_loss(logits, targets, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(exact, logits)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


def test_torch_compile_gives_the_same():
    logits, targets = make((32, 11), torch.float32)
    compiled = torch.compile(MaxSupLoss(0.1), fullgraph=True)
    for y in (targets, soft_targets(logits).float()):
        ours, theirs = compiled(logits, y), original(logits, y, 0.1).mean()
        torch.testing.assert_close(ours, theirs)
        (gradient,), (expected,) = torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
        torch.testing.assert_close(gradient, expected)


def test_per_sample_gradients_by_functorch():
    logits, targets = make((5, 7))
    ours = torch.func.vmap(torch.func.grad(lambda z, y: max_sup_loss(z, y, 0.1)))(logits.detach(), targets)
    (expected,) = torch.autograd.grad(original(logits, targets, 0.1).sum(), logits)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_forward_mode_and_hessians(soft):
    """torch.func's derivatives equal the formula's, for each nesting of forward and reverse mode."""
    logits, targets = make((4, 5))
    y, z = F.one_hot(targets, 5).double().mul(0.8).add(0.04) if soft else targets, logits.detach()
    ours, formula = partial(max_sup_loss, targets=y, alpha=0.3), lambda z: maxsup_loss.max_sup_from_formula(z, y, 0.3).mean()
    direction = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for one, other in zip(torch.func.jvp(ours, (z,), (direction,)), torch.func.jvp(formula, (z,), (direction,)), strict=True):
        torch.testing.assert_close(one, other)
    expected = torch.autograd.functional.hessian(formula, z)
    forward, reverse = torch.func.jacfwd, torch.func.jacrev
    for outer, inner in ((forward, reverse), (reverse, forward), (forward, forward), (reverse, reverse)):
        torch.testing.assert_close(outer(inner(ours))(z), expected)


def test_a_strength_that_is_learnt_gets_its_gradient():
    logits, targets = make((4, 5))
    for value in (0.0, 0.3):
        alpha = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        max_sup_loss(logits, targets, alpha).backward()
        assert alpha.grad.item() == pytest.approx((logits.amax(1) - logits.mean(1)).mean().item())


def test_each_sample_may_have_its_own_strength():
    logits, targets = make((4, 5))
    alpha = torch.tensor([0.0, 0.1, 0.2, 0.3])
    expected = torch.stack([max_sup_loss(*sample, strength) for *sample, strength in zip(logits, targets, alpha, strict=True)])
    torch.testing.assert_close(max_sup_loss(logits, targets, alpha, reduction="none"), expected)
    torch.testing.assert_close(max_sup_loss(logits, F.one_hot(targets, 5).double(), alpha), expected.mean())


@pytest.mark.parametrize("alpha", [0, 0.1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_indices_of_any_width(dtype, alpha):
    logits, targets = make((4, 171))
    targets[0] = 156 if dtype == torch.uint8 else 3  # ignore_index, -100, is 156 in uint8
    for loss in (MaxSupLoss(alpha), maxsup_loss.LogitPenaltyLoss(), LabelSmoothingLoss(0.1, torch.full((171,), 1 / 171))):
        if dtype == torch.uint8 or isinstance(loss, MaxSupLoss):  # F.cross_entropy takes only uint8 and int64
            assert torch.equal(loss(logits, targets.to(dtype)), loss(logits, targets))
    logits, targets = make((4, 5))
    online, other = OnlineLabelSmoothingLoss(5), OnlineLabelSmoothingLoss(5)
    assert torch.equal(online(logits, targets.to(dtype)), other(logits, targets)) and torch.equal(online.counts, other.counts)


def test_nothing_to_average_is_nan_as_in_cross_entropy():
    for shape in ((0, 5), (0, 1000)):
        assert max_sup_loss(torch.zeros(shape), torch.zeros(0, dtype=torch.int64)).isnan()
    assert max_sup_loss(torch.randn(3, 5), torch.full((3,), -100)).isnan()
    assert max_sup_loss(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), reduction="none").shape == (0,)


def test_a_graph_can_be_walked_twice():
    logits, targets = make((5, 7))
    loss = max_sup_loss(logits, targets, 0.1)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_schedule_is_linear_over_epochs():
    for loss in (make_loss("maxsup", 10), make_loss("maxsup", 10, 0.1, 0.2), make_loss("ls", 10, alpha_end=0.2)):
        alphas = []
        for epoch in range(5):
            loss.set_epoch(epoch, 5)
            alphas.append(loss.alpha)
        assert alphas == pytest.approx([0.1, 0.125, 0.15, 0.175, 0.2])
        loss.set_epoch(0, 1)
        assert loss.alpha == 0.1
    assert make_loss("maxsup", 10, alpha_end=0.0).alpha_end == 0
    constant = make_loss("maxsup", 10, 0.1)
    constant.set_epoch(3, 5)
    assert constant.alpha == 0.1


# ------------------------------------------------------------------------------------------------------- baselines


@pytest.mark.parametrize("shape", [(30, 7), (3, 4, 5, 2)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_label_smoothing_with_a_prior(shape, reduction):
    logits, targets = make(shape)
    k = shape[1]
    uniform = LabelSmoothingLoss(0.1, torch.full((k,), 1 / k, dtype=torch.float64), ignore_index=1, reduction=reduction)
    expected = F.cross_entropy(logits, targets, label_smoothing=0.1, ignore_index=1, reduction=reduction)
    torch.testing.assert_close(uniform(logits, targets), expected)
    torch.testing.assert_close(LabelSmoothingLoss(0.1, ignore_index=1, reduction=reduction)(logits, targets), expected)

    prior = torch.rand(k, dtype=torch.float64).softmax(0)
    q = 0.9 * F.one_hot(targets, k).movedim(-1, 1) + 0.1 * prior.view(-1, *[1] * (len(shape) - 2))
    expected = F.cross_entropy(logits, q, reduction=reduction)
    torch.testing.assert_close(LabelSmoothingLoss(0.1, prior, reduction=reduction)(logits, targets), expected)
    one_hot = F.one_hot(targets, k).movedim(-1, 1).double()
    torch.testing.assert_close(LabelSmoothingLoss(0.1, prior, reduction=reduction)(logits, one_hot), expected)


@pytest.mark.parametrize("alpha", [-0.4, 1.2])
@pytest.mark.parametrize("shape", [(30, 7), (3, 4, 5, 2)])
def test_negative_label_smoothing(alpha, shape):
    """The soft target is (1 - alpha) y + alpha / K, with alpha below 0 as in Wei et al. (2022); F.cross_entropy refuses it."""
    logits, targets = make(shape)
    q = (1 - alpha) * F.one_hot(targets, shape[1]).movedim(-1, 1).double() + alpha / shape[1]
    torch.testing.assert_close(LabelSmoothingLoss(alpha)(logits, targets), F.cross_entropy(logits, q))
    kept = targets != 2
    each = LabelSmoothingLoss(alpha, ignore_index=2, reduction="none")(logits, targets)
    expected = F.cross_entropy(logits, q, reduction="none") * kept
    torch.testing.assert_close(each, expected)
    torch.testing.assert_close(LabelSmoothingLoss(alpha, ignore_index=2)(logits, targets), expected.sum() / kept.sum())


def test_a_prior_must_be_a_distribution():
    for prior in (torch.ones(3), torch.tensor([1.5, -0.5]), torch.full((2, 2), 0.5), torch.full((3,), torch.nan)):
        with pytest.raises(ValueError, match="sum to 1"):
            LabelSmoothingLoss(0.1, prior)
    with pytest.raises(ValueError, match="1 probabilities, but the logits 3 classes"):
        LabelSmoothingLoss(0.1, torch.ones(1))(torch.zeros(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize("loss", [MaxSupLoss, partial(LabelSmoothingLoss, -0.1)])
def test_an_unknown_reduction_is_refused(loss):
    with pytest.raises(ValueError, match="avg"):
        loss(reduction="avg")(torch.zeros(2, 3), torch.tensor([0, 1]))


SHARED_TABLE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import distributed
from maxsup_loss import OnlineLabelSmoothingLoss

distributed.start("cpu")
generator = torch.Generator().manual_seed(0)
logits, targets = torch.randn(30, 4, generator=generator).requires_grad_(), torch.randint(4, (30,), generator=generator)
shared = OnlineLabelSmoothingLoss(4)
rows = slice(0, 7) if distributed.rank() == 0 else slice(7, 30)
shared(logits[rows], targets[rows])
shared.renew()
for row in range(4):  # brute force: the mean prediction over all samples of a class that were predicted right
    right = (logits.argmax(1) == targets) & (targets == row)
    expected = logits[right].softmax(1).mean(0) if right.any() else torch.full((4,), 0.25)
    torch.testing.assert_close(shared.table[row], expected.detach())
"""


def test_processes_share_the_table_of_online_label_smoothing(tmp_path):
    (tmp_path / "table.py").write_text(SHARED_TABLE)
    result = torchrun(2, ROOT / "Deit", script=tmp_path / "table.py")
    assert result.returncode == 0, result.stderr


def test_soft_targets_of_online_label_smoothing_stay_float32_under_autocast():
    loss = OnlineLabelSmoothingLoss(7)
    loss.table.copy_(torch.rand(7, 7, generator=torch.Generator().manual_seed(0)).softmax(1))
    logits, _ = make((40, 7), torch.float32)
    targets = torch.rand(40, 7, generator=torch.Generator().manual_seed(1)).softmax(1)
    expected = loss(logits, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(logits, targets), expected)


def test_online_label_smoothing_gathers_right_predictions():
    loss = OnlineLabelSmoothingLoss(4)
    logits, _ = make((40, 4), torch.float32)
    targets = torch.arange(40) % 3  # class 3 never appears
    right = logits.argmax(1) == targets
    expected = 0.5 * F.cross_entropy(logits, targets) + 0.5 * -logits.log_softmax(1).mean()
    torch.testing.assert_close(loss(logits, targets), expected)  # uniform soft labels in the first epoch
    loss.eval()
    loss(logits, targets)  # evaluation accumulates nothing
    loss.train().renew()
    for y in range(3):
        rows = logits[right & (targets == y)].softmax(1)
        torch.testing.assert_close(loss.table[y], rows.mean(0).detach() if len(rows) else torch.full((4,), 0.25))
    torch.testing.assert_close(loss.table[3], torch.full((4,), 0.25))
    soft = loss.table[targets]
    expected = 0.5 * F.cross_entropy(logits, targets) + 0.5 * F.cross_entropy(logits, soft)
    torch.testing.assert_close(loss(logits, targets), expected)
    torch.testing.assert_close(loss(logits, F.one_hot(targets, 4).float()), expected)
    copy = OnlineLabelSmoothingLoss(4)
    copy.load_state_dict(loss.state_dict())
    torch.testing.assert_close(copy.gathered, loss.gathered)


def test_online_label_smoothing_keeps_a_row_for_epochs_without_right_predictions():
    loss, targets = OnlineLabelSmoothingLoss(4), torch.arange(40) % 3
    logits = make((40, 4), torch.float32)[0].detach() + 3 * F.one_hot(targets, 4)
    never = logits.clone().requires_grad_()
    with torch.no_grad():
        never[targets == 0, 0] = -100.0  # class 0 is never predicted
    loss(logits.requires_grad_(), targets)
    loss.renew()
    first = loss.table.clone()
    for _ in range(2):
        loss(never * 2, targets)
        loss.renew()
        assert torch.equal(loss.table[[0, 3]], first[[0, 3]]) and not torch.allclose(loss.table[1], first[1])
    second = loss.table.clone()
    loss.renew()  # an epoch without any prediction
    assert torch.equal(loss.table, second)


def test_zipf_by_hand():
    """The target is 1 and the others' scores are 3 > 2 > 0: Zipf's law gives them 6/11, 3/11, 2/11."""
    logits = torch.tensor([[2.0, 9.0, 0.0, 3.0]], dtype=torch.float32)
    zipf = torch.tensor([3, 0, 2, 6]) / 11
    q = logits[0, [0, 2, 3]].log_softmax(0)
    divergence = (zipf[[0, 2, 3]] * (zipf[[0, 2, 3]].log() - q)).sum()
    expected = F.cross_entropy(logits, torch.tensor([1])) + 0.1 * divergence
    loss = ZipfLabelSmoothingLoss()
    torch.testing.assert_close(loss(logits, torch.tensor([1])), expected)
    torch.testing.assert_close(loss(logits, torch.tensor([[0.0, 1.0, 0.0, 0.0]])), expected)
    # Votes of five locations: class 2 twice, class 1 (the target) twice, class 3 once, class 0 never.
    dense = F.one_hot(torch.tensor([[2, 2, 1, 1, 3]]), 4).float().transpose(1, 2)
    zipf = torch.tensor([1 / 3, 0, 1, 1 / 2])
    torch.testing.assert_close(
        loss._zipf(logits, F.one_hot(torch.tensor([1]), 4).bool(), dense), (zipf / zipf.sum()).unsqueeze(0)
    )


@pytest.mark.parametrize("classes", [2, 5])
def test_zipf_where_every_class_is_a_target(classes):
    logits, _ = make((4, classes), torch.float32)
    mixed = torch.arange(1.0, classes + 1).div(classes * (classes + 1) / 2).expand(4, classes)
    value = ZipfLabelSmoothingLoss()(logits, mixed)
    torch.testing.assert_close(value, F.cross_entropy(logits, mixed))
    (gradient,) = torch.autograd.grad(value, logits)
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, mixed), logits)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dense", [False, True])
def test_zipf_ranks_against_brute_force(dense):
    logits, targets = make((20, 9), torch.float32)
    votes = torch.randint(9, (20, 16), generator=torch.Generator().manual_seed(5))
    dense_logits = F.one_hot(votes, 9).float().transpose(1, 2) if dense else None
    loss = ZipfLabelSmoothingLoss(power=1.5)
    zipf = loss._zipf(logits.detach(), F.one_hot(targets, 9).bool(), dense_logits)
    for n, t in enumerate(targets.tolist()):
        scores = {k: (votes[n] == k).sum().item() if dense else logits[n, k].item() for k in range(9) if k != t}
        share = {k: (1 + sum(other > s for other in scores.values())) ** -1.5 for k, s in scores.items()}
        expected = torch.tensor([share.get(k, 0.0) / sum(share.values()) for k in range(9)])
        torch.testing.assert_close(zipf[n], expected)


def test_focal_loss():
    """It equals the float64 formula and, at gamma 0, cross-entropy; indices and one-hot rows agree; extremes stay finite."""
    logits = 3 * torch.randn(50, 7, dtype=torch.float64)
    targets = torch.randint(7, (50,))
    p = logits.softmax(1)[torch.arange(50), targets]
    for gamma in (0.5, 2.0):
        expected = -((1 - p) ** gamma * p.log()).mean()
        for given in (targets, F.one_hot(targets, 7).double()):
            torch.testing.assert_close(FocalLoss(gamma)(logits, given), expected)
    torch.testing.assert_close(FocalLoss(0)(logits, targets), F.cross_entropy(logits, targets))
    certain = torch.tensor([[200.0, 0, 0], [-200.0, 0, 0]], requires_grad=True)
    FocalLoss(0.5)(certain, torch.tensor([0, 0])).backward()  # 1 - p is 0 in the first row, p in the second
    assert certain.grad.isfinite().all()


def test_logit_penalty():
    logits, targets = make((20, 9))
    expected = F.cross_entropy(logits, targets) + 0.5 * 2e-3 * (logits**2).sum() / 20
    torch.testing.assert_close(LogitPenaltyLoss()(logits, targets), expected)


@pytest.mark.parametrize("name", ["ce", "ls", "maxsup", "focal", "logit-penalty"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (3, 5, 6)], ids=["pixels", "tokens"])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_dense_shapes_equal_a_list_of_their_samples(name, shape, soft):
    """Pixels and tokens are samples: the loss is that of the (N, K) rows; those with the label 255 have no effect."""
    logits, targets = make(shape)
    rows = logits.movedim(1, -1).reshape(-1, 5)
    if soft:
        targets = soft_targets(logits)
        torch.testing.assert_close(
            make_loss(name, 5)(logits, targets), make_loss(name, 5)(rows, targets.movedim(1, -1).reshape(-1, 5))
        )
        return
    targets[0, 0] = 255
    loss = make_loss(name, 5, ignore_index=255)(logits, targets)
    kept = targets.flatten() != 255
    torch.testing.assert_close(loss, make_loss(name, 5)(rows[kept], targets.flatten()[kept]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient.movedim(1, -1)[targets == 255] == 0).all() and gradient.isfinite().all()


@pytest.mark.parametrize("name", ["ols", "zipf"])
def test_losses_for_images_alone_refuse_pixels(name):
    with pytest.raises(ValueError, match="per image, not per pixel"):
        make_loss(name, 5)(torch.randn(2, 5, 3, 4), torch.zeros(2, 3, 4, dtype=torch.int64))


@pytest.mark.parametrize("name", LOSS_NAMES)
@pytest.mark.parametrize(
    ("dtype", "moved"),
    [(d, m) for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16) for m in (True, False) if m or d.itemsize < 8],
)
def test_every_loss_in_every_dtype(name, dtype, moved):
    """Lower precision agrees with float64 on the same logits, also in a second epoch of OLS; a loss moved to float64 gives the
    same values. Other tests check the float64 values."""
    logits, targets = make((64, 5), dtype)
    mixed = 0.3 * F.one_hot(targets, 5).double() + 0.7 * F.one_hot(targets.flip(0), 5).double()
    loss, exact = make_loss(name, 5), make_loss(name, 5)
    if moved:
        loss = loss.to(dtype)
    # A table of soft labels kept in half precision has that rounding error.
    tolerance = max(1e-6, 4 * torch.finfo(dtype).eps)
    for y in (targets, mixed):
        for _ in range(2):
            value, expected = loss(logits, y), exact(logits.double(), y)
            torch.testing.assert_close(value.double(), expected.double(), rtol=tolerance, atol=0)
            (gradient,) = torch.autograd.grad(value, logits)
            assert gradient.dtype == dtype and gradient.isfinite().all() and gradient.abs().sum() > 0
            for each in (loss, exact):
                if name == "ols":
                    each.renew()


def test_strengths_are_the_published_ones():
    published = {"ce": None, "ls": 0.1, "ols": 0.5, "zipf": 0.1, "logit-penalty": 2e-3, "focal": 2, "maxsup": 0.1}
    assert {name: getattr(make_loss(name, 10), "alpha", None) for name in published} == published
    assert make_loss("logit-penalty", 10).beta == 2e-3 and make_loss("focal", 10).gamma == 2 and make_loss("zipf", 10).power == 1
    assert make_loss("maxsup", 10).alpha_end == 0.2 and make_loss("maxsup", 10, 0.1).alpha_end is None


def test_unknown_losses_and_schedules_are_refused():
    with pytest.raises(ValueError, match=", ".join(LOSS_NAMES)):
        make_loss("max-sup", 10)
    with pytest.raises(ValueError, match="schedule"):
        make_loss("ols", 10, alpha_end=0.2)
    with pytest.raises(ValueError, match="no prior"):
        make_loss("maxsup", 10, prior=torch.full((10,), 0.1))
    with pytest.raises(ValueError, match="no strength"):
        make_loss("ce", 10, alpha=0.1)


DECODERS = ("Deit/data", "Conv/common_resnet/data", "viz/images", "data/imagenet")


@pytest.mark.parametrize(
    "name, folders",
    {
        "maxsup_loss.py": TRAINERS,
        "archives.py": DECODERS,
        "foreign.py": ("Deit", "Conv/common_resnet", "Conv/ffcv"),
        "visible_folder.py": ("Deit/data", "Conv/common_resnet/data", "Conv/ffcv"),
        "image_mode.py": (*DECODERS, "Conv/ffcv", "Tasks/segmentation"),
        "checksums.py": (*TRAINERS, "viz/checkpoints"),
        **dict.fromkeys(("errors.py", "run_folder.py", "states.py"), TRAINERS),
        **dict.fromkeys(("checkpoint.py", "distributed.py"), TRAINERS[:4]),
        **dict.fromkeys(("initial.py", "mixing.py"), ("Conv/common_resnet", "Conv/ffcv")),
        "distillation.py": ("Deit", "Conv/common_resnet"),
        **dict.fromkeys(("metrics.py", "seeds.py"), ("Tasks/tabular", "Tasks/text")),
    }.items(),
)
def test_copies_are_identical(name, folders):
    """Every subproject can be copied out by itself, so each has its own copy of the files that they share."""
    assert len({(ROOT / folder / name).read_bytes() for folder in folders}) == 1
