"""MaxSup and the losses that it is compared with. This file needs only torch: copy it into any project.

    criterion = MaxSupLoss(alpha=0.1)          # instead of nn.CrossEntropyLoss()
    loss = criterion(model(images), targets)

Logits z in R^K, target y (MaxSup: arXiv 2502.15798):

    label smoothing   CE(z, y) + alpha * (z_y   - mean z)
    MaxSup            CE(z, y) + alpha * (max z - mean z)

Where the prediction is right the two are the same. Where it is wrong, label smoothing lowers the target's logit, which is too low
already; MaxSup lowers the wrong one on top. Both are cross-entropies against soft targets q, so that
d loss / d z = softmax(z) - q; for MaxSup, q = onehot(y) - alpha * onehot(argmax z) + alpha / K.

The file has four parts: MaxSup; the losses that it is compared with; make_loss, which builds any of them by name; and an
autograd function that computes MaxSup faster than its formula does.

SPDX-License-Identifier: Apache-2.0
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------------------------------------------------- MaxSup


class MaxSupLoss(nn.Module):
    """Max Suppression, CE(z, y) + alpha * (max z - mean z): a one-line replacement for nn.CrossEntropyLoss.

    logits: (K,), (N, K) or (N, K, d1, ...), floating point. targets: class indices (), (N,) or (N, d1, ...), or
    probabilities of the logits' shape (mixup, cutmix, distillation). weight (K,), ignore_index and reduction are as in
    nn.CrossEntropyLoss; a sample's class weight scales its whole loss. alpha=0 is plain cross-entropy. If several logits share
    the maximum, the first of them is penalised. A logit of -inf (a masked class) makes the mean of the logits infinite, and with
    it the loss, as in PyTorch's label smoothing; with class indices, the gradients stay finite.
    With alpha_end, set_epoch(epoch, epochs) changes alpha linearly from alpha in the first epoch to alpha_end in the last (the
    paper: 0.1 to 0.2).
    """

    def __init__(
        self,
        alpha: float = 0.1,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        alpha_end: float | None = None,
    ):
        super().__init__()
        self.alpha = self.alpha_start = alpha
        self.alpha_end = alpha_end
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Set alpha for an epoch, 0 <= epoch < epochs; without alpha_end, alpha is constant."""
        self.alpha = _linear(self.alpha_start, self.alpha_end, epoch, epochs)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return max_sup_loss(logits, targets, self.alpha, self.weight, self.ignore_index, self.reduction)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, alpha_end={self.alpha_end}, reduction={self.reduction!r}"


def max_sup_from_formula(z: Tensor, y: Tensor, alpha: float | Tensor) -> Tensor:
    """Per-sample MaxSup losses (N,) or (N, d1, ...), written as the paper defines them; alpha may be one number per sample.

    z: logits as in MaxSupLoss. y: class indices, or probabilities of z's shape.
    """
    dim = 0 if z.ndim == 1 else 1
    log_p = F.log_softmax(z, dim)
    cross_entropy = -(y * log_p).sum(dim) if y.is_floating_point() else -_at_target(log_p, y)
    # The log-partition cancels in max - mean, so log-probabilities serve as well as logits.
    return cross_entropy + alpha * (log_p.max(dim).values - log_p.mean(dim))


