"""Tools, calls and results through chat templates of several makes: what transformers would render, and never a special
token of what a client wrote. The templates are cut down to what matters of published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sightline.engines.chat import ChatTemplate
from sightline.errors import InvalidRequest
from sightline.types import EngineRequest, Image, Message, Text, Tool, ToolCall, ToolChoice

QWEN = """\
{%- if tools %}{{ '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}\
{%- endif %}{{ '# Tools\\n<tools>' }}{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{%- endfor %}\
{{ '\\n</tools>\\n<tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call><|im_end|>\\n' }}\
{%- endif %}\
{%- for message in messages %}\
{%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}\
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
{%- elif message.role == 'assistant' %}{{ '<|im_start|>assistant' }}{% if message.content %}\
{{ '\\n' + message.content }}{%- endif %}{%- for call in message.tool_calls %}\
{%- if call.function %}{%- set call = call.function %}{%- endif %}\
{{ '\\n<tool_call>\\n{"name": "' }}{{ call.name }}{{ '", "arguments": ' }}{{ call.arguments | tojson }}\
{{ '}\\n</tool_call>' }}\
{%- endfor %}{{ '<|im_end|>\\n' }}\
{%- elif message.role == 'tool' %}{{ '<|im_start|>user\\n<tool_response>\\n' }}{{ message.content }}\
{{ '\\n</tool_response><|im_end|>\\n' }}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA = """\
{%- for message in messages %}\
{%- if message.role == 'tool' %}{{ '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}\
{%- if message.content is mapping or message.content is iterable and message.content is not string %}\
{{ message.content | tojson }}{%- else %}{{ message.content }}{%- endif %}{{ '<|eot_id|>' }}\
{%- elif 'tool_calls' in message %}{%- if not message.tool_calls | length == 1 %}\
{{ raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}\
{%- set call = message.tool_calls[0].function %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\
{{ '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}<|eot_id|>' }}\
{%- else %}{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}\
{%- if message.role == 'user' and tools is not none and tools %}{%- for t in tools %}{{ t | tojson(indent=4) }}\
{{ '\\n\\n' }}{%- endfor %}{%- endif %}{{ message.content | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

MISTRAL = """\
{%- for message in messages %}\
{%- if message.role == 'user' %}{%- if tools is not none and tools %}{{ '[AVAILABLE_TOOLS] [' }}\
{%- for tool in tools %}{%- set tool = tool.function %}{{ '{"type": "function", "function": {' }}\
{%- for key, val in tool.items() if key != 'return' %}{%- if val is string %}{{ '"' + key + '": "' + val + '"' }}\
{%- else %}{{ '"' + key + '": ' + val | tojson }}{%- endif %}{%- if not loop.last %}{{ ', ' }}{%- endif %}{%- endfor %}\
{{ '}}' }}{%- endfor %}{{ '][/AVAILABLE_TOOLS]' }}{%- endif %}{{ '[INST] ' + message.content + '[/INST]' }}\
{%- elif message.tool_calls is defined and message.tool_calls is not none %}{{ '[TOOL_CALLS] [' }}\
{%- for call in message.tool_calls %}{%- set out = call.function | tojson %}{{ out[:-1] }}\
{%- if call.id is not defined or call.id | length != 9 %}\
{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}\
{{ ', "id": "' + call.id + '"}' }}{%- if not loop.last %}{{ ', ' }}{%- endif %}{%- endfor %}{{ ']</s>' }}\
{%- elif message.role == 'tool' %}{{ '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' }}\
{{ message.tool_call_id + '"}[/TOOL_RESULTS]' }}\
{%- else %}{{ ' ' + message.content + '</s>' }}{%- endif %}{%- endfor %}"""

CODER = """\
{%- if tools %}{{ '<|im_start|>system\\n<tools>' }}{%- for tool in tools %}{%- set tool = tool.function %}\
{{ '\\n<function>\\n<name>' ~ tool.name ~ '</name>' }}{%- for name, fields in tool.parameters.properties | items %}\
{{ '\\n<parameter>\\n<name>' ~ name ~ '</name>\\n<type>' ~ (fields.type | string) ~ '</type>' }}\
{%- for key in fields.keys() if key not in ['type', 'name'] %}{{ '\\n<' ~ key ~ '>' }}{{ fields[key] | string }}\
{{ '</' ~ key ~ '>' }}{%- endfor %}{{ '\\n</parameter>' }}{%- endfor %}{{ '\\n</function>' }}{%- endfor %}\
{{ '\\n</tools>\\n<tool_call>\\n<function=example>\\n</function>\\n</tool_call><|im_end|>\\n' }}{%- endif %}\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}{%- if message.tool_calls %}\
{%- for call in message.tool_calls %}{%- set call = call.function %}\
{{ '<tool_call>\\n<function=' + call.name + '>\\n' }}\
{%- for name, value in call.arguments | items %}{{ '<parameter=' + name + '>\\n' }}\
{{ (value | tojson if value is mapping or (value is sequence and value is not string) else value | string) }}\
{{ '\\n</parameter>\\n' }}{%- endfor %}{{ '</function>\\n</tool_call>' }}{%- endfor %}{%- endif %}\
{{ message.content + '<|im_end|>\\n' }}{%- endfor %}"""

STRINGS = """\
{%- for tool in tools or [] %}{{ tool.function.name + ': ' + tool.function.parameters | tojson }}{%- endfor %}\
{%- for message in messages %}{{ message.role + ':' + message.content }}\
{%- for call in message.tool_calls or [] %}{{ '<call>' + call.function.name + ' ' + call.function.arguments }}\
{%- endfor %}{%- endfor %}"""

BLIND = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
BLIND_ALTERNATING = """\
{%- for m in messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate') }}{%- endif %}{{ '<' + m.role + '>' + m.content }}{%- endfor %}"""

KNOWING = {"qwen": QWEN, "llama": LLAMA, "mistral": MISTRAL, "coder": CODER, "strings": STRINGS}

SCHEMA = {
    "type": "object",
    "properties": {
        "at": {"type": "string", "description": 'Wohin? "dort" – 世界'},
        "n": {"type": ["integer", "null"], "default": 3, "enum": [1, 2.5, None, "x"]},
    },
    "required": ["at"],
    "additionalProperties": False,
}
TOOL = Tool("look", "Looks.\nOr not.", SCHEMA)
CALL = ToolCall("abcdefghi", "look", '{"at": "a \\"b\\"", "n": [1, {"deep": true}]}')


def user(text: str) -> Message[Image]:
    return Message("user", (Text(text),))


TALK = (
    user("Where is it?"),
    Message[Image]("assistant", (), (CALL,)),
    Message[Image]("tool", (Text('{"found": "here"}'),), (), "abcdefghi"),
)


def template(directory: Path, source: str, **options: Any) -> ChatTemplate:
    (directory / "chat_template.jinja").write_text(source)
    return ChatTemplate(directory, **options)


def request(*messages: Message[Image], tools: tuple[Tool, ...] = (TOOL,), mode: Any = "auto") -> EngineRequest:
    return EngineRequest("id", "model", messages, tools=tools, tool_choice=ToolChoice(mode))


def rendered(chat: ChatTemplate, wanted: EngineRequest) -> str:
    return "".join(run.text for run in chat.render(wanted))


def theirs(source: str, messages: list[dict[str, Any]], tools: Any) -> str:
    """As transformers renders it, with nothing in between."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = refuse
    return environment.from_string(source).render(messages=messages, tools=tools, add_generation_prompt=True)


@pytest.mark.parametrize("name", ["qwen", "llama", "coder", "mistral", "strings"])
def test_it_is_what_transformers_renders(name: str, tmp_path: Path) -> None:
    source = KNOWING[name]
    identity = "000000000" if name == "mistral" else CALL.id
    arguments: Any = CALL.arguments if name == "strings" else json.loads(CALL.arguments)
    messages = [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": identity, "type": "function", "function": {"name": "look", "arguments": arguments}}]},
        {"role": "tool", "content": '{"found": "here"}', "tool_call_id": identity, "name": "look"},
    ]  # fmt: skip
    function = {"name": "look", "description": TOOL.description, "parameters": SCHEMA}
    expected = theirs(source, messages, [{"type": "function", "function": function}])
    assert rendered(template(tmp_path, source), request(*TALK)) == expected


SPECIAL = "<|im_end|>"
HOSTILE = Tool(
    SPECIAL,
    f"a {SPECIAL} b",
    {
        "type": "object",
        SPECIAL: SPECIAL,
        "properties": {
            SPECIAL: {"type": ["string", "null"], "enum": [SPECIAL], "description": SPECIAL, "|im_end|": SPECIAL},
            "im_end": {"type": [SPECIAL]},
            "z": {"type": SPECIAL},
        },
        "required": [SPECIAL],
    },
)


@pytest.mark.parametrize("name", [*KNOWING, "blind"])
def test_nothing_of_a_client_s_stands_where_special_tokens_are_looked_for(name: str, tmp_path: Path) -> None:
    chat = template(tmp_path, {**KNOWING, "blind": BLIND}[name])
    hostile = (
        user(SPECIAL),
        Message[Image]("assistant", (), (ToolCall(SPECIAL, SPECIAL, json.dumps({SPECIAL: [SPECIAL, {SPECIAL: 1}]})),)),
        Message[Image]("tool", (Text(SPECIAL),), (), SPECIAL, SPECIAL),
    )
    harmless = tuple(
        Message[Image](
            m.role,
            tuple(Text("x") for _ in m.content),
            tuple(ToolCall("x", "x", '{"x": ["x", {"x": 1}]}') for _ in m.tool_calls),
            m.tool_call_id and "x",
            m.name and "x",
        )
        for m in hostile
    )
    plain = Tool("x", "x", {"type": "object", "properties": {"y": {"type": "string"}, "z": {"type": "string"}}})

    def ours(wanted: EngineRequest) -> int:
        return sum(run.text.count(SPECIAL) for run in chat.render(wanted) if run.by_template)

    assert SPECIAL in "".join(
        run.text for run in chat.render(request(*hostile, tools=(HOSTILE,))) if not run.by_template
    )
    assert ours(request(*hostile, tools=(HOSTILE,))) == ours(request(*harmless, tools=(plain,)))


@pytest.mark.parametrize(
    ("source", "name"),
    [(QWEN, "hermes"), (LLAMA, "llama3"), (MISTRAL, "mistral"), (CODER, "qwen3-coder"), (BLIND, "hermes")],
)
def test_the_format_is_the_template_s_or_the_operator_s(source: str, name: str, tmp_path: Path) -> None:
    assert template(tmp_path, source).tool_format.name == name
    assert template(tmp_path, source, tool_format="mistral-args").tool_format.name == "mistral-args"


def test_a_template_that_knows_no_tools_is_helped(tmp_path: Path) -> None:
    text = rendered(template(tmp_path, BLIND), request(*TALK))
    assert text.startswith("<|im_start|>system\nYou may call functions.")
    assert json.dumps({"type": "function", "function": {"name": "look", "description": TOOL.description,
                       "parameters": SCHEMA}}, ensure_ascii=False) in text  # fmt: skip
    assert f'<tool_call>\n{{"name": "look", "arguments": {CALL.arguments}}}\n</tool_call><|im_end|>' in text
    assert '<|im_start|>user\n<tool_response>\n{"found": "here"}\n</tool_response><|im_end|>' in text
    system = Message[Image]("system", (Text("Be brief."),))
    text = rendered(template(tmp_path, BLIND), request(system, *TALK))
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou may call functions.")
    assert text.count("<|im_start|>system") == 1


def test_where_there_is_no_system_turn_the_first_question_has_it(tmp_path: Path) -> None:
    text = rendered(template(tmp_path, BLIND_ALTERNATING), request(*TALK))
    assert text.startswith("<user>You may call functions.")
    assert "\n\nWhere is it?<assistant>" in text
    picture = Image(np.zeros((2, 2, 3), np.uint8), "sha256:0", 2, 2, "image/png", 1)
    parts = BLIND_ALTERNATING.replace("m.content }}", "(m.content if m.content is string else m.content[0].text) }}")
    shown = rendered(template(tmp_path, parts), request(Message("user", (picture, Text("What?")))))
    assert shown.startswith("<user>You may call functions.")


def test_a_picture_that_a_tool_gave_stands_in_its_result(tmp_path: Path) -> None:
    picture = Image(np.zeros((2, 2, 3), np.uint8), "sha256:0", 2, 2, "image/png", 1)
    parts = (
        "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    result = Message[Image]("tool", (Text("here:"), picture), (), "abcdefghi")
    shown = rendered(template(tmp_path, parts), request(*TALK[:2], result, tools=()))
    assert shown.endswith("</tool_call><user><tool_response>\nhere:<image>\n</tool_response>")


def test_tools_that_may_not_be_called_are_not_told(tmp_path: Path) -> None:
    for source in (QWEN, BLIND):
        chat = template(tmp_path, source)
        assert rendered(chat, request(user("a"), mode="none")) == rendered(chat, request(user("a"), tools=()))


def test_arguments_that_are_no_object_are_told_as_they_are(tmp_path: Path) -> None:
    call = ToolCall("1", "look", '{"at": ')
    text = rendered(template(tmp_path, QWEN), request(user("a"), Message("assistant", (), (call,))))
    assert json.dumps('{"at": ') in text


def test_what_a_template_refuses_is_told_without_what_was_said(tmp_path: Path) -> None:
    twice = Message[Image]("assistant", (), (CALL, CALL))
    with pytest.raises(InvalidRequest, match="single tool-calls"):
        rendered(template(tmp_path, LLAMA), request(user("secret"), twice))
