"""What choosing the precision by measurement gains: AUTO beside fp32 and beside the best of the other servers.

    python tests/benchmarks/bench_plans.py [--models minilm,cnn] [--callers 1,8,64] [--seconds 3] [--rounds 3]
                                           [--sides triton,headrace] [--plans]

As bench_peers.py, with a server that tried every way to run the model and chose (precision AUTO).  Its answers must
have a cosine of at least 0.999 to those of ONNX Runtime in fp32, or it counts as not having run.  The first start of
that side measures for minutes a model, with all processors; the verdict stays in build/benchmarks/auto.

With `--plans` only the verdicts: for every plan and size of batch its speed, its error, and why it runs or does not.

Takes about 9 minutes as it stands, once the verdicts are there (`--plans` makes them).  Prints Markdown.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.serving import arguments, headrace, kserve, mlserver, plan_table, tables, torchserve, triton
from tests.benchmarks.serving.rounds import compare
from tests.benchmarks.serving.workloads import Workload, workload

PEERS = (triton.side(1), triton.side(2), torchserve.SIDE, mlserver.SIDE, kserve.SIDE)


def show_plans(chosen: list[Workload]) -> None:
    """The verdict on each model, measured unless it is there."""
    plans = []
    for each in chosen:
        with tempfile.TemporaryDirectory() as folder, headrace.serve_auto(each, Path(folder)) as endpoint:
            plans.append(headrace.best_plan(endpoint.target, each.name))
    print(f"{tables.machine()}\n")
    print(plan_table.table(plans))
    for plan in plans:
        print(f"\n{plan_table.summary(plan)}.")


def main() -> None:
    """Measure and print."""
    parser = arguments.parser(__doc__, seconds=3, rounds=3)
    parser.set_defaults(models=["minilm", "cnn"])
    parser.add_argument("--sides", default="triton,headrace", help="parts of their names (default: %(default)s)")
    parser.add_argument("--plans", action="store_true", help="show what was measured of each plan, and no more")
    asked = parser.parse_args()
    if asked.plans:
        show_plans([workload(name) for name in asked.models])
        return
    sides = arguments.choose((*PEERS, headrace.NATIVE, headrace.AUTO), asked.sides)
    chosen = [workload(name) for name in asked.models]
    results = compare(sides, chosen, asked.callers, asked.rounds, asked.seconds)
    print(f"{tables.machine()}\n{asked.rounds} rounds of {asked.seconds:g} s; medians, extremes in brackets\n")
    print(tables.comparison(results))
    peers = [side.name for side in sides if side in PEERS]
    for others in (peers, [headrace.NATIVE.name]):
        print(f"\n{tables.ratios(results, headrace.AUTO.name, others)}")


if __name__ == "__main__":
    main()
