"""A running training is profiled on demand: the trace comes as an event, and is downloaded whole."""

import asyncio
import gzip
import json
from pathlib import Path

import grpc
import pytest

import headrace
from headrace.training.v1 import training_service_pb2 as pb
from tests.doubles.flowers import learn_flowers, upload_flowers
from tests.doubles.server_process import ServerProcess, end_processes_of


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_running_training_is_profiled_and_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    server = await ServerProcess.start(data)
    try:
        async with await server.opened() as callers:
            await upload_flowers(callers)
            await callers.training.StartTraining(learn_flowers("j", epochs=100_000))
            async with headrace.Client(f"127.0.0.1:{(await server.logged('house.open'))['port']}") as client:
                run = await client.training_run("j")
                async for event in run.follow():
                    if event.kind == "step_completed":
                        break

                recorded = await run.profile(3)
                file = await run.download_profile(recorded, tmp_path / "trace.json.gz")

                assert recorded.num_steps == 3
                assert "traceEvents" in json.loads(gzip.decompress(await asyncio.to_thread(file.read_bytes)))
                with pytest.raises(headrace.InvalidSpec):
                    await run.download_profile(headrace.ProfileRecorded(uri="datasets/d"), tmp_path / "other")
                await run.cancel(kill=True)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await callers.training.ProfileTraining(pb.ProfileTrainingRequest(name="trainingJobs/j"))
            assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    finally:
        await server.kill()
        end_processes_of(data)
