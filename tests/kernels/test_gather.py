"""The native kernels against plain NumPy: any types, shapes and layouts, bit for bit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.lib.stride_tricks import as_strided

from headrace_server.kernels import gather as kernels, reference
from headrace_server.tensors import Array, DataType
from tests.kernels.bits import assert_same_bits

COPIED = [data_type.dtype for data_type in DataType if data_type is not DataType.STRING]
PAIRS = sorted([*reference.CONVERSIONS, *((dtype, dtype) for dtype in COPIED)], key=str)


def contiguous(array: Array) -> Array:
    return array.copy()


def every_second_row(array: Array) -> Array:
    wide = np.empty((2 * len(array), *array.shape[1:]), array.dtype)
    wide[::2] = array
    return wide[::2]


def rows_backwards(array: Array) -> Array:
    return np.ascontiguousarray(array[::-1])[::-1]


def columns_first(array: Array) -> Array:
    return np.asfortranarray(array)


def part_of_wider_rows(array: Array) -> Array:
    wide = np.zeros((*array.shape[:-1], array.shape[-1] + 3), array.dtype)
    wide[..., 1 : 1 + array.shape[-1]] = array
    return wide[..., 1 : 1 + array.shape[-1]]


def every_third_element(array: Array) -> Array:
    wide = np.zeros((*array.shape[:-1], 3 * array.shape[-1]), array.dtype)
    wide[..., ::3] = array
    return wide[..., ::3]


def everything_backwards(array: Array) -> Array:
    turn = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[turn])[turn]


def at_an_odd_address(array: Array) -> Array:
    memory = np.empty(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


LAYOUTS = [
    contiguous, every_second_row, rows_backwards, columns_first, part_of_wider_rows, every_third_element,
    everything_backwards, at_an_odd_address,
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Blocks of rows and a batch for them, filled with arbitrary bits."""

    blocks: list[Array]
    batch: Array
    num_rows: int


@st.composite
def cases(draw: st.DrawFn, *, to_batch: bool) -> Case:
    from_dtype, to_dtype = draw(st.sampled_from(PAIRS))
    block_dtype, batch_dtype = (from_dtype, to_dtype) if to_batch else (to_dtype, from_dtype)
    row_shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    if draw(st.booleans()):
        row_shape = (*row_shape, draw(st.integers(0, 70)))
    row_counts = draw(st.lists(st.integers(0, 5), max_size=6))
    if draw(st.booleans()):
        row_counts = [*row_counts, draw(st.integers(100, 200))]
    spare = draw(st.integers(0, 3))
    layouts = st.sampled_from(LAYOUTS)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))

    def block(num_rows: int, dtype: np.dtype[np.generic], layout: Callable[[Array], Array]) -> Array:
        shape = (num_rows, *row_shape)
        memory = random.integers(0, 2 if dtype.kind == "b" else 256, (*shape, dtype.itemsize), np.uint8)
        if dtype.kind == "f" and random.integers(2):  # numbers near one, where conversions round
            return layout(random.standard_normal(shape).astype(dtype))
        return layout(memory.view(dtype).reshape(shape))

    return Case(
        blocks=[block(rows, block_dtype, draw(layouts)) for rows in row_counts],
        batch=block(sum(row_counts) + spare, batch_dtype, draw(layouts)),
        num_rows=sum(row_counts),
    )


@settings(deadline=None)  # other programs may hold the machine up
@given(cases(to_batch=True))
def test_gather_writes_what_the_reference_writes_and_nothing_else(case: Case) -> None:
    expected = case.batch.copy()
    reference.gather(case.blocks, expected)

    num_rows = kernels.gather(case.blocks, case.batch)

    assert num_rows == case.num_rows
    assert_same_bits(case.batch, expected)


@settings(deadline=None)  # other programs may hold the machine up
@given(cases(to_batch=False))
def test_scatter_writes_what_the_reference_writes(case: Case) -> None:
    expected = [block.copy() for block in case.blocks]
    reference.scatter(case.batch, expected)

    num_rows = kernels.scatter(case.batch, case.blocks)

    assert num_rows == case.num_rows
    for block, wanted in zip(case.blocks, expected, strict=True):
        assert_same_bits(block, wanted)


