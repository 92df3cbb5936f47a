"""What it costs when the native door passes a prediction on: the same model answered natively, with the response cache
on, and as the only member of an ensemble.

    python tests/benchmarks/bench_passed.py [--models mlp] [--callers 1,8,64] [--seconds 2] [--rounds 3]

A closed loop from the generator in C++; see bench_peers.py for how sides alternate and what counts as disturbed.
Takes about three minutes as it stands.  Prints Markdown.
"""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from headrace import BlockingClient, mean
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as pb
from tests.benchmarks.serving import arguments, headrace, tables
from tests.benchmarks.serving.rounds import compare
from tests.benchmarks.serving.servers import Endpoint, Side
from tests.benchmarks.serving.workloads import Workload, workload

TOGETHER = "together"
TOO_SMALL_FOR_ANY_ANSWER = "inference.cache_entry_bytes=1"


@contextmanager
def cached(workload: Workload, folder: Path, *settings: str) -> Iterator[Endpoint]:
    """The response cache is on for the model."""
    with headrace.serve(workload, folder, headrace.NATIVE_DOOR, *settings) as endpoint:
        with BlockingClient(endpoint.target) as client:
            client.update_model(workload.name, cache=True)
        yield endpoint


@contextmanager
def together(workload: Workload, folder: Path) -> Iterator[Endpoint]:
    """The model is asked as the only member of an ensemble."""
    with headrace.serve(workload, folder, headrace.NATIVE_DOOR) as endpoint:
        with BlockingClient(endpoint.target) as client:
            client.register_ensemble(TOGETHER, mean({"one": workload.name}))
        yield dataclasses.replace(endpoint, bodies=tuple(_renamed(body) for body in endpoint.bodies))


def _renamed(body: Path) -> Path:
    request = pb.ModelInferRequest.FromString(body.read_bytes())
    request.model_name = TOGETHER
    path = body.with_name(f"{body.name}-{TOGETHER}")
    path.write_bytes(request.SerializeToString())
    return path


NATIVE = "answered by the door"
SIDES = (
    dataclasses.replace(headrace.NATIVE, name=NATIVE),
    Side("passed on, kept answer", cached),
    Side(
        "passed on, computed",
        lambda workload, folder: cached(workload, folder, TOO_SMALL_FOR_ANY_ANSWER),
    ),
    Side("passed on, ensemble of one", together),
)


def main() -> None:
    """Measure and print."""
    parser = arguments.parser(__doc__, seconds=2, rounds=3)
    parser.set_defaults(models=["mlp"])
    asked = parser.parse_args()
    chosen = [workload(name) for name in asked.models]
    results = compare(SIDES, chosen, asked.callers, asked.rounds, asked.seconds)
    print(f"{tables.machine()}\n{asked.rounds} rounds of {asked.seconds:g} s; medians, extremes in brackets\n")
    print(tables.comparison(results))
    for side in SIDES[1:]:
        print(f"\n{tables.ratios(results, NATIVE, [side.name])}")


if __name__ == "__main__":
    main()
