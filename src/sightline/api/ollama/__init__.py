"""Ollama's own API. Files as in `chat`; `embed.py` has embeddings, `models.py` the models."""
