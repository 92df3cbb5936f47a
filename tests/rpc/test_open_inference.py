import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from headrace_server.errors import InvalidModel, ModelFailed
from headrace_server.inference.tally import Runs, Statistics
from headrace_server.names import ModelName
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as pb
from tests.doubles.door import Door, open_door
from tests.doubles.echo_engine import VERSION
from tests.doubles.until import until
from tests.rpc.test_predict import details_of

X = np.array([[1, 2], [3, 4.5]], "<f4")


def ask(request_id: str = "", model: str = "echo", **parameters: int) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=request_id, raw_input_contents=[X.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[2, 2])
    for key, value in parameters.items():
        request.parameters[key].int64_param = value
    return request


async def shelve(door: Door, *models: str) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"onnx"

    for model in models:
        await door.registry.register_file(model, "ONNX", content(), digest="", request_id="")  # type: ignore[arg-type]


async def test_raw_is_answered_raw_with_the_id_and_what_happened() -> None:
    async with open_door() as door:
        answer = await door.open_inference.ModelInfer(ask("r1"))

        assert (answer.model_name, answer.model_version, answer.id) == ("echo", "3", "r1")
        assert (answer.outputs[0].name, answer.outputs[0].datatype, list(answer.outputs[0].shape)) == (
            "x",
            "FP32",
            [2, 2],
        )
        assert list(answer.raw_output_contents) == [X.tobytes()]
        assert answer.parameters["headrace_compute_us"].int64_param == 3000
        assert answer.parameters["headrace_batch_rows"].int64_param == 8
        assert answer.parameters["headrace_precision"].string_param == "fp32"
        assert "triton_final_response" not in answer.parameters


async def test_typed_is_answered_typed() -> None:
    async with open_door() as door:
        request = pb.ModelInferRequest(model_name="echo")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
        answer = await door.open_inference.ModelInfer(request)

        assert list(answer.outputs[0].contents.fp32_contents) == [1, 2]
        assert not answer.raw_output_contents


async def test_name_outputs_priority_and_the_shorter_wait_reach_the_engine() -> None:
    async with open_door() as door:
        request = ask(model="echo@champion", priority=1, timeout=5_000_000)
        request.outputs.add(name="x")
        before = time.monotonic()
        await door.open_inference.ModelInfer(request, timeout=20)
        await door.open_inference.ModelInfer(ask(timeout=50_000_000), timeout=20)

        (name, _, outputs, first, priority), (_, _, _, second, _) = door.engine.calls
        assert (name, outputs, priority) == (ModelName("echo", alias="champion"), ("x",), 100)
        assert first is not None
        assert second is not None
        assert before + 5 < first < before + 6
        assert before + 15 < second < time.monotonic() + 20.5


async def test_refusals_carry_the_same_details_as_everywhere() -> None:
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await door.open_inference.ModelInfer(ask(model="nobody"))
        with pytest.raises(grpc.aio.AioRpcError) as malformed:
            await door.open_inference.ModelInfer(ask(timeout=-1))
        raw: Any = door.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.aio.AioRpcError) as garbage:
            await raw(b"\xff\xff")

        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        info = details_of(unknown.value, error_details_pb2.ErrorInfo)
        assert isinstance(info, error_details_pb2.ErrorInfo)
        assert info.reason == "MODEL_NOT_FOUND"
        assert malformed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        request = details_of(malformed.value, error_details_pb2.BadRequest)
        assert isinstance(request, error_details_pb2.BadRequest)
        assert request.field_violations[0].field == 'parameters["timeout"]'
        assert garbage.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_large_readable_tensors_are_read_and_written_away_from_the_loop() -> None:
    values = np.arange(40_000, dtype=np.float64)
    request = pb.ModelInferRequest(model_name="echo")
    request.inputs.add(name="x", datatype="FP64", shape=[20_000, 2]).contents.fp64_contents.extend(values.tolist())
    async with open_door() as door:
        answer = await door.open_inference.ModelInfer(request)

        assert list(answer.outputs[0].contents.fp64_contents) == values.tolist()


async def test_a_stream_answers_in_the_order_of_its_requests_and_a_failure_is_an_answer() -> None:
    requests = [ask("a"), ask("b", model="nobody"), ask("c", timeout=-1), ask("d")]
    async with open_door() as door:
        answers = [answer async for answer in door.open_inference.ModelStreamInfer(_each(requests))]

        assert [answer.infer_response.id for answer in answers] == ["a", "b", "c", "d"]
        assert [bool(answer.error_message) for answer in answers] == [False, True, True, False]
        codes = [answer.infer_response.parameters["headrace_code"].string_param for answer in answers]
        assert codes == ["", "NOT_FOUND", "INVALID_ARGUMENT", ""]
        assert all(answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers)


