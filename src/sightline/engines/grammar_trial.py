"""Tries a grammar where it can do no harm: in a process that may be killed.

    python -P grammar_trial.py

A program of its own, of the standard library and llguidance only: it is up in a tenth of a second. Each line of its
input is a JSON string, a grammar in llguidance's Lark dialect; each line of its output one too: what is wrong with the
grammar, or nothing. It compiles the grammar and takes some steps through it, over a vocabulary of the 256 bytes.

Limits of llguidance's own (fuel) end most of what takes long, but not all: an intersection of a few regular expressions
can keep it busy for ever. The kernel therefore ends this process after `SECONDS` of computing.
"""

from __future__ import annotations

import ctypes
import json
import random
import resource
import signal
import sys
from typing import Any

SECONDS = 1
"""Of computing, for one grammar. What it takes here it takes again in the engine."""
_MAX_BYTES = 2 * 1024**3
"""Of address space."""
_WALKS, _STEPS = 4, 24
_PR_SET_PDEATHSIG = 1
"""From <sys/prctl.h>."""


def limits() -> Any:
    """What compiling a grammar, and a step through it, may cost: an eighth to a half of llguidance's defaults, of which
    the first answers for 20 ms, the second for 14. In a trial and in an engine they are the same."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=25_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


class _Bytes:
    """A vocabulary of bytes, and an end."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(256)), b"<|end|>")
    special_token_ids = (256,)

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def fault(tokenizer: Any, grammar: str) -> str:
    """What is wrong with a grammar, in llguidance's words, or nothing."""
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    chance = random.Random(20)
    for _ in range(_WALKS):
        _walk(matcher, chance)
        if matcher.is_error():
            return matcher.get_error()
        matcher.reset()
    return ""


def _walk(matcher: Any, chance: random.Random) -> None:
    for _ in range(_STEPS):
        if matcher.is_error() or matcher.is_stopped():
            return
        mask = matcher.compute_bitmask()
        allowed = [token for token in range(257) if mask[token >> 3] >> (token & 7) & 1]
        if not allowed or matcher.is_error():
            return
        matcher.consume_token(chance.choice(allowed))


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to everyone; whoever started us decides
    from llguidance import LLTokenizer, TokenizerWrapper

    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=257, eos_token=256, slices=[])
    print(json.dumps("ready"), flush=True)  # noqa: T201
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF, which nobody handles
        print(json.dumps(fault(tokenizer, json.loads(line))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
