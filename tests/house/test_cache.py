"""The response cache through the public contract, with a Redis that comes and goes."""

import sys
from pathlib import Path

import numpy as np
import pytest

import headrace
from headrace_server.errors import CannotStart
from headrace_server.house import House
from headrace_server.inference.cache import redis_tier
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as open_pb
from headrace_server.rpc.open_inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from tests.doubles import onnx_models
from tests.doubles.redis_server import needs_redis, redis_running
from tests.house.test_house import callers_of, save, settings

ROWS = np.array([[1, 2], [3, 4]], np.float32)


async def test_answers_are_given_again_once_the_owner_of_a_model_says_so(tmp_path: Path) -> None:
    file = save(onnx_models.scale(2), tmp_path / "m.onnx")
    async with House(settings(tmp_path / "data", models={"serve": {"m": file}})) as house, callers_of(house) as callers:
        async with headrace.Client(f"127.0.0.1:{house.port}") as client:
            await client.predict("m", ROWS)
            assert not (await client.predict("m", ROWS)).is_from_cache

            model = await client.update_model("m", cache=True, cache_max_age_seconds=600)
            assert (model.serving.cache.is_enabled, model.serving.cache.max_age.seconds) == (True, 600)
            computed, again = [await client.predict("m", ROWS) for _ in range(2)]

            assert (computed.is_from_cache, again.is_from_cache) == (False, True)
            np.testing.assert_array_equal(again.output, computed.output)
            assert again.provenance == computed.provenance
            streamed = [answer.unwrap() async for answer in client.predict_stream("m", [ROWS, ROWS + 1])]
            assert sorted(answer.is_from_cache for answer in streamed) == [False, True]
            with pytest.raises(headrace.InvalidSpec, match="max_age"):
                await client.update_model("m", cache_max_age_seconds=-1)

        request = open_pb.ModelInferRequest(model_name="m", raw_input_contents=[ROWS.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=ROWS.shape)
        answer = await GRPCInferenceServiceStub(callers.channel).ModelInfer(request)
        assert answer.parameters["headrace_from_cache"].bool_param
        assert answer.raw_output_contents[0] == (2 * ROWS).tobytes()
        await house.drain()


@needs_redis
async def test_redis_outlives_the_server_and_its_outage_costs_no_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_tier, "LOOK_SECONDS", 30.0)  # a busy machine may take its time over a connection
    file = save(onnx_models.scale(2), tmp_path / "m.onnx")
    async with redis_running(tmp_path) as redis:
        patient = {"cache_redis_url": redis.url, "cache_redis_timeout_seconds": 30}
        chosen = settings(
            tmp_path / "data",
            models={"serve": {"m": file}},
            inference=patient,
        )
        async with House(chosen) as house:
            async with headrace.Client(f"127.0.0.1:{house.port}") as client:
                await client.update_model("m", cache=True)
                await client.predict("m", ROWS)
            await house.drain()

        async with House(chosen) as house:
            async with headrace.Client(f"127.0.0.1:{house.port}") as client:
                assert (await client.predict("m", ROWS)).is_from_cache  # from Redis: the memory is new

                await redis.stop()
                for number in range(20):
                    prediction = await client.predict("m", ROWS + number + 10)
                    np.testing.assert_array_equal(prediction.output, 2 * (ROWS + number + 10))
            await house.drain()


async def test_a_server_starts_without_the_redis_it_is_to_use(tmp_path: Path) -> None:
    file = save(onnx_models.scale(2), tmp_path / "m.onnx")
    nowhere = {"cache_redis_url": "redis://127.0.0.1:9/0"}
    async with House(settings(tmp_path / "data", models={"serve": {"m": file}}, inference=nowhere)) as house:
        async with headrace.Client(f"127.0.0.1:{house.port}") as client:
            await client.update_model("m", cache=True)
            assert not (await client.predict("m", ROWS)).is_from_cache
            assert (await client.predict("m", ROWS)).is_from_cache
        await house.drain()


async def test_a_redis_that_cannot_be_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotStart, match="cache_redis_url"):
        await House(settings(tmp_path, inference={"cache_redis_url": "http://127.0.0.1"})).open()

    for name in [name for name in sys.modules if name.split(".")[0] == "redis" or name.endswith(".redis_tier")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(CannotStart, match=r"headrace-server\[redis\]"):
        await House(settings(tmp_path, inference={"cache_redis_url": "redis://127.0.0.1"})).open()
