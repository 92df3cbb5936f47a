"""Predictions of networks that are still being trained: from a job's checkpoints to programs that the engine runs.

Read in this order: `snapshots.py` (a name becomes something to run), `templates.py` (what it is made from),
`template_maker.py` (the process that makes that).
"""
