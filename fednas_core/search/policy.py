"""DDC's policy: a bidirectional LSTM reads a network's layers and says of each removable one whether it stays.

After Pahwa et al., *Data-Driven Compression of Convolutional Neural Networks*, arXiv 1911.12740, and the removal stage
of N2N (Ashok et al., ICLR 2018); it learns by REINFORCE (Williams, 1992). What it reads of a layer means the same in
every network, so that a policy goes on learning on another one (policy transfer).

A *mask* has one decision for each removable unit, in the order of the space's gene ``k``: 1 keeps it, 0 removes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from fednas_core.base.errors import RunError
from fednas_core.base.values import State
from fednas_core.spaces.capabilities import Descriptor, DescriptorKind

Mask = tuple[int, ...]

HIDDEN = 30
LEARNING_RATE = 3e-3
"""Adam's rate as published, for 100 iterations of 5 students."""
MEMORY = 0.8
"""Share of the baseline that a step leaves as it was."""
CURIOSITY = 0.01
"""Weight of a trajectory's entropy, in nats, beside its reward."""
KINDS = get_args(DescriptorKind)
OCTAVES = 4
"""Waves by which layers that are alike are told apart: they get shorter by halves."""
GAIN = 3.0
"""How much larger than torch's the initial weights of what is read are: with those all layers look alike at first."""


