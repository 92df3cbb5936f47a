"""What the size of a message costs: p50 and p99 of unary calls of 1 KB to 10 MB, both ways, with one caller.

    python tests/benchmarks/bench_payload.py [--callers 1] [--seconds 2] [--rounds 3]

A model that gives back what it gets, so that the answer is as large as the request; the native door beside grpc.aio on
the public port, and bare echoes of both kinds of server for the limit.  Sides alternate as in bench_peers.py.  Takes
about 7 minutes as it stands.  Prints Markdown.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from onnx import TensorProto

from tests.benchmarks.serving import arguments, headrace, limits, tables
from tests.benchmarks.serving.places import BUILD
from tests.benchmarks.serving.rounds import compare
from tests.benchmarks.serving.workloads import Workload
from tests.doubles import onnx_models

SIZES = {"1kb": 1_000, "10kb": 10_000, "100kb": 100_000, "1mb": 1_000_000, "10mb": 10_000_000}


def payload(name: str, num_bytes: int) -> Workload:
    """One row of that many bytes, and the model that gives it back."""
    folder = BUILD / "models" / f"payload-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    width = num_bytes // 4
    model = onnx_models.identity(TensorProto.FLOAT, ("batch", width))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    row = np.random.default_rng(0).normal(size=(1, width)).astype("<f4")
    return Workload(f"payload-{name}", folder, "y", [{"x": row}], [row])


def main() -> None:
    """Measure and print."""
    parser = arguments.parser(__doc__, seconds=2, rounds=3)
    parser.set_defaults(callers=[1])
    asked = parser.parse_args()
    workloads = [payload(name, num_bytes) for name, num_bytes in SIZES.items()]
    sides = (headrace.NATIVE, headrace.GRPC_AIO, limits.CPP_ECHO, limits.AIO_ECHO)
    results = compare(sides, workloads, asked.callers, asked.rounds, asked.seconds)
    print(f"{tables.machine()}\n{asked.rounds} rounds of {asked.seconds:g} s; medians, extremes in brackets\n")
    print(tables.comparison(results))
    print(f"\n{tables.ratios(results, headrace.NATIVE.name, [headrace.GRPC_AIO.name])}")


if __name__ == "__main__":
    main()
