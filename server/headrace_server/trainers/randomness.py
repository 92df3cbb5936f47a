"""Independent streams of chance from one seed.  Knows no torch.

Each use has a stream of its own, so that, for example, another augmentation does not change the order of rows.
"""

from enum import IntEnum

import numpy as np


class Use(IntEnum):
    """What chance is used for.  The numbers are part of what a seed means: never change one, only add."""

    SPLIT = 1
    NETWORK = 2
    ORDER = 3
    AUGMENTATION = 4
    TRAINING = 5


def derive_seed(seed: int, use: Use, number: int = 0) -> int:
    """A seed below 2**63 for one use, and for one of its numbered parts such as an epoch."""
    words = np.random.SeedSequence(seed, spawn_key=(use, number)).generate_state(1, np.uint64)
    return int(words[0]) & (2**63 - 1)
