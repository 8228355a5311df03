from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas_core.base import errors
from fednas_core.base.errors import ArchError, FednasError, MissingExtraError
from fednas_core.base.seeding import derive, stream
from fednas_core.base.values import Arch, Cost, State, region_shape
from fednas_core.devices.info import ClientInfo, Profile
from fednas_core.exchange.orders import Failure
from fednas_core.methods.method import Told
from fednas_core.training.settings import TrainSettings

parts = st.lists(st.one_of(st.integers(), st.text()), max_size=4)


# -- seeding -------------------------------------------------------------------------------------------------------


def test_seeds_do_not_depend_on_platform_or_process() -> None:
    assert derive(1, 2, "client-00", "train") == 6962712894883694030  # SHA-256 of '1/int:2/str:client-00/str:train'
    assert derive(0) == derive(0)


@given(seed=st.integers(0, 2**63), path=parts)
def test_seeds_are_stable_and_of_63_bits(seed: int, path: list[str | int]) -> None:
    value = derive(seed, *path)
    assert value == derive(seed, *path) and 0 <= value < 2**63


@given(st.integers(0, 99), parts, st.integers(0, 99), parts)
def test_other_paths_give_other_seeds(a: int, one: list[str | int], b: int, two: list[str | int]) -> None:
    if (a, one) != (b, two) and not any("/" in part for part in [*one, *two] if isinstance(part, str)):
        assert derive(a, *one) != derive(b, *two)


def test_a_number_and_its_text_name_different_streams() -> None:
    assert derive(1, 2) != derive(1, "2")


def test_streams_are_independent_of_order_of_use() -> None:
    first = stream(7, 3, "a").integers(0, 1000, 5).tolist()
    stream(7, 3, "b").integers(0, 1000, 5)
    assert stream(7, 3, "a").integers(0, 1000, 5).tolist() == first
    assert stream(7, 4, "a").integers(0, 1000, 5).tolist() != first


# -- values --------------------------------------------------------------------------------------------------------

ARCH = Arch((("d", (0, 1)), ("e", (0.5, 1.0))))


def test_an_architecture_is_a_hashable_value() -> None:
    assert Arch((("d", (0, 1)), ("e", (0.5, 1.0)))) == ARCH and len({ARCH, ARCH}) == 1
    assert ARCH["e"] == (0.5, 1.0) and ARCH.to_json() == {"d": [0, 1], "e": [0.5, 1.0]}
    assert str(ARCH) == '{"d":[0,1],"e":[0.5,1.0]}'
    with pytest.raises(AttributeError):
        ARCH.genes = ()  # type: ignore[misc]
    with pytest.raises(ArchError, match="no gene 'w'; it has d, e"):
        ARCH["w"]


def test_cost_and_region() -> None:
    assert Cost(3, 2, 8).to_json() == {"macs": 3, "params": 2, "bytes": 8}
    assert region_shape((slice(0, 3), slice(2, 7))) == (3, 5) and region_shape(()) == ()


def test_the_values_of_the_protocol_are_frozen() -> None:
    for value in (
        Profile(2, 1000, "fp32", 1e9, 1.0), ClientInfo("c", 3), TrainSettings(), Failure("c", "why"),
        Told(), State({}),
    ):  # fmt: skip
        name = next(iter(type(value).__dataclass_fields__))
        with pytest.raises(AttributeError):
            setattr(value, name, None)


# -- errors --------------------------------------------------------------------------------------------------------


def test_every_error_is_one_that_is_shown_without_traceback() -> None:
    kinds = [
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert len(kinds) >= 9 and all(issubclass(kind, FednasError) and kind.__doc__ for kind in kinds)


def test_a_missing_extra_says_how_to_get_it() -> None:
    error = MissingExtraError("pymoo", "search", "evolutionary search")
    assert str(error) == "evolutionary search needs the package 'pymoo': install it with  pip install 'fednas[search]'"
