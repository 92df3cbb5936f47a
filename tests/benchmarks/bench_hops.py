"""Where the time of a small call goes: what the server itself notes of each step, and what threads are woken for it.

    python tests/benchmarks/bench_hops.py [--callers 1,8,64] [--seconds 2] [--rounds 3]

`mlp` under a closed loop, beside a bare echo in gRPC C++ under the same load.  The steps are the sums of
ModelStatistics over the answered calls: a call counts those of its whole batch.  What is left of p50 is gRPC on both
sides, and the way.  A switch is a thread of the server that went to sleep and was woken: all of them, and those that
had to be taken from a processor, for each answer.  The last table is a batch in Python alone, without a server.

Takes about a minute as it stands.  Prints Markdown.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from headrace_server import _native
from headrace_server.inference.backends.onnxruntime import OnnxRuntimeBackend
from headrace_server.inference.batch import BatchLimits
from headrace_server.inference.batcher import Batcher
from headrace_server.models.onnx_signature import read_signature
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as pb
from tests.benchmarks.serving import arguments, headrace, tables
from tests.benchmarks.serving.limits import CPP_ECHO
from tests.benchmarks.serving.rounds import Measured, under_load
from tests.benchmarks.serving.servers import Endpoint, check
from tests.benchmarks.serving.workloads import workload

STATISTICS = "/inference.GRPCInferenceService/ModelStatistics"
MODEL = "mlp"
BATCHES = 5000


@dataclass(frozen=True, slots=True)
class Noted:
    """What a server has noted so far: seconds and counts since it started."""

    answers: int
    runs: int
    queue: float
    assemble: float
    compute: float
    respond: float
    woken: int
    taken_off: int

    @classmethod
    def of(cls, endpoint: Endpoint) -> "Noted":
        """As of now."""
        with grpc.insecure_channel(endpoint.target) as channel:
            call: Callable[..., bytes] = channel.unary_unary(STATISTICS)
            content = call(pb.ModelStatisticsRequest(name=MODEL).SerializeToString(), timeout=10)
        found = pb.ModelStatisticsResponse.FromString(content).model_stats[0]
        sums = found.inference_stats
        steps = (sums.queue, sums.compute_input, sums.compute_infer, sums.compute_output)
        queue, assemble, compute, respond = (step.ns / 1e9 for step in steps)
        woken, taken_off = switches(endpoint.pid)
        return cls(sums.success.count, found.execution_count, queue, assemble, compute, respond, woken, taken_off)


def switches(pid: int) -> tuple[int, int]:
    """How often threads of a process went to sleep, and how often they were taken off."""
    went, taken = 0, 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                went += int(line.split()[1])
            elif line.startswith("nonvoluntary_ctxt_switches"):
                taken += int(line.split()[1])
    return went, taken


def steps(before: Noted, after: Noted, loaded: Measured) -> list[float]:
    """A row of the table: rows a batch; microseconds a call; switches an answer."""
    answers = max(after.answers - before.answers, 1)

    def micros(step: str) -> float:
        return float((getattr(after, step) - getattr(before, step)) / answers * 1e6)

    own = [micros(step) for step in ("queue", "assemble", "compute", "respond")]
    return [
        loaded.answers_per_second,
        loaded.p50_ms * 1e3,
        answers / max(after.runs - before.runs, 1),
        *own,
        loaded.p50_ms * 1e3 - sum(own),
        loaded.server_us,
        (after.woken - before.woken) / answers,
        (after.taken_off - before.taken_off) / answers,
    ]


def measure(
    callers: list[int], rounds: int, seconds: float
) -> tuple[dict[int, list[list[float]]], dict[int, list[Measured]]]:
    """Rows by callers; and the echo's."""
    ours: dict[int, list[list[float]]] = {count: [] for count in callers}
    echoes: dict[int, list[Measured]] = {count: [] for count in callers}
    CPP_ECHO.prepare()
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, headrace.NATIVE.start(workload(MODEL), Path(folder)) as endpoint:
            check(endpoint, workload(MODEL))
            for count in callers:
                under_load(endpoint, count, 0.5)
                before = Noted.of(endpoint)
                loaded = under_load(endpoint, count, seconds, attempts=1)
                ours[count].append(steps(before, Noted.of(endpoint), loaded))
        with tempfile.TemporaryDirectory() as folder, CPP_ECHO.start(workload(MODEL), Path(folder)) as endpoint:
            for count in callers:
                echoes[count].append(under_load(endpoint, count, seconds))
    return ours, echoes


def in_python(rows: int) -> tuple[float, float]:
    """Microseconds of a run alone, and of a batch around it: made, run, and given back, of calls from C++ or not."""
    chosen = workload(MODEL)
    signature = read_signature(chosen.onnx, may_have_companions=False)
    given = {name: np.repeat(array[:1], rows, axis=0) for name, array in chosen.requests[0].items()}

    async def batches() -> tuple[float, float]:
        session = OnnxRuntimeBackend(1).open(chosen.onnx, signature)
        batcher = Batcher(
            "models/m/versions/1",
            [spec.name for spec in signature.inputs],
            BatchLimits(64, 1 << 28, 4096, 1 << 28),
            is_batchable=True,
            loop=asyncio.get_running_loop(),
            output_names=[spec.name for spec in signature.outputs],
        )
        nbytes = sum(array.nbytes for array in given.values())

        def whole() -> None:
            batcher.submit(given, nbytes)
            batch = batcher.take()
            assert isinstance(batch, _native.Batch)
            batcher.settle(batch, session.run(batch.inputs), 0.00001)

        alone, around = timed(lambda: session.run(given)), timed(whole)
        await asyncio.sleep(0)
        batcher.close(RuntimeError)
        return alone, around

    return asyncio.run(batches())


def timed(act: Callable[[], object]) -> float:
    """Microseconds, the least of five."""
    found = []
    for _ in range(5):
        began_at = time.perf_counter()
        for _ in range(BATCHES):
            act()
        found.append((time.perf_counter() - began_at) / BATCHES * 1e6)
    return min(found)


def main() -> None:
    """Measure and print."""
    asked = arguments.parser(__doc__, seconds=2, rounds=3).parse_args()
    ours, echoes = measure(asked.callers, asked.rounds, asked.seconds)
    print(f"{tables.machine()}\n{asked.rounds} rounds of {asked.seconds:g} s; medians; microseconds a call\n")
    header = ("callers", "answers/s", "p50", "rows a batch", "queue", "assemble", "compute", "respond", "the rest")
    more = ("processor, server", "switches an answer", "of them taken off", "echo: p50", "echo: processor")
    lines = []
    for count in asked.callers:
        middle = [statistics.median(column) for column in zip(*ours[count], strict=True)]
        echo = (statistics.median(each.p50_ms * 1e3 for each in echoes[count]),)
        spent = (statistics.median(each.server_us for each in echoes[count]),)
        lines.append((count, *(f"{figure:,.1f}" for figure in (*middle, *echo, *spent))))
    print(tables.rows((*header, *more), lines))
    alone = [(rows, *in_python(rows)) for rows in (1, 4, 16)]
    print(
        "\n"
        + tables.rows(("rows", "a run, us", "a batch with it, us"), [(a, f"{b:.1f}", f"{c:.1f}") for a, b, c in alone])
    )


if __name__ == "__main__":
    main()
