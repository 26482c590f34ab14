"""A model behind OpenAI's API that costs nearly nothing: `python -m sightline.bench.gateway.stub --port N`.

A protocol on bare asyncio. Bodies are counted, not kept: of each, the ends are looked at for the model's name and
`"stream": true`. The models:

    words-N          N words, all at once
    words-N-ms-M     N words, one every M milliseconds (of a stream)
"""

from __future__ import annotations

import argparse
import asyncio
import re
from functools import lru_cache
from typing import cast

import uvloop

_KEPT = 1024
"""Bytes of a body's beginning, and of its end."""
_BUFFER = bytearray(1 << 20)
"""Of every connection: nothing is left in it when the next one reads."""
_MODEL = re.compile(rb'"model":\s*"words-(\d+)(?:-ms-(\d+))?"')
_STREAM = re.compile(rb'"stream":\s*true')
_USAGE = re.compile(rb'"include_usage":\s*true')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_HEAD = b'{"id":"chatcmpl-stub","object":"chat.completion%s","created":1,"model":"stub","choices":'
WORD = b" lorem"
MODELS = ("words-8", "words-64", "words-64-ms-10", "words-64-ms-250")


def _reply(media_type: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (media_type, len(body), body)


def _usage(words: int) -> bytes:
    return b'{"prompt_tokens":10,"completion_tokens":%d,"total_tokens":%d}' % (words, words + 10)


@lru_cache
def whole(words: int) -> bytes:
    """The reply to a request that does not stream."""
    message = b'{"role":"assistant","content":"%b"}' % (WORD * words)
    choice = b'[{"index":0,"message":%b,"logprobs":null,"finish_reason":"stop"}]' % message
    return _reply(b"application/json", _HEAD % b"" + choice + b',"usage":' + _usage(words) + b"}")


def _chunked(event: bytes) -> bytes:
    line = b"data: " + event + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(line), line)


def _chunk(delta: bytes, reason: bytes = b"null") -> bytes:
    choice = b'[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]}' % (delta, reason)
    return _chunked(_HEAD % b".chunk" + choice)


@lru_cache
def streamed(words: int, with_usage: bool) -> tuple[bytes, ...]:
    """A stream in pieces: the head with the first chunk, a piece for each word, the end."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    usage = _chunked(_HEAD % b".chunk" + b'[],"usage":' + _usage(words) + b"}") if with_usage else b""
    return (
        head + _chunk(b'{"role":"assistant","content":""}'),
        *[_chunk(b'{"content":"%b"}' % WORD)] * words,
        _chunk(b"{}", b'"stop"') + usage + _chunked(b"[DONE]") + b"0\r\n\r\n",
    )


class Stub(asyncio.BufferedProtocol):
    """One connection, one request after the other."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        """Bytes of the body that have not come yet; while it is 0, a head is awaited."""
        self._begin = self._end = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        at = 0
        while at < nbytes:
            if self._left:
                at = self._take(at, nbytes)
            else:
                self._head += _BUFFER[at:nbytes]
                at = nbytes
                head, mark, body = self._head.partition(b"\r\n\r\n")
                if mark:
                    at -= len(body)
                    self._head, self._begin, self._end = b"", b"", b""
                    self._begun(head)

    def _begun(self, head: bytes) -> None:
        found = _LENGTH.search(head)
        self._left = int(found[1]) if found else 0
        if not self._left:
            listed = b",".join(b'{"id":"%b","object":"model"}' % name.encode() for name in MODELS)
            self._transport.write(_reply(b"application/json", b'{"object":"list","data":[%b]}' % listed))

    def _take(self, at: int, nbytes: int) -> int:
        end = min(nbytes, at + self._left)
        self._left -= end - at
        if len(self._begin) < _KEPT:
            self._begin += _BUFFER[at : min(end, at + _KEPT)]
        self._end = (self._end + _BUFFER[max(at, end - _KEPT) : end])[-_KEPT:]
        if not self._left:
            self._answer()
        return end

    def _answer(self) -> None:
        ends = self._begin + self._end
        found = _MODEL.search(ends)
        if found is None:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            return
        words, pause_ms = int(found[1]), int(found[2] or 0)
        if not _STREAM.search(ends):
            self._transport.write(whole(words))
            return
        pieces = streamed(words, bool(_USAGE.search(ends)))
        if pause_ms:
            self._paced(pieces, 0, pause_ms / 1000, asyncio.get_running_loop().time())
        else:
            self._transport.write(b"".join(pieces))

    def _paced(self, pieces: tuple[bytes, ...], index: int, pause_s: float, began: float) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(pieces[index])
        if index + 1 < len(pieces):
            due = began + (index + 1) * pause_s
            asyncio.get_running_loop().call_at(due, self._paced, pieces, index + 1, pause_s, began)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))