async def test_a_slow_request_holds_back_the_answers_after_it_but_not_their_work() -> None:
    async with open_door(stream_window=4) as door:
        door.engine.hold()
        stream: Any = door.open_inference.ModelStreamInfer(_each([ask(str(n)) for n in range(10)]))
        await door.engine.was_asked(4)
        await asyncio.sleep(0.05)

        assert len(door.engine.calls) == 4
        door.engine.release()
        assert [answer.infer_response.id async for answer in stream] == [str(n) for n in range(10)]


async def test_a_fault_of_ours_in_a_stream_shows_an_id_and_nothing_else() -> None:
    async with open_door() as door:
        door.engine.failure = ZeroDivisionError("the secret formula")
        answers = [answer async for answer in door.open_inference.ModelStreamInfer(_each([ask("a")]))]

        assert "a fault of the server" in answers[0].error_message
        assert "secret" not in str(answers[0])


async def test_a_caller_who_hangs_up_takes_all_his_requests_with_him() -> None:
    async with open_door() as door:
        door.engine.hold()
        stream: Any = door.open_inference.ModelStreamInfer()
        for n in range(3):
            await stream.write(ask(str(n)))
        await door.engine.was_asked(3)

        stream.cancel()

        await until(lambda: door.engine.num_left == 3)


async def test_what_is_under_way_is_answered_before_a_closing_server_ends_the_stream() -> None:
    async with open_door() as door:
        door.engine.hold()
        stream: Any = door.open_inference.ModelStreamInfer()
        await stream.write(ask("a"))
        await door.engine.was_asked(1)

        door.closing.set()
        door.engine.release()

        assert (await stream.read()).infer_response.id == "a"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_bytes_that_are_no_request_end_the_stream_after_its_answers() -> None:
    async def requests() -> AsyncIterator[bytes]:
        yield ask("a").SerializeToString()
        yield b"\xff\xff\xff"

    async with open_door() as door:
        raw: Any = door.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        stream = raw(requests())

        assert pb.ModelStreamInferResponse.FromString(await stream.read()).infer_response.id == "a"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_readiness_follows_health_and_is_told_to_the_very_end() -> None:
    async with open_door() as door:
        stub = door.open_inference
        before = (await stub.ServerReady(pb.ServerReadyRequest())).ready
        door.health.open()
        after = (await stub.ServerReady(pb.ServerReadyRequest())).ready
        model = (await stub.ModelReady(pb.ModelReadyRequest(name="echo"))).ready
        door.health.latch()
        door.closing.set()
        ending = [
            (await stub.ServerLive(pb.ServerLiveRequest())).live,
            (await stub.ServerReady(pb.ServerReadyRequest())).ready,
            (await stub.ModelReady(pb.ModelReadyRequest(name="echo"))).ready,
        ]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(ask())

        assert (before, after, model) == (False, True, True)
        assert ending == [True, False, False]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_model_that_failed_or_that_nobody_knows_is_not_ready() -> None:
    async with open_door() as door:
        door.health.open()
        door.engine.model_failure = InvalidModel("not an ONNX file")
        failed = await door.open_inference.ModelReady(pb.ModelReadyRequest(name="echo"))
        unknown = await door.open_inference.ModelReady(pb.ModelReadyRequest(name="nobody", version="7"))
        with pytest.raises(grpc.aio.AioRpcError) as nameless:
            await door.open_inference.ModelReady(pb.ModelReadyRequest(name="Not A Name"))

        assert (failed.ready, unknown.ready) == (False, False)
        assert nameless.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_metadata_lists_all_versions_or_the_one_that_was_asked_for() -> None:
    async with open_door() as door:
        await shelve(door, "echo", "echo", "echo")
        every = await door.open_inference.ModelMetadata(pb.ModelMetadataRequest(name="echo"))
        one = await door.open_inference.ModelMetadata(pb.ModelMetadataRequest(name="echo", version="3"))

        assert (every.name, list(every.versions)) == ("echo", ["1", "2", "3"])
        assert list(one.versions) == ["3"]
        assert (every.inputs[0].name, every.inputs[0].datatype, list(every.inputs[0].shape)) == ("x", "FP32", [-1, 2])


async def test_a_configuration_shows_shapes_without_the_rows() -> None:
    async with open_door() as door:
        config = (await door.open_inference.ModelConfig(pb.ModelConfigRequest(name="echo"))).config

        assert (config.name, config.max_batch_size) == ("echo", 64)
        assert (config.input[0].data_type, list(config.input[0].dims)) == (pb.TYPE_FP32, [2])
        assert (config.dynamic_batching.priority_levels, config.dynamic_batching.default_priority_level) == (201, 101)


