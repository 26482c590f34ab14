"""What LiteLLM raises, as errors of ours: by class, never by text."""

from __future__ import annotations

import logging
from typing import NamedTuple

from sightline.engines.litellm_provider.provider import Provider
from sightline.engines.remote.failures import to_error, to_refusal, too_long
from sightline.errors import InvalidRequest, SightlineError, UpstreamFailed

log = logging.getLogger(__name__)


class _Meaning(NamedTuple):
    error: str
    """A class of `litellm.exceptions`."""
    status: int
    code: str | None = None


_MEANINGS = (  # a class before those above it
    _Meaning("ContextWindowExceededError", 400, "context_length_exceeded"),
    _Meaning("ContentPolicyViolationError", 400, "content_policy_violation"),
    _Meaning("UnsupportedParamsError", 400, "unsupported_parameter"),
    _Meaning("PaymentRequiredError", 402),
    _Meaning("BadRequestError", 400),
    _Meaning("UnprocessableEntityError", 422),
    _Meaning("AuthenticationError", 401),
    _Meaning("PermissionDeniedError", 403),
    _Meaning("NotFoundError", 404),
    _Meaning("RateLimitError", 429),
    _Meaning("MidStreamFallbackError", 502),
    _Meaning("ServiceUnavailableError", 503),
    _Meaning("BadGatewayError", 502),
    _Meaning("Timeout", 504),
    _Meaning("InternalServerError", 500),
    _Meaning("APIConnectionError", 502),
    _Meaning("APIError", 500),
)


def explained(error: Exception, provider: Provider, model: str) -> SightlineError:
    """Whatever LiteLLM raised, as one of our errors. `model`: its served name, for the log."""
    meaning = next((m for m in _MEANINGS if isinstance(error, getattr(provider.litellm.exceptions, m.error))), None)
    if meaning is None:
        log.error("model %s: LiteLLM raised %s", model, type(error).__qualname__)
        return UpstreamFailed("The provider behind this model could not be asked, or broke.")
    if meaning.status in (401, 402, 403, 404):
        log.error("model %s: %s says %s: see the options model and env, and the account",
                  model, provider.name, meaning.error)  # fmt: skip
    if meaning.status in (401, 402, 403):
        # Not `EngineUnavailable`, at which the process would be started again.
        return UpstreamFailed("The provider behind this model does not let us in. Its operator has been told.")
    if meaning.status == 404:  # nor here
        return UpstreamFailed("The provider behind this model does not have it. Its operator has been told.")
    if meaning.code == "context_length_exceeded":
        return too_long(provider.info.context_length)
    if meaning.code == "content_policy_violation":
        return InvalidRequest("The provider behind this model refuses what this request says or shows.",
                              param="messages", code=meaning.code)  # fmt: skip
    said = {"code": meaning.code} if meaning.code else None
    return to_error(to_refusal(meaning.status, said, _retry_after(error)), provider.info.context_length)


def _retry_after(error: Exception) -> str | None:
    for headers in (
        getattr(error, "litellm_response_headers", None),
        getattr(getattr(error, "response", None), "headers", None),
    ):
        if headers is not None and (value := headers.get("retry-after")):
            return str(value)
    return None
