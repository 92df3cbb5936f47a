"""How long a server takes from the start of its process until it is ready, and until its first correct prediction.

    python tests/benchmarks/bench_start.py [--rounds 5]

Each round starts `headrace-server serve --model mlp=mlp.onnx` on an empty data folder, so the first prediction includes
registering, loading and warming up.  Also shows the resident memory then, and how long a warm first step of a training
takes from StartTraining.
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
from tests.doubles import onnx_models  # noqa: E402
from tests.doubles.server_process import ServerProcess  # noqa: E402


async def start_once(folder: Path) -> dict[str, float]:
    """One round: seconds until each moment, and resident MiB."""
    file = folder / "mlp.onnx"
    file.write_bytes(onnx_models.mlp().SerializeToString())
    x = np.zeros((1, 64), np.float32)
    began_at = time.perf_counter()
    server = await ServerProcess.start(folder / "data", "--model", f"mlp={file}")
    try:
        port = (await server.logged("house.open"))["port"]
        found = {"ready, s": time.perf_counter() - began_at}
        async with headrace.Client(f"127.0.0.1:{port}") as client:
            prediction = await client.predict("models/mlp", x)
            assert prediction.output.shape == (1, 10)
            found["first prediction, s"] = time.perf_counter() - began_at
            found["resident, MiB"] = psutil.Process(server.pid).memory_info().rss / (1 << 20)
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


def main() -> None:
    """Print a table: the median and the extremes of each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            found.append(asyncio.run(start_once(Path(folder))))
    print(f"{rounds} rounds")
    for name in found[0]:
        figures = [each[name] for each in found]
        print(f"{name:32} {statistics.median(figures):7.2f} ({min(figures):.2f}-{max(figures):.2f})")


if __name__ == "__main__":
    main()
