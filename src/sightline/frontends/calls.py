"""Objects of the core, as front ends call them: by the name of an interface and of its method, with typed arguments.

    core         offered({"responses": (ResponseStore, store)})  -> what `Call` frames may ask for
    front end    Far(ResponseStore, "responses", call)           -> stands in for the object

Only what the interface annotates travels, as msgpack of those very types; nothing else of the object can be reached.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

CallFar = Callable[[str, bytes], Awaitable[bytes]]
"""From a method's name and its arguments to what it returns. Raises what the method raises."""


class Method:
    """One method of an interface, as it travels."""

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = typing.get_type_hints(function)
        parameters = list(inspect.signature(function).parameters.values())[1:]  # without self
        self._signature = inspect.Signature(parameters)
        shape = msgspec.defstruct("Arguments", [(p.name, hints[p.name]) for p in parameters])
        self._make = shape
        self._arguments = msgspec.msgpack.Decoder(shape)
        self._value: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(hints.get("return", type(None)))
        self._keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}

    def encode_arguments(self, *args: Any, **kwargs: Any) -> bytes:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return msgspec.msgpack.encode(self._make(**bound.arguments))

    async def call(self, function: Callable[..., Awaitable[Any]], arguments: bytes) -> bytes:
        """Raises `msgspec.ValidationError` for arguments that are none of its own."""
        given = msgspec.structs.asdict(self._arguments.decode(arguments))
        named = {name: given.pop(name) for name in self._keywords}
        return msgspec.msgpack.encode(await function(*given.values(), **named))

    def decode_value(self, value: bytes) -> Any:
        return self._value.decode(value)


@lru_cache(maxsize=256)
def _method(interface: type, name: str) -> Method:
    return Method(getattr(interface, name))


def _names(interface: type) -> Iterator[str]:
    for name, value in inspect.getmembers(interface, inspect.iscoroutinefunction):
        if not name.startswith("_") and value is not None:
            yield name


def offered(objects: Mapping[str, tuple[type, object]]) -> dict[str, Callable[[bytes], Awaitable[bytes]]]:
    """Every async method of the interfaces, by `name.method`."""
    calls: dict[str, Callable[[bytes], Awaitable[bytes]]] = {}
    for name, (interface, target) in objects.items():
        for method_name in _names(interface):
            method, bound = _method(interface, method_name), getattr(target, method_name)

            async def call(arguments: bytes, method: Method = method, bound: Any = bound) -> bytes:
                return await method.call(bound, arguments)

            calls[f"{name}.{method_name}"] = call
    return calls


class Far:
    """Stands in for an object of the core."""

    def __init__(self, interface: type, name: str, call: CallFar) -> None:
        self._call = call
        for method_name in _names(interface):
            setattr(self, method_name, self._to_method(_method(interface, method_name), f"{name}.{method_name}"))

    def _to_method(self, method: Method, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return method.decode_value(await self._call(name, method.encode_arguments(*args, **kwargs)))

        return call
