"""An inference service whose one model, models/digits, adds 1 to each element of `x` and sums each row of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np

from headrace.inference.v1 import inference_service_pb2 as pb
from headrace.inference.v1.inference_service_pb2_grpc import InferenceServiceServicer
from headrace.tensors import from_tensor, to_tensor
from headrace.type.v1.tensor_pb2 import DataType, Precision, TensorSpec
from tests.doubles.refusal import Refusal


class ScriptedInference(InferenceServiceServicer):
    """`x` is FP32 [any, 3]; it returns `plus_one` FP32 [any, 3] and `scores` FP32 [any, 2], of even and odd."""

    def __init__(self) -> None:
        self.version = 1
        self.inputs = [TensorSpec(name="x", data_type=DataType.DATA_TYPE_FP32, shape=[-1, 3])]
        self.outputs = [
            TensorSpec(name="plus_one", data_type=DataType.DATA_TYPE_FP32, shape=[-1, 3]),
            TensorSpec(name="scores", data_type=DataType.DATA_TYPE_FP32, shape=[-1, 2], class_names=["even", "odd"]),
        ]
        self.refusals: list[Refusal] = []
        self.num_status_calls = 0
        self.status_seconds: list[float] = []
        """What the callers of each GetModelStatus would wait."""
        self.requests: list[pb.PredictRequest] = []
        self.cuts: list[int] = []
        """For each stream in turn, the number of answers after which it breaks; later ones hold."""
        self.most_waiting = 0
        """The most requests of a stream that had no answer at one time."""
        self.delay_seconds = 0.0

    async def GetModelStatus(self, request: pb.GetModelStatusRequest, context: Any) -> pb.GetModelStatusResponse:
        self.num_status_calls += 1
        self.status_seconds.append(context.time_remaining() or 0)
        if not request.model.startswith("models/digits"):
            message = f"{request.model!r} does not exist"
            await Refusal(grpc.StatusCode.NOT_FOUND, message, "MODEL_NOT_FOUND", {"name": request.model}).send(context)
        return pb.GetModelStatusResponse(
            model_version=f"models/digits/versions/{self.version}",
            readiness=pb.GetModelStatusResponse.Readiness.READINESS_READY,
            inputs=self.inputs,
            outputs=self.outputs,
            backend="onnxruntime",
        )

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        self.requests.append(request)
        await asyncio.sleep(self.delay_seconds)
        if self.refusals:
            await self.refusals.pop(0).send(context)
        if refusal := self._mismatch(request):
            await refusal.send(context)
        return self._answer(request)

    async def PredictStream(
        self, request_iterator: AsyncIterator[pb.PredictStreamRequest], context: Any
    ) -> AsyncIterator[pb.PredictStreamResponse]:
        """Answers each pair of requests in reverse order."""
        left = self.cuts.pop(0) if self.cuts else None
        waiting: list[pb.PredictStreamRequest] = []
        source = aiter(request_iterator)
        is_over = False
        while not is_over:
            try:
                waiting.append(await asyncio.wait_for(anext(source), 0.05 if waiting else None))
                self.most_waiting = max(self.most_waiting, len(waiting))
                if len(waiting) < 2:
                    continue
            except (StopAsyncIteration, TimeoutError):
                is_over = True
            while waiting:
                if left == 0:
                    await Refusal(grpc.StatusCode.UNAVAILABLE, "Socket closed").send(context)
                left = None if left is None else left - 1
                yield self._streamed(waiting.pop())

    def _streamed(self, request: pb.PredictStreamRequest) -> pb.PredictStreamResponse:
        values = from_tensor(request.request.inputs["x"])
        if (values < 0).any():
            refusal = Refusal(grpc.StatusCode.INTERNAL, "models/digits failed: negative", "MODEL_FAILED")
            return pb.PredictStreamResponse(id=request.id, error=refusal.status())
        return pb.PredictStreamResponse(id=request.id, response=self._answer(request.request))

    def _mismatch(self, request: pb.PredictRequest) -> Refusal | None:
        wanted = {spec.name for spec in self.inputs}
        if set(request.inputs) == wanted:
            return None
        violations = {"inputs": f"must be {', '.join(wanted)}"}
        return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "does not fit", "INVALID_TENSOR", violations=violations)

    def _answer(self, request: pb.PredictRequest) -> pb.PredictResponse:
        values = from_tensor(next(iter(request.inputs.values())))
        odd = values.astype(np.float32).sum(axis=-1, keepdims=True) % 2
        outputs = {"scores": np.concatenate([1 - odd, odd], axis=-1), "plus_one": (values + 1).astype(np.float32)}
        response = pb.PredictResponse(
            model_version=f"models/digits/versions/{self.version}",
            outputs={name: to_tensor(outputs[name]) for name in request.output_names or outputs},
            provenance=pb.Provenance(
                artifact_digest="sha256:00", backend="onnxruntime", precision=Precision.PRECISION_FP32, device="cpu"
            ),
        )
        response.timing.queue.FromMicroseconds(100)
        response.timing.assemble.FromMicroseconds(20)
        response.timing.compute.FromMicroseconds(300)
        response.timing.respond.FromMicroseconds(10)
        response.timing.batch_rows, response.timing.batch_calls = len(values), 1
        return response
