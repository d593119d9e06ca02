"""What a step needs of a chip, read from the program that was compiled for it: bytes, operations, messages, time.

Nothing here runs the step. `jaxvision.run.plan` builds the step of a config for devices that need not be there, and
this module reads what the compiler made of it.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from jaxvision import tree
from jaxvision.errors import UserError, missing_package, unknown
from jaxvision.parallel.accelerators import MEMORY_FRACTION
from jaxvision.parallel.mesh import batch_devices

GIB = 2**30
_O0 = 9  # https://openxla.org/xla/effort_levels, as XLA numbers them
#: Kinds of bytes that are there whatever the batch.
STATE = ("parameters", "statistics", "optimizer", "ema", "other")


@dataclass(frozen=True)
class Chip:
    """What a data sheet says of one device; 0 where only the memory is known.

    Attributes:
      name: as on the command line.
      memory: bytes.
      flops: peak of matrix products a second, bfloat16 in and float32 out, without sparsity.
      flops_float32: of float32 at JAX's default precision: the same unit on a TPU, TF32 on a GPU.
      bandwidth: bytes a second to and from the memory.
      link: bytes a second along one link to a neighbour, one way.
      torus: along how many chips in a row the links close to a ring.
    """

    name: str
    memory: float
    flops: float = 0.0
    flops_float32: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0
    torus: int = 0


# TPUs: https://docs.cloud.google.com/tpu/docs/v5e, v5p, v6e ("key specifications"; the interconnect of a chip is given
# for all ports and both ways: by 4 ports, on v5p 6, and 2). The memory is what the compiler hands out, which
# it says when a program is too large. Rings close along 16 chips on v5e and v6e, on v5p along any multiple of 4.
# GPUs: the makers' data sheets, dense, with float32 accumulation. Their "GB" of memory are GiB.
_TPUS = {
    "v5e": Chip("v5e", 15.75 * GIB, 197e12, 197e12, 819e9, 400e9 / 8, 16),
    "v5p": Chip("v5p", 95.74 * GIB, 459e12, 459e12, 2765e9, 1200e9 / 12, 4),
    "v6e": Chip("v6e", 31.25 * GIB, 918e12, 918e12, 1638e9, 800e9 / 8, 16),
}
_GPUS = {
    "t4": Chip("t4", 16 * GIB, 65e12, 8.1e12, 320e9),  # has no bfloat16: the number is float16's
    "l4": Chip("l4", 24 * GIB, 121e12, 60e12, 300e9),
    "rtx3090": Chip("rtx3090", 24 * GIB, 71e12, 35.6e12, 936e9),
    "rtx4090": Chip("rtx4090", 24 * GIB, 165.2e12, 82.6e12, 1008e9),
    "a100-40g": Chip("a100-40g", 40 * GIB, 312e12, 156e12, 1555e9),
    "a100-80g": Chip("a100-80g", 80 * GIB, 312e12, 156e12, 2039e9),
    "h100": Chip("h100", 80 * GIB, 989e12, 494e12, 3350e9),
    "h200": Chip("h200", 141 * GIB, 989e12, 494e12, 4800e9),
}


def device(name: str) -> Chip:
    """Returns the device of a name such as ``h100``, or a memory such as ``8GB``.

    A GPU has the share of its memory that JAX takes: three quarters, unless ``XLA_CLIENT_MEM_FRACTION`` is set.

    Raises:
      UserError: neither; the message names the nearest.

    Example:
      >>> round(device("24GB").memory / 2**30, 2), device("rtx4090").memory == device("24GB").memory
      (18.0, True)
    """
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?gi?b", name.lower())
    if size is None and name.lower() not in _GPUS:
        raise unknown("device (or memory, such as 8GB)", name, _GPUS)
    if size and not float(size[1]):
        raise UserError(f"a device has some memory, got {name}")
    chip = Chip(name, float(size[1]) * GIB) if size else _GPUS[name.lower()]
    return Chip(**{**vars(chip), "memory": chip.memory * memory_fraction()})


def memory_fraction() -> float:
    """Returns the share of a GPU's memory that JAX takes when it starts."""
    name = next((name for name in MEMORY_FRACTION if name in os.environ), MEMORY_FRACTION[0])
    text = os.environ.get(name, "0.75")
    with suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise UserError(f"{name}={text} is no share of the memory: it is above 0 and at most 1")


