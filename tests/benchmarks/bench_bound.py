"""What no server can pass with `minilm` on this machine: its plans, and their matrix products alone, beside Triton.

    python tests/benchmarks/bench_bound.py [--rounds 3] [--seconds 1.5]

In each round take turns: Triton with two instances under 64 callers; every plan that is at hand, in this process, from
arrays to arrays, without a server; and nothing but the matrix products of the network, in each number format, with the
weights laid out as the library likes them best.  Plans run batches of eight rows, two runs of one thread and one run of
two; the better arrangement counts.  What a plan needs was made by bench_plans.py (`--plans`, build/benchmarks/auto); a
plan that is not at hand is left out, and named.

Takes a minute as it stands.  Prints Markdown.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[2]))

from headrace_server.inference.plans.opening import PlanFiles, open_plan
from headrace_server.inference.plans.plan import Form, Plan, Runtime
from headrace_server.models.onnx_signature import read_signature
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Precision
from tests.benchmarks.serving import tables, triton
from tests.benchmarks.serving.places import BUILD
from tests.benchmarks.serving.quiet import Others
from tests.benchmarks.serving.rounds import under_load
from tests.benchmarks.serving.servers import check
from tests.benchmarks.serving.workloads import NUM_TOKENS, workload

ROWS = 8
CALLERS = 64
LAYERS, WIDE, INNER = 6, 384, 1536
PRODUCTS = (*4 * ((WIDE, WIDE),), (WIDE, INNER), (INNER, WIDE))
"""Of one layer: queries, keys, values, what they become, and the two of the network behind them."""
ARRANGEMENTS = ((2, 1), (1, 2))
"""Runs at the same time, threads of each."""
Run = Callable[[], object]


def plans() -> list[Plan]:
    """Those that might be the fastest, whatever they get wrong."""
    onnx_, torch_ = Runtime.ONNXRUNTIME, Runtime.TORCH
    return [
        Plan(runtime=onnx_, precision=Precision.FP32),
        Plan(runtime=torch_, precision=Precision.BF16, form=Form.COMPILED),
        Plan(runtime=torch_, precision=Precision.INT8, form=Form.COMPILED),
        Plan(runtime=onnx_, precision=Precision.INT8, form=Form.DYNAMIC),
        Plan(runtime=onnx_, precision=Precision.INT8, form=Form.STATIC),
    ]


def runs_of_plans(num_runs: int, threads: int) -> Iterator[tuple[str, Run]]:
    """Each plan as it is at hand."""
    each = workload("minilm")
    signature = read_signature(each.onnx, may_have_companions=False)
    feeds = {name: np.repeat(array, ROWS, axis=0) for name, array in each.requests[0].items()}
    sources = {ArtifactFormat.ONNX: each.onnx, ArtifactFormat.TORCH_EXPORT: each.folder / "program.pt2"}
    for plan in plans():
        prepared = None
        if plan.prepared_file is not None:
            prepared = next((BUILD / "auto" / "minilm").rglob(plan.prepared_file), None)
            if prepared is None:
                print(f"{plan.name} is not at hand", file=sys.stderr)
                continue
        files = PlanFiles(sources[plan.source], prepared)
        session = open_plan(plan, files, signature, num_threads=threads, num_runs=num_runs)
        yield plan.name, lambda session=session: session.run(feeds)  # type: ignore[misc]


def products_in_onnx(data_type: Precision, threads: int) -> Run:
    """All matrix products of the network, one after another, in ONNX Runtime."""
    random = np.random.default_rng(0)
    is_short = data_type is Precision.INT8
    nodes, weights, outputs = [], [], []
    for number in range(LAYERS * len(PRODUCTS)):
        given, made = PRODUCTS[number % len(PRODUCTS)]
        weight = random.normal(size=(given, made)).astype(np.float32)
        weights.append(
            numpy_helper.from_array((weight * 40).clip(-127, 127).astype(np.int8) if is_short else weight, f"w{number}")
        )
        nodes.append(
            helper.make_node("MatMulInteger" if is_short else "MatMul", [f"x{given}", f"w{number}"], [f"y{number}"])
        )
        outputs.append(
            helper.make_tensor_value_info(f"y{number}", TensorProto.INT32 if is_short else TensorProto.FLOAT, None)
        )
    element = TensorProto.UINT8 if is_short else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info(f"x{size}", element, ["rows", size]) for size in (WIDE, INNER)]
    graph = helper.make_graph(nodes, "products", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {
        f"x{size}": random.integers(0, 255, (ROWS * NUM_TOKENS, size)).astype(np.uint8 if is_short else np.float32)
        for size in (WIDE, INNER)
    }
    return lambda: session.run(None, feeds)


def products_in_torch(threads: int) -> Run:
    """All matrix products of the network in BF16, with oneDNN's own layout of weights."""
    import torch

    from headrace_server.inference.backends.torch_threads import use_threads

    rows = ROWS * NUM_TOKENS
    inputs = {size: torch.randn(rows, size, dtype=torch.bfloat16) for size in (WIDE, INNER)}
    pack, product = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
    weights: list[tuple[int, Any]] = [
        (given, pack(torch.randn(made, given, dtype=torch.bfloat16), rows))
        for _ in range(LAYERS)
        for given, made in PRODUCTS
    ]

    def run() -> None:
        use_threads(threads)
        with torch.inference_mode():
            for given, weight in weights:
                product(inputs[given], weight, None, "none", [], "")

    return run


def sides(num_runs: int, threads: int) -> dict[str, Run]:
    """Everything that runs in this process, with so many threads."""
    return {
        **dict(runs_of_plans(num_runs, threads)),
        "products alone, FP32": products_in_onnx(Precision.FP32, threads),
        "products alone, BF16": products_in_torch(threads),
        "products alone, INT8": products_in_onnx(Precision.INT8, threads),
    }


def rate(run: Run, num_runs: int, seconds: float) -> float:
    """Rows a second of so many threads that do nothing else."""

    def work(_: int) -> float:
        run()
        count, began_at = 0, time.perf_counter()
        while (taken := time.perf_counter() - began_at) < seconds:
            run()
            count += 1
        return count * ROWS / taken

    with ThreadPoolExecutor(num_runs) as workers:
        return sum(workers.map(work, range(num_runs)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5)
    asked = parser.parse_args()
    each, peer = workload("minilm"), triton.side(2)
    peer.prepare()
    arranged = {arrangement: sides(*arrangement) for arrangement in ARRANGEMENTS}
    found: dict[str, list[float]] = {}
    others = Others.now()
    with tempfile.TemporaryDirectory() as folder, peer.start(each, Path(folder)) as endpoint:
        check(endpoint, each)
        for _ in range(asked.rounds):
            served = under_load(endpoint, CALLERS, asked.seconds)
            found.setdefault(peer.name, []).append(served.answers_per_second)
            for name in arranged[ARRANGEMENTS[0]]:
                rates = [rate(runs[name], number, asked.seconds / 2) for (number, _), runs in arranged.items()]
                found.setdefault(name, []).append(max(rates))
        cores = Others.now().cores_since(others)  # while Triton is there: afterwards it would be one of them
    print(f"{tables.machine()}\n{asked.rounds} rounds; other programs had {cores:.2f} cores\n")
    base = found[peer.name]
    lines = [
        (name, tables.spread(rates), tables.spread([one / two for one, two in zip(rates, base, strict=True)], 2))
        for name, rates in found.items()
    ]
    print(tables.rows(("what runs", "rows/s", f"to {peer.name} with {CALLERS} callers"), lines))


if __name__ == "__main__":
    main()
