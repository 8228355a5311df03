"""Knowledge distillation: a student learns what a larger network says of an image, and its label.

Hinton, Vinyals and Dean, arXiv 1503.02531; as DDC uses it (arXiv 1911.12740, section 3.4).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fednas_core.training.loop import Batch, Outcome, autocast, descend, train
from fednas_core.training.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Teacher:
    """The network that a student learns from, on the student's device, and how much and how softly it speaks.

    `soft` is λ, the weight of what it says (0 to 1; 0: labels only), `temperature` T divides all logits. DDC's paper
    has λ = 0.7, its code 0.9 and T = 3.
    """

    module: nn.Module
    soft: float = 0.7
    temperature: float = 3.0


def train_student(
    student: nn.Module,
    teacher: Teacher,
    epochs: Iterable[Iterable[Batch]],
    settings: TrainSettings,
    precision: str = "fp32",
    until: float = float("inf"),
) -> Outcome:
    """Train `student` in place, on the device where it lies; with ``soft = 0`` it is `train`, bit for bit.

    The loss is ``λ·T²·KL(softmax(z_t/T) ‖ softmax(z_s/T)) + (1 − λ)·H(y, softmax(z_s))`` with the logits z_t and z_s,
    the mean over a batch. T² is Hinton's factor: without it the gradient of the first term would shrink by T² (section
    2). The teacher is as in use, batch statistics included, and nothing of it changes. See
    `fednas_core.training.loop.train` for `until`.
    """
    if not teacher.soft:
        return train(student, epochs, settings, precision, until)
    teacher.module.eval()
    student.train()

    def gradients(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad(), autocast(x.device, precision):
            said = teacher.module(x)
        with autocast(x.device, precision):
            logits: Tensor = student(x).float()
        loss = _loss(logits, said.float(), y, teacher, settings.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        return logits.detach()

    return descend([p for p in student.parameters() if p.requires_grad], gradients, epochs, settings, until)


def _loss(logits: Tensor, said: Tensor, y: Tensor, teacher: Teacher, label_smoothing: float) -> Tensor:
    """Return the loss of a batch: logits of student and teacher (n, classes), labels (n,)."""
    t = teacher.temperature
    mine, theirs = (logits / t).log_softmax(1), (said / t).log_softmax(1)
    soft = functional.kl_div(mine, theirs, reduction="batchmean", log_target=True)
    hard = functional.cross_entropy(logits, y, label_smoothing=label_smoothing)
    return teacher.soft * t**2 * soft + (1 - teacher.soft) * hard