def topology(name: str) -> tuple[Sequence[jax.Device], Chip]:
    """Returns the devices of a TPU slice that is not there, to compile for, and what the data sheet says of one.

    Args:
      name: such as ``v5e:2x4``, ``v6e:16x16`` or ``v5p:4x4x4``; one chip is ``v5e:1x1``.

    Raises:
      UserError: no such topology.
      MissingPackage: libtpu, which holds the compiler, is not installed.
    """
    generation, _, grid = name.lower().partition(":")
    if generation not in _TPUS:
        raise unknown("TPU", generation, _TPUS)
    if not re.fullmatch(r"\d+x\d+(x\d+)?", grid):
        raise UserError(f"a topology is a TPU and its grid, such as {generation}:2x4; got {name!r}")
    sizes = [int(size) for size in grid.split("x")]
    sides, longest = (3, 28) if generation == "v5p" else (2, 16)  # beyond that libtpu aborts the process
    if len(sizes) != sides or not 1 <= min(sizes) <= max(sizes) <= longest:
        raise UserError(f"the grid of a {generation} has {sides} sides of at most {longest} chips; got {name!r}")
    try:
        import libtpu  # noqa: F401
    except ImportError as e:
        raise missing_package("libtpu", "compiling for a TPU", "tpu") from e
    from jax.experimental import topologies

    # libtpu looks for the machine it is on, complains on the console when that is no TPU, and works.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # nor is it taken: several may plan
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": f"{generation}-{math.prod(sizes)}"}
    os.environ |= {"TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3"}
    options = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(sizes) == 1 else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=f"{generation}:{grid}", **options).devices
    except Exception as e:
        known = "2x2x1, 2x2x2, 2x4x4, 4x4x4 and 4x4x8" if sides == 3 else "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 and 16x16"
        raise UserError(f"libtpu knows no topology {name!r}; there are {known}, among others") from e
    return devices, _TPUS[generation]


def link_speed(chip: Chip, group: Sequence[Any], everyone: Sequence[Any]) -> float:
    """Returns the bytes a second that each chip of a group sends to the others while all of them do.

    Args:
      chip: what each is.
      group: devices of a topology that talk to each other.
      everyone: all of them; a row of the grid is a ring only if the group has the whole of it.
    """
    links = 0
    ours, sides = (zip(*(device.coords for device in devices), strict=True) for devices in (group, everyone))
    for span, side in zip((len(set(x)) for x in ours), (len(set(x)) for x in sides), strict=True):
        links += 0 if span == 1 else 2 if span == side and side % chip.torus == 0 else 1
    return chip.link * links


def candidates(devices: Sequence[Any]) -> list[tuple[dict[str, int], bool]]:
    """Returns the meshes of a topology that are worth comparing, each with whether ZeRO-1 splits the optimizer's state.

    Plain data parallelism, ZeRO-1, fully sharded; from 64 chips on also fully sharded along all sides of the grid but
    the first, and data parallelism along that.
    """
    found = [({"data": -1}, False), ({"data": -1}, True), ({"data": 1, "fsdp": -1}, False)]
    sides = [n for n in (len(set(x)) for x in zip(*(device.coords for device in devices), strict=True)) if n > 1]
    if len(devices) >= 64 and len(sides) > 1:
        found.append(({"data": sides[0], "fsdp": math.prod(sides[1:])}, False))
    return found


# --- Bytes ---


