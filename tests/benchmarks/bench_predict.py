"""What a Predict costs through the whole server, next to a bare gRPC echo: answers a second, latency, processor time.

    python tests/benchmarks/bench_predict.py [--seconds 5] [--rounds 3]

Each server is a process of its own; the callers share this one.  The two sides are measured in turn.  The processor
time of the server per answer depends least on what else the machine does.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from headrace.inference.v1 import inference_service_pb2 as pb  # noqa: E402
from headrace.inference.v1.inference_service_pb2_grpc import InferenceServiceStub  # noqa: E402
from headrace.type.v1 import tensor_pb2  # noqa: E402
from tests.doubles import onnx_models  # noqa: E402

ECHO = """
import asyncio, grpc
async def echo(request, context):
    return request
async def main():
    server = grpc.aio.server()
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bare", handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()
asyncio.run(main())
"""


@contextmanager
def process(*command: str, ready: str) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    """A server that says on a line with `ready` in it which port it has."""
    server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    try:
        yield server, next(line for line in server.stdout if ready in line)
    finally:
        server.terminate()
        server.wait()


async def load(call: Callable[[], Awaitable[object]], num_callers: int, seconds: float) -> list[float]:
    """The latencies of a closed loop."""
    latencies: list[float] = []
    until = time.perf_counter() + seconds

    async def caller() -> None:
        while (began_at := time.perf_counter()) < until:
            await call()
            latencies.append(time.perf_counter() - began_at)

    await asyncio.gather(*(caller() for _ in range(num_callers)))
    return latencies


async def measure(
    pid: int, call: Callable[[], Awaitable[object]], num_callers: int, seconds: float
) -> tuple[float, ...]:
    """Answers a second, p50 and p99 in milliseconds, microseconds of the server's processor time an answer."""
    await load(call, num_callers, 0.5)
    before = sum(psutil.Process(pid).cpu_times()[:2])
    latencies = sorted(await load(call, num_callers, seconds))
    spent = sum(psutil.Process(pid).cpu_times()[:2]) - before
    count = len(latencies)
    return count / seconds, latencies[count // 2] * 1e3, latencies[int(count * 0.99)] * 1e3, spent / count * 1e6


async def run(seconds: float, rounds: int) -> None:
    """Measure both sides in turn and print a table."""
    x = np.random.default_rng(0).normal(size=(1, 64)).astype("<f4")
    tensor = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=x.shape, data=x.tobytes())
    request = pb.PredictRequest(model="models/mlp", inputs={"x": tensor})
    content = request.SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlp.onnx"
        file.write_bytes(onnx_models.mlp().SerializeToString())
        serve = ("-m", "headrace_server", "serve", "--data", f"{folder}/data", "--port", "0", "--model", f"mlp={file}")
        with (
            process("-c", ECHO, ready="") as (bare, bare_line),
            process(*serve, "--set", "telemetry.metrics_port=-1", ready="house.open") as (full, full_line),
        ):
            bare_channel = grpc.aio.insecure_channel(f"127.0.0.1:{bare_line.strip()}")
            full_channel = grpc.aio.insecure_channel(f"127.0.0.1:{json.loads(full_line)['port']}")
            echo: Any = bare_channel.unary_unary("/bench.Bare/Echo")
            stub: Any = InferenceServiceStub(full_channel)
            sides = {
                "echo": (bare.pid, lambda: echo(content)),
                "Predict": (full.pid, lambda: stub.Predict(request)),
            }
            found: dict[tuple[str, int], list[tuple[float, ...]]] = {}
            for _ in range(rounds):
                for num_callers in (1, 64):
                    for side, (pid, call) in sides.items():
                        found.setdefault((side, num_callers), []).append(await measure(pid, call, num_callers, seconds))
            print("| side | callers | answers/s | p50, ms | p99, ms | server's processor, us an answer |")
            print("|---|---|---|---|---|---|")
            for (side, num_callers), figures in found.items():
                rate, p50, p99, cost = (statistics.median(column) for column in zip(*figures, strict=True))
                print(f"| {side} | {num_callers} | {rate:,.0f} | {p50:.2f} | {p99:.2f} | {cost:.0f} |")
            await bare_channel.close()
            await full_channel.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.seconds, arguments.rounds))
