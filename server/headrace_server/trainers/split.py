"""Divides rows into those to learn from and those held out.  Knows no torch."""

import numpy as np
from numpy.typing import NDArray

from headrace_server.errors import InvalidDataset
from headrace_server.trainers.randomness import Use, derive_seed

Indices = NDArray[np.int64]


def hold_out(
    num_rows: int, fraction: float, seed: int, classes: NDArray[np.int64] | None = None
) -> tuple[Indices, Indices]:
    """The indices of training rows and of held-out rows, each ascending, neither empty.

    With `classes`, one class number a row, each class is divided by itself, so that shares stay the same; a class
    always keeps a row to learn from.  Raises InvalidDataset when there are fewer than two rows.
    """
    if num_rows < 2:
        raise InvalidDataset(f"{num_rows} usable rows are too few: one is needed to learn from, one to hold out")
    random = np.random.default_rng(derive_seed(seed, Use.SPLIT))
    order = random.permutation(num_rows)
    if classes is None:
        num_held_out = min(num_rows - 1, max(1, round(num_rows * fraction)))
        held_out = order[:num_held_out]
    else:
        held_out = _by_class(order, classes, fraction)
    is_held_out = np.zeros(num_rows, dtype=bool)
    is_held_out[held_out] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def _by_class(order: Indices, classes: NDArray[np.int64], fraction: float) -> Indices:
    by_class = order[np.argsort(classes[order], kind="stable")]
    _, begins, counts = np.unique(classes[by_class], return_index=True, return_counts=True)
    chosen = [
        by_class[begin : begin + min(count - 1, round(count * fraction))]
        for begin, count in zip(begins, counts, strict=True)
    ]
    held_out = np.concatenate(chosen)
    if len(held_out) == 0:  # every class is too small for its share: take one row of the largest, or any row
        return by_class[begins[np.argmax(counts)] :][:1]
    return held_out
