"""How many threads run a model: as its owner says, else as the server does."""

import threading

import pytest

from headrace_server.models.registry import Registry
from headrace_server.models.serving import ServingOptions
from headrace_server.names import ModelName
from tests.doubles.onnx_models import scale
from tests.inference.conftest import MakeEngine, Publish

M = ModelName("m")


def lanes_of(model: str) -> int:
    return sum(thread.name.startswith(f"lane-{model}-") for thread in threading.enumerate())


@pytest.mark.parametrize(("asked", "lanes"), [(None, 2), (1, 1), (3, 3)])
async def test_as_many_threads_run_a_model_as_its_owner_says(
    make_engine: MakeEngine, publish: Publish, registry: Registry, asked: int | None, lanes: int
) -> None:
    await publish(scale(2))
    await registry.change_serving("m", lambda _: ServingOptions(num_lanes=asked))

    await make_engine(lanes_per_model=2).load(M)

    assert lanes_of("m") == lanes


async def test_another_number_counts_from_the_next_load_on(
    make_engine: MakeEngine, publish: Publish, registry: Registry
) -> None:
    await publish(scale(2))
    engine = make_engine()
    await engine.load(M)

    await registry.change_serving("m", lambda _: ServingOptions(num_lanes=2))
    before = lanes_of("m")
    await engine.unload(M)
    await engine.load(M)

    assert (before, lanes_of("m")) == (1, 2)
