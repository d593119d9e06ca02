"""Several implementations of the same arithmetic, for different platforms; the choice is made at compilation.

XLA's CPU backend lacks fast kernels and heuristics that its other backends have, and GPUs have kernels of NVIDIA's that
XLA does not choose by itself. With ``JAXVISION_PLAIN=1`` in the environment when jaxvision is imported, every platform
uses the default implementation: use it to check whether a special one causes a wrong result.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

_PLAIN = os.environ.get("JAXVISION_PLAIN", "0") not in ("", "0")

# Parts of the keys of JAX's caches, so that what was traced for one platform or mesh is not reused for another.
_platform = jax.make_user_context(default_value=None)
_batch_parts = jax.make_user_context(default_value=1)


def by_platform(
    *args: Any,
    default: Callable[..., Any],
    cpu: Callable[..., Any] | None = None,
    gpu: Callable[..., Any] | None = None,
) -> Any:
    """Returns ``cpu(*args)`` on a CPU, and ``default(*args)`` on other platforms.

    XLA chooses when it compiles, so one exported program holds the right implementation for every platform. Within
    `compiled_for`, the choice is made while tracing, and ``gpu(*args)`` is the one for NVIDIA GPUs from the Ampere
    generation on. Outside it `gpu` is not used: NVIDIA's kernels have no forward mode, and a program that calls them
    cannot be exported.

    >>> int(by_platform(1, cpu=lambda x: x + 1, default=lambda x: x + 1))
    2
    """
    known = "plain" if _PLAIN else _platform.value
    if known is None:
        return default(*args) if cpu is None else jax.lax.platform_dependent(*args, cpu=cpu, default=default)
    return ({"cpu": cpu, "gpu": gpu}.get(known) or default)(*args)


@contextlib.contextmanager
def compiled_for(target: Mesh | str) -> Iterator[None]:
    """Returns a context that traces for one platform.

    `by_platform` keeps the implementation for it only. Without the context, the other implementations stay in the
    program until XLA selects one, and tracing takes longer. Under rematerialization it also costs memory: the backward
    pass keeps zeros in place of the intermediate values of the implementations that are not selected, and these buffers
    are not shared.

    Args:
      target: the mesh that the program is for; or, for a program on one device, ``"cpu"``, ``"tpu"``, or ``"gpu"`` for
        an NVIDIA GPU from the Ampere generation on.

    >>> with compiled_for("tpu"):
    ...     by_platform(1, cpu=lambda x: x + 1, default=lambda x: x + 2)
    3
    """
    if isinstance(target, str):
        platform, parts = target, 1
    else:
        platform = _platform_of(target.devices.flat[0])
        parts = math.prod(size for axis, size in target.shape.items() if axis != "tensor")
    with _platform(platform), _batch_parts(parts):
        yield


def batch_parts() -> int:
    """Returns the number of parts into which the mesh given to `compiled_for` splits a batch; 1 outside it.

    >>> batch_parts()
    1
    """
    return _batch_parts.value


def _platform_of(device: jax.Device) -> str:
    if device.platform != "gpu":
        return device.platform
    capability = str(getattr(device, "compute_capability", ""))  # of an AMD GPU such as gfx90a
    is_recent = capability.split(".")[0].isdecimal() and float(capability) >= 8
    return "gpu" if is_recent else "other gpu"
