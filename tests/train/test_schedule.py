"""jaxvision.train.schedule against timm's schedulers and at points that can be computed by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import optax
import pytest
from golden import descent
from support.paths import TESTS

from jaxvision.errors import UserError
from jaxvision.train.schedule import as_schedule, make_schedule, schedule_function


def values(at: list[int], learning_rate: float = 2.0, **options: object) -> list[float]:
    schedule = make_schedule(learning_rate, **options)
    return [float(schedule(step)) for step in at]


@pytest.mark.parametrize("case", descent.SCHEDULES)
def test_rates_are_timms(case: str) -> None:
    """tests/golden/make_trajectories.py wrote timm's rates, which begin after the warm-up (``warmup_prefix``)."""
    theirs = json.loads((TESTS / "golden" / "trajectories.json").read_text(encoding="utf-8"))["schedules"][case]
    ours = values(list(range(len(theirs))), descent.PEAK, **descent.SCHEDULES[case])
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)


def test_warmup_rises_linearly_to_the_peak() -> None:
    for name in ("constant", "cosine", "linear", "step"):
        rise = values([0, 1, 5, 10], steps=110, warmup_steps=10, name=name)
        np.testing.assert_allclose(rise, [0, 0.2, 1.0, 2.0], rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(values([0, 5], steps=110, warmup_steps=10, warmup_from=0.1), [0.2, 1.1], rtol=1e-6)


def test_cosine() -> None:
    def by_hand(t: float) -> float:
        return 2 * (0.1 + 0.9 * (1 + math.cos(math.pi * t)) / 2)

    at = [10, 35, 60, 85, 110, 500]
    expected = [by_hand(t) for t in (0, 0.25, 0.5, 0.75, 1, 1)]
    np.testing.assert_allclose(values(at, steps=110, warmup_steps=10, end=0.1), expected, rtol=1e-6)


def test_linear() -> None:
    at = [0, 25, 50, 100, 200]
    np.testing.assert_allclose(values(at, steps=100, name="linear"), [2, 1.5, 1, 0, 0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(values(at, steps=100, name="linear", end=0.5), [2, 1.75, 1.5, 1, 1], rtol=1e-6)


def test_step() -> None:
    """90 epochs of 10 steps; the rate falls at 30, 60 and 80, warm-up or not."""
    at = [0, 299, 300, 599, 600, 799, 800, 899]
    np.testing.assert_allclose(
        values(at, steps=900, name="step"), [2, 2, 0.2, 0.2, 0.02, 0.02, 0.002, 0.002], rtol=1e-5
    )
    warm = values(at[1:], steps=900, name="step", warmup_steps=50)
    np.testing.assert_allclose(warm, [2, 0.2, 0.2, 0.02, 0.02, 0.002, 0.002], rtol=1e-5)
    np.testing.assert_allclose(
        values([49, 50], steps=100, name="step", milestones=[0.5], factor=0.25), [2, 0.5], rtol=1e-6
    )


def test_constant_and_a_run_that_is_all_warmup() -> None:
    assert values([0, 7, 1000], steps=10, name="constant") == [2, 2, 2]
    for name in ("constant", "cosine", "linear"):
        np.testing.assert_allclose(values([0, 5, 10], steps=10, warmup_steps=10, name=name), [0, 1, 2], rtol=1e-6)


def test_a_number_is_a_schedule() -> None:
    assert as_schedule(0.3)(10) == 0.3
    schedule = make_schedule(1.0, steps=10)
    assert as_schedule(schedule) is schedule


def polynomial(learning_rate: float, *, steps: int, power: float = 1.0, end: float = 0.0) -> optax.Schedule:
    return lambda step: learning_rate * (end + (1 - end) * (1 - step / steps) ** power)


def test_own_schedule_follows_the_warmup() -> None:
    own = {"steps": 110, "warmup_steps": 10, "name": polynomial, "power": 2.0}
    np.testing.assert_allclose(values([0, 5, 10, 60, 110], **own), [0, 1, 2, 2 * 0.5**2, 0], rtol=1e-6)
    np.testing.assert_allclose(values([10, 110], **own, end=0.25), [2, 0.5], rtol=1e-6)
    assert schedule_function("cosine") is None
    assert schedule_function(polynomial) is polynomial


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 10, "name": "cosin"}, "schedule.name: got 'cosin', expected a schedule. Did you mean 'cosine'"),
        ({"steps": 10, "warmup_steps": 11}, "schedule.warmup_steps: got 11, expected 0 to 10"),
        ({"steps": 0}, "got a run of 0 steps, expected 1 or more"),
        ({"steps": 90, "name": "step", "milestones": [30, 60, 80]}, "expected fractions of the run"),
        (
            {"steps": 10, "name": "step", "warmup_steps": 5, "milestones": [0.5]},
            "expected milestones after the 5 warm-up steps of 10",
        ),
        ({"steps": 10, "power": 2.0}, "make_schedule: got 'power', expected an argument"),
        ({"steps": 10, "name": polynomial, "pwer": 2.0}, "schedule.name: got an unexpected keyword argument 'pwer'"),
        ({"steps": 10, "name": "math:sqrt"}, r"schedule.name: got an unexpected keyword argument 'steps'.*\(x\)"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_schedule(0.1, **options)
