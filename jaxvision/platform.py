"""Several implementations of the same arithmetic, for different platforms; the choice is made at compilation.

XLA's CPU backend lacks fast kernels and heuristics that its other backends have, and GPUs have kernels of NVIDIA's that
XLA does not choose by itself. With ``JAXVISION_PLAIN=1`` in the environment when jaxvision is imported, every platform
uses the default implementation: use it to check whether a special one causes a wrong result.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax

_PLAIN = os.environ.get("JAXVISION_PLAIN", "0") not in ("", "0")

# A part of the keys of JAX's caches, so that what was traced for one platform is not reused for another.
_platform = jax.make_user_context(default_value=None)


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


def compiled_for(device: jax.Device | str) -> contextlib.AbstractContextManager[Any]:
    """Returns a context that traces for one platform.

    `by_platform` keeps the implementation for it only. Without the context, the other implementations stay in the
    program until XLA selects one, and tracing takes longer. Under rematerialization it also costs memory: the backward
    pass keeps zeros in place of the intermediate values of the implementations that are not selected, and these buffers
    are not shared.

    Args:
      device: one of the devices that the program is for; or ``"cpu"``, ``"tpu"`` or, for an NVIDIA GPU from the Ampere
        generation on, ``"gpu"``.

    >>> with compiled_for("tpu"):
    ...     by_platform(1, cpu=lambda x: x + 1, default=lambda x: x + 2)
    3
    """
    return _platform(device if isinstance(device, str) else _platform_of(device))


def _platform_of(device: jax.Device) -> str:
    if device.platform != "gpu":
        return device.platform
    capability = str(getattr(device, "compute_capability", ""))  # of an AMD GPU such as gfx90a
    is_recent = capability.split(".")[0].isdecimal() and float(capability) >= 8
    return "gpu" if is_recent else "other gpu"
