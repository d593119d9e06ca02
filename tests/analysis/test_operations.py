"""The operations of convolutions and their gradients, counted by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxvision.analysis.cost import operations


def test_operations_of_convolutions() -> None:
    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((0, 0), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).sum()

    shapes = jnp.ones((2, 2, 3, 5)), jnp.ones((4, 8, 8, 3))
    forward = 2 * (4 * 4 * 4 * 5) * (2 * 2 * 3)
    assert operations(jax.make_jaxpr(loss)(*shapes).jaxpr) == forward
    # The zeros between strided values in the image's gradient do not count as operations.
    assert operations(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(*shapes).jaxpr) == pytest.approx(
        3 * forward, rel=0.2
    )
