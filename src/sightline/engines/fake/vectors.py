"""Vectors of texts that know no meaning, but what texts have in common: their words, and the parts of these. Pure.

Each word, and each run of three characters in one, has a direction of its own, by its hash; a text is the sum of them
("feature hashing", Weinberger et al., arXiv:0902.2206).
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
import numpy.typing as npt

from sightline.engines.fake.tokens import num_tokens, to_text
from sightline.errors import ContextLengthExceeded, InvalidRequest
from sightline.types import EmbeddingRequest, Embeddings

DIMENSIONS = 64


def embed(request: EmbeddingRequest, context_length: int) -> Embeddings:
    """Raises `InvalidRequest` for more dimensions than there are, and `ContextLengthExceeded`."""
    if request.dimensions is not None and request.dimensions > DIMENSIONS:
        raise InvalidRequest(
            f"This model's vectors have {DIMENSIONS} dimensions; {request.dimensions} were asked for.",
            param="dimensions",
        )
    counts = [num_tokens(given) for given in request.inputs]
    for index, count in enumerate(counts):
        if count > context_length:
            raise ContextLengthExceeded(
                f"This model's context holds {context_length} tokens; input {index} takes {count}.", param="input"
            )
    vectors = np.stack([_vector(to_text(given, "input")) for given in request.inputs])[:, : request.dimensions]
    return Embeddings(_unit(vectors).astype(np.float32), sum(counts))


def _vector(text: str) -> npt.NDArray[np.float64]:
    words = re.findall(r"\w+", text.lower()) or [text]
    parts = [part for word in words for part in (word, *_threes(f"<{word}>"))]
    total: npt.NDArray[np.float64] = np.sum([_direction(part) for part in parts], axis=0)
    return total


def _threes(word: str) -> list[str]:
    return [word[i : i + 3] for i in range(len(word) - 2)]


def _direction(part: str) -> npt.NDArray[np.float64]:
    seed = hashlib.blake2b(part.encode(errors="surrogatepass"), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(seed, "little")).standard_normal(DIMENSIONS)


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths: npt.NDArray[np.float64] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths
