"""What the engine costs beside the model: predictions a second and p50, against bare ONNX Runtime calls.

    .venv/bin/python tests/benchmarks/bench_engine.py [seconds]

In one process, closed loop, one row a call, a 64-256-256-10 network with one intra-op thread.  "bare" calls the session
one row at a time from one thread: what a caller would get without any server, without batches.
"""

import asyncio
import logging
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime
import structlog

from headrace_server.database.database import Database
from headrace_server.inference.engine import Engine
from headrace_server.models.registry import Registry
from headrace_server.names import ModelName
from headrace_server.settings import InferenceSettings, ModelSettings
from headrace_server.storage.local import LocalBlobStore
from headrace_server.telemetry.metrics import Metrics

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.doubles.onnx_models import mlp

CALLERS = (1, 8, 64)
ROUNDS = 3


def bare(path: Path, seconds: float) -> list[float]:
    """Seconds of each call."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    row = {"x": np.ones((1, 64), np.float32)}
    taken, end = [], time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        session.run(["y"], row)
        taken.append(time.perf_counter() - now)
    return taken


async def served(engine: Engine, callers: int, seconds: float) -> tuple[list[float], list[int]]:
    """Seconds of each call, and the calls in its batch."""
    name = ModelName("mlp")
    taken: list[float] = []
    batches: list[int] = []
    end = time.perf_counter() + seconds

    async def call() -> None:
        row = {"x": np.ones((1, 64), np.float32)}
        while (now := time.perf_counter()) < end:
            prediction = await engine.predict(name, row)
            taken.append(time.perf_counter() - now)
            batches.append(prediction.timing.batch_calls)

    await asyncio.gather(*(call() for _ in range(callers)))
    return taken, batches


async def main(seconds: float) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlp.onnx"
        onnx.save(mlp(), path)
        database = await Database.open(f"sqlite+aiosqlite:///{folder}/headrace.db")
        store = LocalBlobStore(Path(folder) / "store")
        await store.open()
        registry = Registry(database, store, ModelSettings(), Path(folder))
        await registry.serve_path("mlp", path)
        engine = Engine(registry, store, InferenceSettings(), Metrics(), Path(folder))
        await engine.load(ModelName("mlp"))

        rates: dict[str, list[float]] = {}
        medians: dict[str, list[float]] = {}
        sizes: dict[str, float] = {"bare": 1}
        for _ in range(ROUNDS):
            results = {"bare": (bare(path, seconds), [1])}
            for callers in CALLERS:
                results[f"{callers} callers"] = await served(engine, callers, seconds)
            for what, (taken, batches) in results.items():
                rates.setdefault(what, []).append(len(taken) / seconds)
                medians.setdefault(what, []).append(median(taken) * 1e6)
                sizes[what] = sum(batches) / len(batches)
        print(f"{'':12} {'/s':>8} {'(spread)':>18} {'p50 us':>8} {'calls a batch':>14}")
        for what, found in rates.items():
            spread = f"({min(found):,.0f}-{max(found):,.0f})"
            print(f"{what:12} {median(found):8,.0f} {spread:>18} {median(medians[what]):8.0f} {sizes[what]:14.1f}")
        await engine.close()
        await database.close()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 3))