def state_bytes(abstract: Any, shardings: Any) -> dict[str, int]:
    """Returns the bytes that one device holds of a training state, by kind, without the padding of tiles.

    Args:
      abstract: from `jaxvision.train.state.abstract_state`.
      shardings: from `jaxvision.parallel.rules.state_shardings`.

    Returns:
      ``parameters`` (frozen ones, too), ``statistics`` (of BatchNorm), ``optimizer``, ``ema`` and ``other`` (random
      keys).
    """
    total = dict.fromkeys(STATE, 0)
    leaves = jax.tree_util.tree_leaves_with_path(abstract, is_leaf=lambda x: isinstance(x, nnx.Variable))
    places = jax.tree.leaves(shardings)
    for (path, leaf), place in zip(leaves, places, strict=True):
        kind = tree.join(path[:1])
        if kind == "model":
            kind = "statistics" if isinstance(leaf, nnx.BatchStat) else "parameters"
            kind = "other" if isinstance(leaf, nnx.RngState) else kind
        x = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        total[kind] += math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
    return total


def program_bytes(compiled: Any) -> int:
    """Returns what a compiled program takes of one device's memory while it runs, its arguments included."""
    m = compiled.memory_analysis()
    kept = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return kept + m.temp_size_in_bytes + m.generated_code_size_in_bytes


