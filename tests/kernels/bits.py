"""Comparing arrays by their bits."""

import numpy as np

from headrace_server.tensors import Array

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def bits(array: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]]:
    """The same elements as unsigned integers, contiguous."""
    return np.ascontiguousarray(array).view(_UNSIGNED[array.dtype.itemsize])


def assert_same_bits(actual: Array, expected: Array) -> None:
    """Equal in every bit; where NaN is expected, any NaN of the same sign."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    different = bits(actual) != bits(expected)
    if different.any() and expected.dtype.kind in "fV":  # V: the types of ml_dtypes
        with np.errstate(invalid="ignore"):  # the types of ml_dtypes warn of some NaNs that they are looked at
            both_nan = np.isnan(actual) & np.isnan(expected)
        sign = 8 * expected.dtype.itemsize - 1
        different &= ~(both_nan & (bits(actual) >> sign == bits(expected) >> sign))
    where = np.argwhere(different)
    assert not len(where), (
        f"{len(where)} differ, the first at {where[0]}: {actual[tuple(where[0])]} for {expected[tuple(where[0])]}"
    )
