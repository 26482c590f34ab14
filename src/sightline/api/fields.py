"""Checked fields: a request's schema is a struct whose annotations say what each field may hold.

    class Body(msgspec.Struct, frozen=True, kw_only=True):
        model: Annotated[str, string()]                          # required: it has no default
        temperature: Annotated[float, number(0, 2)] = 1.0      # null means the default

    read(Body, {"temperature": 3})  ->  InvalidRequest, param "temperature"

A rule takes a value and its place in the request (`messages[0].content[1].image_url.url`) and returns the value as the
struct holds it, or raises `InvalidRequest` (`UnsupportedFeature` from `refused`). Fields that no struct names are
ignored. msgspec could check types itself, but it tells where and what was wrong only in prose, and clients are owed
`param` and `code`.

Rules made here also say what they take as JSON schema (`to_schema`), of which the OpenAPI document is made. A rule of a
dialect's own says so by `@described`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, NoReturn, TypeAlias, TypeVar, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary

import msgspec

from sightline.errors import InvalidRequest, UnsupportedFeature

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
Rule: TypeAlias = Callable[[Any, str], T]

R = TypeVar("R", bound=Callable[..., Any])
Schema: TypeAlias = Mapping[str, Any] | type[msgspec.Struct]
"""A JSON schema, in which a struct may stand for the schema of what `read` makes one of."""

_SHOWN = 64
"""Characters of a client's text that a message may repeat."""
_INT64 = 2**63
_SCHEMAS: WeakKeyDictionary[Rule[Any], Schema | Callable[[], Schema]] = WeakKeyDictionary()


def described(schema: Schema | Callable[[], Schema]) -> Callable[[R], R]:
    """Says what a rule takes; by a function where that is written further below."""

    def describe(rule: R) -> R:
        _SCHEMAS[rule] = schema
        return rule

    return describe


def to_schema(rule: Rule[Any]) -> Schema:
    """What a rule takes; `{}`, anything, for one that does not say."""
    schema = _SCHEMAS.get(rule, {})
    return schema if isinstance(schema, Mapping | type) else schema()


def read(schema: type[S], value: Any, at: str = "") -> S:
    """`value`, an object of the request that stands at `at`, as `schema`.

    Raises `InvalidRequest` (or `UnsupportedFeature`) for the first field at fault.
    """
    if not isinstance(value, dict):
        raise wrong_type(at, "an object", value)
    rules = to_rules(schema)
    checked = {}
    for name, given in value.items():
        if given is not None and (rule := rules.get(name)) is not None:
            checked[name] = rule(given, f"{at}.{name}" if at else name)
    for name in _required(schema):
        if name not in checked:
            place = f"{at}.{name}" if at else name
            raise wrong_type(place, "a value", None) if name in value else missing(place)
    return schema(**checked)


@cache
def to_rules(schema: type[msgspec.Struct]) -> Mapping[str, Rule[Any]]:
    """The rule of each checked field."""
    hints = get_type_hints(schema, include_extras=True)
    return {name: get_args(hint)[1] for name, hint in hints.items() if get_origin(hint) is Annotated}


