"""Anthropic's messages. Files as in `chat`; `content.py` reads blocks, `models.py` lists models for its clients."""
