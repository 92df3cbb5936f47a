"""Triton's own client, unmodified, against the real server: the server is a drop-in where it says that it is."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.doubles import onnx_models
from tests.doubles.environment import Environment
from tests.doubles.server_process import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PACKAGES = Environment(
    "tritonclient",
    ("tritonclient[grpc]==2.73.0", "grpcio==1.85.1", "protobuf==6.33.6", "numpy==2.4.6", "ml-dtypes==0.5.4"),
)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "open-inference.md"
SCRIPT = Path(__file__).with_name("triton_client.py")
ROWS = np.array([[1, 2], [3, 4.5]], np.float32)
TYPES = {
    "bool": TensorProto.BOOL,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "fp32": TensorProto.FLOAT,
    "fp64": TensorProto.DOUBLE,
    "text": TensorProto.STRING,
}


@pytest.fixture(scope="session")
def triton_python() -> Path:
    """A Python that has the client and nothing of Headrace."""
    return PACKAGES.python()


@pytest.fixture(scope="module")
def seen(triton_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client saw."""
    return asyncio.run(_let_it_look(triton_python, tmp_path_factory.mktemp("triton")))


async def _let_it_look(python: Path, folder: Path) -> dict[str, Any]:
    programs = {"double": onnx_models.scale(2.0)} | {
        name: onnx_models.identity(element_type) for name, element_type in TYPES.items()
    }
    async with running(folder / "data", *_serving(programs, folder)) as (server, _):
        port = (await server.logged("house.open"))["port"]
        output = await _run(python, str(SCRIPT), f"127.0.0.1:{port}")
        assert not [line for line in server.lines if line["level"] == "error"]
    found: dict[str, Any] = json.loads(output)
    return found


def _serving(programs: dict[str, onnx.ModelProto], folder: Path) -> list[str]:
    arguments = ["--set", f"inference.max_loaded_versions={len(programs)}"]
    for name, program in programs.items():
        onnx.save(program, folder / f"{name}.onnx")
        arguments += ["--model", f"{name}={folder / name}.onnx"]
    return arguments


async def _run(python: Path, *arguments: str) -> str:
    client = await asyncio.create_subprocess_exec(
        str(python), "-I", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(300):
            output, problems = await client.communicate()
    finally:
        if client.returncode is None:
            client.kill()
            await client.wait()
    assert client.returncode == 0, problems.decode()
    return output.decode()


async def test_the_example_of_the_document_works(triton_python: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    digits = onnx_models.model(
        [onnx.helper.make_node("ReduceSum", ["image", "axes"], ["scores"], keepdims=0)],
        [("image", TensorProto.FLOAT, ["batch", 8, 8])],
        [("scores", TensorProto.FLOAT, ["batch", 8])],
        [onnx.numpy_helper.from_array(np.array([2], np.int64), "axes")],
    )
    async with running(tmp_path / "data", *_serving({"digits": digits}, tmp_path)) as (server, _):
        port = (await server.logged("house.open"))["port"]
        program = example.replace("50051", str(port)) + "print(scores.tolist())\n"

        assert await _run(triton_python, "-c", program) == f"{[[0.0] * 8]}\n"


def test_it_finds_a_live_server_and_its_models(seen: dict[str, Any]) -> None:
    around = seen["around"]

    assert (around["live"], around["ready"], around["model_ready"], around["version_ready"]) == (True,) * 4
    assert around["nobody_ready"] is False
    assert around["server"]["name"] == "headrace"
    assert around["metadata"]["versions"] == ["1"]
    assert around["metadata"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "2"]}]
    config = around["config"]["config"]
    assert (config["platform"], config["max_batch_size"]) == ("onnxruntime_onnx", 64)
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["2"]}]
    listed = {entry["name"]: entry["state"] for entry in around["index"]["models"]}
    assert listed == dict.fromkeys(["double", *TYPES], "READY")


def test_it_is_answered_at_once_and_later(seen: dict[str, Any]) -> None:
    models = seen["models"]

    assert models["answer"] == models["later"] == (ROWS * 2).tolist()
    assert models["id"] == "id-1"


def test_every_type_comes_back_bit_for_bit(seen: dict[str, Any]) -> None:
    assert seen["models"]["same"] == dict.fromkeys(TYPES.keys() - {"text"}, True)
    assert seen["models"]["texts"] == [["", "größer"]]


def test_its_requests_are_counted(seen: dict[str, Any]) -> None:
    (counted,) = seen["models"]["statistics"]["model_stats"]

    assert (counted["inference_count"], counted["execution_count"]) == ("4", "2")
    assert counted["inference_stats"]["success"]["count"] == "2"
    assert int(counted["inference_stats"]["compute_infer"]["ns"]) > 0
    assert counted["batch_stats"][0]["batch_size"] == "2"


def test_its_mistakes_are_told_by_code_and_in_words(seen: dict[str, Any]) -> None:
    codes = {name: status.removeprefix("StatusCode.") for name, (status, _) in seen["refused"].items()}

    assert codes == {
        "nobody": "NOT_FOUND",
        "version": "NOT_FOUND",
        "output": "INVALID_ARGUMENT",
        "classes": "INVALID_ARGUMENT",
        "shape": "INVALID_ARGUMENT",
        "datatype": "INVALID_ARGUMENT",
        "sequence": "INVALID_ARGUMENT",
        "shared": "INVALID_ARGUMENT",
        "shared_status": "UNIMPLEMENTED",
        "trace": "UNIMPLEMENTED",
        "log": "UNIMPLEMENTED",
        "override": "INVALID_ARGUMENT",
    }
    assert all(message for _, message in seen["refused"].values())


def test_it_unloads_and_loads_a_model(seen: dict[str, Any]) -> None:
    assert seen["reloaded"] == [False, True]


def test_its_stream_goes_on_after_a_failure(seen: dict[str, Any]) -> None:
    stream = seen["stream"]

    assert stream.pop(3) == ["refused", "'models/nobody' does not exist"]
    assert stream == [[str(n), ((ROWS + n) * 2).tolist(), True] for n in range(10) if n != 3]


def test_the_asynchronous_client_sees_the_same(seen: dict[str, Any]) -> None:
    assert seen["aio"]["live"]
    assert seen["aio"]["answers"] == [((ROWS + n) * 2).tolist() for n in range(32)]
    assert seen["aio"]["stream"] == ["0", "1", "2", "'models/nobody' does not exist", "4"]
