"""Trackers of experiments that follow what jobs do; see `sink.py` for what one is."""
