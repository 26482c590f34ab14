"""Our graphs and our decoding beside transformers' own model and generation. Needs torch: `make test-engines`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.audio.decoder_process import decode
from sightline.audio.mel import SAMPLE_RATE, log_mel, mel_filters
from sightline.config import AudioLimits
from sightline.engines.whisper.checkpoint import read_facts
from sightline.engines.whisper.openvino import OpenVINOWhisper
from sightline.engines.whisper.recording import Recording, Transcriber
from sightline.engines.whisper.vocabulary import Vocabulary
from sightline.types import Segment, TranscriptionRequest

pytestmark = pytest.mark.engine_reference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def made(path: Path, **shape: Any) -> Any:
    """A model of random weights, far enough from zero that every part of it shows in the logits."""
    torch.manual_seed(5)
    config = transformers.WhisperConfig(
        d_model=64, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_ffn_dim=128, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        decoder_start_token_id=1, **shape,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "encoder.embed_positions" not in name:
                weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5))
    model.save_pretrained(path)
    return model


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(3).normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)


SHAPES = [
    {"num_mel_bins": 80, "max_source_positions": 1500, "max_target_positions": 448, "vocab_size": 51865},
    {"num_mel_bins": 128, "max_source_positions": 1500, "max_target_positions": 448, "vocab_size": 51866},
    {"num_mel_bins": 80, "max_source_positions": 500, "max_target_positions": 128, "vocab_size": 900},
]


@pytest.mark.parametrize("shape", SHAPES, ids=["as large-v2", "as large-v3", "ours"])
def test_logits_and_attention_are_those_of_transformers(shape: dict[str, int], tmp_path: Path) -> None:
    reference = made(tmp_path, **shape)
    facts = read_facts(tmp_path)
    model = OpenVINOWhisper(tmp_path, facts)
    mel = log_mel(noise(3.0), facts.shape.bands, padding=facts.shape.window_samples)[:, : facts.shape.frames]
    tokens = [5, 17, 300, 42, 7, 880]
    reference.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = reference(
            input_features=torch.from_numpy(mel[None]), decoder_input_ids=torch.tensor([tokens]), output_attentions=True
        )
    heard = model.encode(mel)
    decoding = model.decoding(heard)
    found = np.concatenate([decoding.step(tokens[:3]), decoding.step(tokens[3:4]), decoding.step(tokens[4:])])
    np.testing.assert_allclose(found, expected.logits[0].numpy(), atol=1e-4)
    looks = np.stack([expected.cross_attentions[layer][0, head].numpy() for layer, head in facts.alignment_heads])
    np.testing.assert_allclose(model.attention(heard, tokens), looks, atol=1e-4)
    again = model.decoding(heard)  # nothing of the first is left
    np.testing.assert_allclose(again.step(tokens), found, atol=1e-4)


@pytest.mark.parametrize("bands", [80, 128])
def test_the_spectrogram_is_transformers_own(bands: int) -> None:
    extractor = transformers.WhisperFeatureExtractor(feature_size=bands)
    np.testing.assert_allclose(mel_filters(bands), extractor.mel_filters.T, atol=1e-6)
    samples = noise(4.321)
    expected = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="np").input_features[0]
    found = log_mel(samples, bands, padding=30 * SAMPLE_RATE)[:, :3000]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_torch_and_openvino_write_down_the_same(tmp_path: Path) -> None:
    """The model of random weights says nonsense, and says it twice."""
    from sightline.engines.whisper.torch_model import TorchWhisper

    made(tmp_path, **SHAPES[2])
    facts = read_facts(tmp_path)
    mel = log_mel(noise(3.0), facts.shape.bands, padding=facts.shape.window_samples)[:, : facts.shape.frames]
    models = (OpenVINOWhisper(tmp_path, facts), TorchWhisper(tmp_path, facts, dtype="float32", device="cpu", threads=1))
    written, looks = [], []
    for model in models:
        heard = model.encode(mel)
        decoding = model.decoding(heard)
        tokens = [1, 2, 3]
        logits = decoding.step(tokens)[-1]
        for _ in range(40):
            tokens.append(int(logits.argmax()))
            logits = decoding.step(tokens[-1:])[-1]
        written.append(tokens)
        looks.append(model.attention(heard, tokens))
    assert written[0] == written[1]
    np.testing.assert_allclose(looks[0], looks[1], atol=1e-4)


# --- the trained model -----------------------------------------------------------------------------------------------

MODEL = Path(__file__).parent / "model"
CLIPS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "clips" / "clips.json").read_text())[:16]


def sound(file: str) -> np.ndarray:
    out = io.BytesIO()
    decode(io.BytesIO((Path(__file__).parent / "clips" / file).read_bytes()), out, AudioLimits())
    return np.frombuffer(out.getvalue(), np.float32)


def heard(model: Any, samples: np.ndarray) -> list[Segment]:
    facts = read_facts(MODEL)
    transcriber = Transcriber(model, facts, Vocabulary(MODEL, facts))
    request = TranscriptionRequest(request_id="r", model="w", samples=samples, word_times=True)
    recording = Recording(transcriber, request, lambda: True)
    segments: list[Segment] = []
    while not recording.is_over:
        segments += recording.window()
    return segments


def test_both_engines_hear_the_same_at_the_same_times() -> None:
    from sightline.engines.whisper.torch_model import TorchWhisper

    facts = read_facts(MODEL)
    ours = OpenVINOWhisper(MODEL, facts)
    theirs = TorchWhisper(MODEL, facts, dtype="float32", device="cpu", threads=1)
    for clip in CLIPS:
        samples = sound(clip["file"])
        for a, b in zip(heard(ours, samples), heard(theirs, samples), strict=True):
            if a.temperature == b.temperature == 0:  # drawn tokens may turn on the last bit of a probability
                assert (a.start, a.end, a.tokens, a.words) == (b.start, b.end, b.tokens, b.words)
                assert a.avg_logprob == pytest.approx(b.avg_logprob, abs=1e-3)


def test_a_greedy_answer_is_what_transformers_generate_says() -> None:
    reference = transformers.WhisperForConditionalGeneration.from_pretrained(str(MODEL), dtype=torch.float32).eval()
    processor = transformers.WhisperProcessor.from_pretrained(str(MODEL))
    model = OpenVINOWhisper(MODEL, read_facts(MODEL))
    compared = 0
    for clip in CLIPS:
        samples = sound(clip["file"])
        segments = heard(model, samples)
        if len({s.seek for s in segments}) != 1 or any(s.temperature for s in segments):
            continue
        features = processor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        with torch.inference_mode():
            said = reference.generate(
                features,
                return_timestamps=True,
                language=clip["language"],
                task="transcribe",
                num_beams=1,
                do_sample=False,
            )
        assert (
            processor.batch_decode(said, skip_special_tokens=True)[0].strip()
            == "".join(s.text for s in segments).strip()
        )
        compared += 1
    assert compared >= 4
