"""The synchronous loop: what is refused and why, and that it leaves no trace."""

from __future__ import annotations

import gc
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from contracts.fleets import Around
from contracts.records import recorded
from contracts.samples import answer, with_result

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import RunError
from fednas_core.base.seeding import derive
from fednas_core.base.settings import read
from fednas_core.base.values import Arch, State
from fednas_core.devices.info import ClientInfo
from fednas_core.engine import rounds as loop
from fednas_core.engine.collect import NO_ANSWER
from fednas_core.engine.local import LocalFleet
from fednas_core.exchange.orders import WEIGHTS, Answer, Failure, Order
from fednas_core.exchange.processors.norms import update_norm
from fednas_core.methods.fedavg import SupernetAveraging
from fednas_core.methods.method import NO_ROOM, Ask, Told
from fednas_core.methods.registry import make, path_of
from fednas_core.methods.setup import Setup
from fednas_core.spaces.networks import initial_weights
from fednas_core.tasks.bench import space_of

Spoil = Callable[[Answer, Order], Sequence[Answer]]
BAD = "client-02"


class Lying(Around):
    """One client spoils its answers; it sees what it was sent, and its answer of the round before."""

    def __init__(self, inner: Any, spoil: Spoil, client: str = BAD, rounds: Iterable[int] = range(100)) -> None:
        super().__init__(inner)
        self.spoil, self.client, self.rounds = spoil, client, set(rounds)

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Answer]:
        for found in super().train(orders, more):
            if found.client == self.client and isinstance(found, Answer) and found.round in self.rounds:
                yield from self.spoil(found, orders[found.client])
            else:
                yield found


def run_round(*given: Any) -> Any:
    """Conduct a round and return its event, in JSON."""
    return recorded(loop.run_round(*given))


def rounds(*given: Any) -> Iterator[Any]:
    """Conduct rounds and yield their events, in JSON."""
    return map(recorded, loop.rounds(*given))


def method_of(config: RunConfig) -> SupernetAveraging:
    space = space_of(config)
    weights = initial_weights(space, derive(config.seed, "weights"))
    return make(Setup(config, space, path_of(config, space, space.cost(space.smallest).macs), weights))


