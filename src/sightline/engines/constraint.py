"""Grammars at work: from a grammar's text to which tokens may come next. By llguidance (Earley parsing over a lexer of
derivatives; github.com/guidance-ai/llguidance), which is imported with the first request that needs it.

A grammar is a client's, so it is compiled under limits: each of its schemas is first tried in a process that may be
killed (`grammar_trial.py`), and llguidance's own fuel bounds every step after that.

The mask of the next token is computed in a thread while the model computes its logits, without the GIL.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from select import select
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from sightline.engines import grammar_trial
from sightline.engines.grammar import Grammar, Schema, to_grammar
from sightline.engines.tool_formats import ToolFormat
from sightline.errors import SchemaInvalid
from sightline.types import EngineRequest

log = logging.getLogger(__name__)

K = TypeVar("K")

Mask = npt.NDArray[np.bool_]
"""Of a vocabulary: which tokens may come, shape [vocabulary]."""

_KEPT: Final = 64
"""Compiled grammars, and verdicts over schemas 16 times as many."""
_STARTS_WITHIN_S: Final = 30.0
_WAITS_S: Final = 5.0 * grammar_trial.SECONDS
"""For a verdict: the trial's own limit is one of computing, and the machine may have more to do."""
_LOOKED_AHEAD: Final = 256
"""Characters of a text that must come: the first token of it is what counts."""
_WHERE: Final = re.compile(r"^(?:at \d+\(\d+\): )?(?:failed to compile JSON schema: )?")


class Spelled(Protocol):
    """A vocabulary, as far as grammars are concerned (`answer.Vocabulary` is one)."""

    @property
    def size(self) -> int: ...

    @property
    def eos_tokens(self) -> frozenset[int]: ...

    @property
    def added(self) -> Mapping[int, bytes]: ...

    def spelling(self, token: int) -> bytes: ...

    def tokens_of(self, texts: Iterable[str]) -> frozenset[int]: ...


class Constraints:
    """Compiles grammars for one vocabulary. Thread-safe; `close` ends its threads and its process."""

    def __init__(self, vocabulary: Spelled, encode: Callable[[str], list[int]], form: ToolFormat) -> None:
        """`encode`: text in the middle of an answer to tokens; `form`: how the model writes calls of tools."""
        self._vocabulary = vocabulary
        self._form = form
        self._encode = encode
        self._trial = _Trial()
        # One thread compiles: a client that sends what takes long holds up others of its kind, and nobody else.
        self._compiling = ThreadPoolExecutor(1, "grammar")
        self._masking = ThreadPoolExecutor(2, "mask")
        self._tokenizer: Any = None
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()
        self._verdicts: OrderedDict[str, str] = OrderedDict()

    def mark(self, text: str) -> str:
        """A text as a term of a grammar: the added token that it is, else its characters."""
        token = min(self._vocabulary.tokens_of([text]), default=None)
        return json.dumps(text) if token is None else f"<[{token}]>"

    async def of(self, request: EngineRequest) -> Constraint | None:
        """What the answer must look like; None: anything. Raises `SchemaInvalid` for a schema of which no grammar can
        be made, or not in time."""
        grammar = to_grammar(request, self._form, self.mark)
        return None if grammar is None else await self.compile(grammar, ignore_eos=request.sampling.ignore_eos)

    async def compile(self, grammar: Grammar, *, ignore_eos: bool = False) -> Constraint:
        """Raises `SchemaInvalid`."""
        loop = asyncio.get_running_loop()
        # What was compiled before waits for nobody who compiles.
        if (matcher := self._compiled.get(grammar)) is None:
            matcher = await loop.run_in_executor(self._compiling, self._compile, grammar)
        copy, first = await loop.run_in_executor(self._masking, _begun, matcher)
        param = grammar.schemas[0].param if grammar.schemas else None
        return Constraint(copy, first, self._masking, self._vocabulary, ignore_eos=ignore_eos, param=param)

    def close(self) -> None:
        self._trial.close()
        self._compiling.shutdown(wait=False, cancel_futures=True)
        self._masking.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: Grammar) -> Any:
        """A matcher that stands at the beginning of an answer, and stays there. Raises `SchemaInvalid`."""
        from llguidance import LLMatcher

        lark = grammar.lark([self._tried(schema) for schema in grammar.schemas])
        matcher = LLMatcher(self._made_tokenizer(), lark, log_level=0, limits=grammar_trial.limits())
        matcher.compute_bitmask()  # lexemes are first looked at here: it is part of compiling
        if matcher.is_error():
            raise _unusable(matcher.get_error(), grammar.schemas[0].param if grammar.schemas else None)
        _keep(self._compiled, grammar, matcher, _KEPT)
        return matcher

    def _tried(self, schema: Schema) -> str:
        """The schema, or what takes its place. Raises `SchemaInvalid`."""
        if (fault := self._verdicts.get(schema.text)) is None:
            fault = self._trial.fault(f"start: %json {schema.text}\n")
            _keep(self._verdicts, schema.text, fault, 16 * _KEPT)
        if not fault:
            return schema.text
        if schema.instead is None:
            raise _unusable(fault, schema.param)
        return schema.instead

    def _made_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            vocabulary = _ForGrammars(self._vocabulary, self._encode)
            self._tokenizer = LLTokenizer(
                TokenizerWrapper(vocabulary),
                n_vocab=self._vocabulary.size,
                eos_token=vocabulary.eos_token_ids,
                slices=LLTokenizer.json_slices(),
            )
        return self._tokenizer


