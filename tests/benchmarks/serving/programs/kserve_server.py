"""A KServe model server: `python kserve_server.py NAME MODEL OUTPUT NUM_THREADS [options of KServe]`.

With no threads the model runs on the event loop, which is best where it takes microseconds; else in a pool of threads
with a session each.
"""

import asyncio
import queue
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import onnxruntime
from kserve import InferOutput, InferResponse, Model, ModelServer


class OnnxModel(Model):  # type: ignore[misc]
    """Runs a program of ONNX."""

    def __init__(self, name: str, path: str, output: str, num_threads: int) -> None:
        super().__init__(name)
        self._output = output
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._pool = ThreadPoolExecutor(num_threads) if num_threads else None
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(max(1, num_threads)):
            self._idle.put(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
        self.ready = True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> InferResponse:
        """One request."""
        inputs = {each.name: each.as_numpy() for each in payload.inputs}
        if self._pool is None:
            y = self._run(inputs)
        else:
            y = await asyncio.get_running_loop().run_in_executor(self._pool, self._run, inputs)
        output = InferOutput(self._output, list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=True)
        return InferResponse(payload.id or "", self.name, [output])

    def _run(self, inputs: dict[str, Any]) -> Any:
        session = self._idle.get()
        try:
            return session.run([self._output], inputs)[0]
        finally:
            self._idle.put(session)


if __name__ == "__main__":
    name, path, output, num_threads = sys.argv[1:5]
    ModelServer(enable_latency_logging=False).start([OnnxModel(name, path, output, int(num_threads))])