def same(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


# -- hostile replies -----------------------------------------------------------------------------------------------


def with_head(report: Answer, change: Callable[[torch.Tensor], torch.Tensor]) -> list[Answer]:
    return [
        replace(
            report, channels={WEIGHTS: {**report.weights, "head.weight": change(report.weights["head.weight"].clone())}}
        )
    ]


def times(factor: float) -> Spoil:
    """Move `factor` times as far."""

    def spoil(report: Answer, order: Order) -> list[Answer]:
        far = {name: order.weights[name] + factor * (t - order.weights[name]) for name, t in report.weights.items()}
        return [replace(report, channels={WEIGHTS: far})]

    return spoil


def absent(report: Answer, order: Order) -> list[Answer]:
    return []


def other_name(report: Answer, order: Order) -> list[Answer]:
    return [
        replace(
            report,
            channels={WEIGHTS: {("tail" + n[4:] if n == "head.weight" else n): t for n, t in report.weights.items()}},
        )
    ]


def path_as_name(report: Answer, order: Order) -> list[Answer]:
    return [replace(report, channels={WEIGHTS: {**report.weights, "../../../etc/passwd": torch.zeros(3)}})]


def other_arch(report: Answer, order: Order) -> list[Answer]:
    genes = tuple((name, tuple(reversed(values))) for name, values in report.arch.genes)
    return [replace(report, arch=Arch((*genes, ("x", (1,)))))]


def of_another_round(report: Answer, order: Order) -> list[Answer]:
    return [replace(report, round=report.round + 1)]


HOSTILE: dict[str, tuple[Spoil, str]] = {
    "names": (other_name, "tensor 'tail.weight': found a tensor that its architecture does not have"),
    "a path in a name": (path_as_name, "tensor '../../../etc/passwd': found a tensor that its architecture does not"),
    "shapes": (lambda r, o: with_head(r, lambda t: t[:1]), "tensor 'head.weight': found shape (1, "),
    "broadcastable": (lambda r, o: with_head(r, lambda t: t[:1, :1]), "tensor 'head.weight': found shape (1, 1)"),
    "dtypes": (lambda r, o: with_head(r, lambda t: t.half()), "found torch.float16, allowed torch.float32"),
    "doubles": (lambda r, o: with_head(r, lambda t: t.double()), "found torch.float64, allowed torch.float32"),
    "architecture": (other_arch, "answered for another architecture or round"),
    "NaN": (lambda r, o: with_head(r, lambda t: t.fill_(math.nan)), "values that are not finite"),
    "infinity": (lambda r, o: with_head(r, lambda t: t.fill_(-math.inf)), "values that are not finite"),
    "values": (lambda r, o: with_head(r, lambda t: t + 1e9), "found values up to 1e+09, allowed values up to"),
    "norm": (times(1000.0), "times the cohort's median, allowed is up to 100 times (merge.outlier)"),
    "norm, flipped": (times(-1000.0), "times the cohort's median, allowed is up to 100 times (merge.outlier)"),
    "replayed": (of_another_round, "answered for another architecture or round"),
    "examples": (lambda r, o: [replace(r, examples=10**12)], "examples: found 1000000000000, allowed 1 to the "),
    "no examples": (lambda r, o: [replace(r, examples=0)], "examples: found 0, allowed 1 to the "),
    "a loss of private state": (lambda r, o: [replace(r, fresh=True)], "fresh: found true, allowed false"),
    "examples below zero": (lambda r, o: [replace(r, examples=-5)], "examples: found -5, allowed 1 to the "),
    "loss": (lambda r, o: [with_result(r, loss=math.nan)], "loss: found nan, allowed a finite number from 0"),
    "accuracy": (
        lambda r, o: [with_result(r, accuracy=1e9)],
        "accuracy: found 1000000000.0, allowed a",
    ),
    "seconds": (lambda r, o: [replace(r, seconds=math.inf)], "seconds: found inf, allowed a finite number from 0"),
}
MERGES = [{}, {"merge.clip": 1.0}, {"merge.rule": "trimmed", "merge.trim": 0.34}]


class Recorded(Around):
    """Answers a first round as the clients answered it before: they train the same whatever merges their replies."""

    answers: dict[str, list[Answer]] = {}

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Answer]:
        about = [(str(order.arch), order.round, order.seed, order.params) for order in orders.values()]
        key = f"{about} {self.clients()}"
        if key not in self.answers:
            self.answers[key] = list(super().train(orders, more))
        yield from self.answers[key]