def max_sup_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor = 0.1,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The functional form of MaxSupLoss; shapes and arguments are the same.

    Returns a scalar or, with reduction="none", per-sample losses (N,) or (N, d1, ...). Half-precision logits are converted to
    float32 for the computation, and the result is converted back, except under autocast. Class indices may be integers of any
    width. alpha may be a tensor, of one element or of one strength per sample, and receives a gradient if it requires one. For
    arguments that F.cross_entropy refuses, its error is raised.
    """
    soft = logits.shape == targets.shape  # F.cross_entropy's own test for probabilities
    dim = 0 if logits.ndim == 1 else 1
    malformed = (
        not logits.is_floating_point()
        or logits.ndim == 0
        or targets.is_floating_point() != soft
        or (soft and ignore_index >= 0)
        or (weight is not None and weight.shape != logits.shape[dim : dim + 1])
        or reduction not in ("none", "sum", "mean")
    )
    if malformed:
        F.cross_entropy(logits, targets, weight, ignore_index=ignore_index, reduction=reduction)  # raises its own error
        raise ValueError(f"unsupported arguments: logits {logits.shape}, targets {targets.shape} {targets.dtype}")
    if not soft:
        targets = targets.long()  # in a narrower type, ignore_index may wrap around and equal a class
    varied = isinstance(alpha, Tensor) and (alpha.requires_grad or alpha.ndim > 0)
    if not varied and alpha == 0:
        return F.cross_entropy(logits, targets, weight, ignore_index=ignore_index, reduction=reduction)

    z = _at_least_float32(logits)
    y = targets.to(z.dtype) if soft else targets.masked_fill(targets == ignore_index, 0)
    strength = alpha
    if soft and weight is not None:
        y = y * weight.to(z.dtype).view(-1, *[1] * (z.ndim - 1 - dim))
        strength = alpha * y.sum(dim)
    # A compiler fuses the formula better than a hand-written backward pass. The formula is also differentiable in the targets,
    # for teachers that are trained together with the student.
    from_formula = (
        torch.compiler.is_compiling()
        or getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0  # within torch.func.jvp or torch.func.hessian
        or targets.requires_grad
        or varied
        or (soft and weight is not None)
    )
    loss = max_sup_from_formula(z, y, strength) if from_formula else _FastMaxSup.apply(z, y, alpha)[0]
    loss = _reduce(loss, targets, ignore_index, reduction, weight)
    return loss.to(logits.dtype) if z is not logits and not torch.is_autocast_enabled(logits.device.type) else loss


# ------------------------------------------------------------------------------- the losses that it is compared with


class LabelSmoothingLoss(nn.Module):
    """Label smoothing (Szegedy et al. 2016): cross-entropy against (1 - alpha) * y + alpha * prior.

    prior: (K,) probabilities, such as the class frequencies (class-prior label smoothing); None is uniform, 1/K. A negative alpha
    is negative label smoothing (Wei et al. 2022). logits, targets, ignore_index, reduction and set_epoch are as in MaxSupLoss.
    Raises ValueError if the prior is not a distribution.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        prior: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        alpha_end: float | None = None,
    ):
        super().__init__()
        if prior is not None and (prior.ndim != 1 or (prior < 0).any() or not abs(prior.sum().item() - 1) <= 1e-4):
            raise ValueError("the prior must be a vector of K probabilities that sum to 1")
        self.alpha = self.alpha_start = alpha
        self.alpha_end = alpha_end
        self.register_buffer("prior", prior)
        self.ignore_index = ignore_index
        self.reduction = reduction

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Set alpha for an epoch, 0 <= epoch < epochs; without alpha_end, alpha is constant."""
        self.alpha = _linear(self.alpha_start, self.alpha_end, epoch, epochs)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.prior is None and 0 <= self.alpha <= 1:
            return F.cross_entropy(
                logits, targets, ignore_index=self.ignore_index, reduction=self.reduction, label_smoothing=self.alpha
            )
        dim = 0 if logits.ndim == 1 else 1
        log_p = F.log_softmax(_at_least_float32(logits), dim)
        if self.prior is not None and len(self.prior) != logits.shape[dim]:
            raise ValueError(f"the prior has {len(self.prior)} probabilities, but the logits {logits.shape[dim]} classes")
        prior = 1 / logits.shape[dim] if self.prior is None else self.prior.view(-1, *[1] * (logits.ndim - 1 - dim))
        # The log-partition of log-probabilities is 0, so cross_entropy applied to them is the negative log-likelihood.
        at_target = F.cross_entropy(log_p, _like(targets, log_p), ignore_index=self.ignore_index, reduction="none")
        loss = (1 - self.alpha) * at_target - self.alpha * (log_p * prior).sum(dim)
        return _reduce(loss, targets, self.ignore_index, self.reduction)


class OnlineLabelSmoothingLoss(nn.Module):
    """Online Label Smoothing (Zhang et al. 2021): alpha * hard loss + (1 - alpha) * loss against soft labels from training.

    Row y of `table` is the mean prediction over the previous epoch's samples of class y that were classified correctly. It is
    uniform at first; a class without a correct prediction keeps its row. Call renew() at the end of each epoch in every process:
    it sums what the processes gathered, so that the table is the same for one process and for many.
    logits (N, K); targets (N,) indices or (N, K) probabilities, whose largest entry counts as the class for the table.
    """

    def __init__(self, num_classes: int, alpha: float = 0.5):
        super().__init__()
        self.alpha = alpha
        self.register_buffer("table", torch.full((num_classes, num_classes), 1 / num_classes))
        self.register_buffer("gathered", torch.zeros(num_classes, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        _refuse_dense(logits, "online label smoothing")
        targets = targets if targets.is_floating_point() else targets.long()  # uint8 would be taken for a mask
        z = _at_least_float32(logits)
        table = self.table.to(z.dtype)
        with torch.autocast(z.device.type, enabled=False):  # which would round the product to half precision
            soft_targets = table[targets] if targets.ndim == 1 else targets.to(z.dtype) @ table
        if self.training and torch.is_grad_enabled():
            self._gather(z.detach(), targets if targets.ndim == 1 else targets.argmax(1))
        return self.alpha * F.cross_entropy(z, _like(targets, z)) + (1 - self.alpha) * F.cross_entropy(z, soft_targets)

    @torch.no_grad()
    def _gather(self, logits: Tensor, classes: Tensor) -> None:
        right = (logits.argmax(1) == classes).to(self.counts.dtype)  # weights instead of indexing: no GPU synchronisation
        self.gathered.index_add_(0, classes, logits.softmax(1).to(self.gathered.dtype) * right.unsqueeze(1))
        self.counts.index_add_(0, classes, right)

    @torch.no_grad()
    def renew(self) -> None:
        """Compute the soft labels of the next epoch from what all processes gathered in the current one."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.gathered)
            dist.all_reduce(self.counts)
        mean = self.gathered / self.counts.clamp(min=1).unsqueeze(1)
        self.table.copy_(torch.where(self.counts.unsqueeze(1) > 0, mean, self.table))
        self.gathered.zero_()
        self.counts.zero_()


