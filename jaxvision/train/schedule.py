"""The learning rate of each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import optax

from jaxvision.errors import UserError, unknown_name_error

NAMES = ("constant", "cosine", "linear", "step")


def make_schedule(
    learning_rate: float,
    *,
    steps: int,
    name: str = "cosine",
    warmup_steps: int = 0,
    warmup_from: float = 0.0,
    end: float = 0.0,
    milestones: Sequence[float] = (1 / 3, 2 / 3, 8 / 9),
    factor: float = 0.1,
) -> optax.Schedule:
    """Returns the function step -> learning rate.

    Args:
      learning_rate: the highest rate, reached when the warm-up is over.
      steps: length of the run, warm-up included. Epochs are turned into steps by the caller, who knows the data.
      name: what follows the warm-up: ``"cosine"`` (half a cosine) or ``"linear"`` down to `end`, ``"step"`` (times
        `factor` at each milestone), or ``"constant"``.
      warmup_steps: length of the linear rise at the beginning; 0 for none.
      warmup_from: where the rise begins, as a fraction of `learning_rate`.
      end: where cosine and linear arrive at `steps`, as a fraction of `learning_rate`.
      milestones: for ``"step"``: when the rate falls, as fractions of `steps`. The default is epochs 30, 60 and 80 of
        90, the classic ResNet recipe.
      factor: for ``"step"``: what the rate is multiplied by at each milestone.

    Returns:
      An optax schedule. Steps count from 0; past `steps` the last value holds.

    Raises:
      UserError: unknown name, or numbers that do not make a schedule.

    Example:
      >>> rate = make_schedule(1e-3, steps=100, warmup_steps=10)
      >>> [round(float(rate(step)), 6) for step in (0, 5, 10, 55, 100)]
      [0.0, 0.0005, 0.001, 0.0005, 0.0]
    """
    if name not in NAMES:
        raise unknown_name_error("schedule", name, NAMES)
    if steps < 1 or not 0 <= warmup_steps <= steps:
        raise UserError(f"schedule: a warm-up of {warmup_steps} steps does not fit into a run of {steps}")
    if any(not 0 < m <= 1 for m in milestones):
        raise UserError(f"schedule: milestones are fractions of the run, in (0, 1]; got {list(milestones)}")
    rest = steps - warmup_steps
    if name == "constant" or (rest == 0 and name != "step"):
        main: optax.Schedule = optax.constant_schedule(learning_rate)
    elif name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, rest, alpha=end)
    elif name == "linear":
        main = optax.linear_schedule(learning_rate, end * learning_rate, rest)
    else:
        # Milestones count from the beginning of the run; the schedule that they are part of starts after the warm-up.
        at = [round(m * steps) - warmup_steps for m in milestones]
        if any(step <= 0 for step in at):
            raise UserError(f"schedule: a milestone of {list(milestones)} lies within the {warmup_steps} warm-up steps")
        main = optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(at, factor))
    if not warmup_steps:
        return main
    rise = optax.linear_schedule(warmup_from * learning_rate, learning_rate, warmup_steps)
    return optax.join_schedules([rise, main], [warmup_steps])


def as_schedule(learning_rate: float | Callable[[int], float]) -> optax.Schedule:
    """Returns a schedule for a schedule or for a number, which it gives at every step.

    >>> as_schedule(0.1)(7)
    0.1
    """
    return learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)
