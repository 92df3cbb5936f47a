"""Callers over a bound are told so, in a form that programs can read, whichever door holds the port."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from headrace.ending import Ending
from headrace.inference.v1 import inference_service_pb2 as predict_pb
from headrace.training.v1 import training_service_pb2 as pb
from headrace_server import _native
from tests.doubles.door import open_door
from tests.doubles.job_desk import JobDesk, a_job

DOORS = [
    pytest.param("native", marks=pytest.mark.skipif(not _native.door_built, reason="built without gRPC for C++")),
    "grpc_aio",
]
MOST = 2 << 20


async def refusal_of(call: Any) -> tuple[grpc.StatusCode, dict[str, Message]]:
    """The code and the details, by the names of their types."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    metadata = dict(caught.value.trailing_metadata() or ())
    assert metadata["x-request-id"]
    found: dict[str, Message] = {}
    for detail in status_pb2.Status.FromString(metadata["grpc-status-details-bin"]).details:
        message = getattr(error_details_pb2, detail.type_url.rpartition(".")[2])()
        assert detail.Unpack(message)
        found[type(message).__name__] = message
    return caught.value.code(), found


async def first_of(stream: Any) -> Any:
    """The first answer, or why the server has refused what was still being sent."""
    ending = Ending(stream)
    try:
        return await stream.read()
    except grpc.aio.AioRpcError as error:
        raise await ending.true_error(error) from None


def info(reason: str, **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain="headrace.dev", metadata=metadata)


@pytest.mark.parametrize("door", DOORS)
async def test_a_call_too_many_is_told_when_to_come_back(door: str) -> None:
    async with open_door(JobDesk(a_job()), door=door, max_concurrent_calls=1) as opened:
        following = opened.training.StreamProgress(pb.StreamProgressRequest(name="trainingJobs/j1"))
        await following.read()

        code, details = await refusal_of(opened.training.ListTrainingJobs(pb.ListTrainingJobsRequest(), timeout=60))

        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details["ErrorInfo"] == info("TOO_MANY_CALLS", limit="1")
        retry = details["RetryInfo"]
        assert isinstance(retry, error_details_pb2.RetryInfo)
        assert retry.retry_delay.seconds == 1

        following.cancel()
        async with asyncio.timeout(60):
            while True:  # the other has left when this one is let in
                try:
                    await opened.training.ListTrainingJobs(pb.ListTrainingJobsRequest())
                    break
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise


@pytest.mark.parametrize("door", DOORS)
async def test_too_much_metadata_is_told_how_much_there_may_be(door: str) -> None:
    async with open_door(door=door) as opened:
        call = opened.training.ListTrainingJobs(
            pb.ListTrainingJobsRequest(), metadata=(("x-long", "v" * 20_000),), timeout=60
        )

        code, details = await refusal_of(call)

        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details["ErrorInfo"] == info("TOO_LARGE", what="metadata", limit_bytes="16384")


@pytest.mark.parametrize("door", DOORS)
async def test_a_message_too_large_is_told_how_large_it_may_be(door: str) -> None:
    request = predict_pb.PredictRequest(model="m" * MOST)
    async with open_door(door=door, max_message_bytes=MOST) as opened:
        opened.engine.release()
        stream = opened.inference.PredictStream(iter([predict_pb.PredictStreamRequest(request=request)]), timeout=60)
        jobs = opened.training.ListTrainingJobs(pb.ListTrainingJobsRequest(page_token="t" * MOST), timeout=60)
        for answer in (opened.inference.Predict(request, timeout=60), jobs, first_of(stream)):
            code, details = await refusal_of(answer)

            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert details["ErrorInfo"] == info("TOO_LARGE", what="message", limit_bytes=str(MOST))
            assert isinstance(details["BadRequest"], error_details_pb2.BadRequest)
        await opened.training.ListTrainingJobs(pb.ListTrainingJobsRequest(), timeout=60)
