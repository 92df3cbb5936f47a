"""headrace.inference.v1.InferenceService: thin between the wire and the engine."""

import asyncio

from headrace.inference.v1 import inference_service_pb2 as pb, inference_service_pb2_grpc as pb_grpc
from headrace_server.names import parse_predictable
from headrace_server.rpc.deadline import deadline_of
from headrace_server.rpc.interceptor import Context, Requests
from headrace_server.rpc.ports import EnginePort
from headrace_server.rpc.services.conversation import Conversation
from headrace_server.rpc.status import Statuses
from headrace_server.rpc.wire.inference import (
    is_heavy,
    is_heavy_answer,
    prediction_to_proto,
    question_from_proto,
    status_to_proto,
)


class InferenceService(pb_grpc.InferenceServiceServicer):
    """Answers with what a model makes of its inputs."""

    def __init__(self, engine: EnginePort, statuses: Statuses, closing: asyncio.Event, stream_window: int) -> None:
        self._engine = engine
        self._statuses = statuses
        self._closing = closing
        self._stream_window = stream_window

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        """Run a model once."""
        return await self._predict(request, deadline_of(context))

    async def PredictStream(  # type: ignore[override]  # writes its answers itself
        self, requests: Requests[pb.PredictStreamRequest], context: Context
    ) -> None:
        """Run a model for each request; answers are written as they finish."""
        conversation = Conversation(self._predict, self._statuses, self._closing, self._stream_window)
        await conversation.hold(requests, context)

    async def GetModelStatus(self, request: pb.GetModelStatusRequest, context: Context) -> pb.GetModelStatusResponse:
        """Say how a model is."""
        return status_to_proto(await self._engine.status(parse_predictable(request.model, "model")))

    async def _predict(self, request: pb.PredictRequest, deadline: float | None) -> pb.PredictResponse:
        if is_heavy(request):
            question = await asyncio.to_thread(question_from_proto, request)
        else:
            question = question_from_proto(request)
        prediction = await self._engine.predict(
            question.name,
            question.inputs,
            output_names=question.output_names,
            deadline=deadline,
            priority=question.priority,
        )
        if is_heavy_answer(prediction, question.as_values):
            return await asyncio.to_thread(prediction_to_proto, prediction, as_values=question.as_values)
        return prediction_to_proto(prediction, as_values=question.as_values)
