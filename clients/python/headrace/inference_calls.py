"""Predictions: arrays in, arrays out.

The signature of each model is asked for once and kept, to name the input of a plain array and to convert types.  It is
asked for again when another version answers, and when the server refuses tensors that fit what was kept.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from contextlib import aclosing
from time import monotonic, perf_counter
from typing import TypeAlias

from numpy.typing import ArrayLike

from headrace.errors import InvalidTensor
from headrace.evidence import Evidence, Violation
from headrace.inference.v1.inference_service_pb2 import (
    GetModelStatusRequest,
    GetModelStatusResponse,
    PredictRequest,
)
from headrace.names import model_name
from headrace.prediction import ModelSignature, Prediction, StreamedPrediction, read_prediction
from headrace.prediction_stream import PredictionStream
from headrace.tensors import fit_inputs
from headrace.wire import Wire

Inputs: TypeAlias = ArrayLike | Mapping[str, ArrayLike]

MOST_SIGNATURES = 1024
_FORMAT = PredictRequest.ContentFormat.CONTENT_FORMAT_BYTES


class InferenceCalls:
    """The part of a client that predicts."""

    _wire: Wire
    _signatures: dict[str, ModelSignature]

    async def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        output_names: Sequence[str] = (),
        priority: int = 0,
        timeout: float | None = None,
    ) -> Prediction:
        """Run a model once on `inputs`: an array for a model with one input, else arrays by input name.

        The first axis counts rows.  Types are converted where nothing is lost (see `headrace.tensors`); what does not
        fit the model's signature is InvalidTensor before anything is sent.  `model` takes "digits", "digits@champion",
        "models/digits/versions/3", and for a job that may still train "trainingJobs/j@latest", "trainingJobs/j@best",
        "trainingJobs/j@step:120".  Overload is waited out as the server advises, within `timeout` seconds.
        """
        name = model_name(model)
        request = PredictRequest(model=name, output_names=output_names, priority=priority, content_format=_FORMAT)
        until = None if timeout is None else monotonic() + timeout

        def left() -> float | None:
            return None if until is None else max(until - monotonic(), 0)

        signature = await self._signature_for(name, left())
        try:
            return await self._predict(request, inputs, signature, left())
        except InvalidTensor:
            fresh = await self._fresh_signature(name, left())
            if fresh.inputs == signature.inputs:
                raise
            return await self._predict(request, inputs, fresh, left())

    async def predict_stream(
        self,
        model: str,
        inputs: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        window: int = 32,
        output_names: Sequence[str] = (),
        priority: int = 0,
    ) -> AsyncGenerator[StreamedPrediction, None]:
        """Run a model on many inputs over one stream; answers come as they finish, each with the index of its input.

        At most `window` inputs are under way at once: no more are taken from `inputs` until one is answered.  A failed
        input is an answer too.  When the connection breaks, inputs without an answer are sent again.
        """
        if window < 1:
            raise ValueError("window must be at least 1")
        name = model_name(model)
        signature = await self._signature_for(name)

        def make_request(item: Inputs) -> PredictRequest:
            return PredictRequest(
                model=name,
                inputs=fit_inputs(_by_name(item, signature), signature.inputs, name),
                output_names=output_names,
                priority=priority,
                content_format=_FORMAT,
            )

        stream = PredictionStream(self._wire, make_request, signature, window)
        async with aclosing(stream.answers(inputs)) as answers:
            async for answer in answers:
                yield answer

    async def model_status(self, model: str, *, timeout: float | None = None) -> GetModelStatusResponse:
        """Whether a model can answer, which version would, and what it accepts and returns."""
        request = GetModelStatusRequest(model=model_name(model))
        return await self._wire.call_once(self._wire.inference.GetModelStatus, request, timeout)

    async def _predict(
        self, request: PredictRequest, inputs: Inputs, signature: ModelSignature, timeout: float | None
    ) -> Prediction:
        tensors = fit_inputs(_by_name(inputs, signature), signature.inputs, request.model)
        request.inputs.clear()
        for name, tensor in tensors.items():
            request.inputs[name].CopyFrom(tensor)
        started_at = perf_counter()
        response = await self._wire.call_safely(self._wire.inference.Predict, request, timeout)
        total_seconds = perf_counter() - started_at
        if response.model_version and response.model_version != signature.model_version:
            self._signatures.pop(request.model, None)
        return read_prediction(response, signature, total_seconds)

    async def _signature_for(self, name: str, timeout: float | None = None) -> ModelSignature:
        return self._signatures.get(name) or await self._fresh_signature(name, timeout)

    async def _fresh_signature(self, name: str, timeout: float | None = None) -> ModelSignature:
        status = await self.model_status(name, timeout=timeout)
        signature = ModelSignature(status.model_version, tuple(status.inputs), tuple(status.outputs))
        if len(self._signatures) >= MOST_SIGNATURES:
            self._signatures.pop(next(iter(self._signatures)))
        self._signatures[name] = signature
        return signature


def _by_name(inputs: Inputs, signature: ModelSignature) -> Mapping[str, ArrayLike]:
    if isinstance(inputs, Mapping):
        return inputs
    if len(signature.inputs) == 1:
        return {signature.inputs[0].name: inputs}
    names = ", ".join(spec.name for spec in signature.inputs)
    violation = Violation("inputs", f"{signature.model_version} has several inputs: give arrays by name ({names})")
    raise InvalidTensor(str(violation), evidence=Evidence(violations=(violation,)))
