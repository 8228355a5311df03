from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contracts.mobile import toy_mobile
from contracts.samples import toy_space

from fednas_core.base.errors import ConfigError
from fednas_core.devices.budgets import Allowance, Budget
from fednas_core.search.shrinking import Curriculum, parse_order, places

MOBILE = toy_mobile()
"""Genes d (2 entries), e and k (4 each), r, w (2): 2 choices each, but 3 kernels in the second stage."""


def floors(curriculum: Curriculum, gene: str) -> list[tuple[int, ...]]:
    """The floor of a gene's entries whenever it changes, over the rounds."""
    rows = [tuple(curriculum.floor(round)[places(curriculum.space)[gene]]) for round in range(curriculum.closed + 1)]
    return [row for i, row in enumerate(rows) if i == 0 or row != rows[i - 1]]


def test_where_genes_are() -> None:
    found = places(MOBILE)
    assert list(found) == ["d", "e", "k", "r", "w"]
    assert [part.stop - part.start for part in found.values()] == [2, 4, 4, 1, 2]
    for space in (MOBILE, toy_space()):
        row = space.encode(space.largest)
        assert sum(part.stop - part.start for part in places(space).values()) == len(row) == len(space.gene_choices)


def test_genes_open_one_after_the_other_from_the_largest_choice_down() -> None:
    space = toy_space(widths=(0.5, 1.0, 1.5), expansions=(0.25, 0.5, 1.0), extra_blocks=2)
    curriculum = Curriculum(space, ("d", "e"), 8)
    assert floors(curriculum, "d") == [(2, 2), (1, 1), (0, 0)]
    assert floors(curriculum, "e") == [(2,) * 6, (1,) * 6, (0,) * 6]
    phases = [int(curriculum.floor(round)[[0, 2]] @ [1, 1]) for round in range(10)]
    assert phases == [4, 4, 3, 3, 2, 2, 1, 1, 0, 0], "four phases share eight rounds, then all is open"
    assert floors(curriculum, "w") == [(0, 0, 0)], "a gene that is not named is elastic from the start"


def test_kernels_and_resolution_open_at_once() -> None:
    curriculum = Curriculum(MOBILE, ("k", "r", "d"), 6)
    assert floors(curriculum, "k") == [(1, 1, 2, 2), (0, 0, 0, 0)]
    assert floors(curriculum, "r") == [(1,), (0,)]
    assert [round for round in range(8) if curriculum.opening(round)] == [2, 4, 6]
    assert floors(Curriculum(MOBILE, ("w", "k"), 8), "k")[0] == (1, 1, 2, 2)


def test_a_gene_starts_once_however_many_phases_it_takes() -> None:
    space = toy_space(expansions=(0.25, 0.5, 1.0), extra_blocks=2)
    curriculum = Curriculum(space, ("e", "d"), 40)
    assert [round for round in range(60) if curriculum.opening(round)] == [10, 30]


@pytest.mark.parametrize("closed", [5, 6, 11, 500])
def test_the_first_round_is_closed_and_that_after_the_closed_ones_is_open(closed: int) -> None:
    curriculum = Curriculum(MOBILE, ("k", "d", "e", "w", "r"), closed)
    assert (curriculum.floor(0) == MOBILE.gene_choices - 1).all()
    rows = [curriculum.floor(round) for round in range(closed + 3)]
    assert all((a >= b).all() for a, b in zip(rows, rows[1:], strict=False)), "what was open is closed again"
    assert len({tuple(row) for row in rows}) == curriculum.phases == 6, "each phase has a round"
    assert [curriculum.complete(round) for round in range(closed + 3)] == [False] * closed + [True] * 3


def test_without_an_order_nothing_changes() -> None:
    curriculum = Curriculum(MOBILE, parse_order(""), 10)
    assert not any(curriculum.floor(round).any() or curriculum.opening(round) for round in range(12))
    arch = MOBILE.sample(np.random.default_rng(1))
    assert curriculum.raised(arch, 0) == arch


def test_raised_is_the_floor_or_what_the_limit_allows() -> None:
    curriculum = Curriculum(MOBILE, ("k", "d"), 6)
    smallest, k = MOBILE.smallest, places(MOBILE)["k"]
    first = curriculum.raised(smallest, 0)
    assert first["d"] == (1, 1) and first["k"] == (1, 1, 2, 2) and first["w"] == (0, 0)
    assert (MOBILE.encode(curriculum.raised(smallest, 3))[k] == 0).all()
    assert curriculum.raised(smallest, 8) == smallest
    assert curriculum.raised(MOBILE.largest, 0) == MOBILE.largest
    narrow = Allowance(Budget("d", params=MOBILE.cost(smallest).params), MOBILE)
    wide = Allowance(Budget("d", params=MOBILE.cost(first).params), MOBILE)
    assert curriculum.raised(smallest, 0, narrow) == smallest and curriculum.raised(smallest, 0, wide) == first


def test_parsing() -> None:
    assert parse_order("k,d,e") == parse_order(" k , d,e ") == ("k", "d", "e")
    assert parse_order("") == parse_order("  ") == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [("x", "'x' is none of space 'toy'"), ("k,,d", "'' is none of"), ("k,d,k", "'k' is named twice")],
)
def test_genes_that_are_none_are_refused(text: str, found: str) -> None:
    with pytest.raises(ConfigError, match=rf"setting 'sample.shrink' = .*: gene {found}.*allowed are d, e, k, r, w"):
        Curriculum(MOBILE, parse_order(text), 10)


def test_a_resnet_has_no_kernels() -> None:
    with pytest.raises(ConfigError, match="gene 'k' is none of space 'toy', allowed are d, e, w"):
        Curriculum(toy_space(), ("k",), 10)


@pytest.mark.parametrize("space", [toy_space(), MOBILE], ids=["resnet", "mobile"])
def test_what_was_raised_lies_above_the_floor(space: Any) -> None:
    curriculum = Curriculum(space, ("d", "w"), 30)
    rng = np.random.default_rng(0)
    for round in range(0, 30, 3):
        arch = space.sample(rng)
        raised = curriculum.raised(arch, round)
        assert (space.encode(raised) >= curriculum.floor(round)).all()
        assert space.cost(raised).macs >= space.cost(arch).macs