class ZipfLabelSmoothingLoss(nn.Module):
    """Zipf's Label Smoothing (Liang et al. 2022): CE + alpha * KL(zipf || softmax over the non-target logits).

    The non-target classes of a sample are ranked r = 1, 2, ..., and zipf is proportional to r**-power. They are ranked by logit
    or, if dense_logits (N, K, locations) are given, by the number of locations of the feature map that vote for the class.
    Tied classes share the best of their ranks, as in the authors' code; the classes without a vote thus all rank directly after
    the last class with one. The authors' code also ranks the target; here the best non-target class has rank 1.
    logits (N, K); targets (N,) indices, or (N, K) probabilities, where every class of positive probability is a target.
    """

    def __init__(self, alpha: float = 0.1, power: float = 1.0):
        super().__init__()
        self.alpha = alpha
        self.power = power

    def forward(self, logits: Tensor, targets: Tensor, dense_logits: Tensor | None = None) -> Tensor:
        _refuse_dense(logits, "Zipf's label smoothing")
        z = _at_least_float32(logits)
        is_target = F.one_hot(targets, z.shape[1]).bool() if targets.ndim == 1 else targets > 0
        zipf = self._zipf(z.detach(), is_target, dense_logits)
        log_q = F.log_softmax(z.masked_fill(is_target, -torch.inf), 1).masked_fill(is_target, 0)
        divergence = (torch.xlogy(zipf, zipf) - zipf * log_q).sum(1).mean()
        return F.cross_entropy(z, _like(targets, z)) + self.alpha * divergence

    @torch.no_grad()
    def _zipf(self, scores: Tensor, is_target: Tensor, dense_logits: Tensor | None) -> Tensor:
        """(N, K): each sample's Zipf distribution over its non-target classes, 0 on the targets."""
        if dense_logits is not None:
            votes = dense_logits.argmax(1)  # (N, locations)
            scores = torch.zeros_like(scores).scatter_add_(1, votes, torch.ones_like(votes, dtype=scores.dtype))
        scores = scores.masked_fill(is_target, -torch.inf)
        ordered = scores.sort(1).values
        # rank = 1 + number of classes that score higher; targets score -inf, so they never rank before another class
        higher = scores.shape[1] - torch.searchsorted(ordered, scores.contiguous(), right=True)
        zipf = (1.0 + higher).pow(-self.power).masked_fill(is_target, 0).to(scores.dtype)
        return zipf / zipf.sum(1, keepdim=True).clamp(min=torch.finfo(zipf.dtype).tiny)  # the sum is 0 if all classes are targets


