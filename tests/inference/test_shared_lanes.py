"""Several models on the lanes of one device: fair to each other, and no end of one is the end of another."""

import asyncio
import threading
from typing import Any, cast

import numpy as np
import pytest

from headrace_server.errors import HeadraceError
from headrace_server.inference.lane import DeadLaneError
from headrace_server.inference.shared_lanes import SharedLanes, shares_lanes
from headrace_server.models.registry import Registry
from headrace_server.models.serving import LaneSharing, ServingOptions
from headrace_server.names import ModelName
from headrace_server.tensors import Tensors
from tests.doubles.onnx_models import scale
from tests.doubles.scripted_backend import ScriptedBackend
from tests.doubles.until import until
from tests.inference.conftest import MakeEngine, Publish, lane_threads

FAST, SLOW = ModelName("fast"), ModelName("slow")
SHARED = {"lane_sharing": "shared"}
FAST_ROW, SLOW_ROW = 41.0, 42.0


def rows(count: int, width: int = 2) -> Tensors:
    return {"x": np.ones((count, width), np.float32)}


def row_of(value: float) -> Tensors:
    return {"x": np.full((1, 2), value, np.float32)}


async def test_models_share_the_threads_of_their_device(make_engine: MakeEngine, publish: Publish) -> None:
    await publish(scale(2), "fast")
    await publish(scale(3), "slow")
    engine = make_engine(**SHARED)

    answers = await asyncio.gather(engine.predict(FAST, rows(1)), engine.predict(SLOW, rows(1)))

    assert [answer.outputs["y"].tolist() for answer in answers] == [[[2, 2]], [[3, 3]]]
    assert lane_threads() == ["lane-cpu-0"]


async def test_there_are_as_many_threads_as_the_setting_says(make_engine: MakeEngine, publish: Publish) -> None:
    await publish(scale(2), "fast")
    engine = make_engine(**SHARED, lanes_per_device=3)

    await engine.load(FAST)

    assert sorted(lane_threads()) == ["lane-cpu-0", "lane-cpu-1", "lane-cpu-2"]


@pytest.mark.parametrize(
    ("setting", "options", "is_shared"),
    [
        ("auto", ServingOptions(), False),
        ("own", ServingOptions(), False),
        ("shared", ServingOptions(), True),
        ("shared", ServingOptions(lane_sharing=LaneSharing.OWN), False),
        ("shared", ServingOptions(num_lanes=2), False),
        ("own", ServingOptions(lane_sharing=LaneSharing.SHARED), True),
        ("auto", ServingOptions(lane_sharing=LaneSharing.SHARED, num_lanes=2), True),
    ],
)
async def test_the_owner_of_a_model_says_more_than_the_server(
    make_engine: MakeEngine,
    publish: Publish,
    registry: Registry,
    setting: str,
    options: ServingOptions,
    is_shared: bool,
) -> None:
    await publish(scale(2), "fast")
    await registry.change_serving("fast", lambda _: options)

    await make_engine(lane_sharing=setting).load(FAST)

    assert ("lane-cpu-0" in lane_threads()) == is_shared
    assert len(lane_threads()) == (1 if is_shared else options.num_lanes or 1)


@pytest.mark.parametrize(
    ("default", "options", "is_shared"),
    [
        (LaneSharing.AUTO, ServingOptions(), True),
        (LaneSharing.OWN, ServingOptions(), False),
        (LaneSharing.AUTO, ServingOptions(num_lanes=2), False),
        (LaneSharing.AUTO, ServingOptions(lane_sharing=LaneSharing.OWN), False),
    ],
)
def test_models_share_the_lane_of_a_gpu_unless_somebody_says_otherwise(
    default: LaneSharing, options: ServingOptions, is_shared: bool
) -> None:
    assert shares_lanes(options, default, is_gpu=True) == is_shared


