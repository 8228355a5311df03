from __future__ import annotations

import copy

import pytest
import torch
from contracts.samples import toy_space
from torch import Tensor, nn

from fednas_core.base.errors import DeadlineError
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.networks import subnet
from fednas_core.training.distil import Teacher, train_student
from fednas_core.training.evaluate import evaluate
from fednas_core.training.loop import Batch, to_images, train
from fednas_core.training.settings import TrainSettings

PLAIN = TrainSettings(lr=0.05, momentum=0.9, clip=0.0, weight_decay=0.0)


def problem(n: int = 48, seed: int = 7) -> list[Batch]:
    """Three classes of noisy images that differ in brightness and in one corner, in batches of 16."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = torch.randn(n, 2, 6, 6, generator=generator) + (y - 1)[:, None, None, None]
    x[y == 2, :, :2, :2] += 3
    return list(zip(x.split(16), y.split(16), strict=True))


def net(size: str = "smallest", norm: str = "group", seed: int = 1) -> nn.Module:
    space = toy_space(norm=norm)
    return subnet(space, getattr(space, size), initial_weights(space, seed))


def taught(norm: str = "group") -> nn.Module:
    """A larger network that knows the problem."""
    teacher = net("largest", norm, seed=2)
    train(teacher, [problem()] * 8, PLAIN)
    teacher.zero_grad()
    return teacher


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_the_teacher_it_is_plain_training_bit_for_bit(precision: str) -> None:
    settings = TrainSettings(lr=0.05, momentum=0.9, label_smoothing=0.1)
    one, two = net(), net()
    deaf = Teacher(nn.Identity(), soft=0.0)  # whose output would not even have the shape of logits
    assert train_student(one, deaf, [problem()] * 2, settings, precision) == train(
        two, [problem()] * 2, settings, precision
    )
    assert same(one, two)


def by_hand(z: Tensor, teacher: Tensor, y: Tensor, soft: float, t: float, smoothing: float) -> Tensor:
    """λ·T²·Σ p·(log p − log q) + (1 − λ)·(−Σ y·log softmax(z)), written out."""
    p, q = (teacher / t).exp(), (z / t).exp()
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    divergence = (p * (p.log() - q.log())).sum(1)
    classes = z.shape[1]
    labels = (1 - smoothing) * torch.eye(classes)[y] + smoothing / classes
    hard = -(labels * (z - z.exp().sum(1, keepdim=True).log())).sum(1)
    return (soft * t * t * divergence + (1 - soft) * hard).mean()


@pytest.mark.parametrize(("soft", "t"), [(0.7, 3.0), (0.9, 1.0), (1.0, 5.0)])
def test_loss_and_step_follow_the_formula(soft: float, t: float) -> None:
    settings = TrainSettings(lr=0.1, clip=0.0, weight_decay=0.0, label_smoothing=0.1)
    teacher, student, twin = taught(), net(), net()
    (x, y), *_ = problem()
    x = to_images(x, torch.device("cpu"))
    loss = by_hand(twin(x), teacher.eval()(x).detach(), y, soft, t, 0.1)
    loss.backward()
    plain = float(nn.functional.cross_entropy(twin(x), y))
    outcome = train_student(student, Teacher(teacher, soft, t), [[(x, y)]], settings)
    assert outcome.loss == pytest.approx(plain, rel=1e-5) and outcome.images == 16, "comparable with an evaluation's"
    for after, before in zip(student.parameters(), twin.parameters(), strict=True):
        assert before.grad is not None
        torch.testing.assert_close(after, before - 0.1 * before.grad, atol=1e-6, rtol=1e-4)


class Says(nn.Module):
    """Gives the same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


@pytest.mark.parametrize("t", [1.0, 3.0, 1000.0])
def test_the_gradient_of_soft_targets_is_that_of_hinton(t: float) -> None:
    """T²·∂KL/∂z = T·(q − p), which at a high temperature tends to (z − v)/classes for centred logits v (eq. 4)."""
    teacher, student = Says(1.0, 0.5, -1.5), Says(0.3, -0.4, 0.1)
    v, z = teacher.logits.detach(), student.logits.detach().clone()
    train_student(student, Teacher(teacher, 1.0, t), [[(torch.zeros(2, 1, 1, 1), torch.tensor([0, 2]))]],
                  TrainSettings(lr=1.0, clip=0.0, weight_decay=0.0))  # fmt: skip
    gradient = z - student.logits.detach()
    torch.testing.assert_close(gradient, t * ((z / t).softmax(0) - (v / t).softmax(0)), atol=2e-4, rtol=0)
    if t == 1000:
        torch.testing.assert_close(gradient, (z - v) / 3, atol=2e-3, rtol=0)


def test_the_teacher_is_as_in_use_and_nothing_of_it_changes() -> None:
    """Its batch statistics are those it has, not those of the batch, and no gradient reaches it."""
    teacher = taught("batch")
    before = copy.deepcopy(teacher.eval())
    teacher.train()
    one, two = net(norm="batch"), net(norm="batch")
    train_student(one, Teacher(teacher), [problem()], PLAIN)
    train_student(two, Teacher(before), [problem()], PLAIN)
    assert same(teacher, before) and same(one, two)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_learns_from_answers_alone() -> None:
    """With soft = 1 labels do not matter: wrong ones leave the same student, which agrees with its teacher."""
    teacher = taught()
    student, misled = net(), net()
    wrong = [(x, (y + 1) % 3) for x, y in problem()]
    first = train_student(student, Teacher(teacher, soft=1.0), [problem()] * 15, PLAIN)
    train_student(misled, Teacher(teacher, soft=1.0), [wrong] * 15, PLAIN)
    assert same(student, misled)
    assert evaluate(student, problem(seed=8)).accuracy > 0.9
    assert 0 <= first.loss < 0.2


def test_the_teachers_precision_is_the_students() -> None:
    seen: list[torch.dtype] = []
    teacher, student = taught(), net()
    for module in (teacher, student):
        module.stem.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    (batch, *_) = problem()
    for precision in ("fp32", "bf16"):
        train_student(student, Teacher(teacher), [[batch]], PLAIN, precision)
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())


def test_it_ends_when_the_deadline_passes() -> None:
    with pytest.raises(DeadlineError, match="after 0 images"):
        train_student(net(), Teacher(net("largest")), [problem()], PLAIN, until=0.0)
