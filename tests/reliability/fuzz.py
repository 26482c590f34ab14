"""Figure 17: hostile bodies, by the thousand. `python -m tests.reliability.fuzz --minutes 10`.

A server on the fake engine is sent bodies that Hypothesis makes: each is a request that is right, with some of its
values replaced, removed, doubled or nested by what no client would send; some are cut, or no JSON at all. Every answer
must be one: a status below 500 (or 503, where the server says that it is busy), JSON in the shape of the dialect, a
stream that ends as its dialect's streams do. The server must live, hold nothing afterwards, and have no bug in its log.

`tests/foreign/schemathesis_run.py` does the same by our OpenAPI document and `tests/images/damage.py` with pictures.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import copy
import io
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from tests.reliability.client import DIALECTS, Connection, Json
from tests.reliability.result import Result
from tests.reliability.serving import Served, fake, serving, until

PROMISE = "bodies that Hypothesis makes, for every endpoint: no 500, no crash, nothing held afterwards"
_PATIENCE_S = 20.0
_BATCH = 32
"""Bodies of an endpoint before it is the next one's turn."""


async def measure(*, minutes: float = 10.0, first_seed: int = 17, batch: int = _BATCH) -> Result:
    """At least a batch for every endpoint, however short."""
    statuses: Counter[int] = Counter()
    findings: list[Json] = []
    endpoints = _endpoints()
    async with serving(fake(slots=32), request_timeout_s=10.0) as served:
        pids = {served.pid, *(child.pid for child in served.children())}
        began, number = time.monotonic(), 0
        while number < len(endpoints) or time.monotonic() - began < minutes * 60:
            path, valid = endpoints[number % len(endpoints)]
            bodies = _bodies(valid, first_seed + number, batch)
            checked = await asyncio.gather(*(_check(served, path, body) for body in bodies))
            for status, problem, body in checked:
                statuses[status] += 1
                if problem:
                    findings.append({"path": path, "problem": problem, "body": body[:2000].decode("latin-1")})
                    print(f"  fuzz {path}: {problem}: {body[:200]!r}", file=sys.stderr, flush=True)
            number += 1
            if number % 200 == 0:
                print(f"  fuzz: {sum(statuses.values())} bodies, {len(findings)} findings", file=sys.stderr, flush=True)
        alive = served.process.returncode is None
        await until(lambda: _holds_nothing(served), 30.0)
        died = pids - {served.pid, *(child.pid for child in served.children())}
        bugs = [line for line in served.log.read_text().splitlines() if "met a bug" in line or "Traceback" in line]
    seconds = time.monotonic() - began
    total = sum(statuses.values())
    errors = sum(n for status, n in statuses.items() if status >= 500 and status not in (503, 529))
    measured = (
        f"{total} bodies to {len(endpoints)} endpoints in {seconds / 60:.1f} min: {errors} answered 500 or above, "
        f"{len(findings)} not as they should be, {len(bugs)} bugs in the log, {len(died)} processes died; "
        f"{statuses[200]} answered, {sum(n for s, n in statuses.items() if 400 <= s < 500)} refused"
    )
    met = alive and not findings and not bugs and not errors and not died and total > 0
    return Result(
        17, PROMISE, measured, met, {"statuses": dict(statuses), "findings": findings[:50], "bugs": bugs[:20]}
    )


async def _holds_nothing(served: Served) -> bool:
    return not await served.busy() and await served.metric("sightline_http_requests_in_flight") <= 1


async def _check(served: Served, path: str, body: bytes) -> tuple[int, str, bytes]:
    """Status, what is wrong with the answer (nothing: empty), the body."""
    try:
        async with asyncio.timeout(_PATIENCE_S), Connection(served.port) as connection:
            reply = await connection.ask("POST", path, body)
    except TimeoutError:
        return 0, "no end", body
    except OSError as error:
        return 0, f"no connection: {error}", body
    if not reply.status:
        return 0, "no answer", body
    if reply.status >= 500 and reply.status not in (503, 504, 529):
        return reply.status, f"status {reply.status}", body
    if not reply.whole:
        return reply.status, "cut off", body
    return reply.status, _wrong_with(path, reply.headers.get("content-type", ""), reply.body), body


def _wrong_with(path: str, media_type: str, body: bytes) -> str:
    if media_type.startswith("application/json"):
        try:
            json.loads(body)
        except ValueError:
            return "no JSON"
        return ""
    if media_type.startswith(("text/event-stream", "application/x-ndjson")):
        speaking = [d for d in DIALECTS.values() if d.path == path]
        ends = (end for d in speaking for end in (d.end, d.failure, d.cut))
        return "" if not speaking or any(end in body for end in ends) else "a stream without an end"
    return ""


# --- bodies ----------------------------------------------------------------------------------------------------------


def _bodies(valid: Json, number: int, count: int) -> list[bytes]:
    """Of this seed, always the same."""
    made: list[bytes] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_hostile(valid))
    def make(body: bytes) -> None:
        made.append(body)

    make()
    return made


