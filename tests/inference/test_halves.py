"""Batches that a device has no memory for."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.halves import TRY_MORE_AFTER, InHalves
from headrace_server.precision import Precision
from headrace_server.tensors import Array, Tensors


class Small:
    """A session that has room for so many rows at once; it doubles."""

    device = "cuda:0"
    precision = Precision.BF16

    def __init__(self, room: int) -> None:
        self.room = room
        self.ran: list[int] = []
        self.is_closed = False

    def run(self, inputs: Tensors) -> Tensors:
        rows = len(inputs["x"])
        if rows > self.room:
            raise DeviceOutOfMemory(self.device)
        self.ran.append(rows)
        return {"y": np.multiply(inputs["x"].astype(np.float32), 2)}

    def close(self) -> None:
        self.is_closed = True


def numbers(rows: int) -> dict[str, Array]:
    return {"x": np.arange(rows, dtype=np.float32)}


@given(batches=st.lists(st.integers(1, 70), min_size=1, max_size=8), room=st.integers(1, 64))
def test_every_row_is_answered_once_and_in_its_place_whatever_fits(batches: list[int], room: int) -> None:
    inner = Small(room)
    session = InHalves(inner)

    for rows in batches:
        assert session.run(numbers(rows))["y"].tolist() == [2 * row for row in range(rows)]

    assert sum(inner.ran) == sum(batches)


def test_what_did_not_fit_once_is_not_tried_with_the_next_batch() -> None:
    inner = Small(5)
    session = InHalves(inner)

    session.run(numbers(16))
    first = list(inner.ran)
    session.run(numbers(16))

    assert first == [4, 4, 4, 4]
    assert inner.ran == first * 2
    assert session.most_rows == 4


def test_a_device_that_has_room_again_gets_larger_batches_again() -> None:
    inner = Small(4)
    session = InHalves(inner)
    session.run(numbers(8))
    inner.room = 8

    for _ in range(TRY_MORE_AFTER):
        session.run(numbers(8))

    assert session.most_rows == 8
    assert inner.ran[-1] == 8


def test_a_row_that_does_not_fit_alone_is_out_of_memory_and_the_next_one_is_answered() -> None:
    inner = Small(0)
    session = InHalves(inner)

    with pytest.raises(DeviceOutOfMemory):
        session.run(numbers(3))
    inner.room = 1

    assert session.run(numbers(2))["y"].tolist() == [0, 2]


def test_a_batch_without_rows_runs_once() -> None:
    inner = Small(1)

    assert InHalves(inner).run(numbers(0))["y"].shape == (0,)
    assert inner.ran == [0]


def test_a_session_without_weights_to_share_is_shared_itself_and_closed_with_it() -> None:
    inner = Small(2)
    session = InHalves(inner)

    twin = session.twin()
    twin.run(numbers(4))
    session.close()

    assert (twin.most_rows, session.most_rows) == (2, None)
    assert (inner.is_closed, session.device, session.precision) == (True, "cuda:0", Precision.BF16)