class LogitPenaltyLoss(nn.Module):
    """Logit penalty (Dauphin & Cubuk 2021): CE + 0.5 * beta * mean over samples of ||z||^2.

    logits (N, K) or (N, K, d1, ...), targets and ignore_index as in MaxSupLoss; ignored samples carry no penalty.
    """

    def __init__(self, beta: float = 2e-3, ignore_index: int = -100):
        super().__init__()
        self.beta = beta
        self.ignore_index = ignore_index

    @property
    def alpha(self) -> float:
        """The strength, under the name that make_loss uses."""
        return self.beta

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        z = _at_least_float32(logits)
        penalty = _reduce(z.square().sum(1), targets, self.ignore_index, "mean")
        return F.cross_entropy(z, _like(targets, z), ignore_index=self.ignore_index) + 0.5 * self.beta * penalty


class FocalLoss(nn.Module):
    """Focal loss (Lin et al. 2017) over K classes: -(1 - p_y)**gamma * log p_y, mean over samples; gamma=0 is cross-entropy.

    logits (N, K) or (N, K, d1, ...); targets: class indices (N,) or (N, d1, ...), where ignore_index is left out of the mean, or
    probabilities of the logits' shape, which weight the terms of the classes.
    """

    def __init__(self, gamma: float = 2.0, ignore_index: int = -100):
        super().__init__()
        self.gamma = gamma
        self.ignore_index = ignore_index

    @property
    def alpha(self) -> float:
        """The strength, under the name that make_loss uses."""
        return self.gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_p = _at_least_float32(logits).log_softmax(1)
        focal = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny).pow(self.gamma) * log_p
        if targets.shape == logits.shape:
            return -(targets * focal).sum(1).mean()
        return F.nll_loss(focal, targets, ignore_index=self.ignore_index)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _at_target(values: Tensor, targets: Tensor) -> Tensor:
    """Gather each target's value and check the targets' range; -100, which PyTorch ignores by default, is out of range."""
    return -F.nll_loss(values, targets, ignore_index=-(2**62), reduction="none")


def _like(targets: Tensor, logits: Tensor) -> Tensor:
    """Probabilities converted to the logits' dtype, as F.cross_entropy requires; class indices unchanged."""
    return targets.to(logits.dtype) if targets.is_floating_point() else targets