def too_large(error: BaseException, given: float = 0.0) -> float | None:
    """Returns the bytes that a program would take, from the compiler's refusal; None if the error is another.

    Args:
      error: of the compiler.
      given: bytes of the program's arguments, which one of the two forms of the message leaves out.

    >>> too_large(RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."))
    22011707392.0
    >>> too_large(RuntimeError("RESOURCE_EXHAUSTED: ... for HLO temporaries (21.00G) exceeds available HBM"), 2**30)
    23622320128.0
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return None
    number = r"(\d+(?:\.\d+)?)([KMGT])"
    used, temporaries = re.search(rf"Used {number} of", text), re.search(rf"temporaries \({number}\)", text)
    found = used or temporaries
    if found is None:
        return math.inf
    return float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])) + (0.0 if used else given)


# --- Messages ---


@dataclass(frozen=True)
class Collective:
    """Messages of one kind along the same axes of the mesh, in one step.

    Attributes:
      kind: such as ``all-reduce``.
      axis: names of the mesh's axes, joined by +.
      devices: how many take part together.
      count: how many there are.
      bytes: of the whole array that is reduced, gathered or scattered, on one device, summed.
      speed: bytes a second that one device sends while all do; 0 where it is not known.
    """

    kind: str
    axis: str
    devices: int
    count: int
    bytes: int
    speed: float = 0.0

    @property
    def sent(self) -> float:
        """The bytes that one device sends, in a ring."""
        share = (self.devices - 1) / self.devices
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
_COLLECTIVE = re.compile(rf"%?[\w.-]+ = (.+?) ({_KINDS})(-start)?\(")
_CALLED = re.compile(
    r"(?:calls|to_apply|branch_computations|condition|(?:true|false)_computation)=\{?([^,}]+(?:, ?%[^,}]+)*)"
)

_CONTROL = re.compile(_CALLED.pattern.replace("calls|to_apply|", ""))


def collectives(text: str, mesh: Mesh | AbstractMesh, chip: Chip | None = None) -> list[Collective]:
    """Returns the messages of one step, from the compiled program's text; the largest first.

    What is in a loop counts as often as the loop runs.

    Args:
      text: of the program, ``compiled.as_text()``.
      mesh: that it was compiled for; tells which axis a group of devices lies along.
      chip: each device of a TPU topology; None: how fast the links are is not known.

    Example:
      >>> program = '''
      ... ENTRY %main (x: f32[1000]) -> f32[1000] {
      ...   %x = f32[1000]{0} parameter(0)
      ...   ROOT %sum = f32[1000]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}, to_apply=%add
      ... }'''
      >>> from jax.sharding import AbstractMesh
      >>> collectives(program, AbstractMesh((2,), ("data",)))
      [Collective(kind='all-reduce', axis='data', devices=2, count=1, bytes=4000, speed=0.0)]
    """
    bodies, entry = _computations(text)
    found: Counter[tuple[str, str, int, float]] = Counter()
    size: Counter[tuple[str, str, int, float]] = Counter()
    seen: set[tuple[str, str]] = set()
    for name, times in _times(bodies, entry).items():
        for line in bodies[name]:
            match = _COLLECTIVE.match(line)
            if match is None:
                continue
            result, kind, start = match.groups()
            channel = re.search(r"channel_id=(\d+)", line)
            if (
                channel and (kind, channel[1]) in seen
            ):  # one message, that TPUs' fusions spread over several computations
                continue
            if channel:
                seen.add((kind, channel[1]))
            groups = _groups(line, mesh.size)
            n = len(groups[0])
            if n < 2:
                continue
            whole = _bytes(result)
            if start and kind == "all-gather":  # the type of a start has the operands, too
                whole = whole * n // (n + 1)
            elif start and kind == "collective-permute":
                whole //= 2
            elif kind == "reduce-scatter":
                whole *= n
            elif kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            speed = 0.0
            if chip is not None and chip.link:
                everyone = list(mesh.devices.flat)  # type: ignore[union-attr]
                speed = link_speed(chip, [everyone[i] for i in groups[0]], everyone)
            key = (kind, _axis(groups[0], mesh), n, speed)
            found[key] += times
            size[key] += times * whole
    rows = [Collective(*key[:3], found[key], size[key], key[3]) for key in found]
    return sorted(rows, key=lambda row: -row.sent)


_INSTRUCTION = re.compile(r"%?([\w.-]+) = (.+?) ([a-z][\w-]*)\(([^)]*)\)(.*)")
_MOVES_NOTHING = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "optimization-barrier", "partition-id", "iota",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather", "slice-start"}
#: computation -> its instructions: name, type of the result, operation, operands, the rest of the line
_Parsed = Mapping[str, Sequence[tuple[str, ...]]]


def traffic(text: str) -> float:
    """Returns the bytes that one step reads from and writes to the memory of one device, from the program's text.

    Each instruction reads its operands and writes its result; what a fusion passes on inside moves nothing, nor does
    what the compiler keeps in a TPU's fast memory. Of an operand of which only a slice is used the slice counts. What
    is in a loop counts as often as the loop runs (in the compiler's own count of bytes it counts once).

    Example:
      >>> traffic('''
      ... %fused (p: f32[100], q: s32[]) -> f32[10] {
      ...   %p = f32[100]{0} parameter(0)
      ...   %q = s32[] parameter(1)
      ...   ROOT %slice = f32[10]{0} dynamic-slice(%p, %q), dynamic_slice_sizes={10}
      ... }
      ... ENTRY %main (x: f32[100], i: s32[]) -> f32[10] {
      ...   %x = f32[100]{0} parameter(0)
      ...   %i = s32[] parameter(1)
      ...   %y = f32[10]{0} fusion(%x, %i), kind=kLoop, calls=%fused
      ...   ROOT %z = f32[10]{0} negate(%y)
      ... }''')
      164
    """
    bodies, entry = _computations(text)
    parsed = {name: [m.groups() for line in lines if (m := _INSTRUCTION.match(line))] for name, lines in bodies.items()}
    total = 0
    for name, times in _times(bodies, entry, inside=False).items():
        types = {instruction[0]: instruction[1] for instruction in parsed[name]}
        for _, result, op, operands, rest in parsed[name]:
            if op in _MOVES_NOTHING or op.endswith("-start") or "AllocateBuffer" in rest:
                continue
            if op.endswith("-done"):  # a copy to or from the fast memory, or a message
                total += times * _bytes(result)
                continue
            sizes = [_bytes(types.get(x, ""), fast=False) for x in re.findall(r"[\w.-]+", operands) if x in types]
            written = _bytes(result, fast=False)
            if op in _SLICES:
                sizes = [written]
            elif op == "dynamic-update-slice":
                sizes, written = sizes[1:2], sizes[1]
            elif called := re.search(r"calls=%?([\w.-]+)", rest):
                sizes, written = _fused(parsed, called[1], sizes, written)
            total += times * (sum(sizes) + written)
    return total


def _fused(parsed: _Parsed, name: str, sizes: list[int], written: int) -> tuple[list[int], int]:
    """Returns what a fusion reads of each operand and what it writes, from the instructions inside it."""
    inside = {instruction[0]: instruction for instruction in parsed.get(name, ())}
    read = list(sizes)
    for i, parameter in enumerate(_parameters(parsed, name)):
        if not read[i : i + 1]:
            continue
        ways = _users(inside, parameter)
        if [way[2] for way in ways] == ["dynamic-update-slice"] and _names(ways[0])[0] == parameter:
            # Written in place: neither the rest of the array is read, nor is it written.
            written -= max(read[i] - _bytes(inside[_names(ways[0])[1]][1]), 0)
            read[i] = 0
        else:
            needed = _needed(parsed, name, parameter)
            read[i] = read[i] if needed is None else min(read[i], needed)
    return read, max(written, 0)


def _needed(parsed: _Parsed, computation: str, name: str) -> int | None:
    """Returns the bytes that are read of a value inside a fusion, if only slices of it are; None: all of it."""
    inside = {instruction[0]: instruction for instruction in parsed.get(computation, ())}
    total = 0
    for way in _users(inside, name):
        result, type_text, op, _, rest = way
        names = _names(way)
        if op in _SLICES and names[0] == name:
            total += _bytes(type_text)
            continue
        within = [(computation, result)] if op == "bitcast" else []
        if op == "fusion" and (called := re.search(r"calls=%?([\w.-]+)", rest)):
            parameters = _parameters(parsed, called[1])
            within = [(called[1], parameters[i]) for i, x in enumerate(names) if x == name]
        parts = [_needed(parsed, *place) for place in within]
        if not parts or None in parts:
            return None
        total += sum(part for part in parts if part is not None)
    return total or None  # what nothing uses is the fusion's result


def _names(instruction: tuple[str, ...]) -> list[str]:
    return re.findall(r"[\w.-]+", instruction[3])


def _users(inside: Mapping[str, tuple[str, ...]], name: str) -> list[tuple[str, ...]]:
    return [x for x in inside.values() if x[2] not in ("parameter", "constant") and name in _names(x)]


def _parameters(parsed: _Parsed, computation: str) -> list[str]:
    """Returns the names of a computation's parameters, in their order."""
    numbers = {int(x[3]): x[0] for x in parsed.get(computation, ()) if x[2] == "parameter"}
    return [numbers[i] for i in sorted(numbers)]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation by its name, and the name of the first to run."""
    bodies: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name and " = " in line:
            bodies[name].append(re.sub(r"/\*.*?\*/", "", line).strip().removeprefix("ROOT "))
    return bodies, entry


def _times(bodies: Mapping[str, list[str]], entry: str, *, inside: bool = True) -> Counter[str]:
    """Returns how often each computation runs; `inside`: those within fusions and reductions, too."""
    times: Counter[str] = Counter()

    def run(name: str, n: int) -> None:
        times[name] += n
        for line in bodies.get(name, ()):
            pattern = _CALLED if inside or " call(" in line else _CONTROL
            for called in pattern.findall(line):
                for other in re.findall(r"[\w.-]+", called):
                    if other in bodies:
                        run(other, n)
            body = re.search(r"body=%?([\w.-]+)", line)
            if body:
                run(body[1], n * _trips(line, bodies))

    run(entry, 1)
    return Counter({name: n for name, n in times.items() if name in bodies})


def _trips(line: str, bodies: Mapping[str, list[str]]) -> int:
    """Returns how often a loop runs: as the compiler notes it, or the number its condition compares with."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    lines = bodies.get(condition[1], []) if condition else []
    limits = [int(n) for n in re.findall(r"= s32\[\]\S* constant\((\d+)\)", "\n".join(lines))]
    return max(limits, default=1) or 1


def _bytes(type_text: str, *, fast: bool = True) -> int:
    """Returns the bytes of a type, or of a tuple of them, as the program's text writes it.

    Not `fast`: without what lies in a TPU's fast memory, S(1), beside the products.
    """
    total = 0.0
    for kind, shape, layout in re.findall(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\](\{[^}]*\})?", type_text):
        if not fast and "S(" in layout:
            continue
        bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
        total += math.prod(int(n) for n in shape.split(",") if n) * bits / 8
    return int(total)


