from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from contracts.method import MethodContract, plan
from contracts.mobile import toy_mobile
from contracts.samples import supernet_of, toy_space

from fednas_core.devices.budgets import Allowance, Budget
from fednas_core.errors import ConfigError
from fednas_core.methods.efedsup import BREADTH, Tier, Tiers, efedsup, parse_tiers
from fednas_core.methods.fedavg import Schedule, SupernetAveraging
from fednas_core.protocol import ClientInfo, TrainSettings
from fednas_core.settings import read
from fednas_core.spaces.registry import load
from fednas_core.subnets.merge import DampedMerge

SPACE = load("small")
TOY = toy_space(widths=(0.5, 1.0, 1.5), expansions=(0.25, 0.5, 1.0))
MOST = SPACE.cost(SPACE.largest).params
TEXT = "min,30%,70%,max"


def method_of(space: Any, damped: bool = False) -> SupernetAveraging:
    sampler, weighting = efedsup(read({"method": "efedsup"}), space, ())
    supernet = supernet_of(space)
    schedule = Schedule(6, lambda round: TrainSettings(), 7)
    merge = DampedMerge(supernet) if damped else None
    return SupernetAveraging(space, supernet, sampler, weighting, schedule, merge)


class TestEFedSup(MethodContract):
    @pytest.fixture(params=[(TOY, False), (toy_mobile(), True)], ids=["overlap", "damped"])
    def make(self, request: pytest.FixtureRequest) -> Any:
        return lambda: method_of(*request.param)


def tiers_of(text: str = TEXT, space: Any = SPACE) -> Tiers:
    return Tiers(space, parse_tiers(text, space))


def clients(count: int, **changes: Any) -> list[ClientInfo]:
    return [ClientInfo(f"client-{i:02d}", 10, **changes) for i in range(count)]


def share(arch: Any) -> float:
    return SPACE.cost(arch).params / MOST


def test_clients_without_limits_are_dealt_the_tiers_by_number() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = tiers_of().assign(0, clients(8), rng)
        assert [chosen[f"client-{i:02d}"].tier for i in range(8)] == TEXT.split(",") * 2
        for assignment in chosen.values():
            low, high = {
                "min": (share(SPACE.smallest), share(SPACE.smallest)),
                "30%": (BREADTH * 0.3, 0.3),
                "70%": (BREADTH * 0.7, 0.7),
                "max": (1.0, 1.0),
            }[assignment.tier]
            assert low <= share(assignment.arch) <= high
        roles = Counter((a.tier, a.role) for a in chosen.values() if a.tier in ("min", "max"))
        assert roles == {("min", "smallest"): 2, ("max", "largest"): 2}


def test_a_client_keeps_its_tier_whoever_else_is_there() -> None:
    rng = np.random.default_rng(0)
    everyone = clients(8)
    for cohort in (everyone[3:5], everyone[5:], [everyone[2], everyone[7]]):
        chosen = tiers_of().assign(0, cohort, rng)
        assert all(a.tier == TEXT.split(",")[int(name[-2:]) % 4] for name, a in chosen.items())
    named = [ClientInfo(name, 10) for name in ("anna", "bert", "carl")]
    assert [a.tier for a in tiers_of().assign(0, named, rng).values()] == ["min", "30%", "70%"]


def test_tiers_hold_different_networks() -> None:
    rng = np.random.default_rng(0)
    found = {tiers_of().assign(0, clients(2), rng)["client-01"].arch for _ in range(20)}
    assert len(found) > 10


@pytest.mark.parametrize(
    ("limit", "tier"), [(1.0, "max"), (0.9, "70%"), (0.6, "70%"), (0.5, "30%"), (0.2, "min"), (2.0, "max")]
)
def test_the_tier_of_a_device_is_what_its_limit_allows(limit: float, tier: str) -> None:
    allowance = Allowance(Budget("d", params=limit * MOST), SPACE)
    rng = np.random.default_rng(0)
    for _ in range(5):
        (assignment,) = tiers_of().assign(0, clients(1, limit=allowance), rng).values()
        assert assignment.tier == tier and allowance.allows(assignment.arch)