async def test_statistics_are_those_of_the_engine_and_of_whom_was_asked_for() -> None:
    counted = Statistics(
        num_answered=2,
        answered_seconds=0.5,
        answered_rows=7,
        num_failed=1,
        queue_seconds=0.125,
        compute_seconds=0.25,
        last_call_at=1234.5,
        runs={4: Runs(1, 0.1, 0.2), 3: Runs(2, 0.3, 0.4)},
    )
    async with open_door() as door:
        await shelve(door, "echo", "echo", "other")
        door.engine.counted = {ModelName("echo", 2): counted, ModelName("other", 1): Statistics()}
        stub = door.open_inference
        every = await stub.ModelStatistics(pb.ModelStatisticsRequest())
        model = await stub.ModelStatistics(pb.ModelStatisticsRequest(name="echo"))
        idle = await stub.ModelStatistics(pb.ModelStatisticsRequest(name="echo", version="1"))
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.ModelStatistics(pb.ModelStatisticsRequest(name="nobody"))
        with pytest.raises(grpc.aio.AioRpcError) as nameless:
            await stub.ModelStatistics(pb.ModelStatisticsRequest(version="1"))

        assert [(entry.name, entry.version) for entry in every.model_stats] == [("echo", "2"), ("other", "1")]
        (entry,) = model.model_stats
        assert (entry.inference_count, entry.execution_count, entry.last_inference) == (7, 3, 1_234_500)
        assert (entry.inference_stats.success.count, entry.inference_stats.success.ns) == (2, 500_000_000)
        assert (entry.inference_stats.fail.count, entry.inference_stats.queue.ns) == (1, 125_000_000)
        assert (entry.inference_stats.compute_infer.count, entry.inference_stats.compute_infer.ns) == (2, 250_000_000)
        assert [(each.batch_size, each.compute_infer.count) for each in entry.batch_stats] == [(3, 2), (4, 1)]
        assert [(entry.version, entry.inference_count) for entry in idle.model_stats] == [("1", 0)]
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        assert nameless.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_index_lists_every_version_with_its_state_and_why() -> None:
    async with open_door() as door:
        await shelve(door, "echo", "other", "echo")
        ready = await door.open_inference.RepositoryIndex(pb.RepositoryIndexRequest())
        door.engine.model_failure = ModelFailed("models/echo", "it is broken")
        failed = await door.open_inference.RepositoryIndex(pb.RepositoryIndexRequest())
        none = await door.open_inference.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))

        listed = [(entry.name, entry.version, entry.state) for entry in ready.models]
        assert listed == [("echo", "1", "READY"), ("echo", "2", "READY"), ("other", "1", "READY")]
        assert {(entry.state, entry.reason) for entry in failed.models} == {
            ("UNAVAILABLE", "models/echo failed: it is broken")
        }
        assert not none.models


async def test_the_index_goes_on_after_the_first_page() -> None:
    async with open_door() as door:
        names = [f"m{number:04}" for number in range(1001)]
        door.registry.contents = {(name, 1): b"" for name in names}
        listed = await door.open_inference.RepositoryIndex(pb.RepositoryIndexRequest())

        assert [entry.name for entry in listed.models] == names


async def test_unloading_is_of_all_versions_and_never_of_an_alias() -> None:
    async with open_door() as door:
        await shelve(door, "echo")
        stub = door.open_inference
        request = pb.RepositoryModelUnloadRequest(model_name="echo")
        request.parameters["unload_dependents"].bool_param = True
        await stub.RepositoryModelUnload(request)
        with pytest.raises(grpc.aio.AioRpcError) as alias:
            await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="echo@champion"))
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="nobody"))

        assert door.engine.unloaded == [VERSION.name]
        assert alias.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_what_would_be_ignored_silently_is_refused() -> None:
    load = pb.RepositoryModelLoadRequest(model_name="echo")
    load.parameters["config"].string_param = "{}"
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError) as override:
            await door.open_inference.RepositoryModelLoad(load)
        with pytest.raises(grpc.aio.AioRpcError) as repository:
            await door.open_inference.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="another"))

        assert override.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert repository.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("method", "word"),
    [("SystemSharedMemoryStatus", "shared memory"), ("TraceSetting", "tracing"), ("LogSettings", "log_level")],
)
async def test_what_is_not_offered_says_so(method: str, word: str) -> None:
    async with open_door() as door:
        call: Any = door.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff whatever")

        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert word in (caught.value.details() or "")


async def test_calls_are_counted_under_the_names_of_the_protocol() -> None:
    async with open_door() as door:
        await door.open_inference.ModelInfer(ask())

        labels = {"method": "inference.GRPCInferenceService/ModelInfer", "code": "OK"}
        await until(lambda: door.metrics.registry.get_sample_value("headrace_calls_total", labels) == 1)


async def _each(requests: list[pb.ModelInferRequest]) -> AsyncIterator[pb.ModelInferRequest]:
    for request in requests:
        yield request