def _groups(line: str, devices: int) -> np.ndarray:
    """Returns which devices talk to each other, [groups, devices of each], from one instruction's text.

    There are three spellings: ``{{0,1},{2,3}}``, ``[2,2]<=[4]`` (with a transposition T), and
    ``mesh['a'=2,'b'=2] {'b'}``, where an axis may be cut as ``'a':(1)2``.
    """
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", line):
        groups = np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", listed[1])])
        return np.unique(groups).reshape(1, -1) if "source_target_pairs" in line else groups
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape = [int(n) for n in iota[3].split(",")]
        order = [int(n) for n in iota[4].split(",")] if iota[4] else list(range(len(shape)))
        return np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(int(iota[1]), int(iota[2]))
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", named[1])}
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        moving: list[int] = []
        for name, before, n in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named[2]):
            axis = list(sizes).index(name)
            if not n:
                moving.append(axis)
                continue
            # A part of an axis: it becomes three, of which the middle one moves. Only the last one named is cut so.
            cut = int(before), int(n), sizes[name] // (int(before) * int(n))
            ids = ids.reshape(*ids.shape[:axis], *cut, *ids.shape[axis + 1 :])
            moving = [a + 2 * (a > axis) for a in moving] + [axis + 1]
            break
        size = math.prod(ids.shape[a] for a in moving)
        return np.moveaxis(ids, moving, range(-len(moving), 0)).reshape(-1, size)
    return np.arange(devices).reshape(1, -1)


