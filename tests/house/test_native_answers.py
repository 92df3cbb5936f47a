"""A whole server behind the native door, which answers as the complete server would have."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from onnx import TensorProto

from headrace.inference.v1 import inference_service_pb2 as pb
from headrace.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from headrace.models.v1 import model_service_pb2 as models_pb
from headrace.models.v1.model_service_pb2_grpc import ModelServiceStub
from headrace_server import _native
from headrace_server.house import House
from headrace_server.models.onnx_signature import read_signature
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as oip
from headrace_server.rpc.open_inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from headrace_server.settings import Settings
from tests.doubles import onnx_models
from tests.doubles.questions import INFERENCES, PREDICTIONS, predict, raw, readable, tensor, texts

pytestmark = pytest.mark.skipif(not _native.door_built, reason="the native door was not built")

PREDICT = "headrace.inference.v1.InferenceService/Predict"
INFER = "inference.GRPCInferenceService/ModelInfer"
MODELS = {
    "double": onnx_models.scale(2.0),
    "look": onnx_models.lookup(),
    "sum": onnx_models.total(),
    "half": onnx_models.identity(TensorProto.FLOAT16),
    "flags": onnx_models.identity(TensorProto.BOOL),
    "whole": onnx_models.identity(TensorProto.INT8, (3,)),
    "brain": onnx_models.identity(TensorProto.BFLOAT16),
    "colours": onnx_models.identity(TensorProto.INT64, ("batch",)),
    "strict": onnx_models.identity(TensorProto.INT8, ("batch",)),
    "texts": onnx_models.identity(TensorProto.STRING),
}
CATEGORIES = {"colours": ["", "red", "", "gr\u00fcn"], "strict": ["no", "yes", "no"]}
"""Texts that stand for the numbers of a model's input; an empty one in the first place stands for all others."""


