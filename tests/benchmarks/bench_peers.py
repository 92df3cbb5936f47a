"""Answers a second and latency of Headrace beside MLServer: same model, same requests, same ONNX Runtime call.

    python tests/benchmarks/bench_peers.py [--seconds 5] [--rounds 3]

A 64-256-256-10 network behind ModelInfer of the Open Inference Protocol, one row a call as raw bytes, one thread in
ONNX Runtime on both sides, in a closed loop of 1, 8 and 64 callers.  MLServer runs in its one process
(`parallel_workers` 0), from an environment that the first run makes in `build/peers`.  The callers, in this process,
send bytes that were encoded once and do not decode the answers, except to check the first.  Sides are measured in turn.
"""

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as pb  # noqa: E402
from tests.benchmarks.bench_predict import measure, process  # noqa: E402
from tests.doubles import onnx_models  # noqa: E402

PEERS = ("mlserver==1.7.1", "onnxruntime==1.31.1")
METHOD = "/inference.GRPCInferenceService/ModelInfer"
RUNTIME = """
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

class Mlp(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession("mlp.onnx", options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0])
        (y,) = self._session.run(None, {"x": x})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
"""


def mlserver_program() -> Path:
    """The program `mlserver`, installed into an environment of its own if that is not there yet."""
    environment = REPOSITORY / "build" / "peers"
    program = environment / "bin" / "mlserver"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin" / "pip", "install", "--quiet", *PEERS], check=True)
    return program


@contextmanager
def mlserver(program: Path, folder: Path) -> Iterator[tuple[int, str]]:
    """MLServer with the network; its process and its address."""
    http, rpc, metrics = (_free_port() for _ in range(3))
    settings = {"http_port": http, "grpc_port": rpc, "metrics_port": metrics, "parallel_workers": 0, "debug": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps({"name": "mlp", "implementation": "runtime.Mlp"}))
    (folder / "runtime.py").write_text(RUNTIME)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([program, "start", "."], cwd=folder, stdout=log, stderr=log)
    try:
        yield server.pid, f"127.0.0.1:{rpc}"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def headrace(folder: Path) -> Iterator[tuple[int, str]]:
    """Headrace with the network; its process and its address."""
    arguments = ("--data", f"{folder}/data", "--port", "0", "--model", f"mlp={folder}/mlp.onnx")
    quiet = ("--set", "telemetry.metrics_port=-1")
    with process("-m", "headrace_server", "serve", *arguments, *quiet, ready="house.open") as (server, line):
        yield server.pid, f"127.0.0.1:{json.loads(line)['port']}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def request() -> tuple[bytes, np.ndarray]:
    """One row, encoded, and the row itself."""
    x = np.random.default_rng(0).normal(size=(1, 64)).astype("<f4")
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 64])
    message = pb.ModelInferRequest(model_name="mlp", inputs=[tensor], raw_input_contents=[x.tobytes()])
    return message.SerializeToString(), x


async def wait_until_it_answers(channel: grpc.aio.Channel, content: bytes) -> np.ndarray:
    """The first answer's numbers.  Raises AssertionError after a minute without one."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            infer: Any = channel.unary_unary(METHOD)
            answer = pb.ModelInferResponse.FromString(await infer(content, timeout=5))
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.2)
            continue
        if answer.raw_output_contents:
            return np.frombuffer(answer.raw_output_contents[0], "<f4")
        return np.array(answer.outputs[0].contents.fp32_contents, "<f4")
    raise AssertionError("a server did not answer within a minute")


async def run(program: Path, seconds: float, rounds: int) -> None:
    """Measure both sides in turn and print a table."""
    content, _ = request()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "mlp.onnx").write_bytes(onnx_models.mlp().SerializeToString())
        servers = {
            "MLServer": stack.enter_context(mlserver(program, folder)),
            "Headrace": stack.enter_context(headrace(folder)),
        }
        channels = {side: grpc.aio.insecure_channel(address) for side, (_, address) in servers.items()}
        answers = [await wait_until_it_answers(channel, content) for channel in channels.values()]
        np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5, atol=1e-6)
        found: dict[tuple[int, str], list[tuple[float, ...]]] = {}
        for _ in range(rounds):
            for num_callers in (1, 8, 64):
                for side, (pid, _) in servers.items():
                    infer: Any = channels[side].unary_unary(METHOD)
                    figures = await measure(pid, partial(infer, content), num_callers, seconds)
                    found.setdefault((num_callers, side), []).append(figures)
        for channel in channels.values():
            await channel.close()
    print(f"{rounds} rounds of {seconds:g} s; medians")
    print("| callers | side | answers/s | p50, ms | p99, ms | server's processor, us an answer |")
    print("|---|---|---|---|---|---|")
    for (num_callers, side), rows in found.items():
        rate, p50, p99, cost = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {num_callers} | {side} | {rate:,.0f} | {p50:.2f} | {p99:.2f} | {cost:.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(run(mlserver_program(), arguments.seconds, arguments.rounds))
