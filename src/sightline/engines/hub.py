"""Models of Hugging Face's hub: the copies on this machine, and how one is made.

By `huggingface_hub`, in its own cache (`HF_HOME`), which other programs share. A server only ever reads copies;
`sightline pull` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sightline.errors import EngineUnavailable

FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
"""What is downloaded: weights that hold no code, and what says how to use them."""


def local_copy(model_id: str) -> Path | None:
    """The directory with the model's files; None: there is no copy, or not a whole one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, allow_patterns=[*FILES], local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def download(model_id: str, told: Callable[[float], None], *, with_code: bool = False) -> Path:
    """Makes a copy, or completes one; `told` is given what part of the bytes is there, 0..1, from any thread.

    Blocks. Raises `EngineUnavailable`, with the hub's reason. `with_code`: Python files too, for `trust_remote_code`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    patterns = [*FILES, "*.py"] if with_code else [*FILES]
    try:
        found = snapshot_download(model_id, allow_patterns=patterns, tqdm_class=_bar(told))
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise EngineUnavailable(_REASONS.get(status, f"The hub answered with status {status}.")) from None
    except (OSError, ValueError) as error:
        raise EngineUnavailable(f"The model {model_id!r} could not be downloaded: {error}") from None
    return Path(found)


_REASONS = {
    401: "The hub has no such model, or it is not for everyone: set HF_TOKEN to a token that may read it.",
    403: "The hub's owner of this model has not let you have it yet: ask on its page, then set HF_TOKEN.",
    404: "The hub has no such model.",
}


def _bar(told: Callable[[float], None]) -> Any:
    """A progress bar's class that draws nothing and tells the bytes that all bars of one download have counted."""
    from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

    class Bar(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self._counts_bytes and self.total:
                told(min(1.0, self.n / self.total))
            return None

    return Bar
