"""A tiny Whisper that hears spoken digits and colours, in English and Spanish: how it is made and measured."""