def _axis(group: np.ndarray, mesh: Mesh | AbstractMesh) -> str:
    """Returns the names of the mesh's axes along which the devices of a group differ."""
    places = np.unravel_index(group, tuple(mesh.shape.values()))
    return "+".join(name for name, where in zip(mesh.axis_names, places, strict=True) if len(set(where.tolist())) > 1)


# --- Time ---


@dataclass(frozen=True)
class Plan:
    """What one step of a run costs on one device of a mesh.

    Attributes:
      chip: the device.
      mesh: axis -> devices along it.
      zero1: the optimizer's state is split over the axis data, too.
      batch_size: images per step, over all devices.
      bytes: kind -> bytes on one device.
      flops: operations of the matrix products and convolutions of one device in one step.
      accessed: bytes that one device reads from and writes to its memory, from `traffic`.
      collectives: the messages between devices.
      compile_seconds: what the compiler took.
      float32: the products are in float32.
      useful: share of the operations that are not computed a second time.
      refused: too large: there is no program. Of `bytes` the activations are what the compiler said; if there are none,
        the state alone is too large, and it was not asked.
    """

    chip: Chip
    mesh: dict[str, int]
    zero1: bool
    batch_size: int
    bytes: dict[str, float]
    flops: float
    accessed: float = 0.0
    collectives: tuple[Collective, ...] = ()
    compile_seconds: float = 0.0
    float32: bool = False
    useful: float = 1.0
    refused: bool = False

    @property
    def total(self) -> float:
        """Bytes on one device."""
        return sum(self.bytes.values())

    @property
    def fits(self) -> bool:
        """Whether that is no more than there is."""
        return not self.refused and self.total <= self.chip.memory

    @property
    def seconds(self) -> dict[str, float]:
        """What bounds a step -> its seconds, each at its peak: the step cannot be faster than the longest of them."""
        peak = self.chip.flops_float32 if self.float32 else self.chip.flops
        if self.refused or not peak:
            return {}
        parts = {"compute": self.flops / peak, "memory": self.accessed / self.chip.bandwidth}
        if self.chip.link and self.collectives:
            parts["interconnect"] = sum(row.sent / row.speed for row in self.collectives)
        return parts

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a step by the roofline, all messages beside the work; None where only the memory is known."""
        return max(self.seconds.values(), default=None)

    @property
    def in_turn_seconds(self) -> float | None:
        """The same if the work waits for every message."""
        return self.step_seconds and self._work_seconds + self.seconds.get("interconnect", 0.0)

    @property
    def efficiency(self) -> tuple[float, float] | None:
        """The share of a step that is not spent on messages: if the work waits for each of them, and if for none."""
        if self.step_seconds is None or self.in_turn_seconds is None:
            return None
        return self._work_seconds / self.in_turn_seconds, self._work_seconds / self.step_seconds

    @property
    def _work_seconds(self) -> float:
        return max(self.seconds["compute"], self.seconds["memory"])

    @property
    def mfu(self) -> float | None:
        """The ceiling of the model FLOPs utilisation."""
        return self.seconds["compute"] * self.useful / self.step_seconds if self.step_seconds else None

    @property
    def flags(self) -> str:
        """What chooses this mesh on the command line."""
        axes = {"data": 1, **self.mesh}
        sizes = " ".join(f"--config.mesh.{name}={size}" for name, size in axes.items())
        return f"{sizes} --config.sharding.zero1={str(self.zero1).lower()}"

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as JSON can hold it."""
        found = dict(vars(self), chip=vars(self.chip), collectives=[vars(row) for row in self.collectives])
        names = ("total", "fits", "seconds", "step_seconds", "in_turn_seconds", "efficiency", "mfu", "flags")
        return found | {name: getattr(self, name) for name in names}