def _reduce(loss: Tensor, targets: Tensor, ignore_index: int, reduction: str, weight: Tensor | None = None) -> Tensor:
    """Reduce per-sample losses as nn.CrossEntropyLoss does; ignore_index and weight apply only to class indices."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction {reduction!r} is none of 'none', 'mean' and 'sum'")
    total = loss.numel()
    if not targets.is_floating_point():
        targets = targets.long()
        ignored = targets == ignore_index
        loss, total = loss.masked_fill(ignored, 0), total - ignored.sum()
        if weight is not None:
            sample_weight = weight.to(loss.dtype)[targets.masked_fill(ignored, 0)].masked_fill(ignored, 0)
            loss, total = loss * sample_weight, sample_weight.sum()
    return loss if reduction == "none" else loss.sum() / (total if reduction == "mean" else 1)


def _linear(start: float, end: float | None, epoch: int, epochs: int) -> float:
    return start if end is None else start + (end - start) * epoch / max(epochs - 1, 1)


def _refuse_dense(logits: Tensor, name: str) -> None:
    if logits.ndim != 2:
        raise ValueError(
            f"{name} takes logits (N, K), not {tuple(logits.shape)}: it is defined per image, not per pixel or token"
        )


# ----------------------------------------------------------------------------------------------- every loss, by name

LOSS_NAMES = ("ce", "ls", "ols", "zipf", "logit-penalty", "focal", "maxsup")
STRENGTHS = {"ls": 0.1, "ols": 0.5, "zipf": 0.1, "logit-penalty": 2e-3, "focal": 2.0}  # as published, constant over training


def make_loss(
    name: str,
    num_classes: int,
    alpha: float | None = None,
    alpha_end: float | None = None,
    prior: Tensor | None = None,
    ignore_index: int = -100,
) -> nn.Module:
    """Build one of LOSS_NAMES. Every loss is called as loss(logits, targets); see the classes.

    alpha is the strength in the loss's own terms. None means the published value, including its schedule:

        maxsup         alpha, from 0.1 in the first epoch to 0.2 in the last
        ls             alpha, 0.1
        ols            share of the hard loss, 0.5
        zipf           weight of the KL term, 0.1
        logit-penalty  beta, 2e-3
        focal          gamma, 2

    For ls and maxsup, alpha_end is the strength in the last epoch, reached linearly; if only alpha is given, it is constant.
    For ls, prior (K,) replaces the uniform distribution. ignore_index is the label that ce, ls, logit-penalty, focal and
    maxsup ignore.

    Raises ValueError for an unknown name, and for an alpha, alpha_end or prior that the loss does not have.
    """
    if name not in LOSS_NAMES:
        raise ValueError(f"unknown loss {name!r}: choose from {', '.join(LOSS_NAMES)}")
    if alpha_end is not None and name not in ("ls", "maxsup"):
        raise ValueError(f"loss {name!r} has no schedule: alpha_end is for ls and maxsup")
    if prior is not None and name != "ls":
        raise ValueError(f"loss {name!r} has no prior: it is for ls")
    if name == "ce":
        if alpha is not None:
            raise ValueError("cross-entropy has no strength to set")
        return nn.CrossEntropyLoss(ignore_index=ignore_index)
    if name == "maxsup":
        start, end = (0.1, 0.2 if alpha_end is None else alpha_end) if alpha is None else (alpha, alpha_end)
        return MaxSupLoss(start, ignore_index=ignore_index, alpha_end=end)
    strength = STRENGTHS[name] if alpha is None else alpha
    if name == "ls":
        return LabelSmoothingLoss(strength, prior, ignore_index, alpha_end=alpha_end)
    if name == "ols":
        return OnlineLabelSmoothingLoss(num_classes, strength)
    if name == "zipf":
        return ZipfLabelSmoothingLoss(strength)
    if name == "logit-penalty":
        return LogitPenaltyLoss(strength, ignore_index)
    return FocalLoss(strength, ignore_index)


# ------------------------------------------------------- MaxSup, computed faster, with the same values as the formula


class _FastMaxSup(torch.autograd.Function):
    """max_sup_from_formula with one exponential per logit, which the backward pass rescales to the softmax.

    This takes less time and memory; benchmarks/loss.py of the project measures both. The exponentials and their sum are outputs
    too, so that second derivatives can be taken through them. These treat the shift by the maximum as a constant, which is exact
    because softmax does not depend on a shift.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, y: Tensor, alpha: float) -> tuple[Tensor, ...]:
        dim = 0 if z.ndim == 1 else 1
        top, index = _first_max(z, dim)
        shifted = z - top
        if y.is_floating_point():
            at_target = (y * shifted).sum(dim)
        else:
            at_target = _at_target(shifted, y)
        peak = -shifted.mean(dim)
        exponentials = shifted.exp_()
        total = exponentials.sum(dim, keepdim=True)
        log_total = total.log().squeeze(dim)
        if y.is_floating_point():
            log_total *= y.sum(dim)
        return log_total - at_target + alpha * peak, exponentials, total, index

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, y, ctx.alpha = inputs
        _, exponentials, total, index = output
        ctx.save_for_backward(y, exponentials, total, index)
        ctx.mark_non_differentiable(index)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_loss, grad_exponentials, grad_total, _):
        y, exponentials, total, index = ctx.saved_tensors
        dim = 0 if exponentials.ndim == 1 else 1
        grad_loss = torch.zeros_like(total) if grad_loss is None else grad_loss.unsqueeze(dim)
        scale = grad_loss / total
        if y.is_floating_point():
            scale = scale * y.sum(dim, keepdim=True)
        grad = torch.addcmul(grad_loss * (-ctx.alpha / exponentials.shape[dim]), exponentials, scale)
        if y.is_floating_point():
            grad.addcmul_(y, grad_loss, value=-1)
        else:
            grad.scatter_add_(dim, y.unsqueeze(dim), -grad_loss)
        grad.scatter_add_(dim, index, ctx.alpha * grad_loss)
        for further in (grad_exponentials, grad_total):
            if further is not None:
                grad = grad + exponentials * further
        return grad, None, None


def _first_max(z: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """z.max(dim, keepdim=True), in blocks where that is faster: on a CPU, PyTorch finds an index one logit at a time."""
    classes = z.shape[dim]
    if z.ndim != 2 or classes < 512 or z.device.type != "cpu":
        return z.max(dim, keepdim=True)
    size = 64 if classes < 8192 else 256
    whole = classes - classes % size
    blocks = z[:, :whole].unflatten(1, (-1, size)).amax(2)
    if whole < classes:
        blocks = torch.cat([blocks, z[:, whole:].amax(1, keepdim=True)], 1)
    top, block = blocks.max(1, keepdim=True)
    start = (block * size).clamp(max=classes - size)
    return top, start + z.gather(1, start + torch.arange(size)).argmax(1, keepdim=True)
