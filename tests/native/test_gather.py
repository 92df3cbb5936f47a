"""What the native module refuses, and how it behaves beside other threads."""

import sys
import threading
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from headrace_server import _native
from headrace_server.tensors import Array

FLOATS = np.arange(24, dtype=np.float32).reshape(4, 6)


def batch(rows: int = 8, dtype: object = np.float32) -> Array:
    return np.full((rows, 6), 7, dtype)  # type: ignore[call-overload, no-any-return]


def read_only() -> Array:
    array = batch()
    array.flags.writeable = False
    return array


REFUSED_GATHERS: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "a list instead of an array": ([[1.0, 2.0]], batch(), TypeError, "must be a NumPy array, not list"),
    "nothing instead of an array": ([None], batch(), TypeError, "must be a NumPy array, not NoneType"),
    "one number instead of a sequence": (7, batch(), TypeError, "sequence"),
    "a batch that is a list": ([FLOATS], [[0.0] * 6], TypeError, "must be a NumPy array, not list"),
    "a source without rows": ([np.zeros((), np.float32)], batch(), ValueError, "at least one axis"),
    "a batch without rows": ([FLOATS], np.zeros((), np.float32), ValueError, "at least one axis"),
    "another row shape": ([FLOATS[:, :5]], batch(), ValueError, r"source 0 has rows of shape \(5\), the batch .*\(6\)"),
    "more axes": ([FLOATS[:, :, None]], batch(), ValueError, r"source 0 has rows of shape \(6, 1\)"),
    "too many rows": ([FLOATS, FLOATS, FLOATS[:1]], batch(), ValueError, "source 2 has 1 rows, but only 0 of .* 8"),
    "a read-only batch": ([FLOATS], read_only(), ValueError, "read-only"),
    "a narrowing in two steps": ([FLOATS.astype("f8")], batch(dtype="f2"), TypeError, "source 0: .* FP64 to FP16"),
    "floats for integers": ([FLOATS], batch(dtype=np.int32), TypeError, "source 0: .* FP32 to INT32"),
    "a sign that changes": ([batch(1, np.int8)], batch(dtype=np.uint8), TypeError, "INT8 to UINT8"),
    "one 8-bit format for another": (
        [batch(1, ml_dtypes.float8_e4m3fn)], batch(dtype=ml_dtypes.float8_e5m2), TypeError, "FP8_E4M3 to FP8_E5M2",
    ),
    "the other byte order": ([FLOATS.astype(">f4")], batch(), TypeError, "Arrays of >f4 are not copied"),
    "objects": ([FLOATS.astype(object)], batch(dtype=object), TypeError, "Arrays of object are not copied"),
    "text": ([FLOATS.astype("U4")], batch(dtype="U4"), TypeError, "Arrays of <U4 are not copied"),
    "complex numbers": ([FLOATS.astype("c8")], batch(dtype="c8"), TypeError, "Arrays of complex64 are not copied"),
    "times": ([FLOATS.astype("M8[s]")], batch().astype("M8[ms]"), TypeError, "are not copied"),
    "records": ([FLOATS.astype([("a", "f4")])], batch().astype([("a", "f4")]), TypeError, "are not copied"),
    "a type of ml_dtypes that the contract does not have": (
        [FLOATS.astype(ml_dtypes.float8_e3m4)], batch(dtype=ml_dtypes.float8_e3m4), TypeError, "are not copied",
    ),
    "more rows than can be counted": (
        [as_strided(FLOATS, (2**58, 6), (0, 4)), as_strided(FLOATS, (2**58, 6), (0, 4))], batch(),
        ValueError, "source 0 has .* rows, but only 8",
    ),
    "an end outside of memory": ([as_strided(FLOATS, (4, 6), (2**61, 4))], batch(), ValueError, "larger than"),
    "a beginning outside of memory": ([as_strided(FLOATS, (4, 6), (-(2**61), 4))], batch(), ValueError, "larger than"),
    "a batch whose rows lie on each other": (
        [FLOATS], as_strided(batch(), (4, 6), (0, 4)), BufferError, "some of its elements share memory",
    ),
    "a batch whose rows overlap in part": (
        [FLOATS], as_strided(batch(), (4, 6), (20, 4)), BufferError, "some of its elements share memory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_GATHERS)
def test_a_gather_that_cannot_be_right_is_refused_with_a_sentence_and_writes_nothing(case: str) -> None:
    sources, into, error, message = REFUSED_GATHERS[case]
    before = np.array(into, copy=True)

    with pytest.raises(error, match=message):
        _native.gather(sources, into)

    assert np.array_equal(before, into)


@pytest.mark.parametrize("case", [case for case in REFUSED_GATHERS if "batch" not in case and "outside" not in case])
def test_a_scatter_into_what_cannot_be_right_is_refused_with_a_sentence_too(case: str) -> None:
    targets, source, error, _ = REFUSED_GATHERS[case]

    with pytest.raises((error, BufferError)):
        _native.scatter(source, targets)


def test_a_source_that_overlaps_the_batch_is_refused() -> None:
    memory = np.arange(48, dtype=np.float32).reshape(8, 6)
    before = memory.copy()

    with pytest.raises(BufferError, match="source 1 overlaps the batch"):
        _native.gather([FLOATS[:1], memory[1:2]], memory)

    assert np.array_equal(memory, before)


def test_a_source_may_lie_in_rows_of_the_same_memory_that_are_not_written() -> None:
    memory = np.arange(48, dtype=np.float32).reshape(8, 6)

    _native.gather([memory[4:]], memory[:4])

    assert np.array_equal(memory[:4], memory[4:])


def test_targets_that_overlap_each_other_are_refused_in_any_order() -> None:
    memory = np.zeros((8, 6), np.float32)

    with pytest.raises(BufferError, match="target 2 and target 0 overlap"):
        _native.scatter(batch(), [memory[2:4], memory[6:8], memory[1:3]])

    assert not memory.any()


def test_a_target_that_overlaps_the_batch_is_refused() -> None:
    memory = np.arange(48, dtype=np.float32).reshape(8, 6)

    with pytest.raises(BufferError, match="target 0 overlaps the batch"):
        _native.scatter(memory, [memory[1:3]])


def test_a_read_only_target_is_refused() -> None:
    with pytest.raises(ValueError, match="read-only"):
        _native.scatter(batch(), [read_only()])


def test_an_instruction_set_that_the_processor_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="no instruction set sve9"):
        _native.gather([FLOATS], batch(), instruction_set="sve9")


