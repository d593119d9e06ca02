"""Counts the memory traffic of one step, from the text of the compiled program."""

from __future__ import annotations

import re

from jaxvision.plan.program_text import Instruction, ProgramText, count_runs, parse_program, type_bytes

_NO_TRAFFIC = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "optimization-barrier", "partition-id", "iota",
}  # fmt: skip
# Products and convolutions of NVIDIA's libraries return their working memory beside the result.
_LIBRARY_CALL = re.compile(r'custom_call_target="__cu')
_WORKSPACE = re.compile(r", [su]8\[[^()]*\)$")
_SLICES = {"dynamic-slice", "slice", "gather", "slice-start"}


def count_traffic(text: str) -> float:
    """Returns the bytes that one step reads from and writes to the memory of one device.

    Each instruction reads its operands and writes its result. Values inside a fusion move nothing, and neither do
    arrays in a TPU's fast memory. If a fusion uses only a slice of an operand, only the slice counts. A loop's body
    counts once per iteration; XLA's own count of bytes counts it once.

    Args:
      text: the program, ``compiled.as_text()``.

    Example:
      >>> count_traffic('''
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
    program = parse_program(text)
    total = 0
    for name, times in count_runs(program, applied=False).items():
        instructions = program.computations[name]
        types = {instruction.name: instruction.type for instruction in instructions}
        total += times * sum(_moved(program, instruction, types) for instruction in instructions)
    return total


def _moved(program: ProgramText, instruction: Instruction, types: dict[str, str]) -> int:
    """Returns the bytes that one instruction reads and writes; `types` are those of its computation."""
    op = instruction.op
    if op in _NO_TRAFFIC or op.endswith("-start") or "AllocateBuffer" in instruction.attributes:
        return 0
    if op.endswith("-done"):  # a copy between memory and fast memory, or a collective
        return type_bytes(instruction.type)
    read = [type_bytes(types[name], fast_memory=False) for name in instruction.operands if name in types]
    result = instruction.type
    if op == "custom-call" and _LIBRARY_CALL.search(instruction.attributes):
        result = _WORKSPACE.sub(")", result)
    written = type_bytes(result, fast_memory=False)
    if op in _SLICES:
        read = [written]
    elif op == "dynamic-update-slice":
        read, written = read[1:2], read[1]
    elif instruction.called:
        read, written = _moved_by_fusion(program, instruction.called, read, written)
    return sum(read) + written


def _moved_by_fusion(program: ProgramText, name: str, sizes: list[int], written: int) -> tuple[list[int], int]:
    """Returns the bytes that a fusion reads of each operand and the bytes it writes.

    Args:
      program: the whole program.
      name: the fusion's computation.
      sizes: bytes of the operands.
      written: bytes of the result.
    """
    inside = _instructions(program, name)
    read = list(sizes)
    for i, parameter in enumerate(program.parameters(name)[: len(read)]):
        users = _users(inside, parameter)
        if [user.op for user in users] == ["dynamic-update-slice"] and users[0].operands[0] == parameter:
            # Updated in place: the rest of the array is neither read nor written.
            update = inside[users[0].operands[1]]
            written -= max(read[i] - type_bytes(update.type), 0)
            read[i] = 0
        else:
            sliced = _sliced_bytes(program, name, parameter)
            read[i] = read[i] if sliced is None else min(read[i], sliced)
    return read, max(written, 0)


def _sliced_bytes(program: ProgramText, computation: str, name: str) -> int | None:
    """Returns the bytes read of a value inside a fusion if only slices of it are read, None if all of it is."""
    total = 0
    for user in _users(_instructions(program, computation), name):
        if user.op in _SLICES and user.operands[0] == name:
            total += type_bytes(user.type)
            continue
        parts = [_sliced_bytes(program, *place) for place in _aliases(program, computation, user, name)]
        if not parts or None in parts:
            return None
        total += sum(part for part in parts if part is not None)
    return total or None  # a value without users is the fusion's result


def _aliases(program: ProgramText, computation: str, user: Instruction, name: str) -> list[tuple[str, str]]:
    """Returns the (computation, value) under which a bitcast or an inner fusion uses the value `name` again."""
    if user.op == "bitcast":
        return [(computation, user.name)]
    if user.op == "fusion" and user.called:
        parameters = program.parameters(user.called)
        return [(user.called, parameters[i]) for i, operand in enumerate(user.operands) if operand == name]
    return []


def _instructions(program: ProgramText, computation: str) -> dict[str, Instruction]:
    return {instruction.name: instruction for instruction in program.computations.get(computation, ())}


def _users(instructions: dict[str, Instruction], name: str) -> list[Instruction]:
    return [x for x in instructions.values() if x.op not in ("parameter", "constant") and name in x.operands]