async def test_a_slow_model_does_not_starve_a_fast_one(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    fast, slow = await publish(scale(2), "fast"), await publish(scale(3), "slow")
    ran: list[float] = []
    may_go_on = threading.Event()

    def act(inputs: Tensors) -> Tensors:
        first = float(inputs["x"][0, 0])
        if first in (FAST_ROW, SLOW_ROW):  # not a warm-up
            ran.append(first)
            assert first == FAST_ROW or may_go_on.wait(30)
        return {"y": inputs["x"]}

    backend.act = act
    engine = make_engine([backend], **SHARED, max_batch_rows=1)
    await engine.load(FAST)
    crowd = [asyncio.ensure_future(engine.predict(SLOW, row_of(SLOW_ROW))) for _ in range(16)]
    await until(lambda: ran == [SLOW_ROW] and engine.look(slow).calls_in_flight == len(crowd))

    lone = asyncio.ensure_future(engine.predict(FAST, row_of(FAST_ROW)))
    await until(lambda: engine.look(fast).calls_in_flight == 1)
    may_go_on.set()
    await asyncio.gather(lone, *crowd)

    # In the order of their coming it would be the last.
    assert ran == [SLOW_ROW, FAST_ROW, *[SLOW_ROW] * 15]


async def test_a_model_leaves_its_lane_and_comes_back(make_engine: MakeEngine, publish: Publish) -> None:
    await publish(scale(2), "fast")
    await publish(scale(3), "slow")
    backend = ScriptedBackend()
    engine = make_engine([backend], **SHARED)
    await engine.load(FAST)
    await engine.load(SLOW)

    await engine.unload(FAST)
    num_open = backend.num_open
    await engine.predict(SLOW, rows(1))
    await engine.predict(FAST, rows(1))

    assert (num_open, backend.num_open) == (1, 2)
    assert lane_threads() == ["lane-cpu-0"]


async def test_a_model_that_ends_its_lane_takes_no_other_along(make_engine: MakeEngine, publish: Publish) -> None:
    await publish(scale(2), "fast")
    await publish(scale(3), "slow")
    backend = ScriptedBackend()
    engine = make_engine([backend], **SHARED)
    await engine.load(FAST)
    await engine.load(SLOW)

    def end_the_thread(inputs: Tensors) -> Tensors:
        if inputs["x"][0, 0] == 13:
            raise SystemExit("as a runtime may that thinks it owns the process")
        return {"y": inputs["x"]}

    backend.act = end_the_thread
    calls: list[Any] = [engine.predict(FAST, row_of(13))]
    calls += [engine.predict(SLOW, rows(1)) for _ in range(8)]
    died, *others = cast("list[Any]", await asyncio.gather(*calls, return_exceptions=True))

    assert isinstance(died, DeadLaneError)
    assert [other.outputs["y"].tolist() for other in others] == [[[1, 1]]] * 8
    # And it is loaded anew when it is asked again.
    again = await engine.predict(FAST, rows(1))
    assert again.outputs["y"].tolist() == [[1, 1]]
    assert lane_threads() == ["lane-cpu-0"]
    assert backend.num_open == 2


async def test_a_model_that_cannot_be_opened_leaves_the_others_where_they_are(
    make_engine: MakeEngine, publish: Publish
) -> None:
    await publish(scale(2), "fast")
    await publish(scale(3), "slow")
    backend = ScriptedBackend()
    engine = make_engine([backend], **SHARED)
    await engine.load(FAST)

    backend.failure = RuntimeError("no")
    with pytest.raises(HeadraceError, match="no"):
        await engine.load(SLOW)

    assert (await engine.predict(FAST, rows(1))).outputs["y"].tolist() == [[1, 1]]


async def test_nothing_is_left_when_the_engine_is_closed(make_engine: MakeEngine, publish: Publish) -> None:
    await publish(scale(2), "fast")
    backend = ScriptedBackend()
    engine = make_engine([backend], **SHARED, lanes_per_device=2)
    await engine.load(FAST)

    await engine.close()

    assert lane_threads() == []
    assert backend.num_open == 0


def test_whoever_is_invited_by_lanes_that_have_ended_is_told_so() -> None:
    told: list[BaseException] = []

    class Told:
        def could_not_open(self, lane: int, error: BaseException) -> None:
            told.append(error)

    lanes: Any = SharedLanes("cpu", 1)
    assert lanes.close()

    guest = lanes.start(0, "", threading.Event, object(), Told())

    assert guest.join(0)
    assert isinstance(told[0], DeadLaneError)
