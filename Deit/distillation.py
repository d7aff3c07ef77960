"""Knowledge distillation: a student also learns from a teacher's predictions, soft (Hinton et al. 2015) or hard (DeiT).

    loss = (1 - alpha) * any loss(student, targets) + alpha * distillation term(student, teacher)

In DeiT's distilled models (Touvron et al. 2021, arXiv 2012.12877), a separate distillation token with its own classifier learns
from the teacher. Other models have one classifier, which learns from both the targets and the teacher.
"""

from dataclasses import dataclass

from errors import InputError

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def distillation_term(student: Tensor, teacher: Tensor, kind: str, tau: float, per_element: bool = False) -> Tensor:
    """The loss of the student's logits (N, K) against the teacher's (N, K), a scalar; the teacher receives no gradient.

    hard: cross-entropy against the class that the teacher predicts. soft: tau^2 * KL(teacher || student) of the distributions at
    temperature tau, averaged over samples as in Hinton et al.; with per_element, averaged over samples and classes as in DeiT's
    code, which makes it K times smaller.
    """
    teacher = teacher.detach().float()
    if kind == "hard":
        return F.cross_entropy(student, teacher.argmax(1))
    log_p, log_q = F.log_softmax(student.float() / tau, 1), F.log_softmax(teacher / tau, 1)
    divergence = F.kl_div(log_p, log_q, reduction="sum", log_target=True) * tau**2
    return divergence / (student.numel() if per_element else len(student))


class Teacher(nn.Module):
    """A frozen model: its logits are in the student's class order, and its input is normalised as in its own training.

    forward(images (N, 3, H, W), normalised for the student) -> logits (N, K of the student), without gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        columns: list[int] | None = None,
        student_stats: tuple[list[float], list[float]] | None = None,
        teacher_stats: tuple[list[float], list[float]] | None = None,
    ):
        """columns: the model's output for each class of the student, from match_columns; None: the same in the same order.

        student_stats, teacher_stats: mean and standard deviation of each one's inputs; None: they are the same.
        """
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.register_buffer("columns", None if columns is None else torch.tensor(columns))
        scale = shift = None
        if student_stats and teacher_stats and student_stats != teacher_stats:
            (mean, std), (other_mean, other_std) = (
                torch.tensor(stats, dtype=torch.float64) for stats in (student_stats, teacher_stats)
            )
            scale, shift = ((std / other_std).float(), ((mean - other_mean) / other_std).float())
            scale, shift = scale.view(3, 1, 1), shift.view(3, 1, 1)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)  # a teacher stays in evaluation mode

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if self.scale is not None:
            images = images * self.scale + self.shift
        logits = self.model(images)
        return logits if self.columns is None else logits[:, self.columns]


def match_columns(teacher_classes: list[str] | None, outputs: int, classes: list[str], owner: str) -> list[int] | None:
    """The index of the teacher's output for each class of the student, matched by name; None: the same in the same order.

    A teacher may know more classes than the student. Without names, the numbers of classes must agree, and the order is assumed
    to be the same. Raises InputError naming the classes that the teacher lacks.
    """
    if teacher_classes is None:
        if outputs != len(classes):
            raise InputError(
                f"{owner}: the teacher has {outputs} outputs and no class names, the student {len(classes)} classes; "
                "a teacher must know the student's classes"
            )
        return None
    missing = [name for name in classes if name not in set(teacher_classes)]
    if missing:
        raise InputError(
            f"{owner}: the teacher lacks {len(missing)} of the student's {len(classes)} classes: {', '.join(missing[:3])}"
        )
    if len(teacher_classes) > outputs:
        raise InputError(f"{owner}: names {len(teacher_classes)} classes for {outputs} outputs")
    number = {name: index for index, name in enumerate(teacher_classes)}
    columns = [number[name] for name in classes]
    return None if columns == list(range(outputs)) else columns


@dataclass
class Distillation:
    """How a run distils: `kind` soft or hard, `alpha` the teacher's share of the loss, `tau` the temperature of soft targets.

    has_token: in training the model returns (logits, logits of the distillation token). per_element: see distillation_term.
    """

    teacher: nn.Module
    kind: str
    alpha: float
    tau: float
    has_token: bool = False
    per_element: bool = False

    def __call__(self, criterion: nn.Module, images: Tensor, targets: Tensor, logits: Tensor, *more: Tensor) -> Tensor:
        """A batch's loss. `more`: the distillation token's logits if there is one, then the criterion's further arguments."""
        student, more = (more[0], more[1:]) if self.has_token and more else (logits, more)
        term = distillation_term(student, self.teacher(images), self.kind, self.tau, self.per_element)
        return (1 - self.alpha) * criterion(logits, targets, *more) + self.alpha * term
