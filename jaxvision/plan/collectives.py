"""Counts the collectives of one step, from the text of the compiled program."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxvision.parallel.chips import Chip
from jaxvision.plan.program_text import Instruction, count_runs, parse_program, type_bytes
from jaxvision.plan.targets import link_speed

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip


@dataclass(frozen=True)
class Collective:
    """The collectives of one kind along the same mesh axes, in one step.

    Attributes:
      kind: such as ``all-reduce``.
      axis: names of the mesh axes, joined by ``+``.
      devices: size of each group of devices that communicate.
      count: number of collectives.
      bytes: size on one device of the whole arrays that are reduced, gathered or scattered, summed over all
        collectives.
      speed: bytes per second that one device sends while all devices send; 0 if unknown.
    """

    kind: str
    axis: str
    devices: int
    count: int
    bytes: int
    speed: float = 0.0

    @property
    def sent(self) -> float:
        """Bytes that one device sends, with ring algorithms."""
        share = (self.devices - 1) / self.devices
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


def count_collectives(text: str, mesh: Mesh | AbstractMesh, chip: Chip | None = None) -> list[Collective]:
    """Returns the collectives of one step, the largest first.

    A collective in a loop counts once per iteration.

    Args:
      text: the program, ``compiled.as_text()``.
      mesh: the mesh that the program was compiled for. It says along which axes a group of devices lies.
      chip: the kind of device in `mesh`, for the speed of its links. By default the speed is unknown.

    Example:
      >>> program = '''
      ... ENTRY %main (x: f32[1000]) -> f32[1000] {
      ...   %x = f32[1000]{0} parameter(0)
      ...   ROOT %sum = f32[1000]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}, to_apply=%add
      ... }'''
      >>> from jax.sharding import AbstractMesh
      >>> count_collectives(program, AbstractMesh((2,), ("data",)))
      [Collective(kind='all-reduce', axis='data', devices=2, count=1, bytes=4000, speed=0.0)]
    """
    program = parse_program(text)
    counts: defaultdict[tuple[str, str, int, float], int] = defaultdict(int)
    sizes: defaultdict[tuple[str, str, int, float], int] = defaultdict(int)
    seen: set[tuple[str, str]] = set()
    for name, times in count_runs(program).items():
        for instruction in program.computations[name]:
            kind = instruction.op.removesuffix("-start")
            if kind not in KINDS:
                continue
            if channel := re.search(r"channel_id=(\d+)", instruction.attributes):
                # TPU fusions repeat one collective in several computations.
                if (kind, channel[1]) in seen:
                    continue
                seen.add((kind, channel[1]))
            group = replica_groups(instruction.attributes, mesh.size)[0]
            if len(group) < 2:
                continue
            kind, size = _array(instruction, name, len(group))
            key = (kind, _axis(group, mesh), len(group), _speed(group, mesh, chip))
            counts[key] += times
            sizes[key] += times * size
    rows = [Collective(*key[:3], counts[key], sizes[key], key[3]) for key in counts]
    return sorted(rows, key=lambda row: -row.sent)


def replica_groups(attributes: str, devices: int) -> np.ndarray:
    """Returns the groups of devices that communicate, int [groups, devices per group].

    XLA writes them in three ways: ``{{0,1},{2,3}}``, ``[2,2]<=[4]`` (optionally with a transposition, T), and
    ``mesh['a'=2,'b'=2] {'b'}``, where ``'a':(1)2`` is a part of an axis.

    Args:
      attributes: the attributes of an instruction.
      devices: number of devices; they form one group if `attributes` name none.

    Example:
      >>> replica_groups("channel_id=1, replica_groups=[2,2]<=[2,2]T(1,0)", 4).tolist()
      [[0, 2], [1, 3]]
    """
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", attributes):
        groups = np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", listed[1])])
        return np.unique(groups).reshape(1, -1) if "source_target_pairs" in attributes else groups
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape = [int(n) for n in iota[3].split(",")]
        order = [int(n) for n in iota[4].split(",")] if iota[4] else list(range(len(shape)))
        return np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(int(iota[1]), int(iota[2]))
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        return _groups_along_axes(*named.groups())
    return np.arange(devices).reshape(1, -1)


def _groups_along_axes(mesh: str, axes: str) -> np.ndarray:
    """Returns the groups for a mesh such as ``'a'=2,'b'=2`` and axes such as ``'b'`` or ``'a':(1)2``."""
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
    ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
    grouped: list[int] = []
    for name, before, n in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        axis = list(sizes).index(name)
        if not n:
            grouped.append(axis)
            continue
        # Part of an axis: split the axis in three and group along the middle. XLA splits only the last axis it names.
        split = int(before), int(n), sizes[name] // (int(before) * int(n))
        ids = ids.reshape(*ids.shape[:axis], *split, *ids.shape[axis + 1 :])
        grouped = [a + 2 * (a > axis) for a in grouped] + [axis + 1]
        break
    size = math.prod(ids.shape[a] for a in grouped)
    return np.moveaxis(ids, grouped, range(-len(grouped), 0)).reshape(-1, size)


def _array(instruction: Instruction, computation: str, devices: int) -> tuple[str, int]:
    """Returns the kind of a collective and the bytes of the whole array, from an instruction and its computation."""
    op, size = instruction.op, type_bytes(instruction.type)
    kind = op.removesuffix("-start")
    if op in ("all-gather-start", "reduce-scatter-start"):  # the type of a start includes the operands
        return kind, size * devices // (devices + 1)
    if op == "all-to-all-start":
        return kind, size // 2
    if op == "collective-permute-start":
        return kind, size // 2
    if kind == "reduce-scatter":
        return kind, size * devices
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        return "reduce-scatter", size
    return kind, size


def _axis(group: np.ndarray, mesh: Mesh | AbstractMesh) -> str:
    """Returns the names of the mesh axes along which the devices of a group differ."""
    places = np.unravel_index(group, tuple(mesh.shape.values()))
    return "+".join(name for name, where in zip(mesh.axis_names, places, strict=True) if len(set(where.tolist())) > 1)


def _speed(group: np.ndarray, mesh: Mesh | AbstractMesh, chip: Chip | None) -> float:
    if chip is None or not chip.link:
        return 0.0
    everyone = list(mesh.devices.flat)  # type: ignore[union-attr]
    return link_speed(chip, [everyone[i] for i in group], everyone)
