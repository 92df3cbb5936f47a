"""Callers who leave before their request has come, at the door that reads predictions itself."""

import asyncio
import socket
from pathlib import Path

import grpc
import pytest

from headrace.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from headrace_server import _native
from headrace_server.house import House
from headrace_server.settings import Settings
from tests.doubles import onnx_models
from tests.doubles.frames import frame, headers
from tests.doubles.idle_connections import EMPTY_SETTINGS, PREFACE
from tests.house.test_changing_models import predict_request, read

pytestmark = pytest.mark.skipif(not _native.door_built, reason="built without gRPC for C++")

PREDICT = b"/headrace.inference.v1.InferenceService/Predict"
INFER = b"/inference.GRPCInferenceService/ModelInfer"
CANCEL = (8).to_bytes(4, "big")  # RFC 9113, section 7


def leave_early(port: int, path: bytes) -> None:
    """Begin calls and take each back at once, or say that there is no more to come when nothing has."""
    calls = [headers(path, stream) + frame(3, 0, stream, CANCEL) for stream in range(1, 101, 2)]
    calls += [headers(path, stream, is_end=True) for stream in range(101, 151, 2)]
    with socket.create_connection(("127.0.0.1", port), 60) as line:
        line.sendall(PREFACE + EMPTY_SETTINGS + b"".join(calls))
        line.settimeout(60)
        line.recv(1 << 16)


@pytest.mark.parametrize("path", [PREDICT, INFER])
async def test_a_caller_who_leaves_before_his_message_has_come_harms_nobody(tmp_path: Path, path: bytes) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(onnx_models.scale(1.0).SerializeToString())
    chosen = Settings.model_validate(
        {
            "data": tmp_path / "data",
            "server": {"port": 0, "door": "native"},
            "telemetry": {"metrics_port": -1},
            "models": {"serve": {"m": model}},
        }
    )
    async with House(chosen) as house:
        for _ in range(5):
            await asyncio.to_thread(leave_early, house.port, path)

        async with grpc.aio.insecure_channel(f"127.0.0.1:{house.port}") as channel:
            answer = await InferenceServiceStub(channel).Predict(predict_request("models/m"), timeout=30)

    assert read(answer) == (1.0, 1)
