"""Callers who leave, queues that are full, lanes that die, and the end of an engine."""

import asyncio
import time

import numpy as np
import pytest

from headrace_server.errors import (
    Draining,
    ExpiredInQueue,
    HeadraceError,
    ModelLoading,
    NoPermit,
)
from headrace_server.inference import resident
from headrace_server.inference.backends.backend import DeviceBroken
from headrace_server.names import ModelName
from headrace_server.telemetry.metrics import Metrics
from headrace_server.tensors import Array, Tensors
from tests.doubles.gate_model import Gate
from tests.doubles.onnx_models import scale
from tests.doubles.scripted_backend import ScriptedBackend
from tests.doubles.until import until
from tests.inference.conftest import MakeEngine, Publish, lane_threads

M = ModelName("m")


def rows(*values: float) -> dict[str, Array]:
    return {"x": np.array([[value, -value] for value in values], np.float32)}


def value_of(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0


async def test_a_caller_who_leaves_frees_his_place_and_disturbs_nobody(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend, metrics: Metrics
) -> None:
    await publish(scale())
    backend.act = gate = Gate()
    engine = make_engine([backend])
    running = asyncio.create_task(engine.predict(M, rows(0)))
    await until(lambda: gate.runs == 1)
    waiting = [asyncio.create_task(engine.predict(M, rows(n))) for n in range(1, 6)]
    await asyncio.sleep(0)

    waiting[2].cancel()
    await asyncio.wait([waiting[2]])
    gate.is_open.set()
    answers = await asyncio.gather(running, *waiting, return_exceptions=True)

    assert [None if isinstance(a, BaseException) else a.outputs["y"].tolist() for a in answers] == [
        [[0, 0]],
        [[2, -2]],
        [[4, -4]],
        None,
        [[8, -8]],
        [[10, -10]],
    ]
    assert value_of(metrics, "headrace_shed_total", model="m", version="1", reason="left") == 1
    assert gate.runs == 2


async def test_too_much_waiting_is_refused(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend, metrics: Metrics
) -> None:
    await publish(scale())
    backend.act = gate = Gate()
    engine = make_engine([backend], max_waiting_rows=2)
    running = asyncio.create_task(engine.predict(M, rows(0)))
    await until(lambda: gate.runs == 1)
    waiting = [asyncio.create_task(engine.predict(M, rows(n))) for n in (1, 2)]
    await until(lambda: value_of(metrics, "headrace_waiting_rows", model="m", version="1") == 2)

    with pytest.raises(NoPermit):
        await engine.predict(M, rows(3))
    gate.is_open.set()

    assert [(await call).outputs["y"].tolist() for call in (running, *waiting)] == [[[0, 0]], [[2, -2]], [[4, -4]]]
    for reason, count in (("no_permit", 1), ("expired", 0), ("left", 0)):
        assert value_of(metrics, "headrace_shed_total", model="m", version="1", reason=reason) == count


async def test_a_call_that_expires_in_the_queue_is_answered_although_the_lane_is_busy_and_never_run(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend, metrics: Metrics
) -> None:
    await publish(scale())
    backend.act = gate = Gate()
    engine = make_engine([backend])
    running = asyncio.create_task(engine.predict(M, rows(0)))
    await until(lambda: gate.runs == 1)
    patient = asyncio.create_task(engine.predict(M, rows(2)))

    with pytest.raises(ExpiredInQueue):
        await engine.predict(M, rows(1), deadline=time.monotonic() + 0.05)
    gate.is_open.set()

    assert (await running).timing.batch_calls == (await patient).timing.batch_calls == 1
    assert value_of(metrics, "headrace_shed_total", model="m", version="1", reason="expired") == 1


async def test_a_lane_that_dies_answers_its_callers_and_the_next_call_finds_a_new_one(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    engine = make_engine([backend])
    await engine.load(M)

    def die(inputs: Tensors) -> Tensors:
        raise KeyboardInterrupt  # not an Exception: nothing that a model may raise

    backend.act = die
    with pytest.raises(RuntimeError, match="a lane died of KeyboardInterrupt"):
        async with asyncio.timeout(10):
            await engine.predict(M, rows(1))
    backend.act = None
    await until(lambda: backend.num_open == 0)

    assert (await engine.predict(M, rows(1))).outputs["y"].tolist() == [[1, -1]]
    assert backend.num_opened == 2


async def test_draining_refuses_what_is_new_and_finishes_what_was_admitted(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    version = await publish(scale())
    backend.act = gate = Gate()
    engine = make_engine([backend], max_delay_seconds=10)
    await engine.load(M)
    running = asyncio.create_task(engine.predict(M, rows(1)))
    await until(lambda: engine.look(version).calls_in_flight == 1)

    draining = asyncio.create_task(engine.drain())
    await until(lambda: gate.runs == 1)
    assert not draining.done()
    with pytest.raises(Draining):
        await engine.predict(M, rows(2))
    with pytest.raises(Draining):
        await engine.load(M)
    gate.is_open.set()

    await asyncio.wait_for(draining, 10)
    assert (await running).outputs["y"].tolist() == [[2, -2]]


async def test_draining_finishes_a_call_that_still_waits_for_its_model(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    engine = make_engine([backend])
    backend.may_open.clear()
    call = asyncio.create_task(engine.predict(M, rows(1)))
    await until(lambda: backend.num_opened == 1)

    draining = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    backend.may_open.set()

    assert (await call).outputs["y"].tolist() == [[1, -1]]
    await asyncio.wait_for(draining, 10)


async def test_closing_answers_everybody_and_ends_every_thread(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "JOIN_SECONDS", 0.1)
    for model in ("m", "loading"):
        await publish(scale(), model)
    backend.act = gate = Gate()
    engine = make_engine([backend])
    stuck = asyncio.create_task(engine.predict(M, rows(0)))
    await until(lambda: gate.runs == 1)
    waiting = asyncio.create_task(engine.predict(M, rows(1)))
    backend.may_open.clear()
    loading = asyncio.create_task(engine.predict(ModelName("loading"), rows(1)))
    await until(lambda: backend.num_opened == 2)

    await asyncio.wait_for(engine.close(), 10)
    results = await asyncio.wait_for(asyncio.gather(stuck, waiting, loading, return_exceptions=True), 10)

    assert all(isinstance(result, HeadraceError) for result in results), results
    assert [type(result) for result in results] == [Draining, Draining, ModelLoading]
    gate.is_open.set()
    backend.may_open.set()
    await until(lambda: not lane_threads())
    assert backend.num_open == 0


async def test_a_broken_device_ends_the_lane_and_is_told_of_once(
    make_engine: MakeEngine, publish: Publish, backend: ScriptedBackend
) -> None:
    await publish(scale())
    engine = make_engine([backend])
    broken: list[str] = []
    engine.when_device_breaks(broken.append)
    await engine.predict(M, rows(1))

    def fail(_: Tensors) -> Tensors:
        raise DeviceBroken("cuda:0", "an illegal memory access was encountered")

    backend.act = fail

    results = await asyncio.gather(*(engine.predict(M, rows(n)) for n in range(3)), return_exceptions=True)
    await until(lambda: bool(broken))

    assert all(isinstance(result, Exception) for result in results)
    assert broken == ["cuda:0"]
