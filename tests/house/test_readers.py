"""Two hundred people watch one job; some of them keep losing their connection."""

import asyncio
import random
from pathlib import Path

import grpc
import pytest

from headrace.training.v1 import training_job_pb2 as job_pb
from tests.doubles.flowers import learn_flowers, upload_flowers
from tests.doubles.server_process import Callers, end_processes_of, running
from tests.doubles.watcher import Watcher

NUM_READERS = 200
NUM_RESTLESS = 20
NUM_CHANNELS = 8


async def read_restlessly(watcher: Watcher, callers: Callers, chance: random.Random) -> None:
    """Read to the end, hanging up and coming back every now and then."""
    while not watcher.is_over:
        reading = asyncio.ensure_future(watcher.watch(callers))
        await asyncio.wait((reading,), timeout=chance.uniform(0.05, 0.5))
        reading.cancel()
        await asyncio.wait((reading,))


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_every_reader_sees_the_whole_history_once_and_in_order(tmp_path: Path) -> None:
    data, chance = tmp_path / "data", random.Random(7)
    try:
        async with running(data) as (server, callers):
            port = (await server.logged("house.open"))["port"]
            await upload_flowers(callers)
            await callers.training.StartTraining(learn_flowers("j", epochs=40))
            channels = [Callers(f"127.0.0.1:{port}") for _ in range(NUM_CHANNELS)]
            watchers = [Watcher("j") for _ in range(NUM_READERS)]
            reads = [
                asyncio.ensure_future(
                    read_restlessly(watcher, channels[index % NUM_CHANNELS], chance)
                    if index < NUM_RESTLESS
                    else watcher.watch(channels[index % NUM_CHANNELS])
                )
                for index, watcher in enumerate(watchers)
            ]
            endings = await asyncio.gather(*reads)
            for channel in channels:
                await channel.channel.close()

            assert set(endings[NUM_RESTLESS:]) == {grpc.StatusCode.OK}
            last = watchers[-1].events[-1]
            assert last.state_changed.to == job_pb.TrainingJob.STATE_SUCCEEDED, last
            whole = list(range(1, last.sequence + 1))
            assert [index for index, watcher in enumerate(watchers) if watcher.sequences != whole] == []
            assert sum(watcher.num_connections for watcher in watchers[:NUM_RESTLESS]) > 5 * NUM_RESTLESS
            assert not any(line["level"] == "error" for line in server.lines), server.report()
    finally:
        end_processes_of(data)