@st.composite
def _hostile(draw: st.DrawFn, valid: Json) -> bytes:
    value: Any = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(0, 4))):
        value = _mutated(draw, value)
    match draw(st.integers(0, 19)):
        case 0:
            raw = json.dumps(value).encode()
            return raw[: draw(st.integers(0, len(raw)))]
        case 1:
            return draw(st.binary(max_size=200))
        case 2:
            return json.dumps(value).encode("utf-16")
        case 3:
            return (
                json.dumps(value).replace("1", draw(st.sampled_from(["1e999", "-0", "1" * 30, "NaN", "1.0"]))).encode()
            )
        case _:
            return json.dumps(value).encode("utf-8", "surrogatepass")


def _mutated(draw: st.DrawFn, value: Any) -> Any:
    """With one of its values, wherever it lies, made another."""
    places = list(_places(value))
    odd = copy.deepcopy(draw(_ODD))  # what is drawn is Hypothesis's, and would be changed by the next mutation
    if not places:
        return odd
    container, key = draw(st.sampled_from(places))
    match draw(st.integers(0, 6)):
        case 0:
            del container[key]
        case 1:
            container[key] = draw(_ANYTHING)
        case 2:
            container[key] = odd
        case 3:
            container[key] = [container[key]] * draw(st.integers(0, 5))
        case 4:
            container[key] = {str(key): container[key]}
        case 5 if isinstance(container, dict):
            container[draw(st.text(max_size=8))] = draw(_ANYTHING)
        case _ if isinstance(container, dict):
            container[draw(st.sampled_from(_KNOWN))] = odd
        case _:
            container[key] = None
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


_PNG = _picture()
_URL = f"data:image/png;base64,{_PNG}"
_ODD = st.sampled_from(
    [
        None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**19, 0.0, -0.5, 1e308, 1e-320, "", " ", "null", "0",
        "\x00", "\ud800", "\u202e", "a" * 100_000, "../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1/",
        "data:", "data:image/png;base64,", "data:image/png;base64,!!!!", _URL[:-20], "m", "M", [], {}, [[]], [{}],
        [None], {"": None}, "[[fake: length 3]]", "[[fake: say ]]", "[[fake: tool x {}]]",
        "<|image_pad|>", "%s%n", "${jndi}",
        {"type": "object", "properties": {"a": {"$ref": "#"}}}, {"$ref": "#/a"}, "(a+)+$",
        {"type": "json_schema"},
    ]
)  # fmt: skip
_ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
_KNOWN = [
    "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "max_output_tokens", "temperature",
    "top_p", "top_k", "stop", "seed", "logprobs", "top_logprobs", "logit_bias", "tools", "tool_choice",
    "response_format", "functions", "user", "presence_penalty", "parallel_tool_calls", "reasoning", "text",
    "thinking", "system", "instructions", "previous_response_id", "store", "background", "format", "options",
    "keep_alive", "think", "images", "raw", "suffix", "echo", "best_of", "dimensions", "encoding_format",
    "priority", "modalities", "metadata", "include", "truncation", "service_tier", "content", "role", "detail",
]  # fmt: skip


def _endpoints() -> list[tuple[str, Json]]:
    image = {"type": "image_url", "image_url": {"url": _URL, "detail": "low"}}
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
    }
    said = {"role": "user", "content": [{"type": "text", "text": "hi"}, image]}
    chat: Callable[..., Json] = lambda **more: {"model": "m", "max_tokens": 5, "messages": [said], **more}  # noqa: E731
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object", "properties": {}}}}
    claude_image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _PNG}}
    claude = {"role": "user", "content": [{"type": "text", "text": "hi"}, claude_image]}
    shown = [{"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": _URL}]
    ollama = {"role": "user", "content": "hi", "images": [_PNG]}
    rows: list[tuple[str, Json]] = [
        ("/v1/chat/completions", chat(stream=True, tools=[tool], tool_choice="auto", stop=["x"], temperature=0.5)),
        ("/v1/chat/completions", chat(response_format=schema, logprobs=True, top_logprobs=2, n=2, seed=1)),
        ("/v1/completions", {"model": "m", "prompt": ["hi", "there"], "max_tokens": 5, "stream": True, "logprobs": 1}),
        ("/v1/responses", {"model": "m", "max_output_tokens": 5, "input": [{"role": "user", "content": shown}]}),
        ("/v1/responses", {"model": "m", "max_output_tokens": 5, "input": "hi", "stream": True, "instructions": "be"}),
        ("/v1/responses/input_tokens", {"model": "m", "input": "hi"}),
        ("/v1/messages", {"model": "m", "max_tokens": 5, "messages": [claude], "stream": True, "system": "be"}),
        ("/v1/messages/count_tokens", {"model": "m", "messages": [claude]}),
        ("/api/chat", {"model": "m", "messages": [ollama], "options": {"num_predict": 5}, "format": "json"}),
        ("/api/generate", {"model": "m", "prompt": "hi", "images": [_PNG], "options": {"num_predict": 5}}),
        ("/api/embed", {"model": "m", "input": ["hi"]}),
        ("/api/show", {"model": "m"}),
        ("/v1/embeddings", {"model": "m", "input": ["hi", "you"], "dimensions": 8, "encoding_format": "base64"}),
        ("/v3/chat/completions", chat(stream=True)),
        ("/v1/batches", {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}),
        ("/analyze", {"image": _URL, "prompt": "hi"}),
    ]
    return rows


if __name__ == "__main__":
    from tests.reliability.result import HEADER

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    result = asyncio.run(measure(minutes=arguments.minutes, first_seed=arguments.seed))
    print(HEADER, result.row(), json.dumps(result.details, indent=1), sep="\n")
