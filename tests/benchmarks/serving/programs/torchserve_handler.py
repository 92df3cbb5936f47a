"""The handler that TorchServe loads: raw tensors in, one run of ONNX Runtime for the batch, raw rows out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class Handler:
    """One worker process: one session with one thread."""

    def initialize(self, context: Any) -> None:
        """Open the session."""
        folder = Path(context.system_properties["model_dir"])
        self._columns = json.loads((folder / "columns.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """A batch; each request has the bytes of every input by name."""
        inputs = {
            name: np.frombuffer(b"".join(bytes(each[name]) for each in data), dtype).reshape(-1, *shape)
            for name, (dtype, shape) in self._columns.items()
        }
        (outputs,) = self._session.run(None, inputs)
        return [row.tobytes() for row in outputs]
