"""The cache as callers of the engine see it: the same answers, sooner."""

import asyncio

import numpy as np
import pytest

from headrace_server.errors import InvalidTensor, ModelFailed
from headrace_server.inference.cache.memory import MemoryTier
from headrace_server.inference.cache.response_cache import ResponseCache
from headrace_server.inference.prediction import Prediction, Provenance, Timing
from headrace_server.models.registry import Registry
from headrace_server.models.serving import ResponseCaching, ServingOptions
from headrace_server.models.version import ModelVersion
from headrace_server.names import ModelName
from headrace_server.precision import Precision
from headrace_server.telemetry.metrics import Metrics
from headrace_server.tensors import Array, Tensors
from tests.doubles.hand_clock import HandClock
from tests.doubles.onnx_models import lookup, scale
from tests.doubles.scripted_backend import ScriptedBackend
from tests.inference.conftest import MakeEngine, Publish

M = ModelName("m")
NOTHING = Timing(0, 0, 0, 0, 1, 1)


def rows(*values: float) -> dict[str, Array]:
    return {"x": np.array([[value, -value] for value in values], np.float32)}


async def turn_on(registry: Registry, model: str = "m", **more: float) -> None:
    caching = ResponseCaching(is_enabled=True, **more)
    await registry.change_serving(model, lambda _: ServingOptions(cache=caching))


def lookups(metrics: Metrics, outcome: str) -> float:
    labels = {"model": "m", "outcome": outcome}
    return metrics.registry.get_sample_value("headrace_cache_lookups_total", labels) or 0


async def test_the_same_question_is_computed_once_and_says_so(
    make_engine: MakeEngine, publish: Publish, registry: Registry, metrics: Metrics
) -> None:
    await publish(scale(2))
    await turn_on(registry)
    engine = make_engine()

    first, again, other = [await engine.predict(M, rows(value)) for value in (1, 1, 2)]

    assert [each.is_from_cache for each in (first, again, other)] == [False, True, False]
    np.testing.assert_array_equal(again.outputs["y"], first.outputs["y"])
    assert (again.version, again.provenance) == (first.version, first.provenance)
    assert (again.timing.batch_rows, again.timing.compute_seconds) == (0, 0)
    assert (lookups(metrics, "memory"), lookups(metrics, "miss")) == (1, 2)


async def test_models_that_did_not_ask_for_it_are_always_computed(
    make_engine: MakeEngine, publish: Publish, metrics: Metrics
) -> None:
    await publish(scale(2))
    engine = make_engine()

    answers = [await engine.predict(M, rows(1)) for _ in range(3)]

    assert not any(answer.is_from_cache for answer in answers)
    assert lookups(metrics, "miss") == 0


