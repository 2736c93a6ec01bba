"""How tests call a program that lives in another process: plain data over a socket, nothing else.

The tests never run in the program's process and never run anything of the program's: what comes back is rebuilt from
plain types, so that neither an `__eq__` that always agrees nor a patched `assert` changes what a test sees. Objects
without a plain form stay with the program, and the tests hold a handle to them.
"""

from __future__ import annotations

import builtins
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

_MAX_MESSAGE = 16 * 2**20
_MAX_ITEMS = 100_000
_CONTAINERS: dict[Any, str] = {list: "l", tuple: "t", set: "s", frozenset: "f"}
_BUILDERS: dict[str, Callable[[Any], Any]] = {"l": list, "t": tuple, "s": set, "f": frozenset}


class ProgramFault(Exception):
    """The program ended, or what it sent is no answer."""


class Channel:
    """Messages in JSON, each behind its length."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.fault = ""

    def send(self, message: Any) -> None:
        data = json.dumps(message).encode()
        if len(data) > _MAX_MESSAGE:
            data = json.dumps({"fault": f"a value takes {len(data)} bytes, over {_MAX_MESSAGE}"}).encode()
        data = len(data).to_bytes(4, "big") + data
        try:
            while data:
                data = data[os.write(self.descriptor, data) :]
        except OSError:
            self.fault = "the program ended before its tests did"
            raise ProgramFault(self.fault) from None

    def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            ProgramFault: there is none, or it is none; `fault` keeps the reason.
        """
        try:
            return self._receive()
        except ProgramFault as fault:
            self.fault = str(fault)
            raise

    def _receive(self) -> dict[str, Any]:
        length = int.from_bytes(read_exactly(self.descriptor, 4), "big")
        if length > _MAX_MESSAGE:
            raise ProgramFault(f"an answer of {length} bytes, over {_MAX_MESSAGE}")
        try:
            message = json.loads(read_exactly(self.descriptor, length))
        except (ValueError, RecursionError, MemoryError) as error:
            raise ProgramFault(f"an answer that is no message: {error}") from None
        if not isinstance(message, dict):
            raise ProgramFault("an answer that is no message")
        if "fault" in message:
            raise ProgramFault(str(message["fault"])[:500])
        return message


def read_exactly(descriptor: int, length: int) -> bytes:
    parts = []
    while length:
        try:
            part = os.read(descriptor, min(length, 2**20))
        except ConnectionError:
            part = b""
        if not part:
            raise ProgramFault("the program ended before its tests did")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def encode(value: Any, keep: Callable[[Any], list]) -> Any:
    """A value as JSON. Subclasses become their plain base; `keep` gives the handle of what has no plain form."""
    if value is None or isinstance(value, bool):
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            return value if type(value) is plain else plain(value)
    for kind, mark in _CONTAINERS.items():
        if isinstance(value, kind):
            return [mark, [encode(item, keep) for item in iter(value)]]
    if isinstance(value, dict):
        return ["d", [[encode(key, keep), encode(item, keep)] for key, item in value.items()]]
    if isinstance(value, bytes | bytearray):
        return ["b", value.hex()]
    if isinstance(value, complex):
        return ["c", [value.real, value.imag]]
    if isinstance(value, range):
        return ["r", [value.start, value.stop, value.step]]
    return keep(value)


def decode(value: Any, find: Callable[[Any], Any]) -> Any:
    """The value that `encode` made JSON of; `find` resolves handles."""
    if not isinstance(value, list):
        return value
    try:
        mark, content = value
        if mark in _BUILDERS:
            return _BUILDERS[mark](decode(item, find) for item in content)
        match mark:
            case "d":
                return {decode(key, find): decode(item, find) for key, item in content}
            case "b":
                return bytes.fromhex(content)
            case "c":
                return complex(*content)
            case "r":
                return range(*content)
            case "handle" | "module":
                return find(value)
    except (ValueError, TypeError, RecursionError, MemoryError, ImportError) as error:
        raise ProgramFault(f"an answer that is no value: {error}") from None
    raise ProgramFault("an answer that is no value")


class Handle:
    """Stands with the tests for an object of the program. Two are equal only when they are the same object."""

    __slots__ = ("_ask", "_number")

    def __init__(self, ask: Callable[..., Any], number: int):
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", self, (name,), {})

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", self, (name, value), {})

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", self, (key,), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", self, (key, value), {})

    def __contains__(self, item: Any) -> bool:
        return bool(self._ask("contains", self, (item,), {}))

    def __len__(self) -> int:
        return int(self._ask("len", self, (), {}))

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._ask("list", self, (), {})))

    def __next__(self) -> Any:
        return self._ask("next", self, (), {})

    def __str__(self) -> str:
        return str(self._ask("str", self, (), {}))

    def __repr__(self) -> str:
        return str(self._ask("repr", self, (), {}))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, *args, **kwargs: target(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda target, key: target[key],
    "setitem": lambda target, key, value: target.__setitem__(key, value),
    "contains": lambda target, item: item in target,
    "len": len,
    "list": lambda target: list(itertools.islice(target, _MAX_ITEMS)),
    "next": next,
    "str": str,
    "repr": repr,
}


