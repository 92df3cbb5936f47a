"""A device that is lost for the process: the server stops being ready, finishes what it can, and ends with 3."""

import asyncio
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

import headrace
from headrace_server.cli import DEVICE_BROKEN
from tests.doubles.onnx_models import scale
from tests.doubles.server_process import ServerProcess
from tests.doubles.until import until

LOSE = np.float32(666)
WAIT = np.float32(7)
PATCH = """
import pathlib, time
from headrace_server.inference.backends.backend import DeviceBroken
from headrace_server.inference.backends.onnxruntime import OnnxRuntimeSession

run = OnnxRuntimeSession.run

def lose(self, inputs):
    first = float(next(iter(inputs.values())).flat[0])
    if first == 666:
        raise DeviceBroken("cuda:0", "CUDA failure 700: an illegal memory access was encountered")
    if first == 7:  # a batch of another device, under way
        pathlib.Path(FOLDER, "under_way").touch()
        while not pathlib.Path(FOLDER, "go_on").exists():
            time.sleep(0.01)
    return run(self, inputs)

OnnxRuntimeSession.run = lose
OnnxRuntimeSession.program = None  # as on a GPU: every batch comes to `run`
"""


@pytest.fixture
def losing(tmp_path: Path) -> dict[str, str]:
    """The environment of a server whose device is lost with a certain row."""
    folder = tmp_path / "patch"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"FOLDER = {str(tmp_path)!r}\n{PATCH}")
    return {"PYTHONPATH": str(folder)}


async def test_a_lost_device_makes_the_server_unready_drain_and_end_with_3(
    tmp_path: Path, losing: dict[str, str]
) -> None:
    onnx.save(scale(1.0), tmp_path / "m.onnx")
    models = [part for name in ("lost", "other") for part in ("--model", f"{name}={tmp_path / 'm.onnx'}")]
    server = await ServerProcess.start(tmp_path / "data", *models, environment=losing)
    port = (await server.logged("house.open"))["port"]
    async with (
        headrace.Client(f"127.0.0.1:{port}") as client,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        watching = HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        under_way = asyncio.create_task(client.predict("models/other", {"x": np.full((1, 2), WAIT, np.float32)}))
        await until((tmp_path / "under_way").exists)

        with pytest.raises(headrace.HeadraceError):
            await client.predict("models/lost", {"x": np.full((1, 2), LOSE, np.float32)})
        after = (await watching.read()).status
        (tmp_path / "go_on").touch()
        finished = await under_way

    assert after == health_pb2.HealthCheckResponse.NOT_SERVING
    assert finished.output.ravel().tolist() == [7, 7]
    assert await server.ended() == DEVICE_BROKEN, server.report()
    assert any("cuda:0 answers nothing any more" in line for line in server.text), server.report()