def one_round(config: RunConfig, spoil: Spoil) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The event and the weights of a first round in which one client spoils its answer."""
    method = method_of(config)
    event = run_round(config, method, Lying(Recorded(LocalFleet(config)), spoil), 0)
    return event, dict(method.weights())


@pytest.mark.parametrize("merge", MERGES, ids=["mean", "clip", "trimmed"])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_reply_is_told_of_and_leaves_no_trace(
    tiny_pairs: dict[str, Any], what: str, merge: dict[str, Any]
) -> None:
    config = read({**tiny_pairs, **merge})
    spoil, reason = HOSTILE[what]
    without, wanted = one_round(config, absent)
    event, found = one_round(config, spoil)
    assert without["failures"] == [{"client": BAD, "reason": NO_ANSWER}]
    assert [row["client"] for row in event["clients"]] == ["client-00", "client-01", "client-03"]
    (failure,) = event["failures"]
    assert failure["client"] == BAD and reason in failure["reason"] and "\n" not in failure["reason"]
    assert event["update_norm"] == without["update_norm"] and same(found, wanted)


def test_what_follows_a_clients_first_answer_is_lost(tiny_pairs: dict[str, Any]) -> None:
    config = read(tiny_pairs)
    one, two = method_of(config), method_of(config)
    honest = run_round(config, one, LocalFleet(config), 0)

    def again(report: Answer, order: Order) -> list[Answer]:
        return [report, *times(50.0)(report, order), report, Failure(report.client, "changed its mind")]

    dirty = run_round(config, two, Lying(LocalFleet(config), again), 0)
    assert dirty["failures"] == [] == honest["failures"] and len(dirty["clients"]) == 4
    assert same(one.weights(), two.weights())


def test_an_answer_of_the_round_before_is_refused(tiny_pairs: dict[str, Any]) -> None:
    config, kept = read(tiny_pairs), list[Answer]()
    one, two = method_of(config), method_of(config)

    def replayed(report: Answer, order: Order) -> list[Answer]:
        kept.append(report)
        return [kept[0]]

    for method, fleet in (
        (one, Lying(LocalFleet(config), replayed)),
        (two, Lying(LocalFleet(config), absent, rounds=[1])),
    ):
        event = [run_round(config, method, fleet, index) for index in range(2)][1]
        assert [failure["client"] for failure in event["failures"]] == [BAD]
    assert same(one.weights(), two.weights())


def test_the_weight_of_a_reply_is_what_the_roster_knows_of_its_client(tiny_pairs: dict[str, Any]) -> None:
    config = read({**tiny_pairs, "method": "fedavg"})
    one, two = method_of(config), method_of(config)
    run_round(config, one, LocalFleet(config), 0)
    run_round(config, two, Lying(LocalFleet(config), lambda r, o: [replace(r, examples=1)]), 0)
    assert same(one.weights(), two.weights())


def test_a_client_without_room_is_told_of(tiny_pairs: dict[str, Any]) -> None:
    class Nothing:
        def allows(self, arch: Arch) -> bool:
            return False

    class Small(Around):
        def clients(self) -> list[ClientInfo]:
            return [replace(c, limit=Nothing() if c.name == BAD else None) for c in super().clients()]

    config = read(tiny_pairs)
    event = run_round(config, method_of(config), Small(LocalFleet(config)), 0)
    assert event["failures"] == [{"client": BAD, "reason": NO_ROOM}] and len(event["clients"]) == 3


def test_nobody_with_room_ends_the_run(tiny_pairs: dict[str, Any]) -> None:
    class Nothing:
        def allows(self, arch: Arch) -> bool:
            return False

    class Small(Around):
        def clients(self) -> list[ClientInfo]:
            return [replace(client, limit=Nothing()) for client in super().clients()]

    config = read({**tiny_pairs, "method": "fedavg"})
    with pytest.raises(RunError, match=f"round 1: none of the 4 clients gave a usable answer .{NO_ROOM}"):
        run_round(config, method_of(config), Small(LocalFleet(config)), 0)


def test_who_trains_nothing_where_networks_compete_is_no_failure_unless_it_lacks_room(
    tiny_pairs: dict[str, Any],
) -> None:
    class Mixed(Around):
        """client-02 has room for nothing, client-03 tests."""

        def clients(self) -> list[ClientInfo]:
            small, large = (type("Limit", (), {"allows": lambda self, arch, it=it: it})() for it in (False, True))
            return [replace(c, limit=small if c.name == BAD else large) for c in super().clients()]

    config = read({**tiny_pairs, "method": "fednas", "contest.testers": 0.25})
    event = run_round(config, method_of(config), Mixed(LocalFleet(config)), 0)
    assert event["failures"] == [{"client": BAD, "reason": NO_ROOM}]
    assert [row["client"] for row in event["clients"]] == ["client-00", "client-01"]


# -- norms ---------------------------------------------------------------------------------------------------------


class Watched(SupernetAveraging):
    """A method that notes how far what it absorbs has moved."""

    moved: dict[str, float]

    def tell(self, ask: Ask, answers: Iterable[Answer]) -> Told:
        orders, self.moved = {order.client: order for order in ask.orders}, {}

        def noted() -> Iterator[Answer]:
            for reply in answers:
                self.moved[reply.client] = update_norm(reply.weights, orders[reply.client].weights)
                yield reply

        return super().tell(ask, noted())


def watched(config: RunConfig) -> Watched:
    method = method_of(config)
    method.__class__ = Watched
    assert isinstance(method, Watched)
    return method


def test_the_event_tells_norms_and_their_median(tiny_pairs: dict[str, Any]) -> None:
    config = read(tiny_pairs)
    method = watched(config)
    event = run_round(config, method, LocalFleet(config), 0)
    norms = {row["client"]: row["update_norm"] for row in event["clients"]}
    assert norms == method.moved and all(norm > 0 for norm in norms.values())
    assert event["update_norm"] == sorted(norms.values())[1]


@pytest.mark.parametrize("clip", [0.5, 1.0])
def test_clipping_shortens_to_a_multiple_of_the_median(tiny_pairs: dict[str, Any], clip: float) -> None:
    config = read({**tiny_pairs, "merge.clip": clip})
    method = watched(config)
    event = run_round(config, method, LocalFleet(config), 0)
    for row in event["clients"]:
        wanted = min(row["update_norm"], clip * event["update_norm"])
        assert method.moved[row["client"]] == pytest.approx(wanted, rel=1e-3)
    assert any(row["update_norm"] > clip * event["update_norm"] for row in event["clients"])


def test_of_two_replies_the_rounds_before_tell_which_is_far_out(tiny_pairs: dict[str, Any]) -> None:
    config = read({**tiny_pairs, "data.clients": 2})
    fleet = Lying(LocalFleet(config), times(300.0), "client-01", rounds=[1])
    method = method_of(config)
    first = run_round(config, method, fleet, 0)
    event = run_round(config, method, fleet, 1, first["update_norm"])
    assert "times the cohort's median" in event["failures"][0]["reason"]
    assert event["failures"][0]["client"] == "client-01" and event["update_norm"] <= first["update_norm"]


def test_nobody_left_ends_with_the_reasons(tiny_pairs: dict[str, Any]) -> None:
    config = read({**tiny_pairs, "data.clients": 1})
    with pytest.raises(RunError, match=r"round 2: none of the 1 clients .* times the cohort's median"):
        run_round(config, method_of(config), Lying(LocalFleet(config), times(100.0), "client-00"), 1, 1e-4)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_that_goes_on_decides_as_if_it_had_not_stopped(tiny_pairs: dict[str, Any], stop: int) -> None:
    config = read({**tiny_pairs, "rounds": 4, "cohort": 2, "merge.clip": 0.7})
    whole, parts = method_of(config), method_of(config)
    events = list(rounds(config, whole, LocalFleet(config), 0))
    first = [event for _, event in zip(range(stop), rounds(config, parts, LocalFleet(config), 0), strict=False)]
    again = method_of(config)
    again.restore(State({n: t.clone() for n, t in parts.state().tensors.items()}, parts.state().data))
    second = list(rounds(config, again, LocalFleet(config), stop, first[-1]["update_norm"]))
    assert [e["update_norm"] for e in [*first, *second]] == [e["update_norm"] for e in events]
    assert [e["round"] for e in [*first, *second]] == [1, 2, 3, 4]
    assert same(whole.weights(), again.weights())


# -- directions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0.5, 1.0, 20.0])
def test_an_update_turned_around_is_refused_whatever_its_length(tiny_pairs: dict[str, Any], length: float) -> None:
    alike = {"method": "fedavg", "data.partition": "iid", "data.examples": 400, "train.epochs": 4, "train.lr": 0.05}
    config = read({**tiny_pairs, **alike, "merge.opposed": 0.05, "merge.clip": 1.0})
    without, wanted = one_round(config, absent)
    event, found = one_round(config, times(-length))
    (failure,) = event["failures"]
    assert failure["client"] == BAD and "its update points against the cohort's: cosine -0." in failure["reason"]
    assert same(found, wanted) and event["update_norm"] == without["update_norm"]


def test_replies_that_agree_are_merged_as_without_the_check(tiny_pairs: dict[str, Any]) -> None:
    found = [one_round(read({**tiny_pairs, **extra}), lambda r, o: [r]) for extra in ({}, {"merge.opposed": 0.9})]
    assert found[0][0]["failures"] == found[1][0]["failures"] == [] and same(found[0][1], found[1][1])


# -- memory --------------------------------------------------------------------------------------------------------


def held_bytes() -> int:
    """Bytes of all tensors alive, each storage once; those that an exporter only imagines do not count."""
    gc.collect()
    real = (torch.Tensor, torch.nn.Parameter)
    alive = [item.untyped_storage() for item in gc.get_objects() if type(item) in real and item.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in alive}.values())


@pytest.mark.parametrize("merge", [{}, {"merge.clip": 0.5}, {"merge.rule": "trimmed"}], ids=["mean", "clip", "trimmed"])
def test_memory_does_not_grow_with_the_number_of_replies(tiny_pairs: dict[str, Any], merge: dict[str, Any]) -> None:
    class Instant(Around):
        """Thirty clients that answer at once with their order, changed a little, in fresh memory."""

        held: list[int] = []

        def clients(self) -> list[ClientInfo]:
            return [ClientInfo(f"client-{i:02d}", 50) for i in range(30)]

        def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Answer]:
            for number, order in enumerate(orders.values()):
                if number in (10, 29):
                    self.held.append(held_bytes())
                yield answer(order, {name: tensor + 0.001 * (1 + number) for name, tensor in order.weights.items()})

    config = read({**tiny_pairs, **merge, "method": "superfednas"})
    method, fleet = method_of(config), Instant(LocalFleet(config))
    absorb, during = method._merge.add, list[int]()

    def watched(*reply: Any) -> None:
        if not during:
            during.append(held_bytes())
        absorb(*reply)

    method._merge.add = watched  # type: ignore[method-assign]
    size = sum(tensor.numel() * 4 for tensor in method.weights().values())
    before = held_bytes()
    run_round(config, method, fleet, 0)
    assert max(*fleet.held, *during) - before < 3 * size  # the sums of the mean are there before
    assert fleet.held[1] - fleet.held[0] < 0.1 * size


class Twice(SupernetAveraging):
    """Has its cohort train, and then train once more before the round is over."""

    def ask(self, round: int, turn: int, clients: Sequence[ClientInfo], rng: Any) -> Ask | None:
        if turn > 1:
            return None
        ask = super().ask(round, 0, clients, rng)
        assert ask is not None
        orders = [replace(order, seed=derive(order.seed, "turn", turn)) for order in ask.orders]
        return replace(ask, orders=tuple(orders))


def test_a_round_may_train_more_than_once(tiny_pairs: dict[str, Any]) -> None:
    """It is over when the method says so; its event tells of all that clients did."""
    config = read({**tiny_pairs, "method": "fedavg"})
    method, plain = method_of(config), method_of(config)
    method.__class__ = Twice
    event = run_round(config, method, LocalFleet(config), 0)
    once = run_round(config, plain, LocalFleet(config), 0)
    assert [row["client"] for row in event["clients"]] == sorted(2 * [row["client"] for row in once["clients"]])
    assert event["client_macs"] == 2 * once["client_macs"] and event["bytes_up"] == 2 * once["bytes_up"]
    assert event["loss"] < once["loss"] and event["failures"] == [] and event["round"] == 1
    assert not same(method.weights(), plain.weights())
