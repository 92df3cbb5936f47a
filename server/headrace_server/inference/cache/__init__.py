"""Answers that were computed before: in memory first, in Redis second, both bounded, neither trusted.

Read in this order: `response_cache.py` (what happens to a prediction), `key.py` (what makes two of them the same),
`entry.py` (how an answer is kept), `memory.py` and `redis_tier.py` (where).
"""
