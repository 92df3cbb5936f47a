"""Calls that fail because a server is told to end under full load: there must be none.

    python tests/benchmarks/bench_drain.py [--rounds 5] [--seconds 3]

64 callers in a closed loop keep `mlp` busy; SIGTERM comes in the middle.  Three cases:

alone      One server.  A call counts as failed when the server had it and did not answer it.  Not failed, but counted
           apart: a call that was refused with SERVER_DRAINING, which says that it was not begun and may be made
           elsewhere, and a call that was never sent because nobody listened any more.  (A call that meets a
           connection which is being closed, before it was sent, is sent again by gRPC itself and is not seen here.)
replicas   Two servers, calls in turn to those that say they are healthy, and a client that repeats what ended
           UNAVAILABLE: both are gRPC's own, and asked for in its service configuration.  SIGTERM goes to one of the
           servers.  Every error that a caller sees counts as failed.
streams    One server, and 64 streams of predictions, each of which sends its next request when the last is answered.  A
           request that the server had not read when it stopped reading is refused with the stream, SERVER_DRAINING;
           whatever else leaves one without its answer counts as failed.

Takes about 2 minutes as it stands.  Prints Markdown.
"""

import os
import queue
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import grpc
from google.rpc import error_details_pb2, status_pb2

from headrace.inference.v1 import inference_service_pb2 as pb
from headrace.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from headrace.type.v1 import tensor_pb2
from tests.benchmarks.serving import arguments, headrace, tables
from tests.benchmarks.serving.load import Load, Total
from tests.benchmarks.serving.servers import Endpoint, check
from tests.benchmarks.serving.workloads import workload

REFUSED = "UNAVAILABLE/SERVER_DRAINING"
NEVER_SENT = "UNAVAILABLE/(not connected)"
BALANCE_AND_RETRY = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


def told_to_end(num_servers: int, seconds: float) -> Total:
    """What became of all calls of a run in which the first server was told to end."""
    with ExitStack() as stack:
        endpoints: list[Endpoint] = []
        for _ in range(num_servers):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            endpoint = stack.enter_context(headrace.NATIVE.start(workload("mlp"), folder))
            check(endpoint, workload("mlp"))
            endpoints.append(endpoint)
        load = Load(
            target="ipv4:" + ",".join(endpoint.target for endpoint in endpoints),
            method=endpoints[0].method,
            bodies=endpoints[0].bodies,
            callers=64,
            connections=8,
            seconds=seconds,
            pause_seconds=0.02,
            service_config=BALANCE_AND_RETRY if num_servers > 1 else None,
        )
        under_way = load.start()
        time.sleep(load.warm_up_seconds + seconds / 2)
        os.kill(endpoints[0].pid, signal.SIGTERM)
        return under_way.found().total


def streams_told_to_end(seconds: float, num_streams: int = 64) -> Counter[str]:
    """What became of all requests of the streams to a server that was told to end."""
    mlp = workload("mlp")
    with tempfile.TemporaryDirectory() as folder, headrace.NATIVE.start(mlp, Path(folder)) as endpoint:
        check(endpoint, mlp)
        return _converse(endpoint, seconds, num_streams)


def _converse(endpoint: Endpoint, seconds: float, num_streams: int) -> Counter[str]:
    row = workload("mlp").requests[0]["x"]
    tensor = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=row.shape, data=row.tobytes())
    request = pb.PredictRequest(model="models/mlp", inputs={"x": tensor})
    # gRPC's blocking client: that of asyncio calls every write after a stream's end INTERNAL, whatever its end was.
    with ThreadPoolExecutor(num_streams) as callers:
        ended = [callers.submit(_hold_streams, endpoint.target, request) for _ in range(num_streams)]
        time.sleep(seconds / 2)
        os.kill(endpoint.pid, signal.SIGTERM)
        return sum((each.result() for each in ended), Counter())


def _hold_streams(target: str, request: pb.PredictRequest) -> Counter[str]:
    """One stream after another, until nobody listens any more."""
    counts: Counter[str] = Counter()
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = InferenceServiceStub(channel)
        while True:
            to_send: queue.SimpleQueue[pb.PredictStreamRequest | None] = queue.SimpleQueue()
            stream = stub.PredictStream(iter(to_send.get, None))
            num_asked = num_answered = 0
            try:
                while True:
                    to_send.put(pb.PredictStreamRequest(id=str(num_asked), request=request))
                    num_asked += 1
                    answer = next(stream)
                    num_answered += 1
                    counts["answered" if not answer.HasField("error") else f"error {answer.error.code}"] += 1
            except (grpc.RpcError, StopIteration):
                pass  # the code says why
            to_send.put(None)
            how = _how_it_ended(stream)
            if how == NEVER_SENT and num_answered > 0:
                how = "cut off in the middle"
            counts[how] += num_asked - num_answered
            if how != REFUSED:
                return counts
            time.sleep(0.02)


def _how_it_ended(stream: Any) -> str:
    content = dict(stream.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    details = status_pb2.Status.FromString(content).details
    info = error_details_pb2.ErrorInfo()
    if details and details[0].Unpack(info):
        return f"{stream.code().name}/{info.reason}"
    # A connection that is being closed, or is not there any more: gRPC has not sent the stream.
    return NEVER_SENT if stream.code() is grpc.StatusCode.UNAVAILABLE else f"{stream.code().name}: {stream.details()}"


def main() -> None:
    """Measure and print."""
    asked = arguments.parser(__doc__, seconds=3, rounds=5).parse_args()
    lines: list[tuple[object, ...]] = []
    num_failed, messages = 0, dict[str, str]()
    for case, num_servers in (("alone", 1), ("replicas", 2)):
        for number in range(asked.rounds):
            total = told_to_end(num_servers, asked.seconds)
            errors = dict(total.errors)
            refused, never_sent = (errors.pop(kind, 0) if num_servers == 1 else 0 for kind in (REFUSED, NEVER_SENT))
            failed = sum(errors.values())
            num_failed += failed
            messages |= {kind: total.first_messages[kind] for kind in errors}
            lines.append((case, number + 1, f"{total.started:,}", f"{total.answers:,}", refused, never_sent, failed))
    for number in range(asked.rounds):
        counts = streams_told_to_end(asked.seconds)
        total_asked, answered = counts.total(), counts.pop("answered", 0)
        refused, never_sent = counts.pop(REFUSED, 0), counts.pop(NEVER_SENT, 0)
        num_failed += counts.total()
        messages |= {kind: f"{count} on streams" for kind, count in counts.items()}
        lines.append(("streams", number + 1, f"{total_asked:,}", f"{answered:,}", refused, never_sent, counts.total()))
    print(tables.machine())
    print(tables.rows(("case", "round", "calls", "answered", "refused as draining", "never sent", "failed"), lines))
    print(f"\n{num_failed} calls failed" + "".join(f"\n{kind}: {text}" for kind, text in messages.items()))


if __name__ == "__main__":
    main()
