"""A model behind Ollama, by Ollama's own API.

    OllamaEngine (engine.py)     the `Engine`: how it is loaded, what is asked, how it ends
        options.py               what the operator says; checked
        server.py                Ollama's API: what there is, pulling, loading, lines of an answer
        native.py                chat completions <-> Ollama's requests and lines             pure

The rest is the engine `remote`'s: HTTP and its limits, the ranges of every field, pictures as PNG, stop strings, errors
by status. A request is made as for any server with chat completions and then translated; a line of an answer is
translated into a chunk of one.

Sources: https://docs.ollama.com/api, and ollama/ollama at fb307609 (August 2026): `api/types.go`, `server/routes.go`,
`server/prompt.go`, `llm/llama_server.go`.
"""

from sightline.engines.ollama.engine import OllamaEngine

__all__ = ["OllamaEngine"]
