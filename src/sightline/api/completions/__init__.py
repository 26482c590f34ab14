"""OpenAI's completions: plain text that a model goes on with. Files as in `chat`."""
