"""The clock of a run: how it divides the time among training, data, compilation and evaluation."""

from __future__ import annotations

import contextlib

from jaxvision.report import Clock


def test_the_clock_divides_the_time() -> None:
    now = [0.0]
    clock = Clock(now=lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    with clock.phase("compile"):
        spend(20)
    for _ in range(4):
        with clock.phase("data wait"):
            spend(1)
        spend(3)  # the step itself
        clock.step(images=8)
    with clock.phase("evaluation"), clock.phase("data wait"):  # the inner phase counts as the outer one
        spend(5)
    assert clock.lap() == {"images_per_second": 32 / 16, "data_wait": 4 / 16, "step_seconds": 4.0}
    assert clock.lap() == {}
    with contextlib.suppress(RuntimeError), clock.phase("checkpoint"):
        spend(2)
        raise RuntimeError
    timing = clock.timing()
    assert timing.seconds == {"steps": 12, "compile": 20, "data wait": 4, "evaluation": 5, "checkpoint": 2}
    assert timing.total == 43
    assert timing.images_per_second == 2.0
    assert timing.data_wait == 0.25
    assert timing.step_seconds == 4.0


def test_the_clock_of_an_evaluation_without_training() -> None:
    now = [0.0]
    clock = Clock(now=lambda: now[0])
    with clock.phase("evaluation"):
        now[0] += 3
    timing = clock.timing()
    assert timing.seconds == {"evaluation": 3.0}
    assert timing.images_per_second is timing.data_wait is timing.step_seconds is None
