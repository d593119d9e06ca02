"""Learning rate schedules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optax

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.extend import call, check_returned, resolve

NAMES = ("constant", "cosine", "linear", "step")


def make_schedule(
    learning_rate: float,
    *,
    steps: int,
    name: str | Callable[..., optax.Schedule] = "cosine",
    warmup_steps: int = 0,
    warmup_from: float = 0.0,
    end: float = 0.0,
    milestones: Sequence[float] = (1 / 3, 2 / 3, 8 / 9),
    factor: float = 0.1,
    **options: Any,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    The rates are those of timm's schedulers with ``--sched-on-updates --warmup-prefix`` and with ``--epochs`` that
    leave out the warm-up: the rate changes with each step, and the shape starts at the end of the warm-up. By default
    timm changes the rate once per epoch and starts the shape at step 0, so the rate is already below the peak when the
    warm-up ends. ``"linear"`` is timm's ``poly`` of power 1. ``"step"`` is PyTorch's ``MultiStepLR``; timm's
    ``multistep`` lowers the rate one step earlier.

    Args:
      learning_rate: the peak, reached at the end of the warm-up.
      steps: number of steps of the run, including the warm-up.
      name: the shape after the warm-up: ``"cosine"`` (half a cosine) or ``"linear"`` decays to `end`, ``"step"``
        multiplies by `factor` at each milestone, ``"constant"`` stays at the peak. Or your own function, as a callable
        or as ``"package.module:function"``: it is called with `learning_rate` and, by keyword, with ``steps`` (those
        after the warm-up), with `options`, and with `end`, `milestones` and `factor` if it takes them. It returns an
        optax schedule that starts at step 0.
      warmup_steps: number of steps of the linear warm-up; 0 for none.
      warmup_from: learning rate at step 0 of the warm-up, as a fraction of `learning_rate`.
      end: learning rate at the last step of ``"cosine"`` and ``"linear"``, as a fraction of `learning_rate`.
      milestones: when ``"step"`` lowers the rate, as fractions of `steps`. The default is epochs 30, 60 and 80 of 90,
        the ResNet recipe.
      factor: what ``"step"`` multiplies the rate by at each milestone.
      **options: keyword arguments of your own function.

    Returns:
      An optax schedule. Steps count from 0. After `steps` the last value holds.

    Raises:
      UserError: `name` is unknown, or a number is out of range.

    Example:
      >>> rate = make_schedule(1e-3, steps=100, warmup_steps=10)
      >>> [round(float(rate(step)), 6) for step in (0, 5, 10, 55, 100)]
      [0.0, 0.0005, 0.001, 0.0005, 0.0]
    """
    if steps < 1:
        raise UserError(f"schedule: got a run of {steps} steps, expected 1 or more.")
    if not 0 <= warmup_steps <= steps:
        raise UserError(
            f"schedule.warmup_steps: got {warmup_steps}, expected 0 to {steps}, the steps of the run. Lower it, or "
            "raise train.epochs."
        )
    own = schedule_function(name)
    if options and own is None:
        builtin = [key for key in inspect.signature(make_schedule).parameters if key != "options"]
        raise unknown_name_error("make_schedule", min(options), builtin, expected="an argument")
    rest = steps - warmup_steps
    if own is not None:
        shared = {"end": end, "milestones": milestones, "factor": factor}
        options |= {key: shared[key] for key in shared.keys() & inspect.signature(own).parameters.keys()}
        main: optax.Schedule = call("schedule.name", own, learning_rate, steps=max(rest, 1), **options)
        check_returned("schedule.name", main, valid=callable(main), expected="a function of the step")
        first = main(0)
        check_returned("schedule.name", first, valid=_is_number(first), expected="a learning rate for each step")
    elif name == "step":
        main = _steps(learning_rate, steps=steps, warmup_steps=warmup_steps, milestones=milestones, factor=factor)
    elif name == "constant" or rest == 0:
        main = optax.constant_schedule(learning_rate)
    elif name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, rest, alpha=end)
    else:
        main = optax.linear_schedule(learning_rate, end * learning_rate, rest)
    if not warmup_steps:
        return main
    rise = optax.linear_schedule(warmup_from * learning_rate, learning_rate, warmup_steps)
    return optax.join_schedules([rise, main], [warmup_steps])


def schedule_function(name: str | Callable[..., optax.Schedule]) -> Callable[..., optax.Schedule] | None:
    """Returns the user's function that `name` refers to, or None for a built-in schedule.

    Args:
      name: as for `make_schedule`.

    Raises:
      UserError: no such schedule, module or function.

    Example:
      >>> schedule_function("cosine") is None
      True
    """
    if name in NAMES:
        return None
    return resolve("schedule.name", name, dict.fromkeys(NAMES), expected="a schedule")


def as_schedule(learning_rate: float | optax.Schedule) -> optax.Schedule:
    """Returns a schedule: `learning_rate` itself if it is one, else a constant.

    >>> as_schedule(0.1)(7)
    0.1
    """
    return learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | np.number) or getattr(x, "shape", None) == ()


def _steps(
    learning_rate: float, *, steps: int, warmup_steps: int, milestones: Sequence[float], factor: float
) -> optax.Schedule:
    if any(not 0 < m <= 1 for m in milestones):
        raise UserError(f"schedule.milestones: got {list(milestones)}, expected fractions of the run, in (0, 1].")
    # Milestones count from the start of the run, and the schedule that they are part of starts after the warm-up.
    at = [round(m * steps) - warmup_steps for m in milestones]
    if any(step <= 0 for step in at):
        raise UserError(
            f"schedule.milestones: got {list(milestones)}, expected milestones after the {warmup_steps} warm-up steps "
            f"of {steps}. Raise the first milestone, or lower schedule.warmup_steps."
        )
    return optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(at, factor))
