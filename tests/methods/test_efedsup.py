from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from contracts.method import MethodContract, plan
from contracts.mobile import toy_mobile
from contracts.samples import supernet_of, toy_space

from fednas_core.base.errors import ConfigError
from fednas_core.base.settings import read
from fednas_core.cli.settings import gather
from fednas_core.devices.budgets import Allowance, Budget
from fednas_core.devices.info import ClientInfo
from fednas_core.methods.efedsup import Tiers, cautions, efedsup
from fednas_core.methods.fedavg import Schedule, SupernetAveraging
from fednas_core.methods.tiers import BREADTH, FEW, Tier, parse_tiers
from fednas_core.spaces.registry import load
from fednas_core.subnets.merge import DampedMerge
from fednas_core.training.settings import TrainSettings

SPACE = load("small")
TOY = toy_space(widths=(0.5, 1.0, 1.5), expansions=(0.25, 0.5, 1.0))
MOST = SPACE.cost(SPACE.largest).params
TEXT = "min,30%,70%,max"


def method_of(space: Any, damped: bool = False) -> SupernetAveraging:
    sampler, weighting = efedsup(read({"method": "efedsup", "sample.tiers": TEXT}), space, ())
    supernet = supernet_of(space)
    schedule = Schedule(6, lambda round: TrainSettings(), 7)
    merge = DampedMerge(supernet) if damped else None
    return SupernetAveraging(space, supernet, sampler, weighting, schedule, merge)


class TestEFedSup(MethodContract):
    @pytest.fixture(params=[(TOY, False), (toy_mobile(), True)], ids=["overlap", "damped"])
    def make(self, request: pytest.FixtureRequest) -> Any:
        return lambda: method_of(*request.param)


def tiers_of(text: str = TEXT, space: Any = SPACE, rotate: bool = False) -> Tiers:
    return Tiers(space, parse_tiers(text, space), rotate)


def clients(count: int, **changes: Any) -> list[ClientInfo]:
    return [ClientInfo(f"client-{i:02d}", 10, **changes) for i in range(count)]


def share(arch: Any) -> float:
    return SPACE.cost(arch).params / MOST


@pytest.mark.parametrize("count", [4, 7, 10])
def test_tiers_go_round_where_nothing_binds_a_client_to_one(count: int) -> None:
    """In every cohort each tier is there, as often as any other, and over the rounds each client trains them all."""
    sampler, names, trained = tiers_of(space=TOY, rotate=True), TEXT.split(","), Counter[str]()
    met: dict[str, set[str]] = {}
    for round in range(100):
        everyone = np.random.default_rng(round).permutation(clients(12))[:count]
        cohort = sorted(everyone, key=lambda client: client.name)
        chosen = sampler.assign(round, cohort, np.random.default_rng(round))
        dealt = Counter(assignment.tier for assignment in chosen.values())
        assert set(dealt) == set(names) and max(dealt.values()) - min(dealt.values()) <= 1
        trained += dealt
        assert max(trained.values()) - min(trained.values()) <= 1
        for name, assignment in chosen.items():
            met.setdefault(name, set()).add(assignment.tier)
        assert sampler.assign(round, cohort, np.random.default_rng(round)) == chosen, "the round and the stream decide"
    assert set(map(len, met.values())) == {4} and len(met) == 12
    assert sampler.state() == {}


def test_cohorts_of_fewer_clients_than_tiers_take_turns() -> None:
    sampler, trained = tiers_of(rotate=True), Counter[str]()
    for round in range(8):
        (assignment,) = sampler.assign(round, clients(1), np.random.default_rng(0)).values()
        trained[assignment.tier] += 1
    assert trained == dict.fromkeys(TEXT.split(","), 2)


def test_a_device_with_a_limit_keeps_to_its_tier_while_others_go_round() -> None:
    sampler, rng = tiers_of(rotate=True), np.random.default_rng(0)
    bound = ClientInfo("client-99", 10, limit=Allowance(Budget("d", params=0.5 * MOST), SPACE))
    for round in range(20):
        chosen = sampler.assign(round, [*clients(4), bound], rng)
        assert chosen.pop("client-99").tier == "30%"
        assert Counter(assignment.tier for assignment in chosen.values()) == dict.fromkeys(TEXT.split(","), 1)


def test_tiers_go_round_unless_the_settings_bind_them_to_clients() -> None:
    rotating, _ = efedsup(read({"method": "efedsup"}), SPACE, ())
    bound, _ = efedsup(read({"method": "efedsup", "sample.deal": "fixed"}), SPACE, ())
    assert rotating.rotate and not bound.rotate


def test_clients_without_limits_are_dealt_the_tiers_by_number_if_tiers_do_not_go_round() -> None:
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


