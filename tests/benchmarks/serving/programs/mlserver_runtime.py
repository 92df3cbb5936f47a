"""The runtime that MLServer loads: ONNX Runtime on its event loop, or in a pool of threads with a session each."""

import asyncio
import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):  # type: ignore[misc]
    """Runs the program that the settings name."""

    async def load(self) -> bool:
        """Open the sessions."""
        chosen = self.settings.parameters.extra
        num_threads = int(chosen["num_threads"])
        self._output: str = chosen["output"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._pool = ThreadPoolExecutor(num_threads) if num_threads else None
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(max(1, num_threads)):
            session = onnxruntime.InferenceSession(chosen["path"], options, providers=["CPUExecutionProvider"])
            self._idle.put(session)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One request."""
        inputs = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
        if self._pool is None:
            y = self._run(inputs)
        else:
            y = await asyncio.get_running_loop().run_in_executor(self._pool, self._run, inputs)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output(self._output, y)])

    def _run(self, inputs: dict[str, Any]) -> Any:
        session = self._idle.get()
        try:
            return session.run([self._output], inputs)[0]
        finally:
            self._idle.put(session)