class Constraint:
    """Which tokens may come next in one answer. Used by one thread at a time."""

    def __init__(
        self,
        matcher: Any,
        first: bytes,
        pool: ThreadPoolExecutor,
        vocabulary: Spelled,
        *,
        ignore_eos: bool,
        param: str | None,
    ) -> None:
        """`first`: the mask of the first token, as bits; `param`: the schema's place in the request."""
        self._matcher = matcher
        self._param = param
        self._pool = pool
        self._size = vocabulary.size
        self._ignored = np.array(sorted(vocabulary.eos_tokens) if ignore_eos else [], np.int64)
        self._bits: Future[bytes] = Future()
        self._bits.set_result(first)

    def mask(self) -> Mask:
        """Of the next token; at least one may come. Raises `SchemaInvalid` when the grammar has grown beyond its limits
        on the way."""
        bits = np.frombuffer(self._bits.result(), np.uint8)
        if self._matcher.is_error():
            log.warning("a grammar was given up on the way: %s", self._matcher.stop_reason())
            # The request's fault, not the engine's, which would be taken for one that fails.
            raise SchemaInvalid(
                "What the answer must look like grew too complex while it was written. Simplify the schema.",
                param=self._param,
            )
        allowed = np.unpackbits(bits, count=self._size, bitorder="little").astype(np.bool_)
        if len(self._ignored):
            others = allowed.copy()
            others[self._ignored] = False
            allowed = others if others.any() else allowed
        return allowed

    def takes(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens may come, one after the other."""
        self._bits.result()
        return bool(self._matcher.validate_tokens(list(tokens)) == len(tokens))

    def accept(self, token: int) -> bool:
        """Takes the token that came; True: the answer is complete, nothing may follow."""
        self._bits.result()  # nobody else may be at the matcher
        self._matcher.consume_token(token)
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return True
        self._bits = self._pool.submit(self._matcher.compute_bitmask)
        return False


class _ForGrammars:
    """A vocabulary as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, vocabulary: Spelled, encode: Callable[[str], list[int]]) -> None:
        self.tokens = [vocabulary.spelling(token) for token in range(vocabulary.size)]
        # Added tokens are no text here, special or not: a grammar names those that it wants.
        self.special_token_ids = sorted(token for token in vocabulary.added if token < vocabulary.size)
        self.eos_token_ids = sorted(t for t in vocabulary.eos_tokens if t < vocabulary.size) or [vocabulary.size - 1]
        self.eos_token_id = self.eos_token_ids[0]
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        """Raises `TypeError` for bytes: llguidance tries them, and then sees to it that it has whole characters."""
        if not isinstance(text, str):
            raise TypeError("only text can be tokenised")
        return self._encode(text[:_LOOKED_AHEAD])


class _Trial:
    """The process in which grammars are tried, started with the first. Used by one thread, closed by any."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def fault(self, lark: str) -> str:
        """What is wrong with a grammar, in llguidance's words; nothing if it can be used."""
        with suppress(OSError):
            process = self._running()
            assert process.stdin is not None
            process.stdin.write(json.dumps(lark).encode() + b"\n")
            process.stdin.flush()
            if (verdict := self._line(process, _WAITS_S)) is not None:
                return verdict
        self._kill()
        return "it takes too long, or too much memory, to make a grammar of it"

    def close(self) -> None:
        self._closed = True
        self._kill()

    def _running(self) -> subprocess.Popen[bytes]:
        """Raises `OSError` when it cannot be started."""
        with self._lock:
            if self._closed:
                raise OSError("closed")
            if self._process is None or self._process.poll() is not None:
                # -P: the directory of this file has packages of the same names as others have.
                command = [sys.executable, "-P", str(Path(grammar_trial.__file__))]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                if self._line(self._process, _STARTS_WITHIN_S) is None:
                    raise OSError("it does not start")
            return self._process

    def _line(self, process: subprocess.Popen[bytes], within_s: float) -> str | None:
        assert process.stdout is not None
        if not select([process.stdout], [], [], within_s)[0]:
            return None
        line = process.stdout.readline()
        return str(json.loads(line)) if line.endswith(b"\n") else None

    def _kill(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _begun(matcher: Any) -> tuple[Any, bytes]:
    """A matcher of one answer's own, and the mask of its first token."""
    copy = matcher.deep_copy()
    return copy, copy.compute_bitmask()


def _unusable(fault: str, param: str | None) -> SchemaInvalid:
    """llguidance's first line, without what it says of where in our grammar it was."""
    lines = [_WHERE.sub("", line).strip() for line in fault.splitlines()] or [""]
    # Of a regular expression the fault stands behind a picture of where it is.
    reason = next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")
    reason = reason[:300].rstrip(".")
    if "NoExtension" in reason:
        reason = "there is no value that it describes"
    return SchemaInvalid(f"This JSON schema cannot be used: {reason}.", param=param)


def _keep(kept: OrderedDict[K, Any], key: K, value: Any, most: int) -> None:
    kept[key] = value
    if len(kept) > most:
        kept.popitem(last=False)
