"""Models and training jobs of one real server share the memory of a machine that has not enough for both."""

import asyncio
from pathlib import Path

import grpc
import onnx
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from headrace.inference.v1 import inference_service_pb2 as inference_pb
from headrace.models.v1 import model_service_pb2 as models_pb
from headrace.training.v1 import (
    training_event_pb2 as event_pb,
    training_job_pb2 as job_pb,
    training_service_pb2 as pb,
)
from headrace.type.v1 import tensor_pb2
from headrace_server.memory import RESERVE_BYTES
from headrace_server.training.memory_room import RANK_BYTES
from tests.doubles.flowers import learn_flowers, upload_flowers
from tests.doubles.onnx_models import lookup
from tests.doubles.refusal import info_of, quota_of
from tests.doubles.server_process import Callers, end_processes_of, running
from tests.doubles.small_machine import taken_bytes
from tests.doubles.watcher import Watcher, is_now

MIB = 1 << 20
SMALL_MACHINE = "tests.doubles.small_machine"
LARGE = "models/large"
LARGE_BYTES = 256 * MIB
MISSING_BYTES = 100 * MIB
"""What a job lacks while the model is there."""


def waits_for_memory(event: event_pb.TrainingEvent) -> bool:
    return event.warning_raised.code == "WAITING_FOR_MEMORY"


async def pin(callers: Callers, *, is_pinned: bool) -> None:
    request = models_pb.UpdateModelRequest(update_mask=FieldMask(paths=["serving.is_pinned"]))
    request.model.name = LARGE
    request.model.serving.is_pinned = is_pinned
    await callers.models.UpdateModel(request)


async def is_loaded(callers: Callers) -> bool:
    status = await callers.inference.GetModelStatus(inference_pb.GetModelStatusRequest(model=LARGE))
    return status.readiness == inference_pb.GetModelStatusResponse.READINESS_READY


async def ask(callers: Callers) -> bytes:
    ids = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_INT64, shape=[1], ints=tensor_pb2.IntValues(values=[3]))
    answer = await callers.inference.Predict(inference_pb.PredictRequest(model=LARGE, inputs={"x": ids}), timeout=60)
    return answer.outputs["y"].data


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_job_waits_at_its_turn_until_a_model_leaves_then_runs_and_the_model_comes_back(tmp_path: Path) -> None:
    data, limit, file = tmp_path / "data", tmp_path / "limit", tmp_path / "large.onnx"
    onnx.save(lookup(LARGE_BYTES // 4), file)
    limit.write_text(str(8 << 30))
    watcher = Watcher("patient")
    try:
        async with running(data, "--model", f"large={file}", program=(SMALL_MACHINE, str(limit))) as (server, callers):
            await upload_flowers(callers)
            before = await ask(callers)
            await pin(callers, is_pinned=True)
            least = taken_bytes(server.pid) + RANK_BYTES + RESERVE_BYTES
            limit.write_text(str(least - MISSING_BYTES))

            job = (await callers.training.StartTraining(learn_flowers("patient"))).job
            watching = asyncio.ensure_future(watcher.watch(callers))
            warning = (await watcher.saw(waits_for_memory)).warning_raised
            waiting = (await callers.training.GetTrainingJob(pb.GetTrainingJobRequest(name=job.name))).job
            stayed = await is_loaded(callers)
            await pin(callers, is_pinned=False)
            await watcher.saw(is_now(job_pb.TrainingJob.STATE_RUNNING))
            left = not await is_loaded(callers)
            limit.write_text(str(8 << 30))  # what it takes beside the least is its own affair

            assert await asyncio.wait_for(watching, 250) is grpc.StatusCode.OK
            assert waiting.state == job_pb.TrainingJob.STATE_QUEUED
            assert waiting.state_message == warning.message
            assert "bytes are missing" in warning.message
            assert (stayed, left) == (True, True)
            ended = (await callers.training.GetTrainingJob(pb.GetTrainingJobRequest(name=job.name))).job
            assert ended.state == job_pb.TrainingJob.STATE_SUCCEEDED
            assert sum(waits_for_memory(event) for event in watcher.events) == 1
            assert await ask(callers) == before
    finally:
        end_processes_of(data)


async def test_a_job_that_the_machine_can_never_hold_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    limit = tmp_path / "limit"
    limit.write_text(str(RANK_BYTES))
    async with running(tmp_path / "data", program=(SMALL_MACHINE, str(limit))) as (_, callers):
        await upload_flowers(callers)

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await callers.training.StartTraining(learn_flowers("hopeless"))

        (violation,) = quota_of(refused.value).violations
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert info_of(refused.value).reason == "DEVICE_OUT_OF_MEMORY"
        assert violation.subject
        assert "bytes" in violation.description
        jobs = (await callers.training.ListTrainingJobs(pb.ListTrainingJobsRequest())).jobs
        assert not jobs
