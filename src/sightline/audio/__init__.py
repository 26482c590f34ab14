"""Recordings: understood at the edge, like pictures. Bytes to samples, samples to what a speech model hears."""
