"""Models that change while they are asked, through the native door: whatever is done to them, in whatever order, every
answer is of a version that its name meant at some moment of the call, and in the end every name means what the registry
says.
"""

import asyncio
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, given, settings, strategies as st

from headrace.inference.v1 import inference_service_pb2 as pb
from headrace.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from headrace.models.v1 import model_service_pb2 as models_pb
from headrace.models.v1.model_service_pb2_grpc import ModelServiceStub
from headrace.type.v1 import tensor_pb2
from headrace_server import _native
from headrace_server.errors import ModelNotFound
from headrace_server.house import House
from headrace_server.inference.routes import Route
from headrace_server.names import ModelName
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as oip
from headrace_server.rpc.open_inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from headrace_server.settings import Settings
from tests.doubles import onnx_models

pytestmark = pytest.mark.skipif(not _native.door_built, reason="the native door was not built")

MODEL = "models/m"
ALIASES = ("default", "champion")
ROW = [1.0, 2.0]

versions = st.integers(1, 4)
register = st.tuples(st.just("register"))
assign = st.tuples(st.just("assign"), st.sampled_from(ALIASES), versions)
drop = st.tuples(st.just("drop"), st.sampled_from(ALIASES))
load = st.tuples(st.just("load"), versions)
unload = st.tuples(st.just("unload"), versions)
update = st.tuples(st.just("update"), st.booleans())
acts = st.lists(st.one_of(register, assign, assign, drop, load, unload, unload, update), min_size=5, max_size=30)


@dataclass(frozen=True)
class Names:
    """What the names of the model mean."""

    latest: int = 1
    aliases: dict[str, int] = field(default_factory=dict)

    def version_of(self, name: str) -> int | None:
        """The number of the version; None when the name means nothing."""
        if "/versions/" in name:
            number = int(name.rpartition("/")[2])
            return number if number <= self.latest else None
        alias = name.partition("@")[2]
        return self.aliases.get(alias) if alias else self.aliases.get("default", self.latest)

    def all(self) -> list[str]:
        """Every name that there may be."""
        return [MODEL, f"{MODEL}@champion", *(f"{MODEL}/versions/{number}" for number in range(1, 5))]


class Change:
    """Acts on the model, and notes what its names have meant: before an act is asked for, and after its answer."""

    def __init__(self, house: House, channel: grpc.aio.Channel, folder: Path) -> None:
        self.asked, self.num_settled = [Names()], 1
        self._house, self._folder = house, folder
        self._models: Any = ModelServiceStub(channel)

    @property
    def names(self) -> Names:
        return self.asked[-1]

    async def make(self, act: Sequence[Any]) -> None:
        aliases = self.names.aliases
        match act:
            case ("register",) if self.names.latest < 4:
                await self._settle(Names(self.names.latest + 1, aliases), self._register(self.names.latest + 1))
            case ("assign", alias, number) if number <= self.names.latest:
                asking = models_pb.AssignAliasRequest(model=MODEL, alias=alias, model_version=version_name(number))
                after = Names(self.names.latest, {**aliases, alias: number})
                await self._settle(after, self._models.AssignAlias(asking))
            case ("drop", alias) if alias in aliases:
                after = Names(self.names.latest, {each: aliases[each] for each in aliases if each != alias})
                dropping = models_pb.DeleteAliasRequest(model=MODEL, alias=alias)
                await self._settle(after, self._models.DeleteAlias(dropping))
            case ("load", number) if number <= self.names.latest:
                await self._models.LoadModelVersion(models_pb.LoadModelVersionRequest(name=version_name(number)))
            case ("unload", number) if number <= self.names.latest:
                try:
                    unloading = models_pb.UnloadModelVersionRequest(name=version_name(number))
                    await self._models.UnloadModelVersion(unloading)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:  # it was not loaded
                        raise
            case ("update", is_pinned):
                request = models_pb.UpdateModelRequest(update_mask=FieldMask(paths=["serving.is_pinned"]))
                request.model.name = MODEL
                request.model.serving.is_pinned = is_pinned
                await self._models.UpdateModel(request)

    async def _settle(self, after: Names, doing: Any) -> None:
        self.asked.append(after)
        await doing
        self.num_settled = len(self.asked)

    async def _register(self, number: int) -> None:
        path = self._folder / f"{number}.onnx"
        path.write_bytes(onnx_models.scale(float(number)).SerializeToString())
        await self._house._registry.serve_path("m", path)


def version_name(number: int) -> str:
    return f"{MODEL}/versions/{number}"


