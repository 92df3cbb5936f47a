"""How long a training takes from StartTraining to its first step, when no worker is ready and when one is.

    python tests/benchmarks/bench_first_step.py [--rounds 5]

Each round starts a server on an empty data folder, trains for a step (cold: the worker has everything to load), waits
until a worker waits for a job and has loaded everything, and trains for a step again (warm).  Shows when each phase
began, in seconds after the call.  The data set is 256 images of 8x8.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

import headrace  # noqa: E402
from tests.doubles.server_process import ServerProcess  # noqa: E402

FIRST_STEP = "first step"


async def one_round(data: Path) -> dict[str, float]:
    """Seconds from the call to each phase, cold and warm."""
    server = await ServerProcess.start(data)
    try:
        port = (await server.logged("house.open"))["port"]
        async with headrace.Client(f"127.0.0.1:{port}") as client:
            rows: dict[str, np.ndarray] = {
                "images": np.random.default_rng(1).integers(0, 256, (256, 8, 8)).astype(np.uint8),
                "labels": np.arange(256) % 4,
            }
            await client.upload_dataset("noise", rows)
            found = {f"cold, {phase}": seconds for phase, seconds in (await first_step(client)).items()}
            await worker_is_ready(server)
            return found | {f"warm, {phase}": seconds for phase, seconds in (await first_step(client)).items()}
    finally:
        await server.kill()


async def first_step(client: headrace.Client) -> dict[str, float]:
    """Seconds from asking for a training to each of its phases and to its first reported step; then ends it."""
    began_at = time.perf_counter()
    trainer = headrace.ImageClassificationTrainer()
    run = await client.start_training(dataset="datasets/noise", model="models/noise", trainer=trainer, epochs=1000)
    moments: dict[str, float] = {}
    async for event in run.follow():
        if isinstance(event.content, headrace.PhaseChanged):
            moments.setdefault(event.content.phase, time.perf_counter() - began_at)
        if event.kind == "step_completed" and FIRST_STEP not in moments:
            moments[FIRST_STEP] = time.perf_counter() - began_at
            await run.cancel(kill=True)
    return moments


async def worker_is_ready(server: ServerProcess) -> None:
    """Wait until a worker waits for a job and its trainer, which has loaded everything, does nothing more."""
    agent = psutil.Process(int((await server.logged("launcher.agent_warmed"))["pid"]))
    used = -1.0
    while True:
        trainers = agent.children()
        now = sum(trainers[0].cpu_times()[:2]) if trainers else -2.0
        if now == used and now > 0:
            return
        used = now
        await asyncio.sleep(1.0)


def main() -> None:
    """Print a table: the median and the extremes of each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            found.append(asyncio.run(one_round(Path(folder) / "data")))
    print(f"{rounds} rounds; seconds after StartTraining, median (least-most)")
    for name in found[0]:
        figures = [each[name] for each in found if name in each]
        print(f"{name:28} {statistics.median(figures):7.2f} ({min(figures):.2f}-{max(figures):.2f})")


if __name__ == "__main__":
    main()
