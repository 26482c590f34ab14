"""A model behind somebody else's server: any that speaks OpenAI's chat completions.

    RemoteEngine (engine.py)     the `Engine`; who waits, what is asked, how it ends
        options.py               what the operator says; checked
        kinds.py                 what differs between servers: a row each, data only
        pictures.py              pixels to PNG data URIs, off the event loop
        body.py                  request -> body                       pure
        answer.py                chunks -> events                      pure
        failures.py              status and code -> our errors         pure
        counting.py              what a prompt costs, where the server tells
        upstream.py              HTTP: connections, time limits, bytes
            sse.py               bytes -> server-sent events           pure

The server's address comes from the operator alone. What it says is believed no more than a client: its numbers are
checked, its texts of errors reach nobody, and a stream that breaks off never ends as an answer.
"""

from sightline.engines.remote.engine import RemoteEngine

__all__ = ["RemoteEngine"]
