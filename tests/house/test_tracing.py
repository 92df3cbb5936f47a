"""Spans of a whole server, received by a real collector of OTLP."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent import futures
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.inference.v1 import inference_service_pb2 as pb
from headrace.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from headrace.type.v1 import tensor_pb2
from headrace_server import _native
from headrace_server.house import House
from headrace_server.settings import Settings
from tests.doubles import onnx_models

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

pytestmark = pytest.mark.skipif(not _native.door_built, reason="the native door was not built")

PREDICT = "/headrace.inference.v1.InferenceService/Predict"
STATUS = "/headrace.inference.v1.InferenceService/GetModelStatus"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
X = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=[1, 2], data=b"\0" * 8)
REQUEST = pb.PredictRequest(model="models/double", inputs={"x": X})


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span that it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self._lock = threading.Lock()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the name in the contract
        with self._lock:
            for resource in request.resource_spans:
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    collector = Collector()
    register: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    register(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    await asyncio.to_thread(server.stop(0).wait)


def settings(tmp_path: Path, **telemetry: object) -> Settings:
    file = tmp_path / "double.onnx"
    file.write_bytes(onnx_models.scale(2.0).SerializeToString())
    return Settings.model_validate(
        {
            "data": tmp_path / "data",
            "server": {"port": 0, "door": "native"},
            "telemetry": {"metrics_port": -1, **telemetry},
            "models": {"serve": {"double": file}},
        }
    )


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[tuple[House, Any]]:
    async with House(settings) as house, grpc.aio.insecure_channel(f"127.0.0.1:{house.port}") as channel:
        yield house, InferenceServiceStub(channel)


async def test_calls_of_both_servers_reach_the_collector(tmp_path: Path, collector: tuple[Collector, str]) -> None:
    received, endpoint = collector

    async with serving(settings(tmp_path, trace_endpoint=endpoint, trace_ratio=1.0)) as (_, stub):
        await stub.Predict(REQUEST)
        await stub.GetModelStatus(pb.GetModelStatusRequest(model="models/double"))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Predict(pb.PredictRequest(model="models/nobody", inputs={"x": X}))

    native, complete = sorted(received.named(PREDICT), key=lambda span: span.start_time_unix_nano)
    attributes = {each.key: each.value for each in native.attributes}
    assert attributes["rpc.method"].string_value == "Predict"
    assert attributes["headrace.model_version"].string_value == "models/double/versions/1"
    assert attributes["headrace.batch_rows"].int_value == 1
    assert attributes["headrace.compute_seconds"].double_value > 0
    assert native.start_time_unix_nano < native.end_time_unix_nano
    assert native.parent_span_id == b""
    assert {each.key: each.value for each in complete.attributes}["rpc.grpc.status_code"].int_value == 5
    assert len(received.named(STATUS)) == 1


async def test_a_caller_who_sends_a_traceparent_decides(tmp_path: Path, collector: tuple[Collector, str]) -> None:
    received, endpoint = collector

    async with serving(settings(tmp_path, trace_endpoint=endpoint, trace_ratio=0.0)) as (_, stub):
        for parent in (f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00", "nonsense", f"ff-{TRACE}-{PARENT}-01"):
            await stub.Predict(REQUEST, metadata=(("traceparent", parent),))
        await stub.Predict(REQUEST)

    (span,) = received.named(PREDICT)
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == PARENT


async def test_without_an_endpoint_nothing_is_recorded(tmp_path: Path) -> None:
    async with serving(settings(tmp_path)) as (house, stub):
        await stub.Predict(REQUEST, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))

        assert house._plane is not None
        assert house._plane.native.take_spans() == []
