from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fednas_core.base.errors import RunError
from fednas_core.base.values import State
from fednas_core.search.policy import (
    CURIOSITY,
    MEMORY,
    Mask,
    Policy,
    Reinforce,
    features,
    log_probability,
    most_likely,
    sample,
)
from fednas_core.spaces.capabilities import Descriptor
from fednas_core.spaces.registry import load

Layers = tuple[Descriptor, ...]


def chain(removable: int, outputs: int = 16) -> Layers:
    """A first layer that stays, removable ones that are all alike, and a classifier."""
    first = Descriptor("conv", 3, 1, 1, outputs)
    inner = [Descriptor("conv", 3, 1, 1, outputs, keep=unit) for unit in range(removable)]
    return (first, *inner, Descriptor("mean", 8, 1, 0, outputs), Descriptor("linear", 1, 1, 0, 10))


def masks_of(removable: int) -> list[Mask]:
    return list(itertools.product((0, 1), repeat=removable))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def gradient(value: Tensor, policy: Policy) -> Tensor:
    return flat(torch.autograd.grad(value, list(policy.parameters()), retain_graph=True))


def learnt(policy: Policy, layers: Layers, reward: Callable[[Mask], float], steps: int, seed: int) -> list[float]:
    """The mean reward of each of `steps` updates of four masks."""
    learner, rng, means = Reinforce(policy, layers), generator(seed), []
    for _ in range(steps):
        masks = sample(policy, layers, 4, rng)
        rewards = [reward(mask) for mask in masks]
        learner.step(masks, rewards)
        means.append(sum(rewards) / len(rewards))
    return means


def expected(policy: Policy, layers: Layers, reward: Callable[[Mask], float], removable: int) -> float:
    """The policy's expected reward, by enumeration."""
    masks = masks_of(removable)
    with torch.no_grad():
        odds = log_probability(policy, layers, masks).exp()
    return float(odds @ torch.tensor([reward(mask) for mask in masks]))


def every_other(mask: Mask) -> float:
    """1 for the network without layers 1 and 3, with 0 and 2."""
    return float(mask == (1, 0, 1, 0))


# -- probabilities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removable", [1, 2, 5])
def test_probabilities_of_all_masks_sum_to_one(removable: int) -> None:
    found = log_probability(Policy(3), chain(removable), masks_of(removable)).detach()
    assert found.shape == (2**removable,)
    assert float(found.double().exp().sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["cnn8", "vgg11", "resnet18", "mobilenet-v1"])
def test_one_policy_decides_once_for_each_removable_unit_of_any_chain(name: str) -> None:
    space = load(name)
    masks = sample(Policy(0), space.descriptors, 3, generator())
    assert len(masks) == 3
    for mask in (*masks, most_likely(Policy(0), space.descriptors)):
        assert len(mask) == len(space.removable) and set(mask) <= {0, 1}
        space.arch({**space.largest.to_json(), "k": mask})


def test_layers_of_one_unit_share_the_decision_at_the_first_of_them() -> None:
    separable = (
        Descriptor("conv", 3, 1, 1, 8),
        Descriptor("depthwise", 3, 1, 1, 8, keep=0),
        Descriptor("conv", 1, 1, 0, 16, keep=0),
        Descriptor("depthwise", 3, 1, 1, 16, keep=1),
        Descriptor("conv", 1, 1, 0, 16, keep=1),
    )
    policy = Policy(1)
    with torch.no_grad():
        read, _ = policy.lstm(features(separable))
        wanted = policy.head(read[[1, 3]]).log_softmax(1)
        assert torch.equal(policy(separable), wanted)


def test_masks_come_as_often_as_their_probability_says() -> None:
    policy, layers = Policy(2), chain(3)
    with torch.no_grad():
        policy.head.bias.copy_(torch.tensor([0.0, 1.0]))
        odds = log_probability(policy, layers, masks_of(3)).exp()
    drawn = sample(policy, layers, 20_000, generator())
    often = torch.tensor([drawn.count(mask) / len(drawn) for mask in masks_of(3)])
    torch.testing.assert_close(often, odds, atol=0.015, rtol=0)


