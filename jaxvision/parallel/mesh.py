"""The device mesh, and the layout of batches over it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvision.errors import UserError, count

#: Names of the mesh axes. The devices along ``tensor`` share the work on the same images.
AXES = ("data", "fsdp", "tensor")
#: Axes over which a batch is split: the devices along them see different images.
BATCH_AXES = ("data", "fsdp")
#: Images per step on each device outside training, unless another number is given.
IMAGES_PER_DEVICE = 32


def make_mesh(axes: Mapping[str, int] | None = None, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of all devices of all processes.

    With several TPU slices or GPU nodes, the first axis that their number divides lies across them, and the other axes
    lie within each. Put the axis that communicates least first, which is ``data``.

    Args:
      axes: axis name -> number of devices along it. One may be -1: all devices that the others leave. None is
        ``{"data": -1}``, plain data parallelism.
      devices: the devices to use. Default: all.

    Raises:
      UserError: the sizes do not multiply to the number of devices, two are -1, or no axis can lie across the slices.

    Example:
      >>> mesh = make_mesh({"data": -1, "tensor": 1})
      >>> mesh.axis_names, mesh.size == jax.device_count()
      (('data', 'tensor'), True)
    """
    axes = dict(axes or {"data": -1})
    devices = jax.devices() if devices is None else list(devices)
    requested = ", ".join(f"{name}={size}" for name, size in axes.items())
    if any(size < 1 and size != -1 for size in axes.values()) or list(axes.values()).count(-1) > 1:
        raise UserError(
            f"mesh: got {requested}, expected sizes of 1 or more, of which at most one is -1 (the remainder)."
        )
    known = math.prod(size for size in axes.values() if size != -1)
    if len(devices) % known or (-1 not in axes.values() and known != len(devices)):
        raise UserError(
            f"mesh: {requested} does not tile {count(len(devices), 'device')}. Set one axis to -1, "
            "which takes the devices that the others leave."
        )
    sizes = [len(devices) // known if size == -1 else size for size in axes.values()]
    # Auto axes, although Explicit is JAX's default: the compiler propagates shardings through the models, so that the
    # models read as if written for one device. With Explicit axes every layer would have to pass an out_sharding to
    # each contraction over a sharded dimension.
    kinds = (AxisType.Auto,) * len(axes)
    # Links between TPU slices or GPU nodes are slower than links within.
    groups = len({getattr(device, "slice_index", 0) for device in devices})
    try:
        if groups == 1:
            return jax.make_mesh(sizes, tuple(axes), axis_types=kinds, devices=devices)
        across = next((i for i, size in enumerate(sizes) if size % groups == 0), None)
        if across is None:
            raise UserError(
                f"mesh: got {requested}, expected an axis that {groups} divides, to lie across the {groups} slices or "
                f"nodes."
            )
        outside = [groups if i == across else 1 for i in range(len(sizes))]
        inside = [size // n for size, n in zip(sizes, outside, strict=True)]
        return Mesh(create_hybrid_device_mesh(inside, outside, devices), tuple(axes), axis_types=kinds)
    except NotImplementedError as e:  # an axis must cover whole sides of the grid of TPUs
        raise UserError(f"mesh: {requested} does not lie along the sides of these TPUs' grid: {e}") from e


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """Returns the axes of `mesh` over which batches are split.

    >>> batch_axes(make_mesh({"data": -1, "tensor": 1}))
    ('data',)
    """
    return tuple(name for name in mesh.axis_names if name in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array [b, ...] whose first axis is split over the batch axes of `mesh`."""
    return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array of which every device holds a copy."""
    return NamedSharding(mesh, PartitionSpec())


def batch_devices(mesh: Mesh) -> int:
    """Returns the number of parts that a batch is split into."""
    return math.prod(mesh.shape[name] for name in batch_axes(mesh))


@functools.lru_cache(maxsize=8)
def process_share(mesh: Mesh) -> tuple[int, int]:
    """Returns (i, n): this process reads part i of the n equal parts of each batch.

    n is the number of processes, unless an axis ``tensor`` lies across processes, which then read the same images.

    Raises:
      UserError: a process has no part of the batch, or parts that are not adjacent.

    Example:
      >>> process_share(make_mesh())
      (0, 1)
    """
    n = batch_devices(mesh)
    owned: dict[int, set[int]] = {device.process_index: set() for device in jax.devices()}
    places: Any = batch_sharding(mesh).devices_indices_map((n,))
    for device, (part,) in places.items():
        owned[device.process_index].add(part.start or 0)
    size = len(owned[jax.process_index()])
    for process, parts in owned.items():
        first = min(parts, default=0)
        if len(parts) != size or first % max(size, 1) or parts != set(range(first, first + size)) or not parts:
            sizes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
            raise UserError(
                f"mesh: with {sizes} process {process} has no part of the batch to itself. Use all devices, and put "
                f"data or fsdp before tensor."
            )
    return min(owned[jax.process_index()]) // size, n // size


def check_batch_size(batch_size: int, mesh: Mesh, *, what: str, accumulate: int = 1) -> None:
    """Raises unless a batch can be split evenly over the devices.

    Args:
      batch_size: images per step, over all devices.
      mesh: from `make_mesh`.
      what: where the size was given, for messages, such as ``"config.data.batch_size"``.
      accumulate: microbatches per step, each of which is split over the devices.

    Raises:
      UserError: `batch_size` is not divisible by devices × microbatches. The message names the nearest sizes that are.
    """
    n = batch_devices(mesh)
    parts = n * accumulate
    if batch_size < 1:
        raise UserError(f"{what}: got {batch_size}, expected 1 or more.")
    if batch_size % parts:
        lower = batch_size // parts * parts
        nearest = f"{lower} or {lower + parts}" if lower > 0 else f"{parts}"
        by = count(n, "device") + (f" times {accumulate} microbatches" if accumulate > 1 else "")
        raise UserError(f"{what}: got {batch_size}, expected a multiple of {by}. The nearest: {nearest}.")


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Returns `batch` on the devices, split over the batch axes.

    Args:
      batch: a pytree of host arrays [b, ...]. With several processes each passes its part of the global batch; see
        `process_share`.
      mesh: from `make_mesh`.

    Returns:
      The same pytree of global arrays. The copy to the devices runs in the background.

    Example:
      >>> images = shard_batch({"image": np.zeros((8, 4, 4, 3), np.uint8)}, make_mesh())["image"]
      >>> images.shape, tuple(images.sharding.spec)
      ((8, 4, 4, 3), ('data',))
    """
    sharding = batch_sharding(mesh)
    _, parts = process_share(mesh)

    def place(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(sharding, x, (len(x) * parts, *x.shape[1:]))

    return jax.tree.map(place, batch)


def mesh_text(shape: Mapping[str, int], *, zero1: bool = False) -> str:
    """Returns a mesh as text, without axes of one device.

    >>> mesh_text({"data": 4, "fsdp": 2}), mesh_text({"data": 8}, zero1=True)
    ('data=4, fsdp=2', 'data=8, ZeRO-1')
    """
    sizes = [f"{name}={size}" for name, size in shape.items() if size > 1] or ["data=1"]
    return ", ".join([*sizes, "ZeRO-1"] if zero1 else sizes)