class Callers:
    """Ask under every name, in every way, until told to stop; each answer must be of what its name meant meanwhile."""

    def __init__(self, change: Change, channel: grpc.aio.Channel) -> None:
        self.num_answers = 0
        self.is_over = False
        self._change = change
        self._inference: Any = InferenceServiceStub(channel)
        self._open: Any = GRPCInferenceServiceStub(channel)

    async def ask_on(self, offset: int) -> None:
        ways = (self._predict, self._infer, self._stream)
        names = self._change.names.all()
        for turn in itertools.count(offset):
            name = names[turn % len(names)]
            first = self._change.num_settled - 1
            try:
                factor, version = await ways[turn % len(ways)](name)
            except grpc.aio.AioRpcError as error:
                if reason_of(error) != "MODEL_NOT_FOUND":
                    raise
                factor, version = None, None
            meant = {names.version_of(name) for names in self._change.asked[first:]}
            assert version in meant, (name, version, meant)
            assert factor == version  # each version multiplies by its number
            self.num_answers += version is not None
            if self.is_over:  # asked once at the least
                return

    async def _predict(self, name: str) -> tuple[float, int]:
        return read(await self._inference.Predict(predict_request(name), timeout=30))

    async def _stream(self, name: str) -> tuple[float, int]:
        request = pb.PredictStreamRequest(id="a", request=predict_request(name))
        (answer,) = [answer async for answer in self._inference.PredictStream(iter([request]), timeout=30)]
        if answer.HasField("error"):
            details = (("grpc-status-details-bin", answer.error.SerializeToString()),)
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNKNOWN, grpc.aio.Metadata(), grpc.aio.Metadata(*details))
        return read(answer.response)

    async def _infer(self, name: str) -> tuple[float, int]:
        model, _, version = name.removeprefix("models/").partition("/versions/")
        request = oip.ModelInferRequest(model_name=model, model_version=version)
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend(ROW)
        answer = await self._open.ModelInfer(request, timeout=30)
        return answer.outputs[0].contents.fp32_contents[0], int(answer.model_version)


def predict_request(name: str) -> pb.PredictRequest:
    data = np.array([ROW], "<f4").tobytes()
    return pb.PredictRequest(
        model=name, inputs={"x": tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=[1, 2], data=data)}
    )


def read(response: pb.PredictResponse) -> tuple[float, int]:
    """The factor, and the number of the version that says it was."""
    factor = np.frombuffer(response.outputs["y"].data, "<f4")[0]
    return float(factor), int(response.model_version.rpartition("/")[2])


def reason_of(error: grpc.aio.AioRpcError) -> str:
    content = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    info = error_details_pb2.ErrorInfo()
    details = status_pb2.Status.FromString(content).details
    return info.reason if details and details[0].Unpack(info) else ""


async def every_name_means_what_the_registry_says(house: House, change: Change) -> None:
    routes: list[Route] = []

    def keep(now: Sequence[Route]) -> None:
        routes[:] = now

    house._engine.watch_routes(keep)
    loaded = {route.resident.version.version for route in routes if route.name.version is not None}
    expected = {}
    for alias in (None, *change.names.aliases):
        try:
            version = await house._registry.resolve(ModelName("m", alias=alias))
        except ModelNotFound:
            continue
        assert version.version == change.names.version_of(f"{MODEL}@{alias}" if alias else MODEL)
        if version.version in loaded:
            expected[str(ModelName("m", alias=alias))] = version.version
    expected |= {version_name(number): number for number in loaded}

    assert {str(route.name): route.resident.version.version for route in routes} == expected


async def change_under_callers(acts: Sequence[Sequence[Any]], folder: Path) -> None:
    (folder / "1.onnx").write_bytes(onnx_models.scale(1.0).SerializeToString())
    chosen = Settings.model_validate(
        {
            "data": folder / "data",
            "server": {"port": 0, "door": "native"},
            "telemetry": {"metrics_port": -1},
            "models": {"serve": {"m": folder / "1.onnx"}},
        }
    )
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        House(chosen) as house,
        grpc.aio.insecure_channel(f"127.0.0.1:{house.port}", own_connection) as channel,
    ):
        change = Change(house, channel, folder)
        callers = Callers(change, channel)
        async with asyncio.TaskGroup() as asking:
            for offset in range(4):
                asking.create_task(callers.ask_on(offset))
            for act in acts:
                await change.make(act)
            callers.is_over = True
        assert callers.num_answers > 0
        await every_name_means_what_the_registry_says(house, change)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(acts)
def test_every_answer_is_of_a_version_that_its_name_meant_meanwhile(acts: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(change_under_callers(acts, Path(folder)))


def test_a_long_day_of_a_model(tmp_path: Path) -> None:
    day = [
        *(("register",), ("register",), ("assign", "champion", 1), ("load", 2), ("assign", "default", 2)),
        *(("unload", 2), ("assign", "champion", 3), ("unload", 3), ("drop", "default"), ("register",)),
        *(("update", True), ("unload", 4), ("unload", 1), ("drop", "champion"), ("assign", "default", 1), ("load", 1)),
    ]
    asyncio.run(change_under_callers(day, tmp_path))
