"""The model of Triton's Python backend: gathers what Triton batched, runs ONNX Runtime once, gives each its rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One instance: one session with one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session."""
        config = json.loads(args["model_config"])
        self._inputs = [each["name"] for each in config["input"]]
        self._output = config["output"][0]["name"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch."""
        columns = [
            [triton.get_input_tensor_by_name(request, name).as_numpy() for request in requests] for name in self._inputs
        ]
        inputs = {
            name: np.concatenate(column) if len(column) > 1 else column[0]
            for name, column in zip(self._inputs, columns, strict=True)
        }
        (outputs,) = self._session.run([self._output], inputs)
        answers, first = [], 0
        for rows in columns[0]:
            tensor = triton.Tensor(self._output, outputs[first : first + len(rows)])
            answers.append(triton.InferenceResponse([tensor]))
            first += len(rows)
        return answers
