"""Everything that can go wrong on purpose.

    SightlineError                 code, retryable, param
    ├─ RequestError                the request itself is at fault
    │  ├─ InvalidRequest           a field is missing, of the wrong type or out of range
    │  ├─ UnsupportedFeature       a field asks for what this model or engine cannot do
    │  ├─ ModelNotFound
    │  ├─ ObjectNotFound           a stored object that is not there, or is another's
    │  ├─ ContextLengthExceeded
    │  ├─ SchemaInvalid            a JSON schema that cannot be used
    │  ├─ BodyTooLarge
    │  ├─ FileTooLarge             a file to be kept has too many bytes
    │  ├─ IdempotencyConflict      the key was used for another request
    │  ├─ ImageError               a picture is at fault; `param` names it by its place in the request
    │  │  ├─ ImageEncodingInvalid  a data: URL or base64 text that cannot be decoded
    │  │  ├─ ImageFormatUnsupported
    │  │  ├─ ImageUnreadable       truncated or corrupt
    │  │  ├─ ImageEmpty
    │  │  ├─ ImageFileTooLarge     too many bytes
    │  │  ├─ ImageTooLarge         too many pixels
    │  │  ├─ ImageTooSmall         a side under 2 px, or a ratio over 200
    │  │  ├─ ImageForbidden        a scheme, host or address that the operator does not allow
    │  │  ├─ ImageFetchFailed
    │  │  └─ ImageFileNotFound     no such file is kept for this tenant
    │  └─ AudioError              a recording is at fault
    │     ├─ AudioFormatUnsupported
    │     ├─ AudioUnreadable       truncated or corrupt, or without sound
    │     ├─ AudioEmpty
    │     ├─ AudioFileTooLarge     too many bytes
    │     ├─ AudioTooLong          too many seconds, once decoded
    │     └─ AudioTooShort
    ├─ AccessError
    │  ├─ Unauthenticated
    │  ├─ Forbidden
    │  ├─ RateLimited              retry_after_s
    │  └─ QuotaExceeded
    ├─ CapacityError
    │  ├─ Overloaded               retry_after_s
    │  ├─ DeadlineExceeded
    │  ├─ StorageUnavailable       what is kept cannot be read or written now; nothing was accepted
    │  └─ StorageFull              no room to keep it; nothing was accepted
    └─ EngineError
       ├─ EngineUnavailable        it is down or still loading; nothing of this request ran
       ├─ EngineFailed             it broke while this request ran
       └─ UpstreamFailed           a remote engine broke

No status codes here: each dialect has one exhaustive table from error to its own wire shape (`api/errors.py`), and a
test fails when a class has no row. Whatever is not a `SightlineError` is a bug: clients get a fixed message and the
request id, the log gets the traceback.

A message is written for the person who sent the request: it names the field or the picture, says what is wrong and
what to do, and never holds paths, addresses, tracebacks or `repr()` of objects.
"""

from __future__ import annotations

from typing import ClassVar


class SightlineError(Exception):
    """Base of every error that is part of the contract."""

    code: ClassVar[str | None] = None
    """The machine-readable code of the wire contract, the same in every dialect that has room for one."""
    retryable: ClassVar[bool] = False
    """Whether the same request may succeed later, unchanged."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code  # type: ignore[misc]  # an instance may be more exact than its class

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))


def _rebuild(cls: type[SightlineError], message: str, state: dict[str, object]) -> SightlineError:
    error = cls(message)
    error.__dict__.update(state)
    return error


class RequestError(SightlineError):
    pass


class InvalidRequest(RequestError):
    pass


class UnsupportedFeature(RequestError):
    code = "unsupported_parameter"


class ModelNotFound(RequestError):
    code = "model_not_found"


class ObjectNotFound(RequestError):
    pass


class ContextLengthExceeded(RequestError):
    code = "context_length_exceeded"


class SchemaInvalid(RequestError):
    code = "invalid_json_schema"


class BodyTooLarge(RequestError):
    code = "request_too_large"


class FileTooLarge(RequestError):
    code = "file_too_large"


class IdempotencyConflict(RequestError):
    code = "idempotency_key_reused"


class ImageError(RequestError):
    pass


class ImageEncodingInvalid(ImageError):
    code = "invalid_base64_image"


class ImageFormatUnsupported(ImageError):
    code = "invalid_image_format"


class ImageUnreadable(ImageError):
    code = "image_parse_error"


class ImageEmpty(ImageError):
    code = "empty_image_file"


class ImageFileTooLarge(ImageError):
    code = "image_file_too_large"


class ImageTooLarge(ImageError):
    code = "image_too_large"


class ImageTooSmall(ImageError):
    code = "image_too_small"


class ImageForbidden(ImageError):
    code = "invalid_image_url"


class ImageFetchFailed(ImageError):
    code = "failed_to_download_image"


class ImageFileNotFound(ImageError):
    code = "image_file_not_found"


class AudioError(RequestError):
    pass


class AudioFormatUnsupported(AudioError):
    code = "invalid_audio_format"


class AudioUnreadable(AudioError):
    code = "audio_parse_error"


class AudioEmpty(AudioError):
    code = "empty_audio_file"


class AudioFileTooLarge(AudioError):
    code = "audio_file_too_large"


class AudioTooLong(AudioError):
    code = "audio_too_long"


class AudioTooShort(AudioError):
    code = "audio_too_short"


class AccessError(SightlineError):
    pass


class Unauthenticated(AccessError):
    code = "invalid_api_key"


class Forbidden(AccessError):
    pass


class RateLimited(AccessError):
    code = "rate_limit_exceeded"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float = 1.0, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class QuotaExceeded(AccessError):
    code = "insufficient_quota"


class CapacityError(SightlineError):
    retryable = True


class Overloaded(CapacityError):
    code = "engine_overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(CapacityError):
    code = "timeout"


class StorageUnavailable(CapacityError):
    code = "storage_unavailable"


class StorageFull(CapacityError):
    code = "storage_full"


class EngineError(SightlineError):
    retryable = True
    died: int | None = None
    """The process that ended while it had this request, by its id; None where none is known to have."""
    replaced: bool = False
    """A machine or a replica that ended, and for which another comes: it says nothing of the model."""


class EngineUnavailable(EngineError):
    pass


class EngineFailed(EngineError):
    pass


class UpstreamFailed(EngineError):
    pass
