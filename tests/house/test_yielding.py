"""A training that gives way to predictions waits while there are any, says for how long, and ends all the same."""

import asyncio
from pathlib import Path

import grpc
import pytest

from headrace.inference.v1 import inference_service_pb2 as inference_pb
from headrace.training.v1 import (
    training_event_pb2 as event_pb,
    training_job_pb2 as job_pb,
    training_service_pb2 as pb,
    training_spec_pb2 as spec_pb,
)
from headrace.type.v1 import tensor_pb2
from tests.doubles.flowers import learn_flowers, upload_flowers
from tests.doubles.server_process import Callers, end_processes_of, running
from tests.doubles.watcher import Watcher, is_step


def has_waited(event: event_pb.TrainingEvent) -> bool:
    return event.step_completed.step_time["yield"].ToNanoseconds() > 0


async def predict_without_end(callers: Callers) -> None:
    rows = 2000
    column = tensor_pb2.Tensor(
        data_type=tensor_pb2.DATA_TYPE_FP32, shape=[rows], floats=tensor_pb2.FloatValues(values=[1.0] * rows)
    )
    while True:
        await callers.inference.Predict(
            inference_pb.PredictRequest(model="models/flowers", inputs={"length": column, "width": column})
        )


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_training_waits_for_predictions_and_says_so(tmp_path: Path) -> None:
    data = tmp_path / "data"
    watcher = Watcher("polite")
    try:
        async with running(data) as (_, callers):
            await upload_flowers(callers)
            await callers.training.StartTraining(learn_flowers("first", epochs=1))
            first = Watcher("first")
            assert await first.watch(callers) is grpc.StatusCode.OK

            polite = spec_pb.Resources(placement=spec_pb.Placement(mode=spec_pb.Placement.MODE_YIELD, min_share=0.5))
            await callers.training.StartTraining(learn_flowers("polite", epochs=400, resources=polite))
            watching = asyncio.ensure_future(watcher.watch(callers))
            await watcher.saw(is_step)  # it has begun while it had the machine for itself
            predicting = [asyncio.ensure_future(predict_without_end(callers)) for _ in range(4)]
            await watcher.saw(has_waited)
            for each in predicting:
                each.cancel()
            await asyncio.gather(*predicting, return_exceptions=True)

            assert await asyncio.wait_for(watching, 300) is grpc.StatusCode.OK
            job = (await callers.training.GetTrainingJob(pb.GetTrainingJobRequest(name="trainingJobs/polite"))).job
            assert job.state == job_pb.TrainingJob.STATE_SUCCEEDED
    finally:
        end_processes_of(data)
