"""Whether memory stays flat under ten minutes of everything: resident memory of the server, sampled, and its slope.

    python tests/benchmarks/bench_soak.py [--seconds 600] [--rate 1000]

Meanwhile, all at once: unary calls at random moments from the generator in C++; streams of predictions; requests that
are truncated, of the wrong shape, for models that nobody knows; clients that cancel, vanish in the middle of a call or
of a stream, or send half of a connection's first bytes; and the other version of the model is loaded, given the alias
`default`, and the old one unloaded, every two seconds.  No unary call and no stream may fail; bad requests must, and
each kind is counted by its code.

The slope is that of a line through the samples after the first quarter of the time (least squares).  Takes `--seconds`
and half a minute.  Prints Markdown.
"""

import argparse
import asyncio
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import grpc
import numpy as np
import psutil

import headrace
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as pb
from tests.benchmarks.serving import headrace as servers, tables
from tests.benchmarks.serving.load import Found, Load
from tests.benchmarks.serving.servers import Endpoint, check
from tests.benchmarks.serving.workloads import workload

MLP = workload("mlp")
SETTLE_SECONDS = 10
"""For the server to see that everybody has gone."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass(slots=True)
class Soak:
    """The server under it, and what has happened so far."""

    endpoint: Endpoint
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)
    resident: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the beginning, and MiB."""

    @property
    def content(self) -> bytes:
        """A good request."""
        return self.endpoint.bodies[0].read_bytes()

    async def sample(self) -> None:
        """Note the memory, every two seconds until the end."""
        begin = asyncio.get_running_loop().time()
        while (now := asyncio.get_running_loop().time() - begin) < self.seconds:
            self.resident.append((now, self.endpoint.usage().resident_bytes / (1 << 20)))
            await asyncio.sleep(2)

    async def stream(self) -> None:
        """A stream of 200 predictions; all must be answered."""
        async with headrace.Client(self.endpoint.target) as client:
            rows = [MLP.requests[number % len(MLP.requests)]["x"] for number in range(200)]
            async for answer in client.predict_stream("mlp", rows):
                self.counts["answers on streams" if answer.error is None else f"stream: {answer.error!r}"] += 1

    async def send_bad_requests(self) -> None:
        """One of each kind."""
        wrong_shape = pb.ModelInferRequest.FromString(self.content)
        wrong_shape.inputs[0].shape[1] = 65
        unknown = pb.ModelInferRequest.FromString(self.content)
        unknown.model_name = "nobody"
        bad = {
            "truncated": self.content[: len(self.content) // 2],
            "wrong shape": wrong_shape.SerializeToString(),
            "unknown model": unknown.SerializeToString(),
            "noise": bytes(np.random.default_rng().integers(0, 256, 300).astype(np.uint8)),
        }
        async with grpc.aio.insecure_channel(self.endpoint.target) as channel:
            call: Any = channel.unary_unary(self.endpoint.method)
            for kind, content in bad.items():
                try:
                    await call(content, timeout=10)
                    self.counts[f"{kind}: OK, which is wrong"] += 1
                except grpc.aio.AioRpcError as error:
                    self.counts[f"{kind}: {error.code().name}"] += 1

    async def vanish(self) -> None:
        """A call that is cancelled, a stream that is left half-way, and connections that say too little."""
        async with grpc.aio.insecure_channel(self.endpoint.target) as channel:
            call: Any = channel.unary_unary(self.endpoint.method)
            asked = call(self.content, timeout=10)
            await asyncio.sleep(0.001)
            asked.cancel()
            converse: Any = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            stream = converse(timeout=10)
            for _ in range(5):
                await stream.write(self.content)
        for first in (b"", PREFACE, PREFACE + b"\0\0\x20\x04", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00"):
            host, _, port = self.endpoint.target.rpartition(":")
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(first)
        self.counts["clients that vanished"] += 1

    async def reload(self) -> None:
        """Give the other version the traffic, and take the memory of the one that had it."""
        async with headrace.Client(self.endpoint.target) as client:
            turn = self.counts["reloads"] % 2
            await client.load_model(f"models/mlp/versions/{2 - turn}")
            await client.assign_alias("mlp", "default", 2 - turn)
            await client.unload_model(f"models/mlp/versions/{1 + turn}")
        self.counts["reloads"] += 1

    async def again_and_again(self, act: Callable[[], Coroutine[Any, Any, None]], pause: float) -> None:
        """Until the end; what an act raises is counted."""
        until = asyncio.get_running_loop().time() + self.seconds
        while asyncio.get_running_loop().time() < until:
            try:
                await act()
            except Exception as error:  # noqa: BLE001 -- a soak counts what goes wrong, and goes on
                self.counts[f"{act.__name__} failed: {type(error).__name__}: {error}"[:200]] += 1
            await asyncio.sleep(pause)

    async def run(self, load: Load) -> Found:
        """Everything at once."""
        async with headrace.Client(self.endpoint.target) as client:
            await client.upload_model("mlp", MLP.onnx)
            await client.assign_alias("mlp", "default", 1)
        async with asyncio.TaskGroup() as tasks:
            unary = tasks.create_task(asyncio.to_thread(load.run))
            tasks.create_task(self.sample())
            for act, pause in (
                (self.stream, 0.2),
                (self.send_bad_requests, 0.1),
                (self.vanish, 0.1),
                (self.reload, 2.0),
            ):
                tasks.create_task(self.again_and_again(act, pause))
        return unary.result()


def slope(samples: list[tuple[float, float]]) -> float:
    """MiB a minute, after the first quarter."""
    late = samples[len(samples) // 4 :]
    x, y = (np.array(column) for column in zip(*late, strict=True))
    return float(np.polyfit(x, y, 1)[0] * 60)


def main() -> None:
    """Soak and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=1000, help="unary calls a second (default: %(default)g)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, servers.NATIVE.start(MLP, Path(folder)) as endpoint:
        check(endpoint, MLP)
        soak = Soak(endpoint, asked.seconds)
        load = Load(
            target=endpoint.target,
            method=endpoint.method,
            bodies=endpoint.bodies,
            connections=4,
            rate=asked.rate,
            seconds=asked.seconds,
        )
        server = psutil.Process(endpoint.pid)
        files = server.num_fds()
        found = asyncio.run(soak.run(load))
        time.sleep(SETTLE_SECONDS)
        print(f"{tables.machine()}\n{asked.seconds:g} s\n")
        quarter = soak.resident[len(soak.resident) // 4][1]
        print(f"resident memory: {soak.resident[0][1]:.0f} MiB at the beginning, {quarter:.0f} after a quarter,")
        print(f"{soak.resident[-1][1]:.0f} at the end, {max(mib for _, mib in soak.resident):.0f} at most;")
        print(f"slope after the first quarter {slope(soak.resident):+.2f} MiB a minute")
        print(f"open files: {files} before, {server.num_fds()} after, {SETTLE_SECONDS} s after the last call\n")
    counts = {"unary answers": found.total.answers}
    counts |= {f"unary: {kind}": count for kind, count in found.total.errors.items()} | dict(soak.counts)
    print(tables.rows(("what", "how many"), [(what, f"{count:,}") for what, count in counts.items()]))
    print(f"\np50 {found.latency.p50:.2f} ms, p99 {found.latency.p99:.2f} ms of the unary calls")


if __name__ == "__main__":
    main()
