"""OpenAI's audio: what is said in a file, as it is or in English. `routes.py` reads the form, `reply.py` writes."""