class Policy(nn.Module):
    """A bidirectional LSTM of two layers, hidden size 30, over a network's layers; initial weights from `seed`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            self.lstm = nn.LSTM(len(KINDS) + 6 + 2 * OCTAVES, HIDDEN, num_layers=2, bidirectional=True)
            self.head = nn.Linear(2 * HIDDEN, 2)
            for name, parameter in self.lstm.named_parameters():
                if name.startswith("weight_ih"):
                    parameter.mul_(GAIN)

    def forward(self, descriptors: Sequence[Descriptor]) -> Tensor:
        """Return log π, (removable units, 2): of removing and of keeping each.

        Layers of one unit share the decision at the first of them.
        """
        units = [layer.keep for layer in descriptors]
        first = [units.index(unit) for unit in sorted({unit for unit in units if unit is not None})]
        read, _ = self.lstm(features(descriptors).to(self.head.weight))
        choices: Tensor = self.head(read[first]).log_softmax(1)
        return choices


def features(descriptors: Sequence[Descriptor]) -> Tensor:
    """Return what the policy reads, (layers, features): the kind, six numbers of about 1, and where the layer stands.

    The last are waves over the network's depth, not in the paper: without them a policy hardly learns to treat two
    layers that are alike in different ways.
    """
    rows = []
    for place, layer in enumerate(descriptors):
        kind = [float(layer.kind == kind) for kind in KINDS]
        numbers = [math.log2(layer.kernel), layer.stride - 1, layer.padding, math.log2(layer.outputs) / 8]
        skips = [float(layer.skip_start), float(layer.skip_end)]
        phases = [math.pi * 2**octave * place / len(descriptors) for octave in range(OCTAVES)]
        rows.append([*kind, *numbers, *skips, *map(math.sin, phases), *map(math.cos, phases)])
    return torch.tensor(rows)


def sample(policy: Policy, descriptors: Sequence[Descriptor], count: int, rng: torch.Generator) -> tuple[Mask, ...]:
    """Draw `count` masks, each decision by itself."""
    with torch.no_grad():
        keeps = policy(descriptors)[:, 1].exp()
    kept = torch.rand(count, len(keeps), generator=rng) < keeps
    return tuple(tuple(row) for row in kept.int().tolist())


def log_probability(policy: Policy, descriptors: Sequence[Descriptor], masks: Sequence[Mask]) -> Tensor:
    """Return log π of each mask, (masks,); gradients reach the policy."""
    return _chosen(policy(descriptors), masks)


def most_likely(policy: Policy, descriptors: Sequence[Descriptor]) -> Mask:
    """Return the mask of the largest probability; of two equal ones that with fewer units."""
    with torch.no_grad():
        return tuple(policy(descriptors).argmax(1).tolist())


class Reinforce:
    """Learns a policy for one network by REINFORCE, with Adam and a moving average of the rewards as the baseline.

    The policy given is trained in place.
    """

    def __init__(self, policy: Policy, descriptors: Sequence[Descriptor], rate: float = LEARNING_RATE) -> None:
        self.policy = policy
        self.baseline: float | None = None
        """None before the first step, whose masks' mean reward it begins with."""
        self._descriptors, self._rate, self._steps = tuple(descriptors), rate, 0
        self._first = {name: torch.zeros_like(weight) for name, weight in policy.state_dict().items()}
        self._second = {name: torch.zeros_like(weight) for name, weight in policy.state_dict().items()}

    def objective(self, masks: Sequence[Mask], rewards: Sequence[float]) -> Tensor:
        """Return what a step climbs: ``(1/N)·Σ_i (R_i − b)·log π(mask_i)`` plus the weighted entropy of π.

        The gradient of the first term estimates that of the expected reward, for masks drawn from π.
        """
        choices = self.policy(self._descriptors)
        baseline = sum(rewards) / len(rewards) if self.baseline is None else self.baseline
        advantages = torch.tensor([reward - baseline for reward in rewards]).to(choices)
        entropy = -(choices.exp() * choices).sum()
        objective: Tensor = (advantages * _chosen(choices, masks)).mean() + CURIOSITY * entropy
        return objective

    def step(self, masks: Sequence[Mask], rewards: Sequence[float]) -> None:
        """Learn from masks that `sample` drew and the finite reward of each, then move the baseline."""
        weights = dict(self.policy.named_parameters())
        gradients = torch.autograd.grad(self.objective(masks, rewards), list(weights.values()))
        with torch.no_grad():  # an optimiser class of torch would import torch's compiler, which takes a second
            adam(
                list(weights.values()), list(gradients),
                [self._first[name] for name in weights], [self._second[name] for name in weights], [],
                [torch.tensor(float(self._steps)) for _ in weights],
                foreach=False, amsgrad=False, beta1=0.9, beta2=0.999, lr=self._rate, weight_decay=0.0, eps=1e-8,
                maximize=True,
            )  # fmt: skip
        self._steps += 1
        mean = sum(rewards) / len(rewards)
        self.baseline = mean if self.baseline is None else MEMORY * self.baseline + (1 - MEMORY) * mean

    def state(self) -> State:
        """Return a copy of all that a later `restore` needs to continue identically."""
        parts = {"policy": self.policy.state_dict(), "first": self._first, "second": self._second}
        tensors = {f"{part}.{name}": tensor.clone() for part, named in parts.items() for name, tensor in named.items()}
        return State(tensors, {"baseline": self.baseline, "steps": self._steps})

    def restore(self, state: State) -> None:
        """Continue from a state that `state` returned; raise `RunError` if it is none."""
        _fill(self.policy.state_dict(), state, "policy")
        _fill(self._first, state, "first")
        _fill(self._second, state, "second")
        self.baseline, self._steps = state.data["baseline"], state.data["steps"]

    def transfer(self, state: State) -> None:
        """Take over the policy of another learner's state, of this network or of another one; all else stays as it is.

        Before the first step that is policy transfer (arXiv 1911.12740, question c): baseline and optimiser begin
        afresh. Raises `RunError` if the state holds no such policy.
        """
        _fill(self.policy.state_dict(), state, "policy")


def _fill(named: Mapping[str, Tensor], state: State, part: str) -> None:
    """Copy a part of a state into tensors; raise `RunError` if it lacks one of them or has it in another shape."""
    for name, tensor in named.items():
        found = state.tensors.get(f"{part}.{name}")
        if found is None or found.shape != tensor.shape:
            there = "nothing" if found is None else f"a shape of {tuple(found.shape)}"
            raise RunError(
                f"the saved policy does not fit: for '{part}.{name}' it holds {there}, needed is "
                f"{tuple(tensor.shape)}; name a run of method ddc that this version of fednas made"
            )
        tensor.copy_(found)


def _chosen(choices: Tensor, masks: Sequence[Mask]) -> Tensor:
    """Return the sum of the log π (units, 2) that each mask chose, (masks,)."""
    chosen = torch.tensor(masks, dtype=torch.int64)
    return choices[torch.arange(len(choices)), chosen].sum(1)
