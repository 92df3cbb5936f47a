"""An engine that answers with its inputs, at once or when it is told to."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from headrace_server.errors import HeadraceError, ModelNotFound, Unsupported
from headrace_server.inference.improving import PlanReport
from headrace_server.inference.prediction import (
    LoadedModel,
    ModelStatus,
    Prediction,
    Provenance,
    Readiness,
    Timing,
)
from headrace_server.inference.tally import Statistics
from headrace_server.models.version import ModelVersion
from headrace_server.names import ModelName
from headrace_server.precision import Precision
from headrace_server.tensors import DataType, Signature, Tensors, TensorSpec

VERSION = ModelVersion(
    model="echo",
    version=3,
    signature=Signature(
        inputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, 2), finite_only=True),),
        outputs=(TensorSpec(name="x", data_type=DataType.FP32, shape=(-1, 2), class_names=("no", "yes")),),
    ),
    artifacts=(),
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


class EchoEngine:
    """Knows the model `models/echo`; remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[ModelName, Tensors, tuple[str, ...], float | None, int]] = []
        self.failure: Exception | None = None
        self.model_failure: HeadraceError | None = None
        self.num_left = 0
        self.unloaded: list[ModelName] = []
        self.counted: dict[ModelName, Statistics] = {}
        self.grow = 1
        """How often each input comes back, under names of its own."""
        self._may_answer = asyncio.Event()
        self._may_answer.set()
        self._asked = asyncio.Condition()

    def hold(self) -> None:
        """Answer nothing until `release`."""
        self._may_answer.clear()

    def release(self) -> None:
        """Answer everything."""
        self._may_answer.set()

    async def was_asked(self, times: int) -> None:
        """Wait until that many predictions have been asked for."""
        async with self._asked:
            await self._asked.wait_for(lambda: len(self.calls) >= times)

    async def predict(
        self,
        name: ModelName,
        inputs: Tensors,
        *,
        output_names: Sequence[str] = (),
        deadline: float | None = None,
        priority: int = 0,
    ) -> Prediction:
        """The inputs."""
        if name.model != "echo":
            raise ModelNotFound(str(name))
        async with self._asked:
            self.calls.append((name, inputs, tuple(output_names), deadline, priority))
            self._asked.notify_all()
        try:
            await self._may_answer.wait()
        except asyncio.CancelledError:
            self.num_left += 1
            raise
        if self.failure is not None:
            raise self.failure
        return Prediction(
            VERSION,
            {f"{name}{'' if copy == 0 else copy}": inputs[name] for name in inputs for copy in range(self.grow)},
            Timing(0.001, 0.002, 0.003, 0.004, batch_rows=8, batch_calls=2),
            Provenance("sha256:" + "0" * 64, "onnxruntime", Precision.FP32, "cpu", "trainingJobs/j1"),
        )

    async def load(self, name: ModelName, backend: str = "") -> LoadedModel:
        """Loaded already."""
        return LoadedModel(VERSION, backend or "onnxruntime")

    async def unload(self, name: ModelName) -> ModelVersion:
        """Only remembered."""
        self.unloaded.append(name)
        return VERSION

    async def status(self, name: ModelName) -> ModelStatus:
        """Ready, unless a failure was set."""
        if name.model != "echo":
            raise ModelNotFound(str(name))
        return self.look(VERSION)

    def loaded(self) -> list[ModelVersion]:
        """The one."""
        return [VERSION]

    def statistics(self) -> dict[ModelName, Statistics]:
        """What the test has put there."""
        return self.counted

    async def plan(self, name: ModelName) -> PlanReport:
        """An echo has no plans."""
        raise Unsupported(f"planning {name}")

    async def measure(self, name: ModelName) -> PlanReport:
        """Nor can they be measured."""
        raise Unsupported(f"planning {name}")

    async def calibrate(self, name: ModelName, inputs: Tensors) -> int:
        """Nor judged."""
        raise Unsupported(f"calibrating {name}")

    def look(self, version: ModelVersion) -> ModelStatus:
        """Ready, unless a failure was set."""
        readiness = Readiness.FAILED if self.model_failure else Readiness.READY
        return ModelStatus(version, readiness, self.model_failure, 7, "onnxruntime")
