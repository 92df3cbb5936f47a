"""Conversions, for each instruction set of this processor, over every bit pattern that can matter."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest

from headrace_server import _native
from headrace_server.tensors import Array
from tests.kernels.bits import assert_same_bits

BF16 = np.dtype(ml_dtypes.bfloat16)
FP16, FP32, FP64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)


def every_16_bit_pattern(dtype: np.dtype[np.generic]) -> Array:
    return np.arange(2**16, dtype=np.uint16).view(dtype)


def fp32_around_every_tie() -> Array:
    """Every upper half with lower halves at, just below and just above the points where rounding turns."""
    turning = [0x0000, 0x0001, 0x0FFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xF000, 0xFFFF]
    upper = np.arange(2**16, dtype=np.uint32) << 16
    return (upper[:, None] | np.array(turning, np.uint32)).reshape(-1).view(np.float32)


def fp64_around_every_tie() -> Array:
    """Every FP32 of interest, its neighbours in FP64, and the points halfway to the next FP32 with their neighbours."""
    with np.errstate(over="ignore", invalid="ignore"):
        value = fp32_around_every_tie()[::5].astype(np.float64)
        halfway = value + (np.nextafter(value.astype(np.float32), np.float32(np.inf)).astype(np.float64) - value) / 2
        middle = np.concatenate([value, halfway])
        ends = np.array([1e300, -1e300, 5e-324, 1e-46, 2.0**-150, 2.0**-149, 3.4028235677973366e38, np.inf, np.nan])
        return np.concatenate([middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf), ends])


INPUTS = {
    "fp32_to_bf16": (fp32_around_every_tie, BF16),
    "fp32_to_fp16": (fp32_around_every_tie, FP16),
    "bf16_to_fp32": (lambda: every_16_bit_pattern(BF16), FP32),
    "fp16_to_fp32": (lambda: every_16_bit_pattern(FP16), FP32),
    "fp64_to_fp32": (fp64_around_every_tie, FP32),
}


def converted(source: Array, dtype: np.dtype[np.generic], instruction_set: str) -> Array:
    into = np.zeros(source.shape, dtype)
    assert _native.gather([source], into, instruction_set=instruction_set) == len(source)
    return into


def expected(source: Array, dtype: np.dtype[np.generic]) -> Array:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return source.astype(dtype)


@pytest.mark.parametrize("instruction_set", _native.instruction_sets)
@pytest.mark.parametrize("conversion", INPUTS)
def test_every_bit_pattern_that_matters_converts_as_in_ml_dtypes_and_numpy(
    conversion: str, instruction_set: str
) -> None:
    make, dtype = INPUTS[conversion]
    source = make()

    result = converted(source, dtype, instruction_set)

    assert_same_bits(result, expected(source, dtype))


@pytest.mark.parametrize("instruction_set", _native.instruction_sets)
@pytest.mark.parametrize("conversion", INPUTS)
@pytest.mark.parametrize("length", [*range(1, 36), 63, 64, 65])
def test_runs_of_every_length_are_converted_to_their_last_element_and_no_further(
    conversion: str, instruction_set: str, length: int
) -> None:
    make, dtype = INPUTS[conversion]
    source = make()[1000 : 1000 + length]
    around = np.full(length + 2, 7, dtype)

    _native.gather([source], around[1:-1], instruction_set=instruction_set)

    assert_same_bits(around[1:-1], expected(source, dtype))
    assert around[0] == around[-1] == 7


@contextmanager
def upward_and_flushing() -> Iterator[None]:
    """The thread's arithmetic rounds up and takes subnormal numbers for zero, as some numeric libraries set it."""
    libm = ctypes.CDLL("libm.so.6")
    before, changed = (ctypes.c_uint8 * 32)(), (ctypes.c_uint8 * 32)()
    libm.fegetenv(before)
    libm.fegetenv(changed)
    mxcsr = ctypes.c_uint32.from_buffer(changed, 28)  # fenv_t: the x87 environment, then MXCSR
    mxcsr.value = mxcsr.value & ~0x6000 | 0x4000 | 0x8000 | 0x0040  # round up, flush to zero, denormals are zero
    libm.fesetenv(changed)
    try:
        yield
    finally:
        libm.fesetenv(before)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc",
    reason="knows how to set this on x86-64 with glibc only",
)
@pytest.mark.parametrize("instruction_set", _native.instruction_sets)
@pytest.mark.parametrize("conversion", INPUTS)
def test_the_arithmetic_settings_of_the_thread_change_nothing_and_stay_as_they_were(
    conversion: str, instruction_set: str
) -> None:
    make, dtype = INPUTS[conversion]
    source = make()
    one, little = np.float32(1), np.float32(1e-10)

    with upward_and_flushing():
        is_set = one + little > 1
        result = converted(source, dtype, instruction_set)
        is_still_set = one + little > 1

    assert is_set
    assert is_still_set
    assert_same_bits(result, expected(source, dtype))


def test_the_best_instruction_set_comes_first_and_the_portable_one_is_always_there() -> None:
    assert _native.instruction_sets[-1] == "portable"
    assert list(_native.instruction_sets) == [
        name for name in ("avx512", "avx2", "portable") if name in _native.instruction_sets
    ]