@pytest.mark.parametrize("dtype", [np.intc, np.int_, np.longlong, np.uintc, np.uint, np.ulonglong])
def test_types_of_c_are_told_by_their_size_and_not_by_their_name(dtype: type[np.integer]) -> None:
    source = np.arange(12).reshape(2, 6).astype(dtype)
    into = batch(2, f"i{source.itemsize}" if source.dtype.kind == "i" else f"u{source.itemsize}")

    _native.gather([source], into)

    assert np.array_equal(source, into)


def rows_that_take_a_while() -> tuple[Array, Array]:
    """32 million elements to convert from a source of one million: a tenth of a second, and not much memory."""
    row = np.random.default_rng(0).standard_normal(2**20, np.float32)
    return np.broadcast_to(row, (32, 2**20)), np.zeros((32, 2**20), np.float16)


def test_other_python_threads_run_while_rows_are_copied() -> None:
    source, into = rows_that_take_a_while()
    ticks: list[float] = []
    is_done = threading.Event()

    def tick() -> None:
        while not is_done.wait(0.0005):
            ticks.append(time.perf_counter())

    ticker = threading.Thread(target=tick)
    ticker.start()
    deadline = time.monotonic() + 30
    num_ticks_inside = 0
    while num_ticks_inside == 0 and time.monotonic() < deadline:
        start = time.perf_counter()
        _native.gather([source], into, instruction_set="portable")
        end = time.perf_counter()
        margin = (end - start) / 4  # a tick near an end may have had the GIL before or after
        num_ticks_inside = sum(start + margin < at < end - margin for at in list(ticks))
    is_done.set()
    ticker.join()

    assert num_ticks_inside > 0


def test_arrays_live_until_they_are_copied_even_when_their_list_is_emptied_meanwhile() -> None:
    source, into = rows_that_take_a_while()
    sources: list[Array] = []
    deadline = time.monotonic() + 30
    was_emptied_meanwhile = False

    while not was_emptied_meanwhile and time.monotonic() < deadline:
        sources.append(np.array(source[:16]))  # 64 MiB: given back to the system as soon as nobody holds it
        emptying = threading.Timer(0.005, sources.clear)
        emptying.start()
        num_rows = _native.gather(sources, into, instruction_set="portable")
        was_emptied_meanwhile = num_rows == 16 and not sources
        emptying.join()
        sources.clear()

    assert was_emptied_meanwhile
    assert np.array_equal(into[:16], source[:16].astype(np.float16))


def test_nothing_is_leaked_by_calls_that_work_or_fail() -> None:
    source, into = FLOATS.copy(), batch()
    before = sys.getrefcount(source), sys.getrefcount(into)

    for _ in range(100):
        _native.gather([source, source], into)
        with pytest.raises(ValueError, match="rows"):
            _native.gather([source, source, source], into)

    assert (sys.getrefcount(source), sys.getrefcount(into)) == before
