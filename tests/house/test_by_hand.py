"""What a person with a terminal and no file of ours can do: every call is made by `buf curl`, by reflection alone."""

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import onnx_models
from tests.doubles.flowers import flowers
from tests.doubles.server_process import ServerProcess, end_processes_of

BUF = Path(sys.executable).parent / "buf"
TRAINING = "headrace.training.v1.TrainingService"
INFERENCE = "headrace.inference.v1.InferenceService"


class Terminal:
    """Runs `buf curl` against one server."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    async def call(self, method: str, *messages: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers of a method; raises AssertionError with what was printed when it fails."""
        code, out, err = await self._curl("-d", "@-", f"{self.address}/{method}", given=messages)
        assert code == 0, err
        return out

    async def refused(self, method: str, message: dict[str, Any]) -> dict[str, Any]:
        """The error of a method that must fail."""
        code, _, err = await self._curl("-d", "@-", f"{self.address}/{method}", given=[message])
        assert code != 0
        error: dict[str, Any] = json.loads(err)
        return error

    async def list_methods(self) -> list[str]:
        """What the server says that it offers."""
        process = await asyncio.create_subprocess_exec(
            *self._command("--list-methods", self.address), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        return out.decode().split()

    async def _curl(self, *arguments: str, given: Any) -> tuple[int | None, list[dict[str, Any]], str]:
        process = await asyncio.create_subprocess_exec(
            *self._command(*arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        out, err = await process.communicate("\n".join(map(json.dumps, given)).encode())
        return process.returncode, _documents(out.decode()), err.decode()

    def _command(self, *arguments: str) -> list[str]:
        return [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments]


def _documents(text: str) -> list[dict[str, Any]]:
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text.rstrip()):
        document, end = decoder.raw_decode(text, at)
        found.append(document)
        at = end + len(text[end:]) - len(text[end:].lstrip())
    return found


@asynccontextmanager
async def a_terminal(tmp_path: Path, *arguments: str) -> AsyncIterator[Terminal]:
    server = await ServerProcess.start(tmp_path / "data", *arguments)
    try:
        yield Terminal((await server.logged("house.open"))["port"])
    finally:
        await server.kill()
        end_processes_of(tmp_path / "data")


async def test_a_stranger_finds_out_what_the_server_offers_and_uses_it(tmp_path: Path) -> None:
    file = tmp_path / "double.onnx"
    file.write_bytes(onnx_models.scale(2.0).SerializeToString())
    async with a_terminal(tmp_path, "--model", f"double={file}") as terminal:
        methods = await terminal.list_methods()
        answer = await terminal.call(
            f"{INFERENCE}/Predict",
            {
                "model": "models/double",
                "inputs": {"x": {"dataType": "DATA_TYPE_FP32", "shape": [1, 2], "floats": {"values": [1.5, -2]}}},
            },
        )
        status = await terminal.call(f"{INFERENCE}/GetModelStatus", {"model": "models/double"})
        health = await terminal.call("grpc.health.v1.Health/Check", {"service": "models/double"})
        trainers = await terminal.call(f"{TRAINING}/ListTrainers", {})
        error = await terminal.refused(f"{INFERENCE}/Predict", {"model": "models/nobody"})

    assert f"{TRAINING}/StartTraining" in methods
    assert "grpc.reflection.v1.ServerReflection/ServerReflectionInfo" in methods
    assert answer[0]["outputs"]["y"]["floats"]["values"] == [3, -4]
    assert answer[0]["provenance"]["backend"] == "onnxruntime"
    assert status[0]["readiness"] == "READINESS_READY"
    assert health[0]["status"] == "SERVING"
    assert {trainer["name"] for trainer in trainers[0]["trainers"]} >= {"tabular", "image_classification"}
    assert error["code"] == "not_found"
    assert "models/nobody" in error["message"]


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_person_trains_watches_and_predicts(tmp_path: Path) -> None:
    async with a_terminal(tmp_path) as terminal:
        stored = await terminal.call(
            "headrace.datasets.v1.DatasetService/UploadDataset",
            {"header": {"dataset": "datasets/flowers", "fileName": "flowers.csv"}},
            {"chunk": base64.b64encode(flowers()).decode()},
        )
        wrong = await terminal.refused(
            f"{TRAINING}/StartTraining",
            {
                "spec": {
                    "dataset": "datasets/flowers",
                    "model": "Flowers",
                    "tabular": {"target": "colour", "dropout": 2},
                    "epochs": 0,
                    "optimizer": {"sgd": {"momentum": 1.5}},
                }
            },
        )
        request = {
            "requestId": "once",
            "spec": {
                "dataset": "datasets/flowers",
                "model": "models/flowers",
                "tabular": {"target": "kind", "hiddenWidths": [16]},
                "epochs": 3,
            },
        }
        started = await terminal.call(f"{TRAINING}/StartTraining", request)
        repeated = await terminal.call(f"{TRAINING}/StartTraining", request)
        name = started[0]["job"]["name"]
        frames = await terminal.call(f"{TRAINING}/StreamProgress", {"name": name})
        logs = await terminal.call(f"{TRAINING}/StreamLogs", {"name": name})
        answer = await terminal.call(
            f"{INFERENCE}/Predict",
            {
                "model": "models/flowers",
                "inputs": {
                    "length": {"dataType": "DATA_TYPE_FP32", "shape": [2], "floats": {"values": [2, 0]}},
                    "width": {"dataType": "DATA_TYPE_FP32", "shape": [2], "floats": {"values": [-1, 0]}},
                },
            },
        )

    assert stored[0]["datasetVersion"]["numRows"] == "400"
    assert wrong["code"] == "invalid_argument"
    assert repeated[0]["job"]["name"] == name
    events = [frame["event"] for frame in frames if "event" in frame]
    assert "snapshot" in frames[0]
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["stateChanged"]["job"]["modelVersion"] == "models/flowers/versions/1"
    assert any("evaluationCompleted" in event for event in events)
    assert all("line" in frame or "heartbeat" in frame for frame in logs)
    assert answer[0]["provenance"]["trainingJob"] == name
    assert len(answer[0]["outputs"]["scores"]["floats"]["values"]) == 4
