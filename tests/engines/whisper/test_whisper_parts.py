"""What Whisper's decoding is made of, without a model: the grammar of timestamps, windows, words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.audio.languages import LANGUAGES, to_code, to_name
from sightline.audio.mel import SAMPLE_RATE, log_mel
from sightline.config import ModelConfig
from sightline.engines import find_entry, target_of
from sightline.engines.checkpoint import CheckpointError
from sightline.engines.whisper.alignment import Aligner, starts
from sightline.engines.whisper.checkpoint import Facts, Shape, read_facts
from sightline.engines.whisper.recording import Recording, Transcriber
from sightline.engines.whisper.rules import Rules
from sightline.engines.whisper.vocabulary import Vocabulary
from sightline.engines.whisper.window import Cancelled
from sightline.engines.worker import frames
from sightline.engines.worker.pictures import receive_samples, share
from sightline.interprocess import LENGTH_BYTES, encode
from sightline.types import Segment, SpokenWord, TokenLogprob, Transcribed, TranscriptionRequest

MODEL = Path(__file__).parent / "model"
SHAPE = Shape(
    width=128, heads=4, encoder_layers=4, decoder_layers=2, bands=80, source_positions=500, target_positions=128,
    vocabulary=len(json.loads((MODEL / "tokenizer.json").read_text())["added_tokens"]) + 366,
)  # fmt: skip
FACTS = Facts(SHAPE, frozenset(), frozenset(), ((1, 0),), True, None)
V = Vocabulary(MODEL, FACTS)


def time(seconds: float) -> int:
    return V.first_timestamp + round(seconds / 0.02)


# --- the vocabulary --------------------------------------------------------------------------------------------------


def test_special_tokens_have_whispers_order() -> None:
    assert V.end < V.start < V.languages["en"] < V.languages["es"] < V.before < V.without_times < V.first_timestamp
    assert V.seconds(time(9.98)) == pytest.approx(9.98)
    assert V.start_of("es", "translate")[1:] == [V.languages["es"], V._id("<|translate|>")]


def test_a_model_of_english_only_is_told_neither_language_nor_task() -> None:
    english = Vocabulary(MODEL, replace(FACTS, is_multilingual=False))
    assert (english.languages, english.start_of("en", "transcribe")) == ({}, [V.start])


def test_text_survives_and_special_tokens_in_a_prompt_do_not() -> None:
    assert V.text(V.encode(" tres marrón 7 \U0001f600")) == " tres marrón 7 \U0001f600"
    assert V.text(V.encode(" one<|endoftext|> two")) == " one two"


def test_words_are_cut_at_spaces_and_never_within_a_character() -> None:
    assert [V.text(w) for w in V.words(V.encode(" uno marrón, dos"), "es")] == [" uno", " marrón", ",", " dos"]
    assert [V.text(w) for w in V.words(V.encode("日本"), "ja")] == ["日", "本"]


def test_languages_are_known_by_code_region_and_name() -> None:
    assert [to_code(t) for t in ("en", "EN-gb", "pt_BR", "English", "castilian", "yue", "x", "")] == [
        "en", "en", "pt", "en", "es", "yue", None, None,
    ]  # fmt: skip
    assert len(LANGUAGES) == 100
    assert to_name("de") == "german"


# --- which token may come next ---------------------------------------------------------------------------------------


def allowed(said: Sequence[int], facts: Facts = FACTS, favourite: int | None = None) -> set[int]:
    logits = np.zeros(SHAPE.vocabulary, np.float32)
    logits[: V.end + 1] = 20.0  # so that timestamps are not preferred for their number
    if favourite is not None:
        logits[favourite] = 60.0
    return set(np.flatnonzero(np.isfinite(Rules(facts, V).apply(logits, said))).tolist())


WORD = V.encode(" one")[0]


def test_a_transcript_begins_with_a_timestamp_within_the_first_second_where_the_model_says_so() -> None:
    assert allowed([]) == set(range(V.first_timestamp, SHAPE.vocabulary))
    limited = replace(FACTS, latest_start=50)
    assert allowed([], limited) == set(range(V.first_timestamp, time(1.0) + 1))


def test_timestamps_come_in_pairs_and_never_go_back() -> None:
    assert not any(map(V.is_time, allowed([time(1.0)])))  # after a start: words
    assert {WORD, V.end} < allowed([time(1.0)])
    after_words = allowed([time(1.0), WORD])
    assert min(filter(V.is_time, after_words)) == time(1.02)  # an end is later than its start
    assert WORD in after_words
    after_end = allowed([time(1.0), WORD, time(2.0)])
    assert not any(map(V.is_text, after_end))  # after an end: the next start, or nothing
    assert min(filter(V.is_time, after_end)) == time(2.0)
    assert V.end in after_end


def test_a_timestamp_is_said_where_all_together_are_likelier_than_any_word() -> None:
    logits = np.full(SHAPE.vocabulary, -9.0, np.float32)
    logits[WORD] = 1.0
    logits[time(2.0) : time(2.2)] = 0.0  # ten of them, e^0 each
    assert WORD not in set(np.flatnonzero(np.isfinite(Rules(FACTS, V).apply(logits, [time(1.0), WORD]))))


def test_suppressed_and_special_tokens_are_never_said() -> None:
    facts = replace(FACTS, suppressed=frozenset({WORD}))
    said = [time(0.0), V.encode(" two")[0]]
    assert WORD not in allowed(said, facts)
    assert not {V.start, V.before, V.without_times, V.no_speech} & allowed(said, favourite=V.no_speech)


# --- windows ---------------------------------------------------------------------------------------------------------


class Script:
    """A model that says what is written for each window, whatever it hears."""

    def __init__(
        self, *windows: Sequence[int], sure: float = 40.0, no_speech: float = 0.0, language: str = "es"
    ) -> None:
        self.windows = list(windows)
        self.sure = sure
        self.no_speech = no_speech
        self.language = language
        self.prefixes: list[list[int]] = []
        self.window = -1

    def encode(self, mel: Any) -> int:
        assert mel.shape == (80, 1000)
        self.window += 1
        return self.window

    def decoding(self, heard: int) -> _Decoding:
        return _Decoding(self, [*self.windows[heard], V.end])

    def attention(self, heard: int, tokens: Sequence[int]) -> Any:
        """Token i looks at places 10 i to 10 i + 9."""
        looks = np.full((1, len(tokens), SHAPE.source_positions), 1e-4, np.float32)
        for index in range(len(tokens)):
            looks[0, index, 10 * index : 10 * index + 10] = 1.0
        return looks / looks.sum(-1, keepdims=True)


class _Decoding:
    def __init__(self, script: Script, says: list[int]) -> None:
        self.script = script
        self.says = says
        self.at = -1

    def step(self, tokens: Sequence[int]) -> Any:
        logits = np.zeros((len(tokens), SHAPE.vocabulary), np.float32)
        if self.at < 0:
            self.script.prefixes.append(list(tokens))
            start = list(tokens).index(V.start)
            logits[start, V.languages[self.script.language]] = 30.0
            if self.script.no_speech:
                logits[start, V.no_speech] = 100.0
        self.at += 1
        logits[-1, self.says[min(self.at, len(self.says) - 1)]] = self.script.sure
        return logits


def written(script: Script, seconds: float, **asked: Any) -> tuple[list[Segment], Recording]:
    transcriber = Transcriber(script, FACTS, V)
    request = TranscriptionRequest(
        request_id="r", model="w", samples=np.zeros(round(seconds * SAMPLE_RATE), np.float32), **asked
    )
    recording = Recording(transcriber, request, lambda: True)
    segments: list[Segment] = []
    while not recording.is_over:
        segments += recording.window()
    return segments, recording


def said(start: float, text: str, end: float) -> list[int]:
    return [time(start), *V.encode(text), time(end)]


def test_the_next_window_begins_where_the_last_whole_segment_ended() -> None:
    script = Script([*said(1.0, " one", 4.0), time(9.0)], said(5.0, " two", 6.0))
    segments, recording = written(script, 13.0, language="en")
    assert [(s.start, s.end, s.text, s.seek) for s in segments] == [(1.0, 4.0, " one", 0), (9.0, 10.0, " two", 400)]
    assert recording.is_over


def test_a_window_after_whose_last_word_nobody_speaks_is_done_as_a_whole() -> None:
    script = Script([*said(0.0, " one", 2.0), *said(3.0, " two", 4.0)], said(1.0, " three", 2.0))
    segments, _ = written(script, 15.0, language="en")
    assert [(s.start, s.end, s.text) for s in segments] == [
        (0.0, 2.0, " one"), (3.0, 4.0, " two"), (11.0, 12.0, " three"),
    ]  # fmt: skip


def test_a_window_that_only_tells_where_speech_begins_is_begun_again_there() -> None:
    script = Script([time(7.0)], said(0.0, " one", 2.0))
    segments, _ = written(script, 12.0, language="en")
    assert [(s.start, s.text) for s in segments] == [(7.0, " one")]


def test_a_window_without_an_end_moves_on_all_the_same() -> None:
    segments, _ = written(Script([time(1.0), *V.encode(" one")], [time(0.0)]), 11.0, language="en")
    assert [(s.start, s.end, s.text) for s in segments] == [(1.0, 10.0, " one")]


def test_silence_has_no_segments() -> None:
    script = Script(said(0.0, " thanks", 2.0), sure=1.0, no_speech=1.0)
    assert written(script, 5.0, language="en")[0] == []
    assert len(script.prefixes) == 1, "silence is not tried again at other temperatures"


def test_an_unsure_answer_is_tried_at_higher_temperatures() -> None:
    for temperature, tries in ((0.0, 6), (0.4, 1)):  # one that was asked for is the only one
        script = Script(said(0.0, " one", 2.0), sure=3.0)
        samples = np.zeros(5 * SAMPLE_RATE, np.float32)
        request = TranscriptionRequest(
            request_id="r", model="w", samples=samples, language="en", temperature=temperature
        )
        Recording(Transcriber(script, FACTS, V), request, lambda: True).window()
        assert len(script.prefixes) == tries


def test_an_answer_that_repeats_itself_is_tried_again() -> None:
    script = Script(said(0.0, " one" * 40, 2.0))
    segments, _ = written(script, 5.0, language="en")
    assert len(script.prefixes) == 6
    assert segments[0].compression_ratio > 2.4


def test_the_language_is_found_out_once_or_given() -> None:
    script = Script(said(0.0, " uno", 9.0), said(0.0, " dos", 1.0))
    _, recording = written(script, 12.0)
    assert recording.language == "es"
    assert [p[-3:] for p in script.prefixes] == [
        [V.start],
        V.start_of("es", "transcribe"),
        V.start_of("es", "transcribe"),
    ]
    given = Script(said(0.0, " one", 1.0))
    written(given, 2.0, language="en", task="translate")
    assert given.prefixes == [V.start_of("en", "translate")]


def test_the_prompt_and_what_was_said_before_are_the_context() -> None:
    script = Script([*said(0.0, " one", 9.0), time(9.5)], said(0.0, " two", 1.0))
    written(script, 12.0, language="en", prompt="red blue")
    prompt = V.encode(" red blue")
    start = V.start_of("en", "transcribe")
    assert script.prefixes == [[V.before, *prompt, *start], [V.before, *prompt, *V.encode(" one"), *start]]


def test_a_long_prompt_keeps_its_end() -> None:
    script = Script(said(0.0, " one", 1.0))
    written(script, 2.0, language="en", prompt="red " * 200 + "blue")
    (prefix,) = script.prefixes
    assert len(prefix) == 1 + 63 + 3
    assert V.text(prefix[:-3]).endswith(" blue")


def test_words_have_times_and_belong_to_their_segments() -> None:
    script = Script([*said(0.1, " one two", 0.9), *said(0.9, " three", 3.0)])
    segments, _ = written(script, 4.0, language="en", word_times=True)
    words = [[(w.text, w.start, w.end) for w in s.words] for s in segments]
    # A row looks 0.2 s further than the one before. The first word begins with the row that says it, the fourth, behind
    # start, language and task; its end is where the row begins that says the second.
    one, two, three = (len(V.encode(w)) for w in (" one", " two", " three"))
    rows = [3, 3 + one, 3 + one + two, 3 + one + two + three]
    assert words == [
        [(" one", pytest.approx(0.1), pytest.approx(0.2 * rows[1], abs=0.1)),
         (" two", pytest.approx(0.2 * rows[1], abs=0.1), pytest.approx(0.2 * rows[2], abs=0.1))],
        [(" three", pytest.approx(0.2 * rows[2], abs=0.1), pytest.approx(0.2 * rows[3], abs=0.1))],
    ]  # fmt: skip


def test_logprobs_are_those_of_the_text() -> None:
    segments, _ = written(Script(said(0.0, " one", 1.0)), 2.0, language="en", logprobs=True)
    assert b"".join(bytes(p.bytes) for p in segments[0].logprobs) == b" one"
    assert all(-0.1 < p.logprob <= 0 for p in segments[0].logprobs)


def test_who_is_not_wanted_any_more_stops_between_two_tokens() -> None:
    script = Script(said(0.0, " one two three", 1.0))
    request = TranscriptionRequest(request_id="r", model="w", samples=np.zeros(32_000, np.float32), language="en")
    asked = iter([True, True, True, False])
    recording = Recording(Transcriber(script, FACTS, V), request, lambda: next(asked))
    with pytest.raises(Cancelled):
        recording.window()


# --- the path of attention -------------------------------------------------------------------------------------------


def test_the_path_follows_the_ridge() -> None:
    ridge = np.full((4, 12), -0.1)
    for row, (begin, end) in enumerate([(0, 3), (3, 4), (4, 9), (9, 12)]):
        ridge[row, begin:end] = 1.0
    assert starts(ridge) == [0, 3, 4, 9]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 3), (9, 4)])
def test_any_shape_has_a_path_that_never_goes_back(shape: tuple[int, int]) -> None:
    found = starts(np.random.default_rng(0).normal(size=shape))
    assert found[0] == 0
    assert found == sorted(found)
    assert found[-1] < shape[1]


def test_marks_belong_to_the_words_beside_them() -> None:
    script = Script([])
    aligner = Aligner(script, FACTS, V)
    words = aligner.words(0, [V.start], V.encode(' "one, two." (red)'), 400, "en")
    assert [w.text for w in words] == [' "one,', ' two."', " (red)"]


# --- the spectrogram -------------------------------------------------------------------------------------------------


def test_a_tone_is_loud_in_its_band_and_silence_is_the_floor() -> None:
    at = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    mel = log_mel((0.5 * np.sin(2 * np.pi * 1000 * at)).astype(np.float32), 80, padding=SAMPLE_RATE)
    assert mel.shape == (80, 200)
    assert mel[:, 50].argmax() == 26  # 1,000 Hz is mel 15; bands are 0.5586 mel apart
    assert np.ptp(mel[:, 150]) == 0
    assert mel.max() - mel.min() == pytest.approx(2.0)  # eight powers of ten, by four


def test_a_long_recording_is_transformed_in_blocks_to_the_same() -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, 50 * SAMPLE_RATE).astype(np.float32)
    whole, part = log_mel(noise, 80), log_mel(noise[: 45 * SAMPLE_RATE], 80)
    np.testing.assert_allclose(whole[:, 4000:4400], part[:, 4000:4400], atol=1e-4)


# --- between processes -----------------------------------------------------------------------------------------------


def test_a_request_crosses_to_the_engines_process_whole() -> None:
    sound = np.linspace(-1, 1, 16_001, dtype=np.float32)
    sent = TranscriptionRequest(
        request_id="r", model="w", samples=sound, task="translate", language="es", prompt="a", temperature=0.5,
        word_times=True, logprobs=True,
    )  # fmt: skip
    wire = frames.to_wire_transcription(sent)
    assert {f.name for f in fields(TranscriptionRequest)} == set(wire.__struct_fields__)
    body = encode(frames.Transcribe(3, wire))[LENGTH_BYTES:]
    frame = frames.decode_to_child(body)
    assert isinstance(frame, frames.Transcribe)
    got = frames.from_wire_transcription(frame.request, receive_samples(share([sound], [0]), frame.request.samples))
    np.testing.assert_array_equal(got.samples, sound)
    for field in fields(TranscriptionRequest):
        if field.name != "samples":
            assert getattr(got, field.name) == getattr(sent, field.name) != field.default


def test_segments_cross_back_whole() -> None:
    segment = Segment(
        0.5, 1.5, " one", (1, 2), 0.2, -0.5, 1.25, 0.125, 100, (SpokenWord(" one", 0.5, 1.5),),
        (TokenLogprob(" one", -0.5, (32,)),),
    )  # fmt: skip
    for event in (segment, Transcribed("es")):
        frame = frames.decode_to_parent(encode(frames.said(7, event))[LENGTH_BYTES:])
        assert isinstance(frame, frames.Said)
        assert (frame.stream, frame.event) == (7, event)


# --- a checkpoint's files --------------------------------------------------------------------------------------------


def laid_out(path: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    whole = json.loads((MODEL / "config.json").read_text()) | config
    (path / "config.json").write_text(json.dumps(whole))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def test_what_a_checkpoint_does_not_say_is_as_in_openai_s_models(tmp_path: Path) -> None:
    facts = read_facts(laid_out(tmp_path, {"vocab_size": 51_864, "suppress_tokens": [-1, 7], "decoder_layers": 4}))
    assert (facts.is_multilingual, facts.latest_start, facts.suppressed) == (False, 50, {7})
    assert facts.alignment_heads == tuple((layer, head) for layer in (2, 3) for head in range(4))
    assert (facts.shape.frames, facts.shape.window_s) == (1000, 10.0)


def test_what_it_says_counts(tmp_path: Path) -> None:
    said = {"is_multilingual": True, "alignment_heads": [[1, 2]], "begin_suppress_tokens": [220, 9]}
    facts = read_facts(laid_out(tmp_path, {"vocab_size": 900}, said | {"max_initial_timestamp_index": None}))
    assert (facts.is_multilingual, facts.alignment_heads, facts.latest_start) == (True, ((1, 2),), None)
    assert facts.suppressed_first == {9, 220}


@pytest.mark.parametrize("config", [{"activation_function": "relu"}, {"scale_embedding": True}, {"d_model": "wide"}])
def test_what_would_be_heard_wrongly_is_not_served(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_facts(laid_out(tmp_path, config))


def test_the_files_say_which_engine_is_meant(tmp_path: Path) -> None:
    for engine in ("openvino", "transformers"):
        entry = find_entry(engine)
        speech = ModelConfig(name="w", engine=engine, source=str(laid_out(tmp_path, {})))
        assert "whisper" in target_of(speech, entry)
        assert target_of(ModelConfig(name="p", engine=engine), entry) == entry.target
    assert target_of(replace_engine(speech, "fake"), find_entry("fake")) == find_entry("fake").target


def replace_engine(config: ModelConfig, engine: str) -> ModelConfig:
    return ModelConfig(name=config.name, engine=engine, source=config.source)