def test_the_most_likely_mask_is_the_one_of_the_largest_probability() -> None:
    for seed in range(5):
        policy, layers = Policy(seed), chain(4)
        odds = log_probability(policy, layers, masks_of(4))
        assert most_likely(policy, layers) == masks_of(4)[int(odds.argmax())]


def test_everything_follows_from_the_seeds_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = Policy(7), Policy(7), Policy(8)
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs) and not any(torch.equal(a, c) for a, _, c in pairs)
    drawn = [sample(one, chain(6), 5, generator(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    ends = [Policy(7), Policy(7)]
    for policy in ends:
        learnt(policy, chain(4), every_other, 5, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(ends[0].parameters(), ends[1].parameters(), strict=True))


def test_features_tell_every_layer_apart_and_are_of_moderate_size() -> None:
    for name in ("cnn8", "vgg11", "resnet18", "mobilenet-v1"):
        rows = features(load(name).descriptors)
        assert len(rows.unique(dim=0)) == len(rows) and float(rows.abs().max()) <= 5


# -- the gradient --------------------------------------------------------------------------------------------------

REWARDS = {(0, 0): -1.0, (0, 1): 0.3, (1, 0): 0.8, (1, 1): 0.1}


def exact(policy: Policy, layers: Layers) -> tuple[Tensor, Tensor]:
    """Gradients of J = Σ π(a)·R(a) and of the entropy −Σ π(a)·log π(a), by enumeration of all masks."""
    logs = log_probability(policy, layers, list(REWARDS))
    reward = (logs.exp() * torch.tensor(list(REWARDS.values())).to(logs)).sum()
    entropy = -(logs.exp() * logs).sum()
    return gradient(reward, policy), gradient(entropy, policy)


@pytest.mark.parametrize("baseline", [0.0, 0.4, -3.0])
def test_the_expected_gradient_of_a_step_is_that_of_the_expected_reward(baseline: float) -> None:
    """Σ_a π(a)·∇log π(a)·(R(a) − b) = ∇J whatever b, and the entropy of independent decisions is that of masks."""
    policy, layers = Policy(5).double(), chain(2)
    learner = Reinforce(policy, layers)
    learner.baseline = baseline
    odds = log_probability(policy, layers, list(REWARDS)).detach().exp()
    found = sum(
        float(p) * gradient(learner.objective([mask], [reward]), policy)
        for p, (mask, reward) in zip(odds, REWARDS.items(), strict=True)
    )
    reward, entropy = exact(policy, layers)
    assert float(reward.abs().max()) > 1e-3
    torch.testing.assert_close(found, reward + CURIOSITY * entropy, atol=1e-6, rtol=0)


def test_the_mean_over_many_masks_converges_to_it() -> None:
    policy, layers = Policy(5).double(), chain(2)
    reward, entropy = exact(policy, layers)
    errors = []
    for count in (100, 100_000):
        learner = Reinforce(policy, layers)
        learner.baseline = 0.05
        masks = sample(policy, layers, count, generator(1))
        found = gradient(learner.objective(masks, [REWARDS[mask] for mask in masks]), policy) - CURIOSITY * entropy
        errors.append(float((found - reward).norm() / reward.norm()))
    assert errors[1] < 0.03 and errors[1] < errors[0] / 5


def test_every_mask_has_its_own_advantage() -> None:
    """Not the batch's mean reward: a better mask becomes likelier, a worse one less so."""
    policy, layers = Policy(0), chain(2)
    before = log_probability(policy, layers, [(1, 0), (0, 1)]).detach()
    learner = Reinforce(policy, layers)
    for _ in range(5):
        learner.step([(1, 0), (0, 1)], [1.0, 0.0])
    after = log_probability(policy, layers, [(1, 0), (0, 1)]).detach()
    assert after[0] > before[0] and after[1] < before[1]


def test_the_baseline_begins_with_the_first_mean_and_follows_slowly() -> None:
    learner = Reinforce(Policy(0), chain(2))
    assert learner.baseline is None
    learner.step([(1, 0), (0, 1)], [0.5, 0.1])
    assert learner.baseline == pytest.approx(0.3)
    learner.step([(1, 0), (0, 1)], [1.0, 0.8])
    assert learner.baseline == pytest.approx(MEMORY * 0.3 + (1 - MEMORY) * 0.9)


def test_a_step_is_that_of_torchs_adam() -> None:
    policy, twin, layers = Policy(4), Policy(4), chain(3)
    learner = Reinforce(policy, layers, rate=0.01)
    shadow = Reinforce(twin, layers)
    adam = torch.optim.Adam(twin.parameters(), lr=0.01)
    for number in range(4):
        masks = sample(policy, layers, 4, generator(number))
        rewards = [sum(mask) / 3 for mask in masks]
        adam.zero_grad()
        shadow.baseline = learner.baseline
        (-shadow.objective(masks, rewards)).backward()
        adam.step()
        learner.step(masks, rewards)
    for a, b in zip(policy.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


# -- learning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_it_learns_which_of_four_equal_layers_to_remove(seed: int) -> None:
    policy, layers = Policy(seed), chain(4)
    assert expected(policy, layers, every_other, 4) < 0.3
    means = learnt(policy, layers, every_other, 59, seed)
    assert most_likely(policy, layers) == (1, 0, 1, 0)
    assert expected(policy, layers, every_other, 4) > 0.8 and sum(means[-5:]) > sum(means[:5])


def test_a_transferred_policy_starts_better_also_on_another_network() -> None:
    layers, other = chain(4), chain(4, outputs=24)
    policy = Policy(1)
    learner, rng = Reinforce(policy, layers), generator(1)
    for _ in range(59):
        masks = sample(policy, layers, 4, rng)
        learner.step(masks, [every_other(mask) for mask in masks])
    again = Reinforce(Policy(2), other)
    again.transfer(learner.state())
    assert expected(again.policy, layers, every_other, 4) == expected(policy, layers, every_other, 4) > 0.8
    assert expected(again.policy, other, every_other, 4) > 0.5 > expected(Policy(2), other, every_other, 4)
    state = again.state()
    assert state.data == {"baseline": None, "steps": 0}
    assert all(not tensor.any() for name, tensor in state.tensors.items() if not name.startswith("policy."))


def test_it_continues_from_its_state_as_if_it_had_not_stopped() -> None:
    layers = chain(4)
    learner, rng = Reinforce(Policy(0), layers), generator(0)

    def more(learner: Reinforce) -> None:
        masks = sample(learner.policy, layers, 4, rng)
        learner.step(masks, [sum(mask) / 4 for mask in masks])

    for _ in range(3):
        more(learner)
    state, drawn = learner.state(), rng.get_state()
    for _ in range(3):
        more(learner)
    again = Reinforce(Policy(99), layers)
    again.restore(state)
    rng.set_state(drawn)
    for _ in range(3):
        more(again)
    one, two = learner.state(), again.state()
    assert one.data == two.data and one.data["steps"] == 6 and one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(tensor, two.tensors[name]) for name, tensor in one.tensors.items())
    assert not all(torch.equal(tensor, one.tensors[name]) for name, tensor in state.tensors.items())


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(RunError, match="does not fit: for 'policy.lstm.weight_ih_l0' it holds nothing, needed is"):
        Reinforce(Policy(0), chain(2)).transfer(State({}))
    state = Reinforce(Policy(0), chain(2)).state()
    for name in ("policy.head.bias", "second.head.bias"):
        other = State({**state.tensors, name: torch.zeros(3)}, state.data)
        with pytest.raises(RunError, match=rf"for '{name}' it holds a shape of \(3,\), needed is \(2,\)"):
            Reinforce(Policy(0), chain(2)).restore(other)


def test_a_step_does_not_import_torchs_compiler() -> None:
    code = (
        "import sys\n"
        "from fednas_core.search.policy import *\n"
        "layers = (Descriptor('conv', 3, 1, 1, 8), Descriptor('conv', 3, 1, 1, 8, keep=0))\n"
        "Reinforce(Policy(0), layers).step([(1,), (0,)], [1.0, 0.0])\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
