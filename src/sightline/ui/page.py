"""What stands where on the page, and what a click does. What is asked and what is shown is `conversation.py`'s."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr  # type: ignore[import-not-found,unused-ignore]

from sightline.client import ClientError
from sightline.ui.asking import Connect, Turns, answer
from sightline.ui.conversation import (
    DETAILS,
    Parameters,
    Turn,
    read_urls,
    to_choices,
    to_failure,
    to_failure_text,
    to_shown,
)

_PICTURES = Path(str(files("sightline.ui").joinpath("pictures")))
EXAMPLES = (
    ("What colour is the circle?", ("red-circle.png",)),
    ("Where is the star?", ("yellow-star.png",)),
    ("How many triangles are there?", ("three-triangles.png",)),
    ("Describe the picture.", ("blue-square.jpg",)),
)
_FONT = ["system-ui", "sans-serif"]
_MONO = ["ui-monospace", "monospace"]
HEAD = (
    "<link rel='icon' href=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'>"
    "<path d='M2 16q14-20 28 0q-14 20-28 0z' fill='%230f766e'/><circle cx='16' cy='16' r='6' fill='white'/></svg>\">"
)
CSS = (Path(str(files("sightline.ui"))) / "page.css").read_text("utf-8")


def theme() -> Any:
    """With the fonts of the reader's machine: Gradio's own would be asked of a server elsewhere."""
    base = gr.themes.Soft(primary_hue="teal", neutral_hue="slate", font=_FONT, font_mono=_MONO)
    return base.set(
        background_fill_primary="*neutral_50",  # Soft's own, which `set` takes back
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_padding="0",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
    )


def to_page(connect: Connect) -> Any:
    """Gradio's `Blocks`."""
    asking = _Asking(connect)
    with gr.Blocks(title="Sightline", analytics_enabled=False, fill_height=True, delete_cache=(600, 86_400)) as page:
        turns = gr.State(())
        with gr.Row(elem_id="head"):
            gr.HTML("<h1>Sightline</h1>", elem_id="title")
            model = gr.Dropdown(label="Model", choices=[], show_label=False, container=False, elem_id="model")
        trouble = gr.Markdown(visible=False, elem_id="trouble")
        with gr.Sidebar(position="right", open=False, width=300):
            parameters = _to_parameter_controls()
        window = gr.Chatbot(
            show_label=False,
            elem_id="conversation",
            layout="bubble",
            height="100%",
            scale=1,
            buttons=["copy"],
            allow_file_downloads=False,
            allow_tags=False,
            group_consecutive_messages=True,
            placeholder="### Ask about a picture\nDrop it below, paste it, or photograph it. Or try one of these:",
            examples=[
                {"text": text, "files": [str(_PICTURES / name) for name in names], "icon": str(_PICTURES / names[0])}
                for text, names in EXAMPLES
            ],
        )
        with gr.Accordion("Picture by its address or from the camera", open=False, elem_id="more"), gr.Row():
            urls = gr.Textbox(
                label="Addresses",
                placeholder="https://example.com/picture.jpg",
                info="The server fetches them, if its operator lets it. They go with the next question.",
                lines=2,
                elem_id="urls",
            )
            camera = gr.Image(label="Camera", sources=["webcam"], type="filepath", height=220, elem_id="camera")
        composer = gr.MultimodalTextbox(
            show_label=False,
            placeholder="Ask about a picture: drop or paste it here",
            file_types=["image"],
            file_count="multiple",
            autofocus=True,
            max_plain_text_length=100_000,
            elem_id="composer",
        )
        inputs = [turns, model, *parameters]
        outputs = [turns, window, composer, urls]
        opened = {"outputs": [model, trouble], "show_progress": "hidden", "api_visibility": "private"}
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(asking.open, None, **opened)
        model.focus(asking.list_models, None, **opened)
        chat = {"concurrency_limit": None, **quiet}
        camera.change(None, [camera, composer], [camera, composer], js=_TO_COMPOSER, **quiet)
        asked = composer.submit(asking.ask, [composer, urls, *inputs], outputs, **chat)
        tried = window.example_select(asking.ask_example, inputs, outputs, **chat)
        for answered in (asked, tried):
            answered.then(None, None, composer, js=_IDLE, **quiet)
        composer.stop(stop, [turns], [turns, window], cancels=[asked, tried], **quiet)
        window.clear(lambda: ((), []), None, [turns, window], cancels=[asked, tried], **quiet)
    return page.queue(api_open=False, default_concurrency_limit=None)


