import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from numpy.typing import NDArray

import headrace
from headrace import Client, Retry
from tests.doubles.given_clock import GivenClock
from tests.doubles.scripted_server import ScriptedServer
from tests.doubles.until import until

Row = NDArray[np.float32]


def rows(count: int) -> list[Row]:
    return [np.full((1, 3), index, dtype=np.float32) for index in range(count)]


async def note_answers(answers: AsyncIterator[headrace.StreamedPrediction], seen: list[int]) -> None:
    async for answer in answers:
        seen.append(answer.index)  # noqa: PERF401 - looked at after an error


async def test_every_input_has_its_own_answer_in_whatever_order(client: Client) -> None:
    answers = [answer async for answer in client.predict_stream("digits", rows(20))]

    assert [answer.index for answer in answers] != sorted(answer.index for answer in answers)
    by_index = {answer.index: answer.unwrap().output for answer in answers}
    assert sorted(by_index) == list(range(20))
    assert all((output == index + 1).all() for index, output in by_index.items())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(0, 30), window=st.integers(1, 8), cuts=st.lists(st.integers(0, 6), max_size=4))
async def test_broken_connections_lose_and_repeat_nothing(count: int, window: int, cuts: list[int]) -> None:
    server = ScriptedServer()
    server.inference.cuts = list(cuts)
    async with server.listen(), Client(server.target, retry=Retry(attempts=9, clock=GivenClock())) as client:
        answers = [answer async for answer in client.predict_stream("digits", rows(count), window=window)]

    assert sorted(answer.index for answer in answers) == list(range(count))
    assert all((answer.unwrap().output == answer.index + 1).all() for answer in answers)
    assert server.inference.most_waiting <= window


async def test_no_input_is_taken_before_there_is_room(client: Client) -> None:
    taken = 0

    async def source() -> AsyncIterator[Row]:
        nonlocal taken
        for row in rows(100):
            taken += 1
            yield row

    answered = 0
    async with aclosing(client.predict_stream("digits", source(), window=4)) as answers:
        async for _ in answers:
            answered += 1
            assert taken <= answered + 4
            if answered == 10:
                break

    assert taken < 20


async def test_a_failed_input_is_an_answer_and_the_stream_goes_on(client: Client) -> None:
    inputs = [np.full((1, 3), value, dtype=np.float32) for value in (1, -1, 2)]

    answers = {answer.index: answer async for answer in client.predict_stream("digits", inputs)}

    assert isinstance(answers[1].error, headrace.ModelFailed)
    assert all(answers[index].prediction is not None for index in (0, 2))
    with pytest.raises(headrace.ModelFailed):
        answers[1].unwrap()


async def test_what_the_source_raises_comes_after_the_answers_before_it(client: Client) -> None:
    def source() -> Iterator[Row]:
        yield from rows(3)
        raise LookupError("the file ended early")

    seen: list[int] = []

    with pytest.raises(LookupError, match="ended early"):
        await note_answers(client.predict_stream("digits", source()), seen)

    assert sorted(seen) == [0, 1, 2]


async def test_an_input_that_does_not_fit_is_the_callers_mistake(client: Client) -> None:
    seen: list[int] = []

    with pytest.raises(headrace.InvalidTensor, match="must be \\[any, 3\\]"):
        await note_answers(client.predict_stream("digits", [*rows(2), np.zeros((1, 4))]), seen)

    assert sorted(seen) == [0, 1]


async def test_a_reader_that_leaves_leaves_no_task_behind(client: Client) -> None:
    async def endless() -> AsyncIterator[Row]:
        while True:
            yield rows(1)[0]

    await client.model_status("digits")
    before = len(asyncio.all_tasks())

    async with aclosing(client.predict_stream("digits", endless())) as answers:
        async for _ in answers:
            break

    await until(lambda: len(asyncio.all_tasks()) <= before + 1)


async def test_attempts_have_an_end(server: ScriptedServer) -> None:
    server.inference.cuts = [0] * 99
    async with Client(server.target, retry=Retry(attempts=3, clock=GivenClock())) as client:
        with pytest.raises(headrace.Unavailable):
            _ = [answer async for answer in client.predict_stream("digits", rows(3))]

    assert len(server.inference.cuts) == 96


async def test_a_window_has_room_for_something(client: Client) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        _ = [answer async for answer in client.predict_stream("digits", rows(1), window=0)]
