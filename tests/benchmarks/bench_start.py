"""How long a server takes from the start of its process until it is ready, and until its first correct prediction.

    python tests/benchmarks/bench_start.py [--model mlp] [--rounds 5] [--auto]

Each round starts `headrace-server serve --model NAME=…` on an empty data folder, so that the first prediction includes
registering, loading and warming up, and again on the same folder.  The first start also shows the resident memory then,
and how long the first step of a training takes from StartTraining.  With `--auto` also with precision AUTO: on an empty
folder, where a safe way to run the model answers while better ones are tried, and on one in which the best way was
chosen and compiled before (build/benchmarks/auto; bench_plans.py makes it): then also until that way runs.

Takes about a minute as it stands.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

import headrace
from headrace.models.v1.plan_pb2 import Plan
from tests.benchmarks.serving import tables
from tests.benchmarks.serving.headrace import is_close
from tests.benchmarks.serving.places import BUILD
from tests.benchmarks.serving.quiet import Others
from tests.benchmarks.serving.workloads import NAMES, Workload, with_rows, workload
from tests.doubles.server_process import ServerProcess


async def start_once(
    data: Path, each: Workload, *settings: str, trains: bool = False, is_chosen: bool = False
) -> dict[str, float]:
    """One start: seconds until each moment, and resident MiB.

    `is_chosen`: how it is best run is known from before, so that it will soon be run so.
    """
    path = with_rows(each) if settings else each.onnx
    arguments = [part for setting in settings for part in ("--set", setting)]
    began_at = time.perf_counter()
    server = await ServerProcess.start(data, "--model", f"{each.name}={path}", *arguments)
    try:
        port = (await server.logged("house.open"))["port"]
        found = {"ready, s": time.perf_counter() - began_at}
        async with headrace.Client(f"127.0.0.1:{port}") as client:
            prediction = await client.predict(f"models/{each.name}", dict(each.requests[0]))
            assert is_close(prediction.output.ravel(), each.answers[0].ravel())
            found["first correct prediction, s"] = time.perf_counter() - began_at
            if is_chosen:
                while (await client.get_plan(each.name)).state != Plan.STATE_CHOSEN:  # noqa: ASYNC110 - nothing rings
                    await asyncio.sleep(0.05)
                found["the chosen plan runs, s"] = time.perf_counter() - began_at
            found["resident, MiB"] = psutil.Process(server.pid).memory_info().rss / (1 << 20)
            if trains:
                found["StartTraining to first step, s"] = await first_step(client)
        return found
    finally:
        await server.kill()


async def first_step(client: headrace.Client) -> float:
    """Seconds from asking for a training to its first reported step."""
    rng = np.random.default_rng(1)
    rows: dict[str, np.ndarray] = {
        "images": rng.integers(0, 256, (256, 8, 8)).astype(np.uint8),
        "labels": np.arange(256) % 4,
    }
    await client.upload_dataset("noise", rows)
    began_at = time.perf_counter()
    trainer = headrace.ImageClassificationTrainer()
    run = await client.start_training(dataset="datasets/noise", model="models/noise", trainer=trainer, epochs=1000)
    async for event in run.follow():
        if event.kind == "step_completed":
            took = time.perf_counter() - began_at
            await run.cancel(kill=True)
            return took
    raise AssertionError("the training ended without a step")


async def start_in_each_way(each: Workload, folder: Path, *, auto: bool) -> dict[str, float]:
    """One round, by case and moment."""
    cases = {
        "empty folder": await start_once(folder / "data", each, trains=True),
        "known folder": await start_once(folder / "data", each),
    }
    if auto:
        setting = "inference.default_precision=auto"
        cases["AUTO, empty folder"] = await start_once(folder / "auto", each, setting)
        cases["AUTO, compiled before"] = await start_once(BUILD / "auto" / each.name, each, setting, is_chosen=True)
    return {f"{case}: {moment}": figure for case, found in cases.items() for moment, figure in found.items()}


def main() -> None:
    """Print a table: the median and the extremes of each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=NAMES, default="mlp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--auto", action="store_true", help="also with the precision that was chosen by measurement")
    asked = parser.parse_args()
    each, before = workload(asked.model), Others.now()
    found: list[dict[str, float]] = []
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            found.append(asyncio.run(start_in_each_way(each, Path(folder), auto=asked.auto)))
    cores = Others.now().cores_since(before)
    print(f"{tables.machine()}\n{asked.model}, {asked.rounds} rounds; other programs had {cores:.2f} cores\n")
    lines = [(name, tables.spread([one[name] for one in found], 2)) for name in found[0]]
    print(tables.rows(("figure", "median (extremes)"), lines))


if __name__ == "__main__":
    main()