def _to_parameter_controls() -> list[Any]:
    """In the order of `Parameters`, after the model."""
    gr.Markdown("### Parameters")
    return [
        gr.Textbox(label="System prompt", lines=3, elem_id="system"),
        gr.Slider(0, 2, value=0, step=0.1, label="Temperature", info="0: always the likeliest answer"),
        gr.Number(
            0, precision=0, minimum=0, label="Max tokens", info="0: what the context has room for", elem_id="max-tokens"
        ),
        gr.Dropdown(list(DETAILS), value="auto", label="Detail", info="How large pictures reach the model"),
        gr.Number(0, precision=0, minimum=0, label="Max pixels", info="Of each picture. 0: the model's own"),
    ]


_ASKING = {"submit_btn": False, "stop_btn": True}
_IDLE = "() => ({__type__: 'update', submit_btn: true, stop_btn: false})"
"""Of the composer, in the browser itself, once Gradio is done with a question however that ended. Before that it would
drop the next one without a word."""
_TO_COMPOSER = """(photograph, {text, files}) => photograph
    ? [null, {text, files: [...files.filter(file => file.path != photograph.path),
                            {...photograph, mime_type: "image/png"}]}]
    : [null, {text, files}]"""
"""A photograph is with the question's other pictures as soon as it is uploaded, in the browser itself. Were it asked of
the camera when the question is sent, a question that is quicker than the upload would lose it without a word. Gradio
tells of one photograph several times."""


def stop(turns: Turns) -> tuple[Any, ...]:
    """After the answer was broken off: what came of it stays."""
    if turns and turns[-1].answer is None and turns[-1].failure is None:
        turns = (*turns[:-1], replace(turns[-1], stopped=True))
    return turns, to_shown(turns)


class _Asking:
    """What the page asks the server, as the reader of the page: with the key of each request's cookie."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect

    async def open(self, request: gr.Request) -> tuple[Any, Any]:
        """Outputs: model, trouble."""
        choices, trouble = await self._list(request)
        return gr.update(choices=choices, value=choices[0][1]) if choices else gr.skip(), trouble

    async def list_models(self, request: gr.Request) -> tuple[Any, Any]:
        """Leaves the choice alone: it may have been made meanwhile."""
        choices, trouble = await self._list(request)
        return gr.update(choices=choices) if choices else gr.skip(), trouble

    async def _list(self, request: gr.Request) -> tuple[list[tuple[str, str]], Any]:
        async with self._connect(request.request).client as client:
            try:
                return to_choices(await client.list_models()), gr.update(visible=False)
            except ClientError as error:
                return [], gr.update(value=to_failure_text(to_failure(error)), visible=True)

    async def ask(
        self, composed: Any, urls: str | None, turns: Turns, model: str | None, system: str | None,
        temperature: float, max_tokens: int, detail: str, max_pixels: int, request: gr.Request,
    ) -> AsyncGenerator[Any, None]:  # fmt: skip
        """Outputs: turns, window, composer, addresses."""
        question = (composed["text"] or "").strip()
        try:
            pictures = (*composed["files"], *read_urls(urls or ""))
        except ValueError as error:
            raise gr.Error(str(error), duration=None) from None
        if not question and not pictures:
            yield (gr.skip(),) * 4
            return
        chosen = _to_parameters(model, system, temperature, max_tokens, detail, max_pixels)
        first = (gr.update(value=None, **_ASKING), "")
        async for drawn in self._answer(turns, Turn(question, pictures), chosen, first, request):
            yield drawn

    async def ask_example(
        self, turns: Turns, model: str | None, system: str | None, temperature: float, max_tokens: int, detail: str,
        max_pixels: int, request: gr.Request, event: gr.SelectData,
    ) -> AsyncGenerator[Any, None]:  # fmt: skip
        # By its place: what a browser says of an example's files is not to be believed.
        question, names = EXAMPLES[event.index]
        asked = Turn(question, tuple(str(_PICTURES / name) for name in names))
        chosen = _to_parameters(model, system, temperature, max_tokens, detail, max_pixels)
        first = (gr.update(**_ASKING), gr.skip())
        async for drawn in self._answer(turns, asked, chosen, first, request):
            yield drawn

    async def _answer(
        self, turns: Turns, asked: Turn, parameters: Parameters, first: tuple[Any, ...], request: gr.Request
    ) -> AsyncGenerator[Any, None]:
        server = self._connect(request.request)
        async with server.client, aclosing(answer(server, turns, asked, parameters)) as growing:
            rest = first
            async for turns in growing:
                yield turns, to_shown(turns), *rest
                rest = (gr.skip(), gr.skip())


def _to_parameters(
    model: str | None, system: str | None, temperature: float, max_tokens: int, detail: str, max_pixels: int
) -> Parameters:
    if model is None:
        raise gr.Error("No model is chosen: the server lists none that answers messages.", duration=None)
    return Parameters(model, system or "", temperature, max_tokens or None, detail, max_pixels or None)
