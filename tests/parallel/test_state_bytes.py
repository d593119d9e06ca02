"""The bytes of a training state on one device, counted by hand."""

from __future__ import annotations

import optax
from support import tiny

from jaxvision.parallel.mesh import make_mesh
from jaxvision.parallel.rules import largest_axis, state_bytes, state_shardings


def test_state_bytes_by_hand() -> None:
    made = tiny.Run(tiny.build(dropout=0.1), optax.adam(0.1), create={"ema_decay": 0.9})
    parameters = 3 * 3 * 3 * 8 + (8 + 8) + (8 * 4 + 4)  # convolution; norm; classifier
    counts = 4 + 4  # Adam's counter and the step counter
    expected = {
        "parameters": 4 * parameters,
        "statistics": 4 * 16,
        "optimizer": 4 * 2 * parameters + counts,
        "ema": 4 * (parameters + 16),
    }
    found = state_bytes(made.abstract, made.shardings)
    assert {kind: found[kind] for kind in expected} == expected
    assert 0 < found["other"] <= 48  # dropout's key and counter

    # Each of 8 devices holds an eighth of the leaves that have a size divisible by 8.
    mesh = make_mesh({"fsdp": 8})
    split = state_shardings(made.abstract, mesh, ((r".*", largest_axis("fsdp", mesh, min_size=1)),))
    parameters = (216 + 16 + 32) // 8 + 4
    found = state_bytes(made.abstract, split)
    assert found["parameters"] == 4 * parameters
    assert found["optimizer"] == 4 * 2 * parameters + counts
    assert found["ema"] == 4 * (parameters + 16 // 8)
