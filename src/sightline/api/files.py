"""OpenAI's files: send once, refer to by an id (wire contract, section 5).

POST   /v1/files                a form: file, purpose, expires_after[anchor], expires_after[seconds]
GET    /v1/files                ?purpose&limit&order&after
GET    /v1/files/{id}           what is known of it
GET    /v1/files/{id}/content   its bytes
DELETE /v1/files/{id}
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sightline.api import caller
from sightline.api.dialect import Dialect
from sightline.api.fields import integer, invalid, missing, one_of, read
from sightline.api.forms import Form, from_text, reading_form
from sightline.api.pages import read_ascending, read_limit
from sightline.api.wire import json_response
from sightline.api.work import Work
from sightline.config import Settings
from sightline.errors import ImageEmpty, InvalidRequest, ObjectNotFound
from sightline.jobs.files import File, Files, Purpose, before

PURPOSES: Final = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
MIN_KEPT_S: Final = 3_600
MAX_KEPT_S: Final = 2_592_000
MAX_LIST: Final = 10_000
_FORM_BYTES: Final = 1024 * 1024
"""Of a form, beside its file."""


class FileBody(msgspec.Struct, frozen=True, kw_only=True):
    """The text fields of the form. `expires_after[anchor]` and `expires_after[seconds]` are fields of their own."""

    purpose: Annotated[Purpose, one_of(*PURPOSES)]
    anchor: Annotated[str | None, one_of("created_at")] = None
    seconds: Annotated[int | None, from_text(integer(MIN_KEPT_S, MAX_KEPT_S))] = None


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | msgspec.UnsetType = msgspec.UNSET
    """Left out where it stays until it is deleted."""
    filename: str
    """As the client has it."""
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def to_object(file: File) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at,
        expires_at=msgspec.UNSET if file.expires_at is None else file.expires_at,
        filename=file.filename,
        purpose=file.purpose,
    )


def read_body(form: Form) -> FileBody:
    """Raises `InvalidRequest`."""
    fields: dict[str, Any] = dict(form.fields)
    names = {"expires_after[anchor]": "anchor", "expires_after[seconds]": "seconds"}
    given = {own: fields.pop(name) for name, own in names.items() if name in fields}
    try:
        body = read(FileBody, {**fields, **given})
    except InvalidRequest as error:
        shown = {own: name for name, own in names.items()}.get(error.param or "")
        if shown is None:
            raise
        raise InvalidRequest(
            error.message.replace(f"'{error.param}'", f"'{shown}'"), param=shown, code=error.code
        ) from None
    if (body.anchor is None) != (body.seconds is None):
        raise missing("expires_after[anchor]" if body.anchor is None else "expires_after[seconds]")
    return body


def dialect(work: Work, settings: Settings) -> Dialect:
    api = _Files(work.files, settings)
    one = "/v1/files/{id}"
    return Dialect(
        [
            Route("/v1/files", api.create, methods=["POST"]),
            Route("/v1/files", api.list, methods=["GET"]),
            Route(one, api.retrieve, methods=["GET"]),
            Route(one, api.delete, methods=["DELETE"]),
            Route(f"{one}/content", api.content, methods=["GET"]),
        ]
    )


class _Files:
    def __init__(self, files: Files, settings: Settings) -> None:
        self._files = files
        self._limits = msgspec.structs.replace(
            settings.http, max_body_bytes=max(settings.http.max_body_bytes, settings.files.max_bytes + _FORM_BYTES)
        )

    async def create(self, request: Request) -> Response:
        async with reading_form(request, self._limits) as form:
            body, upload = read_body(form), form.file("file")
            if body.purpose == "vision" and upload.size == 0:  # its first use would refuse it
                raise ImageEmpty("The picture 'file' is empty (0 bytes). Send the file's content.", param="file")
            file = await self._files.create(
                caller.of(request.scope).tenant,
                upload.filename,
                body.purpose,
                upload.chunks(),
                kept_s=body.seconds,
            )
        return json_response(to_object(file))

    async def list(self, request: Request) -> Response:
        limit = read_limit(request, default=MAX_LIST, most=MAX_LIST)
        purpose = request.query_params.get("purpose")
        found = await self._page(request, purpose, limit)
        page = [to_object(file) for file in found[:limit]]
        ends = (page[0].id, page[-1].id) if page else (None, None)
        return json_response(FileList(data=page, first_id=ends[0], last_id=ends[1], has_more=len(found) > limit))

    async def _page(self, request: Request, purpose: str | None, limit: int) -> Any:
        after = request.query_params.get("after")
        try:
            return await self._files.list(
                caller.of(request.scope).tenant,
                purpose=purpose,
                limit=limit + 1,
                after=after,
                ascending=read_ascending(request),
            )
        except ObjectNotFound:
            raise invalid("after", "must be the id of a file") from None

    async def retrieve(self, request: Request) -> Response:
        return json_response(to_object(await self._get(request)))

    async def content(self, request: Request) -> Response:
        file = await self._get(request)
        headers = {
            "content-length": str(file.bytes),
            "content-disposition": f'attachment; filename="{file.id}"',
            "x-content-type-options": "nosniff",
        }
        chunks = self._files.content(file)
        first = await anext(chunks, b"")  # what cannot be read is told by a status
        return StreamingResponse(before(first, chunks), headers=headers, media_type="application/octet-stream")

    async def delete(self, request: Request) -> Response:
        file_id = request.path_params["id"]
        await self._files.delete(caller.of(request.scope).tenant, file_id)
        return json_response(FileDeleted(id=file_id))

    async def _get(self, request: Request) -> File:
        return await self._files.get(caller.of(request.scope).tenant, request.path_params["id"])
