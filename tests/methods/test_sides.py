from __future__ import annotations

import json
from dataclasses import replace

import pytest
from contracts.arena import crowd, judged
from contracts.chains import toy_chain
from contracts.samples import with_result
from hypothesis import given
from hypothesis import strategies as st

from fednas_core.base.values import Arch
from fednas_core.devices.info import ClientInfo
from fednas_core.methods.method import request
from fednas_core.methods.sides import Sides, able

SPACE = toy_chain()


def sides(*names: str, every: int = 5) -> Sides:
    found = Sides(every)
    found.meet([ClientInfo(name, 10) for name in names])
    return found


def told(found: Sides) -> tuple[set[str], set[str]]:
    names = found.state()["tests"]
    return {name for name in names if found.trains(name)}, {name for name in names if found.tests(name)}


def test_every_fifth_client_tests_and_never_trains() -> None:
    found = Sides(5)
    found.meet(crowd(20))
    training, testing = told(found)
    assert testing == {"client-004", "client-009", "client-014", "client-019"}
    assert training == {client.name for client in crowd(20)} - testing


@given(count=st.integers(2, 40), every=st.integers(2, 50))
def test_of_two_clients_or_more_some_train_others_test(count: int, every: int) -> None:
    found = Sides(every)
    found.meet(crowd(count))
    training, testing = told(found)
    assert training and testing and not training & testing and len(training | testing) == count
    assert len(testing) == max(1, count // every)


def test_a_client_alone_does_both_until_another_comes() -> None:
    for first in ("client-00", "client-04"):
        found = sides(first)
        assert told(found) == ({first}, {first})
        found.meet([ClientInfo(first, 10), ClientInfo("client-01", 10)])
        training, testing = told(found)
        assert len(training) == len(testing) == 1 and not training & testing


def test_the_side_does_not_depend_on_who_is_there() -> None:
    found = sides("client-03", "client-04", "client-11")
    found.meet([ClientInfo(f"client-{i:02d}", 10) for i in (0, 9)])
    assert told(found) == ({"client-00", "client-03", "client-11"}, {"client-04", "client-09"})
    found.meet([ClientInfo("client-09", 10)])
    assert "client-04" in told(found)[1]


def test_names_without_a_number_count_in_order_of_appearance() -> None:
    found = sides("ward-a", "ward-b", "ward-c", every=2)
    assert told(found) == ({"ward-a", "ward-c"}, {"ward-b"})
    found.meet([ClientInfo("ward-d", 10)])
    assert "ward-d" in told(found)[1]


def test_the_taught_are_those_who_said_so_until_they_fail_to_answer() -> None:
    found = sides("client-00", "client-01", "client-02")
    assert not found.somebody_taught
    reports = [judged(request(1, f"client-0{i}", "teach", SPACE.largest), 0.0) for i in (0, 1)]
    found.learn([*reports, judged(request(1, "client-02", "trial", SPACE.largest), 0.5)])
    assert [found.taught(f"client-0{i}") for i in range(3)] == [True, True, False]
    found.missed(["client-01", "client-02"])
    assert [found.taught(f"client-0{i}") for i in range(3)] == [True, False, False] and found.somebody_taught


def test_results_are_by_network_and_weighed_by_what_the_server_knows() -> None:
    archs, found = (SPACE.largest, SPACE.smallest), Sides(5)
    found.meet([ClientInfo("client-00", 10), ClientInfo("client-01", 20), ClientInfo("client-04", 5000)])
    labels = {archs[0]: "1.1", archs[1]: "1.2"}
    first = judged(request(1, "client-04", "trial", archs[0]), 0.25)
    boast = with_result(first, tested=10**12)
    other = judged(request(1, "client-00", "trial", archs[1]), 0.5)
    kept = judged(request(1, "client-00", "teach", archs[1]), 0.9)
    results = found.results([boast, other, kept], labels)
    assert results == {"1.1": {"client-04": (200, 0.25)}, "1.2": {"client-00": (10, 0.5)}}  # ten times the median
    assert found.results([first], {archs[1]: "1.2"}) == {"1.2": {}}


def test_the_state_is_json_and_goes_on() -> None:
    one, two = sides("client-00", "client-04", "client-05"), Sides(5)
    one.learn([judged(request(1, "client-00", "teach", SPACE.largest), 0.0)])
    state = json.loads(json.dumps(one.state()))
    two.restore(state)
    assert two.state() == state and told(one) == told(two) and two.taught("client-00")
    two.meet([ClientInfo("client-09", 3)])
    assert one.state() == state != two.state()


def test_able_is_what_the_limit_allows() -> None:
    class Only:
        def allows(self, arch: Arch) -> bool:
            return arch == SPACE.smallest

    client = ClientInfo("client-00", 10)
    assert able(client, SPACE.largest)
    limited = replace(client, limit=Only())
    assert [able(limited, arch) for arch in (SPACE.largest, SPACE.smallest)] == [False, True]


def test_an_unknown_client_is_a_bug_of_the_caller() -> None:
    with pytest.raises(KeyError):
        Sides(5).trains("client-00")


@pytest.mark.parametrize("names", [["client-04"], ["client-04", "client-09"]])
def test_whoever_has_trained_never_tests_alone_when_others_come(names: list[str]) -> None:
    """Numbers that would all test: one trains, and goes on training."""
    found = sides(*names)
    trained = told(found)[0]
    found.meet([ClientInfo(f"client-{i:02d}", 10) for i in range(6)])
    training, testing = told(found)
    assert trained == {"client-04"} <= training and testing and not training & testing


def test_sides_that_were_settled_before_hold() -> None:
    found = Sides(5, {"ward-b": True, "client-04": False})
    found.meet([ClientInfo(name, 10) for name in ("ward-a", "ward-b", "client-04", "client-09")])
    assert told(found)[1] == {"ward-b", "client-09"}


def test_who_never_trains_counts_with_all_its_images() -> None:
    found = Sides(5)
    found.meet([ClientInfo(f"client-{i:02d}", 8, held_out=2) for i in (0, 1, 4)])
    reports = [judged(request(1, f"client-{i:02d}", "trial", SPACE.largest), 0.5) for i in (0, 4)]
    assert found.results(reports, {SPACE.largest: "1.1"}) == {"1.1": {"client-00": (2, 0.5), "client-04": (10, 0.5)}}
