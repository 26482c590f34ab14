"""`sightline.yaml`: what is read, and that everything wrong with it is told, with its line and its path."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from sightline.config import Settings
from sightline.configfile import check, load, options_type, schema
from sightline.engines import ENGINES
from sightline.errors import InvalidRequest

ROOT = Path(__file__).parent.parent


def problems(directory: Path, text: str) -> list[str]:
    (directory / "s.yaml").write_text(text)
    return [problem.show("s.yaml") for problem in check(directory / "s.yaml")[1]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "models:\n- name: a\n   engine: fake\n",
            "s.yaml:3:10: {} a key and a value cannot stand here. Keys beside",
        ),
        ("port: 1\n log_level: info\n", "s.yaml:2:11: {} a key and a value cannot stand here."),
        ("a: b: c\n", "s.yaml:1:5: {} a key and a value cannot stand here."),
        ("models:\n  - name: a\n port: 1\n", "s.yaml:3:2: {} expected a key in column 1, like the first of the block"),
        ("models:\n  - name: a\n  port: 1\n", "s.yaml:3:3: {} expected '- ' in column 3, like the first of the list"),
        ("port: 1\n\thost: a\n", "s.yaml:2:1: {} expected spaces: lines are not indented by tabs."),
        ("host: @a\n", "s.yaml:1:7: {} no value begins with @; text that does is quoted."),
        ("models: [a, b\nport: 1\n", "s.yaml:2:5: {} expected a comma or the ] of the list that begins in line 1, col"),
        ("tls: {a: 1\nport: 1\n", "s.yaml:2:5: {} expected a comma or the } of the mapping that begins in line 1, col"),
        ("host: 'a\n", "s.yaml:2:1: {} expected the other quote of the text that begins in line 1, column 7."),
        ("port: 1\nhost\n", "s.yaml:3:1: {} expected a colon and a value behind the key that stands in line 2."),
        ("port: ]\n", "s.yaml:1:7: {} expected a value, not ]."),
        ('host: "C:\\q"\n', "s.yaml:1:11: {} a backslash in double quotes begins an escape that there is not"),
        ("port: 1\n---\nport: 2\n", "s.yaml:2:1: {} expected the end of the file, which is one document"),
        ("%YAML 3.0\n---\nport: 1\n", "s.yaml:1:1: {} found incompatible YAML document"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_place_and_what_was_expected(tmp_path: Path, text: str, told: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(told.replace("{}", "is not YAML that is taken here:"))


def test_the_example_is_served() -> None:
    settings = load(ROOT / "examples" / "sightline.yaml")
    assert [model.name for model in settings.models] == ["peek", "stand-in"]
    assert settings.models[0].fallbacks == ("stand-in",)
    assert settings.images.max_bytes == 10_000_000
    assert (settings.models[1].load, settings.models[1].idle_unload_s) == ("demand", 600)


def test_a_file_without_models_is_the_embedded_one(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("port: 9000\n")
    assert load(tmp_path / "s.yaml") == Settings(port=9000)


def test_files_of_tls_are_found_from_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("tls:\n  certificate: own/cert.pem\n  key: /etc/key.pem\n")
    tls = load(tmp_path / "s.yaml").tls
    assert tls is not None
    assert (tls.certificate, tls.key) == (str(tmp_path / "own/cert.pem"), "/etc/key.pem")
    (tmp_path / "s.yaml").write_text("tls: null\n")
    assert load(tmp_path / "s.yaml").tls is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot: 1\n", "s.yaml:1: prot: there is no such key. Did you mean port?"),
        ("models:\n- name: 5\n", "s.yaml:2: models[0].name: Expected str, got int. Quote it, if it is text."),
        ("models:\n- name: a\n  max_concurrent: 0\n", "s.yaml:3: models[0].max_concurrent: Expected int >= 1."),
        ("port: 70000\n", "s.yaml:1: port: Expected int <= 65535."),
        ("port: 1\nport: 2\n", "s.yaml:2: port: is written twice, first in line 1."),
        ("log_level: loud\n", "s.yaml:1: log_level: Invalid enum value 'loud'. Allowed: debug, info, warning, error."),
        ("images:\n  max_byte: 1\n", "s.yaml:2: images.max_byte: there is no such key. Did you mean max_bytes?"),
        ("fetch:\n  max_redirects: 9\n", "s.yaml:1: fetch: The fetch policy: 9 redirects are not followed"),
        ("tls:\n  certificate: a.pem\n", "s.yaml:1: tls.key: is missing, and must be given."),
        ("tls:\n  certificat: a.pem\n  key: b.pem\n", "s.yaml:2: tls.certificat: there is no such key. Did you mean"),
        ("tls: true\n", "s.yaml:1: tls: must be a mapping with the keys certificate, key."),
        ("http:\n  trusted_proxies: [10.0.0.1/8]\n", "s.yaml:2: http.trusted_proxies: '10.0.0.1/8' is no network."),
        ("models: []\n", "s.yaml:1: models: must be a list of one model or more"),
        ("models:\n- engine: fake\n", "s.yaml:2: models[0].name: is missing"),
        (
            "models:\n- name: a\n  engine: vlm\n",
            "s.yaml:3: models[0].engine: there is no engine 'vlm'. Did you mean vllm?",
        ),
        (
            "models:\n- name: a\n  source: nowhere\n",
            "s.yaml:3: models[0].source: there is no model 'nowhere': it is neither `peek` nor a directory.",
        ),
        (
            "models:\n- {name: a, engine: fake}\n- {name: a, engine: fake}\n",
            "s.yaml:3: models[1].name: 'a' already means",
        ),
        (
            "models:\n- {name: a, engine: fake}\n- name: b\n  engine: fake\n  aliases: [c, a]\n",
            "s.yaml:5: models[1].aliases[1]: 'a' already means the model 'a'",
        ),
        (
            "models:\n- name: alpha\n  engine: fake\n  fallbacks: [alpa]\n",
            "s.yaml:4: models[0].fallbacks[0]: there is no model 'alpa'. Did you mean 'alpha'?",
        ),
        (
            "models:\n- name: a\n  engine: fake\n  fallbacks: [a]\n",
            "s.yaml:4: models[0].fallbacks: they lead back to 'a'",
        ),
        (
            "models:\n- name: a\n  engine: fake\n  options:\n    slot: 2\n",
            "s.yaml:5: models[0].options.slot: there is no such key. Did you mean slots?",
        ),
        (
            "models:\n- name: a\n  engine: fake\n  options:\n    slots: many\n",
            "s.yaml:4: models[0].options: The fake engine's options: Expected `int | null`",
        ),
        ("host: ${SURELY_NOT_SET}\n", "s.yaml:1: host: the environment variable SURELY_NOT_SET is not set."),
        ("a: &x 1\nb: *x\n", "s.yaml:2:4: is not YAML that is taken here: aliases"),
        ("a: [\n", "s.yaml:2:1: is not YAML that is taken here: expected a value"),
        ("- 1\n", "s.yaml:1: must hold settings"),
        ("", "s.yaml:1: must hold settings"),
        ("? [a]\n: 1\n", "s.yaml:1: keys are plain words here."),
        ("host: 2026-13-45\n", "s.yaml:1: host: cannot be read as timestamp; quote it if it is text."),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    assert any(problem.startswith(told) for problem in problems(tmp_path, text)), problems(tmp_path, text)


def test_all_mistakes_are_told_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "prot: 1\nmodels:\n- {nam: a}\n- {name: b, engine: vlm}\n- {name: c, engine: fake, options: {x: 1}}\n"
    assert [line.split(":")[1] for line in problems(tmp_path, text)] == ["1", "3", "3", "4", "5"]


def test_fallbacks_that_lead_back_are_refused_and_aliases_resolved(tmp_path: Path) -> None:
    text = "models:\n- {name: a, engine: fake, fallbacks: [bee]}\n- {name: b, engine: fake, aliases: [bee]%s}\n"
    assert len(problems(tmp_path, text % ", fallbacks: [a]")) == 2
    (tmp_path / "s.yaml").write_text(text % "")
    assert load(tmp_path / "s.yaml").models[0].fallbacks == ("b",)


def test_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_NAME", "n: [x")
    (tmp_path / "s.yaml").write_text("models: [{name: 'a-${THE_NAME}-$${THE_NAME}', engine: fake}]\n")
    assert load(tmp_path / "s.yaml").models[0].name == "a-n: [x-${THE_NAME}"


@pytest.mark.parametrize("key", ["api_key", "API_KEY", "api-key", "hf_token", "client_secret", "aws_secret_access_key"])
def test_a_secret_written_out_is_refused_and_not_repeated(tmp_path: Path, key: str) -> None:
    text = "models:\n- name: a\n  engine: remote\n  options:\n    base_url: http://localhost/v1\n    %s: sk-12345\n"
    told = "\n".join(problems(tmp_path, text % key))
    assert "a secret must not stand in this file" in told
    assert "sk-12345" not in told


def test_a_list_of_secrets_is_one(tmp_path: Path) -> None:
    text = "models: [{name: a, engine: vllm, options: {executable: /x, engine_kwargs: {api_key: [sk-12345]}}}]\n"
    told = "\n".join(problems(tmp_path, text))
    assert "a secret must not stand in this file" in told
    assert "sk-12345" not in told


@pytest.mark.parametrize(
    "model", ["engine: '${KEY}'", "engine: fake, load: '${KEY}'", "engine: fake, fallbacks: ['${KEY}']"]
)
def test_no_message_repeats_what_came_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("KEY", "sk-12345")
    told = "\n".join(problems(tmp_path, f"models: [{{name: a, {model}}}]\n"))
    assert "${KEY}" in told
    assert "sk-12345" not in told


def test_a_password_in_an_address_is_named_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "\n".join(problems(tmp_path, "jobs: redis://:sk-12345@queue:6379/0\n"))
    assert "a secret must not stand in this file" in told
    assert "sk-12345" not in told
    monkeypatch.setenv("REDIS_PASSWORD", "sk-12345")
    for jobs in ("redis://:${REDIS_PASSWORD}@queue:6379/0", "redis://queue:6379/0", "rediss://queue"):
        assert problems(tmp_path, f"jobs: {jobs}\n") == []
    (tmp_path / "s.yaml").write_text("jobs: redis://:${REDIS_PASSWORD}@queue:6379/0\n")
    assert load(tmp_path / "s.yaml").jobs == "redis://:sk-12345@queue:6379/0"
    assert "jobs" in "\n".join(problems(tmp_path, "jobs: queue:6379\n"))


def test_names_of_variables_and_numbers_of_tokens_are_no_secrets(tmp_path: Path) -> None:
    text = "models: [{name: a, engine: fake, options: {min_image_tokens: 4, prefill_s_per_token: 0.1}}]\n"
    assert problems(tmp_path, text) == []


def test_sources_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "s.yaml").write_text("models: [{name: a, source: weights}]\n")
    assert load(tmp_path / "s.yaml").models[0].source == str(tmp_path / "weights")


def test_a_source_is_never_relative_to_where_we_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for directory in ("here/model", "here/llama3", "file"):
        (tmp_path / directory).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    models = "- {name: a, source: model}\n- {name: b, engine: ollama, source: llama3}\n"
    (tmp_path / "file" / "s.yaml").write_text(f"models:\n{models}")
    settings, problems = check(tmp_path / "file" / "s.yaml")
    assert [problem.message for problem in problems] == [
        "there is no model 'model': it is neither `peek` nor a directory."
    ]
    assert settings is not None
    assert settings.models[1].source == "llama3", "a name that only the engine knows"


def test_a_hubs_id_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("models:\n- {name: a, engine: transformers, source: org/model}\n")
    settings, problems = check(tmp_path / "s.yaml")
    assert not [problem for problem in problems if problem.path.endswith("source")]
    assert settings is not None
    assert settings.models[0].source == "org/model"


def test_load_tells_everything(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("prot: 1\nhots: a\n")
    with pytest.raises(InvalidRequest, match=r"(?s)prot.*hots"):
        load(tmp_path / "s.yaml")
    with pytest.raises(InvalidRequest, match=r"cannot be read: No such file"):
        load(tmp_path / "none.yaml")


def test_every_engine_says_its_options() -> None:
    structs = [options_type(entry.options or "") for entry in ENGINES.values()]
    assert all(struct.__struct_config__.forbid_unknown_fields for struct in structs)


def test_the_schema_is_current() -> None:
    published = json.loads((ROOT / "docs" / "sightline.schema.json").read_text())
    assert published == json.loads(json.dumps(schema())), "docs/sightline.schema.json is old: python docs/generate.py"


@pytest.mark.parametrize(
    ("model", "valid"),
    [
        ({"name": "a"}, True),
        ({"name": "a", "options": {"weights": "int8"}}, True),
        ({"name": "a", "engine": "fake", "options": {"slots": 2}}, True),
        ({"name": "a", "options": {"slots": 2}}, False),
        ({"name": "a", "engine": "remote", "options": {"base_url": 5}}, False),
        ({"name": "a", "engine": "vlm"}, False),
        ({"name": "a", "fallback": ["b"]}, False),
        ({}, False),
    ],
)
def test_the_schema_knows_each_engines_options(model: dict[str, object], valid: bool) -> None:
    assert Draft202012Validator(schema()).is_valid({"models": [model]}) == valid


def test_the_example_is_as_the_schema_says() -> None:
    Draft202012Validator(schema()).validate(yaml.safe_load((ROOT / "examples" / "sightline.yaml").read_text()))


@pytest.mark.parametrize(
    ("engine", "what_to_do"),
    [
        ("llamacpp", r"pip install 'sightline\[llamacpp\]'\."),
        ("litellm", r"pip install 'sightline\[litellm\]', or .*: sightline engine install litellm\."),
    ],
)
def test_an_engine_that_is_not_installed_is_told_of_with_commands_that_there_are(
    engine: str, what_to_do: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.configfile.find_spec", lambda name: None)
    (tmp_path / "s.yaml").write_text(f"models: [{{name: m, engine: {engine}}}]")
    messages = [problem.message for problem in check(tmp_path / "s.yaml")[1]]
    assert any(re.fullmatch(f"{engine} needs .*: {what_to_do}", message) for message in messages), messages


@pytest.mark.parametrize(
    "url", ["redis:/oops", "redis://host:63x9/0", "redis://host:6379/jobs", "rediz://host", "unix://"]
)
def test_a_queue_that_is_no_address_is_told_with_its_line_and_without_its_password(url: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"port: 8000\njobs: {url}")
    (problem,) = check(tmp_path / "s.yaml")[1]
    assert (problem.line, problem.path) == (2, "jobs")
    assert "redis://HOST:PORT/DB" in problem.message
    assert url not in problem.message


@pytest.mark.parametrize(
    "url", ["redis://host", "rediss://:p%40ss@host:6379/0?ssl_ca_certs=/x.pem", "unix:///run/redis.sock?db=1"]
)
def test_a_queue_by_its_address(url: str) -> None:
    assert Settings(jobs=url).jobs == url


@pytest.mark.parametrize("url", ["s3:/bucket", "/mnt/shared", "https://host/files", "file://"])
def test_a_place_for_files_that_is_none_is_told(url: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"files:\n  url: {url}")
    (problem,) = check(tmp_path / "s.yaml")[1]
    assert (problem.line, problem.path) == (2, "files.url")
    assert "s3://bucket/prefix or file:///mnt/shared" in problem.message
