import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from headrace_server.errors import InvalidTensor
from headrace_server.inference.engine import Engine
from headrace_server.models.version import ModelVersion
from headrace_server.names import ModelName
from headrace_server.tensors import Tensors
from tests.doubles import onnx_models
from tests.doubles.until import until

Publish = Callable[..., Awaitable[ModelVersion]]


def rows(count: int) -> Tensors:
    return {"x": np.ones((count, 2), np.float32)}


async def test_every_call_row_and_run_is_counted_once(make_engine: Callable[..., Engine], publish: Publish) -> None:
    version = await publish(onnx_models.scale())
    engine = make_engine(max_batch_rows=4)
    before = time.time()

    answers = [await engine.predict(version.name, rows(count)) for count in (1, 3, 3, 6)]
    with pytest.raises(InvalidTensor):
        await engine.predict(version.name, {})

    counted = engine.statistics()[version.name]
    assert (counted.num_answered, counted.answered_rows, counted.num_failed) == (4, 13, 1)
    assert {size: runs.num_runs for size, runs in counted.runs.items()} == {1: 1, 3: 2, 4: 1, 2: 1}
    assert counted.compute_seconds == pytest.approx(sum(answer.timing.compute_seconds for answer in answers))
    assert counted.queue_seconds == pytest.approx(sum(answer.timing.queue_seconds for answer in answers))
    assert sum(runs.compute_seconds for runs in counted.runs.values()) == pytest.approx(counted.compute_seconds)
    assert counted.answered_seconds > counted.queue_seconds + counted.compute_seconds
    assert counted.last_call_at is not None
    assert before <= counted.last_call_at <= time.time()


async def test_a_caller_who_leaves_is_counted_as_not_answered(
    make_engine: Callable[..., Engine], publish: Publish
) -> None:
    version = await publish(onnx_models.scale())
    engine = make_engine(max_delay_seconds=5)
    await engine.load(version.name)
    call = asyncio.ensure_future(engine.predict(version.name, rows(1)))
    await until(lambda: engine.look(version).calls_in_flight == 1)

    call.cancel()
    await asyncio.wait([call])

    counted = engine.statistics()[version.name]
    assert (counted.num_answered, counted.num_failed, counted.runs) == (0, 1, {})


async def test_a_version_is_listed_as_loaded_until_it_is_unloaded(
    make_engine: Callable[..., Engine], publish: Publish
) -> None:
    version = await publish(onnx_models.scale())
    engine = make_engine()
    assert engine.loaded() == []

    await engine.load(ModelName("m"))
    assert engine.loaded() == [version]

    await engine.unload(ModelName("m"))
    assert engine.loaded() == []
    assert engine.statistics().keys() == {version.name}
