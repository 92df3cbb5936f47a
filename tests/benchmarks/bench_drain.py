"""Calls that fail because a server is told to end under full load: there must be none.

    python tests/benchmarks/bench_drain.py [--rounds 5] [--seconds 3]

64 callers in a closed loop keep `mlp` busy; SIGTERM comes in the middle.  Two cases:

alone      One server.  A call counts as failed when the server had it and did not answer it.  Not failed, but counted
           apart: a call that was refused with SERVER_DRAINING, which says that it was not begun and may be made
           elsewhere, and a call that was never sent because nobody listened any more.  (A call that meets a
           connection which is being closed, before it was sent, is sent again by gRPC itself and is not seen here.)
replicas   Two servers, calls in turn to those that say they are healthy, and a client that repeats what ended
           UNAVAILABLE: both are gRPC's own, and asked for in its service configuration.  SIGTERM goes to one of the
           servers.  Every error that a caller sees counts as failed.

Takes about 1.5 minutes as it stands.  Prints Markdown.
"""

import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

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
    print(tables.machine())
    print(tables.rows(("case", "round", "calls", "answered", "refused as draining", "never sent", "failed"), lines))
    print(f"\n{num_failed} calls failed" + "".join(f"\n{kind}: {text}" for kind, text in messages.items()))


if __name__ == "__main__":
    main()
