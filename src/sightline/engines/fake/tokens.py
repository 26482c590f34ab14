"""What counts as a token, and what a prompt costs in them. Pure."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace

from sightline.errors import InvalidRequest
from sightline.images.budget import VisionBudget
from sightline.types import EngineRequest, Image, Message, Text, TokenCount, TokenLogprob


def tokenise(text: str) -> list[str]:
    """The tokens of a text; joined, they are the text."""
    return _TOKEN.findall(text)


_TOKEN = re.compile(r"\s*\w{1,8}|\s*[^\w\s]|\s+")


def to_text(prompt: str | tuple[int, ...], param: str = "prompt") -> str:
    """Raises `InvalidRequest` for an id that is no character's."""
    if isinstance(prompt, str):
        return prompt
    for token in prompt:
        if not 0 <= token <= sys.maxunicode or 0xD800 <= token <= 0xDFFF:
            raise InvalidRequest(f"The token id {token} is not one of this model's.", param=param)
    return "".join(map(chr, prompt))


def num_tokens(prompt: str | tuple[int, ...]) -> int:
    return len(tokenise(prompt)) if isinstance(prompt, str) else len(prompt)


def count_tokens(request: EngineRequest, vision: VisionBudget) -> TokenCount:
    """See the package: nothing here looks at what the pixels are, only at how many."""
    if request.prompt is not None:
        return TokenCount(num_tokens(request.prompt))
    image_tokens = tuple(vision.tokens(image.served_width, image.served_height) for image in request.images)
    text_tokens = sum(map(_message_tokens, request.messages))
    for tool in request.tools:
        schema = json.dumps(tool.parameters, separators=(",", ":"))
        text_tokens += sum(len(tokenise(t)) for t in (tool.name, tool.description, schema))
    return TokenCount(text_tokens + sum(image_tokens) + 1, image_tokens)


def _message_tokens(message: Message[Image]) -> int:
    texts = [part.text for part in message.content if isinstance(part, Text)]
    texts += [text for call in message.tool_calls for text in (call.name, call.arguments)]
    return 2 + sum(len(tokenise(text)) for text in texts)


def to_logprob(token: str, alternatives: int) -> TokenLogprob:
    """Made up, but a distribution: the token that was chosen has half of it, each alternative half of what is left."""
    chosen = TokenLogprob(token, math.log(0.5), tuple(token.encode()))
    others = [
        TokenLogprob(name := f"{token}~{rank}", rank * math.log(0.5), tuple(name.encode()))
        for rank in range(2, alternatives + 1)
    ]
    return replace(chosen, top=(chosen, *others)) if alternatives else chosen