@settings(deadline=None)  # other programs may hold the machine up
@given(cases(to_batch=True))
def test_gathering_and_scattering_back_in_one_type_changes_no_bit(case: Case) -> None:
    batch = np.zeros(case.batch.shape, case.blocks[0].dtype if case.blocks else case.batch.dtype)
    back = [np.zeros(block.shape, block.dtype) for block in case.blocks]

    kernels.gather(case.blocks, batch)
    kernels.scatter(batch, back)

    for block, returned in zip(case.blocks, back, strict=True):
        assert block.tobytes() == returned.tobytes()


def test_bytes_between_the_elements_of_a_batch_stay_as_they_were() -> None:
    memory = np.full((6, 9), 7, np.float32)

    kernels.gather([np.zeros((2, 4), np.float64)], memory[1:5:2, 2:6])

    untouched = np.ones((6, 9), bool)
    untouched[1:5:2, 2:6] = False
    assert (memory[untouched] == 7).all()
    assert (memory[~untouched] == 0).all()


def test_sources_of_different_types_meet_in_one_batch() -> None:
    batch = np.zeros((4, 2), np.float32)
    sources: list[Array] = [np.full((1, 2), number, dtype) for number, dtype in enumerate(["f2", "f4", "f8"], start=1)]

    assert kernels.gather(sources, batch) == 3

    assert batch.tolist() == [[1, 1], [2, 2], [3, 3], [0, 0]]


def test_a_row_that_is_repeated_by_a_stride_of_zero_is_a_source_like_any_other() -> None:
    batch = np.zeros((5, 3), np.float32)

    kernels.gather([np.broadcast_to(np.array([1, 2, 3], np.float32), (5, 3))], batch)

    assert batch.tolist() == [[1, 2, 3]] * 5


def test_sources_may_overlap_each_other() -> None:
    memory = np.arange(6, dtype=np.int64)
    windows = as_strided(memory, (4, 3), (8, 8))
    batch = np.zeros((8, 3), np.int64)

    kernels.gather([windows, windows], batch)

    assert np.array_equal(batch, np.concatenate([windows, windows]))


def test_one_huge_source_and_many_empty_ones_fit_together() -> None:
    huge = np.random.default_rng(0).standard_normal((50_000, 64), np.float32)
    empty = huge[:0]
    batch = np.zeros((50_000, 64), np.float16)

    num_rows = kernels.gather([empty, empty, huge, empty], batch)

    assert num_rows == 50_000
    assert_same_bits(batch, huge.astype(np.float16))


def test_no_sources_are_no_rows() -> None:
    batch = np.full((2, 2), 7, np.float32)

    assert kernels.gather([], batch) == 0
    assert kernels.scatter(batch, []) == 0
    assert (batch == 7).all()


def test_text_is_gathered_and_scattered_as_references() -> None:
    words = [np.array([["a", "b"]], object), np.array([["c", "d"], ["e", "f"]], object)]
    batch = np.full((4, 2), "", object)
    back = [np.empty_like(block) for block in words]

    assert kernels.gather(words, batch) == 3
    assert kernels.scatter(batch, back) == 3

    assert batch.tolist() == [["a", "b"], ["c", "d"], ["e", "f"], ["", ""]]
    assert [block.tolist() for block in back] == [block.tolist() for block in words]


@pytest.mark.parametrize("face", [kernels, reference])
def test_reference_and_kernel_refuse_the_same_things(face: Any) -> None:
    batch = np.zeros((2, 3), np.float32)

    with pytest.raises(ValueError, match="rows of shape"):
        face.gather([np.zeros((1, 4), np.float32)], batch)
    with pytest.raises(ValueError, match="rows"):
        face.gather([np.zeros((3, 3), np.float32)], batch)
    with pytest.raises(ValueError, match="at least one axis"):
        face.gather([np.zeros((), np.float32)], batch)
    with pytest.raises(TypeError, match="not converted"):
        face.gather([np.zeros((1, 3), np.int32)], batch)
    with pytest.raises(TypeError, match="not converted"):
        face.scatter(batch, [np.zeros((1, 3), np.float64)])
    assert not batch.any()
