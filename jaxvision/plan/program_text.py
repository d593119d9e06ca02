"""Parses the text of a compiled XLA program: its computations, their instructions and how often each runs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"%?([\w.-]+) = (.+?) ([a-z][\w-]*)\(([^)]*)\)(.*)")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"[\w.-]+")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\](\{[^}]*\})?")

# Attributes that name other computations. A fusion's or a reduction's body is "applied"; the others are control flow.
_NAMES = r"=\{?([^,}]+(?:, ?%[^,}]+)*)"
_CONTROL = "branch_computations|condition|(?:true|false)_computation"
_CONTROL_FLOW = re.compile(rf"(?:{_CONTROL}){_NAMES}")
_CONTROL_FLOW_OR_APPLIED = re.compile(rf"(?:calls|to_apply|{_CONTROL}){_NAMES}")
_LOOP_BODY = re.compile(r"body=%?([\w.-]+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      name: the instruction's name, without ``%``.
      type: type of the result, as text, such as ``f32[8,3]{1,0}``.
      op: the operation, such as ``fusion`` or ``all-reduce-start``.
      arguments: the text between the operation's parentheses.
      attributes: the text behind them.
    """

    name: str
    type: str
    op: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands, in order."""
        return _NAME.findall(self.arguments)

    @property
    def called(self) -> str | None:
        """Name of the computation that a fusion calls, None for other instructions."""
        match = re.search(r"calls=%?([\w.-]+)", self.attributes)
        return match[1] if match else None


@dataclass(frozen=True)
class ProgramText:
    """A parsed program.

    Attributes:
      computations: name -> instructions, in the order of the text.
      entry: name of the computation that runs first.
    """

    computations: Mapping[str, Sequence[Instruction]]
    entry: str

    def parameters(self, computation: str) -> list[str]:
        """Returns the names of a computation's parameters, in order."""
        instructions = self.computations.get(computation, ())
        numbered = {int(x.arguments): x.name for x in instructions if x.op == "parameter"}
        return [numbered[i] for i in sorted(numbered)]


def parse_program(text: str) -> ProgramText:
    """Returns the computations of a program.

    Args:
      text: ``compiled.as_text()``.

    Example:
      >>> program = parse_program('''
      ... ENTRY %main (x: f32[10]) -> f32[10] {
      ...   %x = f32[10]{0} parameter(0)
      ...   ROOT %y = f32[10]{0} negate(%x)
      ... }''')
      >>> program.entry, [instruction.op for instruction in program.computations["main"]]
      ('main', ['parameter', 'negate'])
    """
    computations: dict[str, list[Instruction]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif name and " = " in line:
            line = _COMMENT.sub("", line).strip().removeprefix("ROOT ")
            if match := _INSTRUCTION.match(line):
                computations[name].append(Instruction(*match.groups()))
    return ProgramText(computations, entry)


def count_runs(program: ProgramText, *, applied: bool = True) -> Counter[str]:
    """Returns how often each computation runs when the program runs once.

    The body of a loop counts once per iteration, its condition once.

    Args:
      program: from `parse_program`.
      applied: also count the bodies of fusions and reductions.
    """
    calls = {
        name: [call for instruction in body for call in _calls(program, instruction, applied)]
        for name, body in program.computations.items()
    }
    runs: Counter[str] = Counter()
    pending = [(program.entry, 1)]
    while pending:
        name, times = pending.pop()
        if name not in calls:
            continue
        runs[name] += times
        pending += [(called, times * n) for called, n in reversed(calls[name])]  # reversed: a stack, read from its end
    return runs


def _calls(program: ProgramText, instruction: Instruction, applied: bool) -> list[tuple[str, int]]:
    """Returns the computations that an instruction runs, each with how often it runs it."""
    pattern = _CONTROL_FLOW_OR_APPLIED if applied or instruction.op == "call" else _CONTROL_FLOW
    names = [name for listed in pattern.findall(instruction.attributes) for name in _NAME.findall(listed)]
    calls = [(name, 1) for name in names if name in program.computations]
    if body := _LOOP_BODY.search(instruction.attributes):
        calls.append((body[1], _iterations(program, instruction)))
    return calls


def _iterations(program: ProgramText, loop: Instruction) -> int:
    """Returns how often a loop runs: the count that the compiler wrote down, or the constant in its condition."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", loop.attributes)
    instructions = program.computations.get(condition[1], ()) if condition else ()
    limits = [
        int(x.arguments)
        for x in instructions
        if x.op == "constant" and x.type.startswith("s32[]") and x.arguments.isdigit()
    ]
    return max(limits, default=1) or 1


def type_bytes(type_text: str, *, fast_memory: bool = True) -> int:
    """Returns the bytes of a type, or of a tuple of types, as the program's text writes it.

    Args:
      type_text: such as ``f32[8,3]{1,0}``.
      fast_memory: also count arrays in a TPU's fast memory, which the layout marks with ``S(1)``.

    Example:
      >>> type_bytes("(f32[1000]{0}, bf16[10,2]{1,0:S(1)})"), type_bytes("bf16[10,2]{1,0:S(1)}", fast_memory=False)
      (4040, 0)
    """
    total = 0.0
    for kind, shape, layout in _ARRAY.findall(type_text):
        if not fast_memory and "S(" in layout:
            continue
        bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
        total += math.prod(int(n) for n in shape.split(",") if n) * bits / 8
    return int(total)
