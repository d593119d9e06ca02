"""An unpickler that builds plain containers and calls only the functions that it is given.

Python's own unpickler calls what a pickle names, resizes its memo to whatever size a pickle states, and overflows the
C stack on a dictionary key of deeply nested tuples. This one reads the opcodes of protocols 2 to 5 in a loop. Sets are
read as lists.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

# Each opcode takes time and memory: this many take some seconds and a few gigabytes. A checkpoint of 1,000
# tensors with an optimizer has 100,000.
_MAX_OPCODES = 10_000_000
# Python's hashes of numbers and tuples are predictable, so a hostile pickle can make them collide.
_MAX_ODD_KEYS = 20_000
_MAX_KEY = 2**60  # a larger integer can have the hash of a small one
_MAX_INT_BYTES = 255
_MAX_NAME = 200
_MAX_REFUSED = 1000
_MAX_ARGUMENTS = 16  # PyTorch's functions take at most 8

_CONSTANTS: Mapping[int, Callable[[], Any]] = {
    ord("N"): lambda: None,
    ord(")"): tuple,
    ord("]"): list,
    ord("}"): dict,
    0x88: lambda: True,
    0x89: lambda: False,
    0x8F: list,
}
_NUMBERS = {ord("K"): "<B", ord("M"): "<H", ord("J"): "<i", ord("G"): ">d"}
# Opcode -> (format of the length that precedes the bytes, whether these are text).
_STRINGS = {
    ord("X"): ("<I", True),
    0x8C: ("<B", True),
    0x8D: ("<Q", True),
    ord("T"): ("<I", True),  # text of Python 2
    ord("U"): ("<B", True),
    ord("B"): ("<I", False),
    ord("C"): ("<B", False),
    0x8E: ("<Q", False),
    0x96: ("<Q", False),
}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_GETS = {ord("h"): "<B", ord("j"): "<I"}
_PUTS = {ord("q"): "<B", ord("r"): "<I"}


class Refused:
    """An unknown name in a pickle, or a value that is computed from one."""


class Ignored:
    """A value without a meaning for weights, such as the flags of a training script."""


class Unpickler:
    """Reads consecutive pickles.

    Args:
      data: the bytes.
      find_global: returns the function or the value for a name such as ``"collections.OrderedDict"``, or None.
      load_persistent: returns the value for a persistent id.

    Attributes:
      position: where the next pickle starts.
      refused: the names that `find_global` did not know. Their values, and values computed from these, are `Refused`.
    """

    def __init__(self, data: Any, find_global: Callable[[str], Any], load_persistent: Callable[[Any], Any]):
        self.position = 0
        self.refused: list[str] = []
        self._data, self._find_global, self._load_persistent = data, find_global, load_persistent
        self._opcodes = self._odd_keys = 0

    def load(self) -> Any:
        """Returns the value of the next pickle.

        Raises:
          ValueError, or any exception of the functions that the pickle calls: it is damaged or hostile.
        """
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below the marks
        self._memo: dict[int, Any] = {}
        while (opcode := self._take(1)[0]) != ord("."):
            self._count(1)
            self._run(opcode)
        return self._pop()

    def _count(self, n: int) -> None:
        self._opcodes += n
        if self._opcodes > _MAX_OPCODES:
            raise ValueError(f"it has more than {_MAX_OPCODES:,} values")

    def _run(self, opcode: int) -> None:
        stack = self._stack
        if opcode in _PUTS:
            self._memo[self._number(_PUTS[opcode])] = self._top()
        elif opcode in _GETS:
            stack.append(self._memo[self._number(_GETS[opcode])])
        elif opcode in _NUMBERS:
            stack.append(self._number(_NUMBERS[opcode]))
        elif opcode in _STRINGS:
            stack.append(self._string(*_STRINGS[opcode]))
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode]())
        elif opcode in _TUPLES:
            items = [self._pop() for _ in range(_TUPLES[opcode])]
            stack.append(tuple(reversed(items)))
        elif opcode in _OPERATIONS:
            _OPERATIONS[opcode](self)
        else:
            raise ValueError(f"it has the opcode {bytes([opcode])!r}")

    def _take(self, n: int) -> bytes:
        end = self.position + n
        if end > len(self._data):
            raise ValueError("it is truncated")
        taken = bytes(self._data[self.position : end])
        self.position = end
        return taken

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _string(self, form: str, is_text: bool) -> str | bytes:
        data = self._take(self._number(form))
        return data.decode("utf-8", "surrogatepass") if is_text else data

    def _line(self) -> str:
        end = self._data.find(b"\n", self.position, self.position + 1000)
        if end < 0:
            raise ValueError("it is truncated")
        return self._take(end + 1 - self.position)[:-1].decode()

    def _top(self) -> Any:
        if not self._stack:
            raise ValueError("its stack is empty")
        return self._stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _pop_mark(self) -> list[Any]:
        if not self._outer:
            raise ValueError("it lacks a mark")
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _add(self, items: list[Any]) -> None:
        """Appends to the list on top of the stack."""
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Refused):
            raise ValueError(f"it appends to a {type(target).__name__}")

    def _set(self, items: list[Any]) -> None:
        """Adds keys and values, in turn, to the dictionary on top of the stack."""
        target = self._top()
        if len(items) % 2:
            raise ValueError("it has a key without a value")
        if isinstance(target, dict):
            self._update(target, zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, Refused):
            raise ValueError(f"it sets an item of a {type(target).__name__}")

    def _update(self, target: dict[Any, Any], pairs: Any) -> None:
        for key, value in pairs:
            if not isinstance(key, str):
                self._odd_keys += 1
                if self._odd_keys > _MAX_ODD_KEYS:
                    raise ValueError(f"it has more than {_MAX_ODD_KEYS:,} keys that are not strings")
                _check_key(key)
            target[key] = value

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it names a function by something other than a string")
        if len(module) + len(name) > _MAX_NAME:
            raise ValueError("it names a function by a very long string")
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # of Python 2
        found = self._find_global(f"{module}.{name}")
        if found is None:
            if len(self.refused) < _MAX_REFUSED:
                self.refused.append(f"{module}.{name}")
            found = Refused()
        self._stack.append(found)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple) or len(arguments) > _MAX_ARGUMENTS:
            raise ValueError("it calls a function without a short tuple of arguments")
        if isinstance(function, Refused):
            self._stack.append(function)
        elif function is dict:
            self._stack.append({})
            if arguments:
                (pairs,) = arguments
                self._count(len(pairs))
                self._update(self._top(), pairs.items() if isinstance(pairs, dict) else pairs)
        elif callable(function):
            self._stack.append(function(*arguments))
        else:
            raise ValueError(f"it calls a {type(function).__name__}")

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._call(function, arguments)

    def _new_with_keywords(self) -> None:
        keywords, arguments, function = self._pop(), self._pop(), self._pop()
        if keywords and not isinstance(function, Refused):
            raise ValueError("it creates an object with keywords")
        self._call(function, arguments)

    def _build(self) -> None:
        """Drops the attributes of an object, such as the versions of modules that a state_dict carries."""
        self._pop()
        if not isinstance(self._top(), dict | Refused | Ignored):
            raise ValueError(f"it sets the state of a {type(self._top()).__name__}")

    def _persistent(self) -> None:
        self._stack.append(self._load_persistent(self._pop()))

    def _mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _drop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._top()

    def _append_marked(self) -> None:
        self._add(self._pop_mark())

    def _set_marked(self) -> None:
        self._set(self._pop_mark())

    def _append(self) -> None:
        self._add([self._pop()])

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _list(self) -> None:
        items = self._pop_mark()
        self._stack.append(items)

    def _tuple(self) -> None:
        items = self._pop_mark()
        self._stack.append(tuple(items))

    def _dict(self) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set(items)

    def _read_protocol(self) -> None:
        protocol = self._take(1)[0]
        if not 2 <= protocol <= 5:
            raise ValueError(f"it has the protocol {protocol}")

    def _read_global(self) -> None:
        module = self._line()
        self._global(module, self._line())

    def _read_integer(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def _read_large_integer(self) -> None:
        size = self._number("<I")
        if size > _MAX_INT_BYTES:
            raise ValueError(f"it has an integer of {size:,} bytes")
        self._stack.append(int.from_bytes(self._take(size), "little", signed=True))


_OPERATIONS: Mapping[int, Callable[[Unpickler], Any]] = {
    0x80: Unpickler._read_protocol,
    0x95: lambda unpickler: unpickler._take(8),  # the length of a frame
    ord("c"): Unpickler._read_global,
    0x93: Unpickler._stack_global,
    ord("R"): Unpickler._reduce,
    0x81: Unpickler._reduce,  # creates an object of a class; the classes that are known here are functions
    0x92: Unpickler._new_with_keywords,
    ord("b"): Unpickler._build,
    ord("Q"): Unpickler._persistent,
    0x8A: Unpickler._read_integer,
    0x8B: Unpickler._read_large_integer,
    ord("("): Unpickler._mark,
    ord("0"): Unpickler._drop,
    ord("1"): Unpickler._pop_mark,
    ord("2"): lambda unpickler: unpickler._stack.append(unpickler._top()),
    0x94: Unpickler._memoize,
    ord("a"): Unpickler._append,
    ord("e"): Unpickler._append_marked,
    ord("s"): Unpickler._set_item,
    ord("u"): Unpickler._set_marked,
    0x90: Unpickler._append_marked,
    ord("t"): Unpickler._tuple,
    ord("l"): Unpickler._list,
    0x91: Unpickler._list,
    ord("d"): Unpickler._dict,
}


def _check_key(key: Any) -> None:
    """Raises unless the key of a dictionary is a small value whose hash is known to be quick."""
    for part in key if isinstance(key, tuple) and len(key) <= 8 else (key,):
        if isinstance(part, list | dict | tuple) or (isinstance(part, int) and abs(part) > _MAX_KEY):
            raise ValueError(f"it has a key of the type {type(key).__name__}")
