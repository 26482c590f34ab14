"""Whisper: speech to text, on any runtime that can run the model's two halves.

    recording.py   a recording, window after window, to segments
    window.py      one window to tokens: greedy or sampled, warmer where that fails
    rules.py       which tokens may come next
    alignment.py   which word was said when
    vocabulary.py  tokens and text, and what Whisper's special tokens are
    checkpoint.py  what a model's files say of it
    engine.py      the engine around them, whatever runs the model
    openvino.py    the model on OpenVINO, as a graph of our own
    torch_model.py the model on torch, by transformers

The method is that of Radford et al. (arXiv:2212.04356), section 4.5, and openai/whisper `transcribe.py`.
"""
