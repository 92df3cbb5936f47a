"""A store that goes away in the middle of a real training: for a while, and for good."""

import asyncio
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from headrace.training.v1 import (
    training_event_pb2 as event_pb,
    training_job_pb2 as job_pb,
    training_service_pb2 as pb,
    training_spec_pb2 as spec_pb,
)
from headrace_server.launchers.processes import is_alive
from tests.doubles.flowers import learn_flowers, upload_flowers
from tests.doubles.server_process import end_processes_of, running
from tests.doubles.until import until
from tests.doubles.watcher import Watcher, is_checkpoint, is_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

State = job_pb.TrainingJob.State
OFTEN = spec_pb.CheckpointPolicy(period=Duration(seconds=1))


def is_warned(event: event_pb.TrainingEvent) -> bool:
    return event.HasField("warning_raised") and event.warning_raised.code == "STORE_REFUSES"


async def test_a_training_outlives_a_store_that_is_away_for_a_while(tmp_path: Path) -> None:
    data = tmp_path / "data"
    store, elsewhere = data / "store", data / "store.away"
    watcher = Watcher("j")
    try:
        async with running(data) as (_server, callers):
            await upload_flowers(callers)
            await callers.training.StartTraining(learn_flowers("j", epochs=400, checkpoints=OFTEN))
            watching = asyncio.ensure_future(watcher.watch(callers))
            await watcher.saw(is_checkpoint)

            store.rename(elsewhere)
            warned = await watcher.saw(is_warned)
            # The training itself goes on meanwhile.
            await watcher.saw(is_step, warned.sequence)
            elsewhere.rename(store)

            await watcher.saw(is_checkpoint, warned.sequence)
            assert await asyncio.wait_for(watching, 300) is grpc.StatusCode.OK
            job = (await callers.training.GetTrainingJob(pb.GetTrainingJobRequest(name="trainingJobs/j"))).job
            assert job.state == State.STATE_SUCCEEDED, job
            assert job.restarts == 0
            assert job.model_version == "models/flowers/versions/1"
    finally:
        end_processes_of(data)


async def test_a_training_ends_with_the_evidence_when_the_store_stays_away_and_leaves_no_process(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    watcher = Watcher("j")
    try:
        async with running(data, "--set", "training.store_patience_seconds=2") as (server, callers):
            await upload_flowers(callers)
            await callers.training.StartTraining(learn_flowers("j", epochs=100_000, checkpoints=OFTEN))
            watching = asyncio.ensure_future(watcher.watch(callers))
            await watcher.saw(is_checkpoint)
            processes = server.processes_of_jobs()
            assert len(processes) >= 2

            (data / "store").rename(data / "store.away")

            assert await asyncio.wait_for(watching, 250) is grpc.StatusCode.OK
            job = (await callers.training.GetTrainingJob(pb.GetTrainingJobRequest(name="trainingJobs/j"))).job
            assert job.state == State.STATE_FAILED, job
            assert job.failure.code == grpc.StatusCode.UNAVAILABLE.value[0]
            info = error_details_pb2.ErrorInfo()
            assert job.failure.details[0].Unpack(info)
            assert info.reason == "STORE_LOST"
            assert info.metadata["error"] == "StoreLost"
            assert "checkpoint of step" in job.failure.message
            await until(lambda: not any(is_alive(process) for process in processes))

            # What was stored before is there when the store is back.
            (data / "store.away").rename(data / "store")
            assert job.latest_checkpoint.uri
            assert (data / "store" / "objects" / job.latest_checkpoint.uri).exists()
    finally:
        end_processes_of(data)
