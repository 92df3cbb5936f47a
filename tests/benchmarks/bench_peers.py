"""Headrace beside NVIDIA Triton, TorchServe, MLServer and KServe: same models, same ONNX Runtime, same load.

    python tests/benchmarks/bench_peers.py [--models mlp,minilm,cnn] [--callers 1,8,64] [--seconds 3] [--rounds 3]
                                           [--sides triton,headrace]

A closed loop of unary calls from a generator in C++ (tests/benchmarks/load), which is measured, too.  All servers get
the same bytes of the Open Inference Protocol, one row a call; TorchServe gets the same tensors over its own interface.
ONNX Runtime has one thread a session everywhere; each server has the settings that its module has
(tests/benchmarks/serving/).  In every round each server is started, its answers are compared with ONNX Runtime's, it is
loaded and ended, so that only one runs at a time.  A measurement during which other programs had more than a tenth
of a core is repeated once, and marked when that did not help.

With the limits of the same machine: bare echoes in gRPC C++ and grpc.aio with the requests of the small model, and ONNX
Runtime called in a process, without a server.

Takes about 20 minutes as it stands (45 s more a side, model and round that is disturbed all the time); the first run
before that some minutes for the environments of the others, which are made below build/.  Prints Markdown; every single
measurement goes to standard error as JSON.
"""

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.serving import arguments, headrace, kserve, limits, mlserver, tables, torchserve, triton
from tests.benchmarks.serving.quiet import MAX_OTHERS_CORES, Others
from tests.benchmarks.serving.rounds import Results, compare
from tests.benchmarks.serving.workloads import Workload, workload

PEERS = (triton.side(1), triton.side(2), torchserve.SIDE, mlserver.SIDE, kserve.SIDE)
ECHOES = (limits.CPP_ECHO, limits.AIO_ECHO)


def without_server(chosen: list[Workload], callers: list[int], rounds: int, seconds: float) -> str:
    """ONNX Runtime in a process: a table."""
    lines = []
    for each in chosen:
        for count in callers:
            before = Others.now()
            with tempfile.TemporaryDirectory() as folder:
                runs = [limits.in_process(each, count, seconds, Path(folder)) for _ in range(rounds)]
            remark = "disturbed, no result" if Others.now().cores_since(before) > MAX_OTHERS_CORES else ""
            rates = tables.spread([run.rows_per_second for run in runs])
            p50 = tables.spread([run.p50_ms for run in runs], 2)
            how = statistics.mode(str(run) for run in runs)
            lines.append((each.name, count, how, rates, p50, remark))
    return tables.rows(("model", "callers", "ONNX Runtime in a process", "rows/s", "p50 of a run, ms", ""), lines)


def main() -> None:
    """Measure and print."""
    parser = arguments.parser(__doc__, seconds=3, rounds=3)
    parser.add_argument("--sides", help="parts of their names, with commas between; default: all")
    asked = parser.parse_args()
    sides = arguments.choose((*PEERS, headrace.NATIVE, *ECHOES), asked.sides)
    chosen = [workload(name) for name in asked.models]
    servers = [side for side in sides if side not in ECHOES]
    echoes = [side for side in sides if side in ECHOES]

    results = compare(servers, chosen, asked.callers, asked.rounds, asked.seconds)
    bare = compare(echoes, [workload("mlp")] if echoes else [], asked.callers, asked.rounds, asked.seconds)
    everything = Results({**results.rounds, **bare.rounds}, {**results.failures, **bare.failures})
    print(f"{tables.machine()}\n{asked.rounds} rounds of {asked.seconds:g} s; medians, extremes in brackets\n")
    print(tables.comparison(everything))
    print(f"\n{tables.ratios(results, headrace.NATIVE.name, [side.name for side in PEERS])}\n")
    if asked.sides is None:
        print(without_server(chosen, asked.callers, asked.rounds, asked.seconds))


if __name__ == "__main__":
    main()