class Server:
    """One house, and channels to it."""

    def __init__(self, house: House, channel: grpc.aio.Channel) -> None:
        self.house = house
        self.channel = channel
        self.inference: Any = InferenceServiceStub(channel)
        self.open: Any = GRPCInferenceServiceStub(channel)
        self.models: Any = ModelServiceStub(channel)

    def passed(self, method: str, reason: str) -> float:
        labels = {"method": method, "reason": reason}
        return self.house.metrics.registry.get_sample_value("headrace_passed_calls_total", labels) or 0

    def answered(self, method: str, code: str = "OK") -> float:
        labels = {"method": method, "code": code}
        return self.house.metrics.registry.get_sample_value("headrace_calls_total", labels) or 0


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[tuple[Server, Server]]:
    """The same models behind the native door, and at the complete server."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(serving(tmp_path / door, door)) for door in ("native", "grpc_aio")]
        yield opened[0], opened[1]


@pytest.fixture
async def native(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path, "native") as server:
        yield server


@asynccontextmanager
async def serving(folder: Path, door: str, **inference: object) -> AsyncIterator[Server]:
    files = save_all(folder)
    settings = Settings.model_validate(
        {
            "data": folder / "data",
            "server": {"port": 0, "door": door},
            "telemetry": {"metrics_port": -1},
            "models": {"serve": files},
            "inference": inference,
        }
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with House(settings) as house, grpc.aio.insecure_channel(f"127.0.0.1:{house.port}", options) as channel:
        yield Server(house, channel)


def save_all(folder: Path) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    files = {name: save(model, folder / f"{name}.onnx") for name, model in MODELS.items()}
    return files | {name: save_with_texts(MODELS[name], folder / name, texts) for name, texts in CATEGORIES.items()}


def save_with_texts(model: onnx.ModelProto, folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    signature = read_signature(save(model, folder / "model.onnx"), may_have_companions=False)
    inputs = tuple(spec.model_copy(update={"class_names": tuple(texts)}) for spec in signature.inputs)
    (folder / "signature.json").write_text(signature.model_copy(update={"inputs": inputs}).model_dump_json())
    return folder


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


async def ending_of(call: Any) -> list[Any]:
    """How a call ended, in a form that can be compared: without times, and with details unpacked."""
    try:
        response = await call
    except grpc.aio.AioRpcError as error:
        metadata = dict(error.trailing_metadata() or ())
        details = status_pb2.Status.FromString(metadata.get("grpc-status-details-bin", b""))
        return [error.code(), error.details(), *map(_unpacked, details.details), "x-request-id" in metadata]
    return [_without_times(response)]


def _unpacked(detail: Any) -> Message | Any:
    for kind in (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.ResourceInfo,
        error_details_pb2.RetryInfo,
    ):
        message = kind()
        if detail.Unpack(message):
            return message
    return detail


def _without_times(response: Message) -> Message:
    if isinstance(response, pb.PredictResponse):
        response.ClearField("timing")
    if isinstance(response, oip.ModelInferResponse):
        for key in [*response.parameters]:
            if key.endswith(("_us", "_rows")):
                del response.parameters[key]
    return response


async def test_every_answer_and_every_refusal_is_the_same(servers: tuple[Server, Server]) -> None:
    native, complete = servers

    for request in PREDICTIONS:
        endings = [await ending_of(server.inference.Predict(request, timeout=20)) for server in (native, complete)]
        assert endings[0] == endings[1], request
    for question in INFERENCES:
        endings = [await ending_of(server.open.ModelInfer(question, timeout=20)) for server in (native, complete)]
        assert endings[0] == endings[1], question
    for about in (oip.ModelMetadataRequest(name="double"), oip.ModelMetadataRequest(name="double", version="1")):
        assert await native.open.ModelMetadata(about) == await complete.open.ModelMetadata(about)
    for name in ("double", "nobody"):
        ready = oip.ModelReadyRequest(name=name)
        assert await native.open.ModelReady(ready) == await complete.open.ModelReady(ready)
    assert await native.open.ServerReady(oip.ServerReadyRequest()) == oip.ServerReadyResponse(ready=True)
    assert native.passed(PREDICT, "name") == 4
    assert native.answered(PREDICT) == complete.answered(PREDICT)
    assert native.answered(INFER) == complete.answered(INFER)


async def test_numbers_in_whatever_form_and_texts_that_stand_for_them_are_answered_by_the_door(native: Server) -> None:
    for request in (
        readable("half", "FP16", [1, 2], floats=[0.1, -2]),
        readable("brain", "BF16", [1, 2], floats=[0.1, -2]),
        readable("colours", "STRING", [2], strings=["red", "mauve"]),
        readable("strict", "STRING", [2], strings=["yes", "no"]),
        pb.PredictRequest(model="models/half", inputs={"x": tensor([[1, 2]], "FP16", "<f2")}),
    ):
        await native.inference.Predict(request)
    for question in (
        raw("half", "FP16", np.array([[1, 2]], np.float16)),
        raw("brain", "BF16", np.array([[0x3F80, 0x4000]], np.uint16)),
        texts("colours", [b"red", b"mauve"], is_raw=True),
        texts("strict", [b"no", b"yes"], is_raw=False),
    ):
        await native.open.ModelInfer(question)

    counts = native.house.metrics.registry
    assert not [
        sample
        for family in counts.collect()
        if family.name == "headrace_passed_calls"
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value and sample.labels["method"] in (PREDICT, INFER)
    ]
    assert (native.answered(PREDICT), native.answered(INFER)) == (5, 4)


async def test_streams_hold_the_same_answers(servers: tuple[Server, Server]) -> None:
    async def predicted(server: Server) -> dict[str, Message]:
        requests = [pb.PredictStreamRequest(id=str(i), request=each) for i, each in enumerate(PREDICTIONS)]
        answers = {answer.id: answer async for answer in server.inference.PredictStream(iter(requests), timeout=60)}
        for answer in answers.values():
            answer.response.ClearField("timing")
        return answers

    async def inferred(server: Server) -> list[Message]:
        answers = [answer async for answer in server.open.ModelStreamInfer(iter(INFERENCES), timeout=60)]
        for answer in answers:
            _without_times(answer.infer_response)
        return answers

    native, complete = servers
    mine, theirs = await predicted(native), await predicted(complete)
    assert mine.keys() == theirs.keys()
    for key, answer in mine.items():
        told, expected = answer.error, theirs[key].error  # type: ignore[attr-defined]
        assert [told.code, told.message, *map(_unpacked, told.details)] == [
            expected.code,
            expected.message,
            *map(_unpacked, expected.details),
        ]
        assert answer.response == theirs[key].response  # type: ignore[attr-defined]
    assert await inferred(native) == await inferred(complete)


async def test_an_alias_means_its_new_version_from_its_answer_on(native: Server, tmp_path: Path) -> None:
    registry = native.house._registry
    for factor in (3.0, 5.0):
        await registry.serve_path("double", save(onnx_models.scale(factor), tmp_path / "next.onnx"))
    for number in (2, 3):
        await native.models.LoadModelVersion(models_pb.LoadModelVersionRequest(name=f"models/double/versions/{number}"))
    factors = {1: 2.0, 2: 3.0, 3: 5.0}
    asked, answered = [3], [3]  # what it was assigned to, when that was asked for and when it was answered
    is_over = asyncio.Event()

    async def assign(number: int) -> None:
        version = f"models/double/versions/{number}"
        await native.models.AssignAlias(
            models_pb.AssignAliasRequest(model="models/double", alias="champion", model_version=version)
        )

    async def ask() -> int:
        num_answers = 0
        while not is_over.is_set():
            first = len(answered) - 1
            answer = await native.inference.Predict(predict("models/double@champion"))
            number = int(answer.model_version.rpartition("/")[2])
            assert number in asked[first:]
            assert np.frombuffer(answer.outputs["y"].data, "<f4").tolist() == [factors[number], 2 * factors[number]]
            num_answers += 1
        return num_answers

    await assign(3)
    callers = [asyncio.ensure_future(ask()) for _ in range(4)]
    for number in (1, 2, 3, 2, 1) * 4:
        asked.append(number)
        await assign(number)
        answered.append(number)
    is_over.set()

    assert sum(await asyncio.gather(*callers)) > 0
    assert native.passed(PREDICT, "name") == 0


async def test_a_version_that_is_unloaded_answers_what_it_has_taken_and_is_loaded_anew(native: Server) -> None:
    is_over = asyncio.Event()

    async def ask() -> None:
        while not is_over.is_set():
            answer = await native.inference.Predict(predict())
            assert np.frombuffer(answer.outputs["y"].data, "<f4").tolist() == [2, 4]

    callers = [asyncio.ensure_future(ask()) for _ in range(4)]
    for _ in range(5):
        with_error = await ending_of(
            native.models.UnloadModelVersion(models_pb.UnloadModelVersionRequest(name="models/double/versions/1"))
        )
        assert len(with_error) == 1 or with_error[0] is grpc.StatusCode.FAILED_PRECONDITION
        await asyncio.sleep(0)
    is_over.set()
    await asyncio.gather(*callers)


async def test_ids_of_calls_come_back_from_the_door(native: Server) -> None:
    metadata: Callable[[Any], dict[str, str]] = dict
    mine = native.inference.Predict(predict(), metadata=(("x-request-id", "mine"),))
    other = native.inference.Predict(predict())
    await asyncio.gather(mine, other)

    assert metadata(await mine.trailing_metadata())["x-request-id"] == "mine"
    assert len(metadata(await other.trailing_metadata())["x-request-id"]) == 16


async def test_a_version_that_only_the_door_has_used_is_not_the_first_to_go(tmp_path: Path) -> None:
    async with serving(tmp_path, "native", max_loaded_versions=len(MODELS)) as native:
        for name in MODELS:
            if name != "double":
                await native.inference.GetModelStatus(pb.GetModelStatusRequest(model=f"models/{name}"))
        await native.inference.Predict(predict())
        next_file = save(onnx_models.scale(3.0), tmp_path / "next.onnx")
        await native.house._registry.serve_path("next", next_file)

        await native.models.LoadModelVersion(models_pb.LoadModelVersionRequest(name="models/next"))

        status = await native.inference.GetModelStatus(pb.GetModelStatusRequest(model="models/double"))
        assert status.readiness == pb.GetModelStatusResponse.READINESS_READY