async def test_a_swap_never_answers_with_what_the_version_before_has_said(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    await publish(scale(2))
    await turn_on(registry)
    engine = make_engine()
    await engine.predict(M, rows(1))
    await publish(scale(5))

    swapped = await engine.predict(M, rows(1))
    back = await engine.predict(ModelName("m", 1), rows(1))

    assert (swapped.is_from_cache, swapped.outputs["y"].tolist()) == (False, [[5, -5]])
    assert (back.is_from_cache, back.outputs["y"].tolist()) == (True, [[2, -2]])


async def test_versions_of_the_same_weights_share_their_answers(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    await publish(scale(2), "m")
    await publish(scale(2), "n")
    await turn_on(registry, "m")
    await turn_on(registry, "n")
    engine = make_engine()
    await engine.predict(M, rows(1))

    shared = await engine.predict(ModelName("n"), rows(1))

    assert shared.is_from_cache
    assert str(shared.version.name) == "models/n/versions/1"


async def test_turning_it_off_takes_effect_at_once(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    await publish(scale(2))
    await turn_on(registry)
    engine = make_engine()
    await engine.predict(M, rows(1))

    await registry.change_serving("m", lambda _: ServingOptions())

    assert not (await engine.predict(M, rows(1))).is_from_cache


async def test_errors_are_not_kept_and_bad_questions_are_refused_as_ever(
    make_engine: MakeEngine, publish: Publish, registry: Registry, metrics: Metrics
) -> None:
    await publish(lookup(4))
    await turn_on(registry)
    engine = make_engine()
    for _ in range(2):
        with pytest.raises(ModelFailed):
            await engine.predict(M, {"x": np.array([7], np.int64)})
    assert lookups(metrics, "miss") == 2

    with pytest.raises(InvalidTensor):
        await engine.predict(M, rows(1))


async def test_an_answer_from_the_cache_waits_for_nobody(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    backend = ScriptedBackend()
    await publish(scale(2))
    await turn_on(registry)
    engine = make_engine([backend])
    await engine.predict(M, rows(1))

    def fail(inputs: Tensors) -> Tensors:
        raise AssertionError("it was computed again")

    backend.act = fail

    assert (await engine.predict(M, rows(1))).is_from_cache


async def test_no_more_is_kept_than_there_is_room_for(
    make_engine: MakeEngine, publish: Publish, registry: Registry, metrics: Metrics
) -> None:
    await publish(scale(2))
    await turn_on(registry)
    engine = make_engine(cache_bytes=4000)

    for value in range(100):
        await engine.predict(M, rows(value))

    assert metrics.registry.get_sample_value("headrace_cache_bytes") <= 4000  # type: ignore[operator]
    assert (await engine.predict(M, rows(99))).is_from_cache
    assert not (await engine.predict(M, rows(0))).is_from_cache


class Shelf:
    """A second tier that holds what a test puts there."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}

    async def open(self) -> None:
        pass

    async def get(self, key: str) -> bytes | None:
        await asyncio.sleep(0)
        return self.entries.get(key)

    def put(self, key: str, content: bytes) -> None:
        self.entries[key] = content

    async def close(self) -> None:
        self.entries.clear()


class Bench:
    """A cache alone, with a model that counts how often it is computed."""

    def __init__(self, version: ModelVersion) -> None:
        self.version, self.clock, self.shelf, self.metrics = version, HandClock(), Shelf(), Metrics()
        self.num_computed = 0
        self.ran = Provenance("sha256:a", "onnxruntime", Precision.FP32, "cpu", "")
        self.cache = self.anew()

    def anew(self) -> ResponseCache:
        return ResponseCache(MemoryTier(100_000, 10_000), self.metrics, self.shelf, self.clock)

    async def ask(self, may_run: tuple[Provenance, ...] = (), **caching: float) -> Prediction:
        async def compute() -> Prediction:
            self.num_computed += 1
            return Prediction(self.version, {"y": rows(2)["x"]}, NOTHING, self.ran)

        options = ResponseCaching(is_enabled=True, **caching)
        return await self.cache.answer(options, self.version, may_run or (self.ran,), rows(1), (), compute)


@pytest.fixture
async def bench(publish: Publish) -> Bench:
    return Bench(await publish(scale(2)))


async def test_the_second_tier_answers_after_a_restart_and_fills_the_first(bench: Bench) -> None:
    await bench.ask()
    bench.cache = bench.anew()

    assert (await bench.ask()).is_from_cache
    assert (await bench.ask()).is_from_cache

    assert bench.num_computed == 1
    assert (lookups(bench.metrics, "redis"), lookups(bench.metrics, "memory")) == (1, 1)


async def test_what_others_have_written_to_the_second_tier_is_computed_instead_of_believed(bench: Bench) -> None:
    await bench.ask()
    (key,) = bench.shelf.entries
    for content in (b"nonsense", bench.shelf.entries[key][:-1], b"\x80\x04K\x01."):
        bench.cache = bench.anew()
        bench.shelf.entries[key] = content

        answer = await bench.ask()

        assert not answer.is_from_cache
        assert answer.outputs["y"].tolist() == [[2, -2]]


async def test_an_answer_that_is_too_old_is_computed_again(bench: Bench) -> None:
    await bench.ask(max_age_seconds=10)
    bench.clock.advance(10)
    assert (await bench.ask(max_age_seconds=10)).is_from_cache

    bench.clock.advance(0.5)

    assert not (await bench.ask(max_age_seconds=10)).is_from_cache
    assert (await bench.ask()).is_from_cache


async def test_an_answer_of_any_precision_that_may_run_now_is_taken_and_says_which(bench: Bench) -> None:
    half = Provenance("sha256:a", "onnxruntime", Precision.BF16, "cpu", "")
    await bench.ask()

    assert (await bench.ask((half, bench.ran))).provenance == bench.ran
    assert not (await bench.ask((half,))).is_from_cache