@cache
def _required(schema: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(f.name for f in msgspec.structs.fields(schema) if f.required)


# --- rules -----------------------------------------------------------------------------------------------------------


def string(*, min_length: int = 0, max_length: int | None = None) -> Rule[str]:
    @described({"type": "string", **_bounds(minLength=min_length or None, maxLength=max_length)})
    def rule(value: Any, at: str) -> str:
        if not isinstance(value, str):
            raise wrong_type(at, "a string", value)
        if len(value) < min_length:
            raise invalid(at, "must not be empty" if min_length == 1 else f"must have {min_length} characters or more")
        if max_length is not None and len(value) > max_length:
            raise invalid(at, f"must have at most {max_length} characters, and has {len(value)}")
        return value

    return rule


def identifier(max_length: int) -> Rule[str]:
    """Of a function or a schema: letters, digits, `_` and `-`."""
    pattern = re.compile(rf"[A-Za-z0-9_-]{{1,{max_length}}}")

    @described({"type": "string", "pattern": f"^{pattern.pattern}$"})
    def rule(value: Any, at: str) -> str:
        checked = string()(value, at)
        if not pattern.fullmatch(checked):
            raise invalid(at, f"must be 1 to {max_length} letters, digits, '_' or '-'")
        return checked

    return rule


def one_of(*allowed: str) -> Rule[Any]:
    choices = ", ".join(repr(a) for a in allowed)

    @described({"type": "string", "enum": list(allowed)})
    def rule(value: Any, at: str) -> str:
        if not isinstance(value, str):
            raise wrong_type(at, "a string", value)
        if value not in allowed:
            raise invalid(at, f"must be one of {choices}, not {value[:_SHOWN]!r}")
        return value

    return rule


@described({"type": "boolean"})
def boolean(value: Any, at: str) -> bool:
    if not isinstance(value, bool):
        raise wrong_type(at, "a boolean", value)
    return value


def integer(low: int | None = None, high: int | None = None) -> Rule[int]:
    @described({"type": "integer", **_bounds(minimum=low, maximum=high)})
    def rule(value: Any, at: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong_type(at, "an integer", value)
        if (low is not None and value < low) or (high is not None and value > high):
            raise invalid(at, f"must be {_range(low, high)}, not {value}")
        if not -_INT64 <= value < _INT64:  # no engine's number holds it
            raise invalid(at, f"must be {_range(-_INT64, _INT64 - 1)}, not {value}")
        return value

    return rule


def number(low: float, high: float, *, above: bool = False) -> Rule[float]:
    """`above`: the lower bound itself is out."""
    bounds = f"above {low:g} and at most {high:g}" if above else _range(low, high)

    @described({"type": "number", "exclusiveMinimum" if above else "minimum": low, "maximum": high})
    def rule(value: Any, at: str) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise wrong_type(at, "a number", value)
        if not low <= value <= high or (above and value == low):
            raise invalid(at, f"must be {bounds}, not {value:g}")
        return float(value)

    return rule


@described({"type": "object"})
def mapping(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type(at, "an object", value)
    return value


def array(item: Rule[T], *, min_length: int = 0, max_length: int | None = None) -> Rule[tuple[T, ...]]:
    bounds = _bounds(minItems=min_length or None, maxItems=max_length)

    @described(lambda: {"type": "array", "items": to_schema(item), **bounds})
    def rule(value: Any, at: str) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise wrong_type(at, "an array", value)
        if len(value) < min_length:
            raise invalid(at, f"must have {min_length} or more items")
        if max_length is not None and len(value) > max_length:
            raise invalid(at, f"must have at most {max_length} items, and has {len(value)}")
        return tuple(item(one, f"{at}[{index}]") for index, one in enumerate(value))

    return rule


def texts_or_token_ids(
    text: Rule[str], token_id: Rule[int], *, max_items: int, max_token_ids: int
) -> Rule[tuple[str | tuple[int, ...], ...]]:
    """A text or several, the ids of one's tokens or of several's: what completions and embeddings take.

    Gives one for each text, whichever way it was written.
    """
    token_ids = array(token_id, min_length=1, max_length=max_token_ids)
    texts = array(text, min_length=1, max_length=max_items)
    lists = array(token_ids, min_length=1, max_length=max_items)

    @described({"anyOf": [to_schema(rule) for rule in (text, texts, token_ids, lists)]})
    def rule(value: Any, at: str) -> tuple[str | tuple[int, ...], ...]:
        match value:
            case str():
                return (text(value, at),)
            case []:
                raise invalid(at, "must not be empty")
            case [str(), *_]:
                return texts(value, at)
            case [int(), *_]:
                return (token_ids(value, at),)
            case [list(), *_]:
                return lists(value, at)
            case _:
                raise wrong_type(at, "a string, an array of strings, or token ids", value)

    return rule


def struct(schema: type[S]) -> Rule[S]:
    @described(schema)
    def rule(value: Any, at: str) -> S:
        return read(schema, value, at)

    return rule


def anything(value: Any, at: str) -> Any:
    """For what is checked once more of the request is known."""
    return value


def later(schema: Schema) -> Rule[Any]:
    """Anything, for now: what is checked by `schema` once more of the request is known."""

    @described(schema)
    def rule(value: Any, at: str) -> Any:
        return value

    return rule


def tagged(schema: type[msgspec.Struct], *types: str) -> Schema:
    """Of objects that `read` makes one of once their `type` has told that they are such."""
    tag = {"type": "object", "properties": {"type": {"enum": list(types)}}, "required": ["type"]}
    return {"allOf": [schema, tag]}


def refused(reason: str) -> Rule[None]:
    """A field that would change the answer and that this server does not honour."""

    @described({"type": "null", "description": f"Not supported: {reason}"})
    def rule(value: Any, at: str) -> NoReturn:
        raise UnsupportedFeature(f"'{at}' is not supported: {reason}", param=at)

    return rule


# --- errors ----------------------------------------------------------------------------------------------------------


def missing(at: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{at}'.", param=at, code="missing_required_parameter")


def invalid(at: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{at}': it {what}.", param=at)


def wrong_type(at: str, wanted: str, value: Any) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid type for '{at}': expected {wanted}, but got {_kind(value)}.", param=at, code="invalid_type"
    )


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _bounds(**bounds: int | None) -> dict[str, int]:
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _range(low: float | None, high: float | None) -> str:
    if high is None:
        return f"at least {_exact(low)}"
    return f"at most {_exact(high)}" if low is None else f"between {_exact(low)} and {_exact(high)}"


def _exact(bound: float | None) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