@pytest.mark.parametrize(("limit", "tier"), [(1.0, "max"), (0.9, "30%-70%"), (0.5, "0%-30%"), (0.2, "min")])
def test_ranges_leave_a_device_in_its_tier(limit: float, tier: str) -> None:
    allowance = Allowance(Budget("d", params=limit * MOST), SPACE)
    sampler = tiers_of("min,0%-30%,30%-70%,max")
    (assignment,) = sampler.assign(0, clients(1, limit=allowance), np.random.default_rng(0)).values()
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
    preset = read(gather("efedsup-cifar10", ()))
    assert preset.sample.deal == "fixed"
    space = load("fedsup").with_norm("parametric")
    rng = np.random.default_rng(0)
    for _ in range(3):
        chosen = tiers_of(preset.sample.tiers, space).assign(0, clients(4), rng)
        sizes = [space.cost(assignment.arch).params for assignment in chosen.values()]
        assert sizes[0] == space.cost(space.smallest).params and sizes[3] == 2_989_322
        assert 0.75e6 <= sizes[1] <= 1.0e6 and 2.0e6 <= sizes[2] <= 2.75e6


def test_parsing() -> None:
    least = SPACE.cost(SPACE.smallest).params
    assert parse_tiers(" min, 12.5% ,max", SPACE) == (
        Tier("min", least, least, SPACE.smallest), Tier("12.5%", BREADTH * 0.125 * MOST, 0.125 * MOST),
        Tier("max", MOST, MOST, SPACE.largest),
    )  # fmt: skip
    assert parse_tiers("0.01%", SPACE) == (Tier("0.01%", least, least, SPACE.smallest),)
    assert parse_tiers("0%-50%,12.5% - 25%", SPACE) == (
        Tier("0%-50%", 0, 0.5 * MOST), Tier("12.5% - 25%", 0.125 * MOST, 0.25 * MOST),
    )  # fmt: skip


def test_a_range_reaches_networks_that_lie_between_two_shares() -> None:
    """Of `mobilenet` a network of middle choices has 8 % of the parameters; tiers of 30 % begin at 22.5 %."""
    space = load("mobilenet")
    most = space.cost(space.largest).params
    rng = np.random.default_rng(0)

    def sizes(text: str) -> list[float]:
        drawn = (tiers_of(text, space).assign(0, clients(1), rng)["client-00"].arch for _ in range(60))
        return [space.cost(arch).params / most for arch in drawn]

    wide, narrow = sizes("0%-30%"), sizes("30%")
    assert max(*wide, *narrow) <= 0.3 and min(narrow) >= BREADTH * 0.3
    assert sum(size < 0.12 for size in wide) > 15 and sum(size > 0.18 for size in wide) > 5
    assert sum(size == space.cost(space.smallest).params / most for size in wide) < 6, "no draw ends at the smallest"
    assert all(0.3 <= size <= 0.7 for size in sizes("30%-70%"))


@pytest.mark.parametrize(
    ("count", "deal", "told"),
    [
        (10, "fixed", {"min": 3, "30%": 3, "70%": 2, "max": 2}),
        (18, "fixed", {"70%": 4, "max": 4}),
        (20, "fixed", {}),
        (10, "rotate", {}),
        (3, "rotate", {}),
        (3, "fixed", {"min": 1, "30%": 1, "70%": 1, "max": 0}),
    ],
)
def test_a_tier_that_few_clients_train_is_told_of(count: int, deal: str, told: dict[str, int]) -> None:
    config = read({"method": "efedsup", "sample.tiers": TEXT, "sample.deal": deal})
    texts = {0: "no client trains", 1: "one client trains"}
    said = cautions(config, SPACE, clients(count))
    assert len(said) == len(told)
    for text, (tier, n) in zip(said, told.items(), strict=True):
        assert text.startswith(f"tier '{tier}': {texts.get(n, f'{n} clients train')} its networks")
        assert ("sample.deal" in text) == (deal == "fixed") and str(FEW) in text


def test_devices_whose_limits_leave_a_tier_to_few_are_told_of_though_the_others_go_round() -> None:
    config = read({"method": "efedsup", "sample.tiers": "min,max"})
    small = clients(9, limit=Allowance(Budget("d", params=0.2 * MOST), SPACE))
    free = [ClientInfo(f"free-{i}", 10) for i in range(3)]
    (text,) = cautions(config, SPACE, [*small, *free])
    assert text.startswith("tier 'max': 3 clients train") and "sample.deal" not in text


@pytest.mark.parametrize(
    "text", ["", "min,", "30", "big", "0%", "101%", "-5%", "min;max", "3e1%", "50%-20%", "20-50%", "0%-0%", "min-30%"]
)
def test_tiers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"setting 'sample.tiers' = .*: tier .*: allowed are min, max, shares"):
        parse_tiers(text, SPACE)


def test_the_tier_is_in_the_summary_of_the_client() -> None:
    method = method_of(TOY)
    orders = plan(method, 0)
    assert len({TOY.cost(order.arch).params for order in orders.values()}) >= 4
    assert {order.task for order in orders.values()} == {"subnet"}
