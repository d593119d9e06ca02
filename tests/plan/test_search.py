"""Which meshes are compared, which is best, and the search for the largest batch."""

from __future__ import annotations

import math

import pytest
from support.plans import grid, make_plan

from jaxvision import plan


def test_candidate_meshes() -> None:
    three = [({"data": -1}, False), ({"data": -1}, True), ({"data": 1, "fsdp": -1}, False)]
    assert plan.candidate_meshes(grid(2, 4)) == three
    assert plan.candidate_meshes(grid(16, 16)) == [*three, ({"data": 16, "fsdp": 16}, False)]


def test_best_plan_is_the_fastest_that_fits() -> None:
    slow, fast = make_plan(bytes_accessed=200.0), make_plan()
    large = make_plan(bytes={"parameters": 101}, bytes_accessed=1.0)
    assert plan.choose_best([slow, large, fast]) is fast
    # Both take 3 s if communication overlaps with computation; otherwise one takes longer.
    assert plan.choose_best([make_plan(bytes_accessed=150.0), fast]) is fast
    assert plan.choose_best([large, make_plan(bytes={"parameters": 200})]) is large


@pytest.mark.parametrize("start", [1, 8, 16, 64, 500, 4096])
@pytest.mark.parametrize("limit", [1000, 5000, 90])
@pytest.mark.parametrize("refuses", [False, True])
def test_search_finds_the_largest_batch(start: int, limit: int, refuses: bool) -> None:
    """Memory is a line with a bend. The compiler may or may not say how much a program that is too large needs."""
    tried = []

    def used(batch: int) -> float:
        tried.append(batch)
        n = 50 + 7 * batch + max(batch - 60, 0) * 2
        return math.inf if refuses and n > limit else n

    found = plan.largest_batch(used, limit, start, empty=45, tries=16)
    exact = max(b for b in range(1000) if 50 + 7 * b + max(b - 60, 0) * 2 <= limit)
    assert found == (exact // 8 * 8 if exact >= 16 else exact)
    assert len(tried) == len(set(tried)) <= (16 if refuses else 6)


@pytest.mark.parametrize("start", [1, 8, 16, 64, 256])
@pytest.mark.parametrize("constant", [200, 500, 900, 990])
@pytest.mark.parametrize("empty", [60, 50, 0])
def test_search_passes_over_small_batches_of_equal_memory(start: int, constant: int, empty: int) -> None:
    """The gradients need the same memory with any batch. The activations exceed it only in larger batches."""
    tried = []

    def used(batch: int) -> float:
        tried.append(batch)
        return max(constant, 60 + 2 * batch)

    assert plan.largest_batch(used, 1000, start, empty=empty) == 464  # (1000 - 60) / 2 = 470
    assert len(tried) == len(set(tried)) <= 7


def test_search_begins_with_a_batch_of_one() -> None:
    assert plan.largest_batch(lambda batch: max(109, 45.6 + 0.014 * batch), 170, 1, empty=44.3) > 4000  # of 8,885


@pytest.mark.parametrize("empty", [50, 120])
def test_search_if_the_batch_takes_no_memory_beyond_the_state(empty: int) -> None:
    """The estimate without a batch is then as large as the memory of the first one, or larger."""
    assert plan.largest_batch(lambda batch: 50.0, 1000, 16, empty=empty) > 1000


def test_search_stops() -> None:
    tried: list[int] = []
    assert plan.largest_batch(lambda batch: tried.append(batch) or (10 if batch < 24 else math.inf), 20, 17) == 17
    assert tried == [17, 32, 24]  # the next multiple of 8, 16, is known to fit
    tried.clear()
    assert plan.largest_batch(lambda batch: tried.append(batch) or math.inf, 10, 1000, tries=4) == 0
    assert len(tried) == 4
    assert plan.largest_batch(lambda batch: 20, 10, 1) == 0