def read(
    traced: Any,
    *,
    chip: Chip,
    mesh: Mesh,
    abstract: Any,
    shardings: Any,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    flops: float,
    useful: float,
    ahead: int,
    zero1: bool = False,
    quick: bool = False,
    float32: bool = False,
) -> Plan:
    """Returns what the compiler makes of a step.

    Args:
      traced: the step, ``jax.jit(...).trace(...)``.
      chip: whose memory and speed count.
      mesh: that it was traced for.
      abstract: shapes of the state.
      shardings: of the state.
      batch: shapes of the batch over all devices.
      flops: of one step's products, over all devices.
      useful: those of them that are not computed a second time.
      ahead: batches that wait on the device while one is used.
      zero1: the optimizer's state is split over the axis data, too.
      quick: with the compiler's least effort.
      float32: the products are in float32.
    """
    one = sum(x.size * x.dtype.itemsize for x in batch.values()) // batch_devices(mesh)
    kinds = state_bytes(abstract, shardings) | {"batch": one, "batches ahead": ahead * one}
    facts = {"chip": chip, "mesh": dict(mesh.shape), "batch_size": batch["mask"].size, "flops": flops / mesh.size}
    facts |= {"zero1": zero1, "float32": float32, "useful": useful / flops}
    if sum(kinds.values()) > chip.memory:
        return Plan(bytes=kinds, refused=True, **facts)  # type: ignore[arg-type]
    start = time.perf_counter()
    # Of a CPU's program nothing is timed, and where it keeps what is settled before LLVM, which takes longest, begins.
    options: dict[str, Any] | None = {"optimization_level": _O0} if quick else None
    options = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else options
    try:
        compiled = traced.lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as e:
        given = sum(kinds.values()) - ahead * one
        used = too_large(e, given)
        if used is None:
            raise
        rest = used - given
        return Plan(bytes=kinds | {"activations and gradients": rest}, refused=True, **facts)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    kinds |= {
        # Of tiles. What the step does not read, such as the pictures' numbers, is no argument of the program.
        "padding": max(memory.argument_size_in_bytes - sum(kinds.values()) + ahead * one, 0),
        "activations and gradients": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    messages = tuple(collectives(text, mesh, chip))
    return Plan(bytes=kinds, accessed=traffic(text), collectives=messages, compile_seconds=seconds, **facts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Answer:
    """What `jaxvision plan` tells.

    Attributes:
      plans: for the batch that was asked for, by mesh, the best first.
      asked: the config's batch; the plans' is the next that the devices divide.
      largest: the largest batch that fits, over all devices; 0 if none does, None if it was not looked for.
      tried: batch -> bytes on one device, of all programs that were compiled for the best mesh.
      assumptions: sentences.
    """

    plans: tuple[Plan, ...]
    asked: int
    largest: int | None
    tried: dict[int, float]
    assumptions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as JSON can hold it."""
        return dict(vars(self), plans=[plan.as_dict() for plan in self.plans])


def assumptions(
    best: Plan, *, topology: str | None, num_classes: int, stored: int | None, backend: str, quick: bool = False
) -> tuple[str, ...]:
    """Returns what the numbers of a plan stand on, as sentences."""
    where = f"kept in memory at {stored} px and cropped on the device" if stored else "cropped by the workers"
    lines = [f"{num_classes:,} classes; pictures {where}"]
    if topology is None:
        share = f"{memory_fraction():.0%} of it is JAX's (XLA_CLIENT_MEM_FRACTION)"
        lines.append(f"memory: {best.chip.name} has {best.chip.memory / memory_fraction() / GIB:.4g} GiB; {share}")
        if backend == "cpu":
            lines.append(
                "compiled for the CPU at hand, which keeps other temporaries than a GPU (convolutions and bfloat16 "
                "products are lowered in another way): rough. On such a GPU the program read is the one that would run"
            )
    if best.seconds:
        lines.append(
            "time: products, memory and links each at the data sheet's peak and all at once: steps are slower than that"
        )
    elif topology is None:
        lines.append("time: of a memory alone no speed is known; a GPU's name, such as h100, has one")
    if quick:
        lines.append(
            "compiled with the least effort (--quick): the program that trains is smaller and reads less, for "
            "ResNet-50 two thirds of this; its steps may be faster than what is said here"
        )
    if best.collectives:
        lines.append(
            "messages go around in rings along the sides of the grid that their axis spans, and take no time to start"
        )
    return tuple(lines)


def mesh_text(shape: Mapping[str, int], *, zero1: bool = False) -> str:
    """Returns a mesh in words; axes of one device are left out.

    >>> mesh_text({"data": 4, "fsdp": 2}), mesh_text({"data": 8}, zero1=True)
    ('data=4, fsdp=2', 'data=8, ZeRO-1')
    """
    sizes = [f"{name}={size}" for name, size in shape.items() if size > 1] or ["data=1"]
    return ", ".join([*sizes, "ZeRO-1"] if zero1 else sizes)


def best(plans: Sequence[Plan]) -> Plan:
    """Returns the fastest of those that fit, messages in turn with the work; if none does, the smallest."""
    fitting = [plan for plan in plans if plan.fits]
    if fitting:
        return min(fitting, key=lambda plan: (plan.in_turn_seconds or 0.0, plan.total))
    return min(plans, key=lambda plan: plan.total)


def largest(used: Callable[[int], float], limit: float, start: int, *, empty: float = 0.0, tries: int = 5) -> int:
    """Returns the largest batch that was seen to fit, 0 if none was. Memory is nearly a line in the batch.

    From 16 on, only multiples of 8 are tried.

    Args:
      used: batch -> bytes; infinite where the compiler does not tell. Each call compiles.
      limit: bytes that there are.
      start: a batch to begin with.
      empty: bytes of no batch at all, about: the state.
      tries: most calls.

    Example:
      >>> tried = []
      >>> largest(lambda batch: tried.append(batch) or 100 + 7 * batch, 1000, 16, empty=90), tried
      (128, [16, 112, 128])
    """
    known: dict[int, float] = {0: empty}
    batch = start
    while batch not in known and len(known) <= tries:
        known[batch] = used(batch)
        low = max((b for b in known if known[b] <= limit), default=0)
        high = min((b for b in known if known[b] > limit), default=None)
        points = sorted((b for b in known if known[b] < math.inf), key=lambda b: abs(known[b] - limit))[:2]
        a, b = points if len(points) == 2 else (0, 0)
        if known[a] != known[b]:
            batch = _round(a + (limit - known[a]) * (a - b) / (known[a] - known[b]))
        else:
            batch = 2 * low or batch // 2
        if high is not None and batch >= high:
            batch = _round((low + high) / 2)
        batch = max(batch, low)
    return max((b for b in known if known[b] <= limit), default=0)


def _round(batch: float) -> int:
    return int(batch) // 8 * 8 if batch >= 16 else max(int(batch), 0)