class Tester:
    """The side of the tests: asks the program."""

    def __init__(self, channel: Channel):
        self.channel = channel
        self.num_calls = 0

    def look_up(self, names: list[str]) -> dict[str, Any]:
        """The globals of the program among these names. A module of the standard library is imported afresh."""
        self.channel.send({"names": names})
        answer = self.channel.receive().get("values")
        if not isinstance(answer, dict):
            raise ProgramFault("an answer that is no value")
        return {name: self._decode(answer[name]) for name in names if name in answer}

    def ask(self, operation: str, target: Handle, args: tuple, kwargs: dict[str, Any]) -> Any:
        self.num_calls += operation == "call"
        self.channel.send(
            {
                "operation": operation,
                "target": target._number,
                "args": [self._encode(argument) for argument in args],
                "kwargs": {name: self._encode(argument) for name, argument in kwargs.items()},
            }
        )
        answer = self.channel.receive()
        for i, changed in (answer.get("changed") or {}).items():
            if i.isdigit() and int(i) < len(args):
                _overwrite(args[int(i)], self._decode(changed))
        if "raised" in answer:
            raise _exception(answer["raised"])
        return self._decode(answer.get("value"))

    def _encode(self, value: Any) -> Any:
        return encode(value, _handle_of)

    def _decode(self, value: Any) -> Any:
        return decode(value, self._find)

    def _find(self, value: list) -> Any:
        kind, content = value
        if kind == "module":
            if content not in sys.stdlib_module_names:
                raise ProgramFault(f"the tests use the module {content!r}, which is not of the standard library")
            return __import__(content)
        return Handle(self.ask, int(content))


class Program:
    """The side of the program: answers until the tests are done."""

    def __init__(self, channel: Channel, namespace: dict[str, Any]):
        self.channel = channel
        self.namespace = namespace
        self.kept: list[Any] = []

    def serve(self) -> None:
        while True:
            message = self.channel.receive()
            if "names" in message:
                found = {n: self._encode(self.namespace[n]) for n in message["names"] if n in self.namespace}
                self.channel.send({"values": found})
            else:
                self.channel.send(self._answer(message))

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            args = [self._decode(argument) for argument in message["args"]]
            kwargs = {name: self._decode(argument) for name, argument in message["kwargs"].items()}
            value = _OPERATIONS[message["operation"]](self.kept[message["target"]], *args, **kwargs)
            changed = {
                str(i): now
                for i, (before, argument) in enumerate(zip(message["args"], args, strict=True))
                if isinstance(argument, list | dict | set) and (now := self._encode(argument)) != before
            }
            return {"value": self._encode(value), "changed": changed}
        except BaseException as error:
            return {"raised": described(error)}

    def _encode(self, value: Any) -> Any:
        return encode(value, self._keep)

    def _decode(self, value: Any) -> Any:
        return decode(value, lambda handle: self.kept[handle[1]])

    def _keep(self, value: Any) -> list:
        if isinstance(value, type(sys)):
            return ["module", value.__name__]
        for i, one in enumerate(self.kept):
            if one is value:
                return ["handle", i]
        self.kept.append(value)
        return ["handle", len(self.kept) - 1]


def described(error: BaseException) -> dict[str, Any]:
    """The names of an exception's classes and its text."""
    try:
        text = str(error)[:300]
    except BaseException:
        text = ""
    return {"types": [kind.__name__ for kind in type(error).__mro__], "text": text}


def _exception(raised: Any) -> Exception:
    """The nearest built-in exception to what the program raised. Never one that would end the tests."""
    names, text = raised["types"], str(raised["text"])
    for name in names:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                error = kind(text)
            except TypeError:  # UnicodeDecodeError and its like want more than a text
                continue
            error.from_program = str(names[0])  # type: ignore[attr-defined]
            return error
    return RuntimeError(f"{names[0]}: {text}")


def _handle_of(value: Any) -> list:
    if isinstance(value, Handle):
        return ["handle", value._number]
    raise TypeError(f"the tests pass a {type(value).__name__} to the program; only plain data can be passed")


def _overwrite(target: Any, content: Any) -> None:
    """Let the tests see what the program did to an argument of theirs."""
    if isinstance(target, list) and isinstance(content, list):
        target[:] = content
    elif isinstance(target, dict | set) and isinstance(content, type(target)):
        target.clear()
        target.update(content)
