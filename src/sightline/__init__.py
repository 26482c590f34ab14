"""Sightline serves vision-language models: one command, any engine, behind the APIs programs already speak."""

__version__ = "0.1.0"
