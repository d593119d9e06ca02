"""Arrays that are computed once on a CPU, instead of in every loop that reads them.

XLA's CPU backend fuses a cheap operation into each of its consumers. In the backward pass of a residual network the
gradient of the stream is a sum over all later blocks, and each weight gradient adds them up again, so that run time and
compile time grow with the square of the depth. `jax.lax.optimization_barrier` does not help, because the backend
removes it before it fuses. A call to a function that may not be inlined does.

Needed with JAX 0.10 to 0.12. To check a later version, run ``benchmarks/train.py`` with and without
``JAXVISION_PLAIN=1``.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from jaxvision.platform import by_platform


def materialize(tree: Any) -> Any:
    """Returns a pytree of arrays. A CPU writes them to memory before anything reads them.

    >>> materialize([jax.numpy.ones(2)])
    [Array([1., 1.], dtype=float32)]
    """
    return by_platform(tree, cpu=_call, default=_identity)


@jax.custom_jvp
def materialize_gradient(x: jax.Array) -> jax.Array:
    """Returns `x`, whose gradient a CPU writes to memory before anything reads it.

    >>> float(jax.grad(lambda x: materialize_gradient(x) ** 2)(3.0))
    6.0
    """
    return x


@materialize_gradient.defjvp
def _materialize_gradient_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return primals[0], materialize(tangents[0])


def _identity(x: Any) -> Any:
    return x


def _call(x: Any) -> Any:
    with set_xla_metadata(inlineable="false"):
        # The barrier keeps the call: JAX drops a jitted function that only returns its argument.
        return jax.jit(jax.lax.optimization_barrier)(x)
