"""The native door beside grpc.aio on the public port: the same server, batcher, models and load, only the door differs.

    python tests/benchmarks/bench_door.py [--models mlp,minilm,cnn] [--callers 1,8,64] [--seconds 3] [--rounds 3]

A closed loop from the generator in C++; see bench_peers.py for how sides alternate and what counts as disturbed.  Takes
about 6 minutes as it stands.  Prints Markdown.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.serving import arguments, headrace, tables
from tests.benchmarks.serving.rounds import compare
from tests.benchmarks.serving.workloads import workload


def main() -> None:
    """Measure and print."""
    asked = arguments.parser(__doc__, seconds=3, rounds=3).parse_args()
    chosen = [workload(name) for name in asked.models]
    results = compare((headrace.NATIVE, headrace.GRPC_AIO), chosen, asked.callers, asked.rounds, asked.seconds)
    print(f"{tables.machine()}\n{asked.rounds} rounds of {asked.seconds:g} s; medians, extremes in brackets\n")
    print(tables.comparison(results))
    print(f"\n{tables.ratios(results, headrace.NATIVE.name, [headrace.GRPC_AIO.name])}")


if __name__ == "__main__":
    main()