def test_limits_of_other_kinds_hold_within_a_tier() -> None:
    macs = SPACE.cost(SPACE.largest).macs
    rng = np.random.default_rng(0)
    for part in (0.05, 0.1, 0.3, 0.6):
        allowance = Allowance(Budget("d", macs=part * macs), SPACE)
        for _ in range(5):
            (assignment,) = tiers_of().assign(0, clients(1, limit=allowance), rng).values()
            assert allowance.allows(assignment.arch)
    assert tiers_of().assign(0, clients(3, limit=Allowance(Budget("d", macs=1), SPACE)), rng) == {}


def test_a_device_below_the_lowest_tier_gets_what_it_can_hold() -> None:
    allowance = Allowance(Budget("d", params=0.1 * MOST), SPACE)
    (assignment,) = tiers_of("30%,70%").assign(0, clients(1, limit=allowance), np.random.default_rng(0)).values()
    assert assignment.tier == "30%" and 0.05 < share(assignment.arch) <= 0.1


@pytest.mark.parametrize("name", ["fedsup", "once-for-all", "cifar-light", "mobilenet"])
@pytest.mark.parametrize("text", ["1%", "5%", "50%", "95%", "100%"])
def test_any_share_ends_with_a_network_of_at_most_that(name: str, text: str) -> None:
    space = load(name)
    least, most = (space.cost(arch).params for arch in (space.smallest, space.largest))
    (assignment,) = tiers_of(text, space).assign(0, clients(1), np.random.default_rng(1)).values()
    assert least <= space.cost(assignment.arch).params <= max(least, most * float(text[:-1]) / 100)


def test_a_tier_in_which_there_is_no_network_gets_the_largest_below_it() -> None:
    """FedSup's space has nothing between 1.2 M and 2.0 M parameters."""
    space = load("fedsup").with_norm("parametric")
    (assignment,) = tiers_of("62%", space).assign(0, clients(1), np.random.default_rng(1)).values()
    assert 1.0e6 < space.cost(assignment.arch).params < 1.3e6


def test_tiers_as_published() -> None:
    """Quarters of the smallest, [0.75, 1.0] M, [2.0, 2.75] M and the largest of 2,989,322 parameters."""
    space = load("fedsup").with_norm("parametric")
    rng = np.random.default_rng(0)
    for _ in range(3):
        chosen = tiers_of("min,33%,92%,max", space).assign(0, clients(4), rng)
        sizes = [space.cost(assignment.arch).params for assignment in chosen.values()]
        assert sizes[0] == space.cost(space.smallest).params and sizes[3] == 2_989_322
        assert 0.73e6 < sizes[1] < 1.0e6 and 2.0e6 < sizes[2] < 2.76e6


def test_parsing() -> None:
    least = SPACE.cost(SPACE.smallest).params
    assert parse_tiers(" min, 12.5% ,max", SPACE) == (
        Tier("min", least, SPACE.smallest), Tier("12.5%", 0.125 * MOST), Tier("max", MOST, SPACE.largest),
    )  # fmt: skip
    assert parse_tiers("0.01%", SPACE) == (Tier("0.01%", least, SPACE.smallest),)


@pytest.mark.parametrize("text", ["", "min,", "30", "big", "0%", "101%", "-5%", "min;max", "3e1%"])
def test_tiers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"setting 'sample.tiers' = .*: tier .*: allowed are min, max and shares"):
        parse_tiers(text, SPACE)


def test_the_tier_is_in_the_summary_of_the_client() -> None:
    method = method_of(TOY)
    orders = plan(method, 0)
    assert len({TOY.cost(order.arch).params for order in orders.values()}) >= 4
    assert {order.task for order in orders.values()} == {"subnet"}
