"""Messages and memory traffic of one step, read from the text of the compiled program."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxvision.plan.chips import Chip, link_speed


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
