"""Trains a shape as a job of a real server, while readers follow it.

The server, the agent, the publishing of checkpoints and all readers are processes beside the trainer, as they always
are; the figures are those of the trainer's process alone, taken by itself.
"""

import asyncio
import json
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import headrace
from tests.benchmarks.training.clock import Clock
from tests.benchmarks.training.recipe import Shape
from tests.benchmarks.training.task import num_warm_up
from tests.doubles.server_process import ServerProcess, end_processes_of

ROOT = Path(__file__).parents[3]
JOB_SECONDS = 240.0

T = TypeVar("T")


class Served:
    """A server with the shapes as a plug-in.  It keeps no worker ready, so it is calm while others are measured."""

    def __init__(self, folder: Path, num_readers: int) -> None:
        self._folder, self.num_readers = folder, num_readers
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._num_jobs = 0
        self._server = self._run(self._start())

    def train(self, shape: Shape, num_steps: int, checkpoint_seconds: float) -> Clock:
        """Seconds of a step of a job that all readers follow."""
        return self._run(self._train(shape, num_steps, checkpoint_seconds))

    def close(self) -> None:
        """End the server, and whatever it started."""
        self._run(self._server.kill())
        end_processes_of(self._folder)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> ServerProcess:
        site = self._folder / "site" / "shapes-1.dist-info"
        site.mkdir(parents=True)
        (site / "METADATA").write_text("Metadata-Version: 2.1\nName: shapes\nVersion: 1\n")
        (site / "entry_points.txt").write_text("[headrace.trainers]\nshape = tests.benchmarks.training.task:SHAPE\n")
        environment = {"PYTHONPATH": f"{site.parent}:{ROOT}"}
        data = self._folder / "data"
        server = await ServerProcess.start(data, "--set", "training.warm_workers=0", environment=environment)
        self._port = (await server.logged("house.open"))["port"]
        async with headrace.Client(f"127.0.0.1:{self._port}") as client:
            nothing: dict[str, np.ndarray] = {"rows": np.zeros((8, 1), np.float32)}
            await client.upload_dataset("nothing", nothing)
        return server

    async def _train(self, shape: Shape, num_steps: int, checkpoint_seconds: float) -> Clock:
        self._num_jobs += 1
        path = self._folder / f"clock-{self._num_jobs}.json"
        async with headrace.Client(f"127.0.0.1:{self._port}") as client:
            run = await client.start_training(
                dataset="nothing",
                model="nothing",
                trainer=headrace.plugin("shape", shape=shape.name, num_steps=num_steps, clock=str(path)),
                steps=num_warm_up(num_steps) + num_steps + 1_000,
                batch_size=shape.batch_size,
                optimizer=headrace.AdamW(learning_rate=0.001),
                schedule=headrace.ConstantSchedule(),
                evaluation=headrace.Evaluation(every_epochs=1_000_000),
                checkpoint_period=timedelta(seconds=checkpoint_seconds),
                cpu_threads=1,
                seed=1,
            )
            readers = [asyncio.ensure_future(_read(self._port, run.name)) for _ in range(self.num_readers)]
            try:
                async with asyncio.timeout(JOB_SECONDS):
                    while not path.exists():
                        assert not any(reader.done() for reader in readers), "the job, or a reader, ended too early"
                        await asyncio.sleep(0.05)
            finally:
                await run.cancel(kill=True)
                counts = await asyncio.gather(*readers)
        assert min(counts) > 1, "a reader saw nothing"
        return Clock(**json.loads(path.read_text()))


@contextmanager
def served(num_readers: int) -> Iterator[Served]:
    """A server for a while."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = Served(Path(folder), num_readers)
        try:
            yield server
        finally:
            server.close()


async def _read(port: int, name: str) -> int:
    """Follow a job to its end, on a connection of its own; how many steps it was told of."""
    count = 0
    async with headrace.Client(f"127.0.0.1:{port}") as client:
        async for event in (await client.training_run(name)).follow():
            count += event.kind == "step_completed"
    return count
