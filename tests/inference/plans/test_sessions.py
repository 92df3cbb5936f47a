"""What a lane runs of a decision."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.backend import Session
from headrace_server.inference.plans.choice import Bucket, Decision
from headrace_server.inference.plans.measurement import Measurement, Source, Trial
from headrace_server.inference.plans.opening import PlanFiles
from headrace_server.inference.plans.plan import Plan, Runtime
from headrace_server.inference.plans.planner import Planned
from headrace_server.inference.plans.sessions import PlannedBackend, PlannedSession
from headrace_server.models.calibration import draw_rows
from headrace_server.precision import Precision
from headrace_server.tensors import Tensors
from tests.inference.plans.programs import onnx_sources, signature

ON_GPU = Plan(runtime=Runtime.TORCH, precision=Precision.BF16, device="cuda:0")


def planned(took_bytes: int) -> Planned:
    decision = Decision(
        buckets=(Bucket(8, ON_GPU),), lone_threads=1, busy_threads=1, busy_sessions=1, max_batch_rows=8,
        refusals={}, mask_input="", why="",
    )  # fmt: skip
    measurement = Measurement(
        environment={}, source=Source.DRAWN, num_rows=1, reference="", seconds=0,
        trials=(Trial(plan=ON_GPU, resident_bytes=took_bytes),), measured_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    files = {ON_GPU.name: PlanFiles(Path("program.pt2"))}
    return Planned(decision, measurement, files, {ON_GPU.name: "sha256:0"}, {}, ())


def test_a_gpu_that_has_not_what_a_plan_took_while_it_was_tried_is_not_even_asked(tmp_path: Path) -> None:
    asked: list[str] = []

    def free_bytes(device: str) -> int:
        asked.append(device)
        return 700

    backend = PlannedBackend(planned(took_bytes=1000), free_bytes)

    with pytest.raises(DeviceOutOfMemory) as refused:
        backend.open(tmp_path, signature(4, 3))

    assert (refused.value.missing_bytes, asked) == (300, ["cuda:0"])


class CountingSession:
    """Remembers how many rows it ran."""

    device = "cpu"
    precision = Precision.FP32

    def __init__(self) -> None:
        self.ran: list[int] = []

    def run(self, inputs: Tensors) -> Tensors:
        """An echo."""
        self.ran.append(len(inputs["x"]))
        return {"output": inputs["x"]}

    def close(self) -> None:
        """Nothing to close."""


def a_lane(sessions: Mapping[tuple[str, int], Session], decision: Decision, *, has_company: bool) -> PlannedSession:
    return PlannedSession(decision, signature(4, 4), dict(sessions), lambda: nullcontext(has_company), lambda: None)


def rows(count: int) -> Tensors:
    return {"x": np.zeros((count, 4), np.float32)}


def test_a_lane_uses_all_threads_while_it_is_alone_and_few_while_others_wait_or_run() -> None:
    plan = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32)
    decision = replace(planned(0).decision, buckets=(Bucket(8, plan),), lone_threads=4, busy_threads=1)
    few, many = CountingSession(), CountingSession()
    sessions = {(plan.name, 1): few, (plan.name, 4): many}

    a_lane(sessions, decision, has_company=False).run(rows(1))
    a_lane(sessions, decision, has_company=True).run(rows(2))

    assert (many.ran, few.ran) == ([1], [2])


def test_each_size_of_batch_runs_with_its_own_plan_and_says_so() -> None:
    small = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32)
    large = Plan(runtime=Runtime.TORCH, precision=Precision.BF16)
    decision = replace(planned(0).decision, buckets=(Bucket(2, small), Bucket(8, large)))
    ran_small, ran_large = CountingSession(), CountingSession()
    lane = a_lane({(small.name, 1): ran_small, (large.name, 1): ran_large}, decision, has_company=True)

    precisions = []
    for count in (1, 2, 3, 64):
        lane.run(rows(count))
        precisions.append(lane.precision)

    assert (ran_small.ran, ran_large.ran) == ([1, 2], [3, 64])
    assert precisions == [Precision.FP32, Precision.FP32, Precision.BF16, Precision.BF16]


def test_two_lanes_that_run_at_once_have_company_and_one_that_runs_alone_has_when_calls_wait(tmp_path: Path) -> None:
    onnx_sources(tmp_path)
    plan = Plan(runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32)
    decision = replace(planned(0).decision, buckets=(Bucket(8, plan),), lone_threads=2, busy_threads=1, busy_sessions=2)
    drawn = draw_rows(signature(16, 4, "y")).inputs
    backend = PlannedBackend(
        replace(planned(0), decision=decision, files={plan.name: PlanFiles(tmp_path / "model.onnx")}, rows=drawn)
    )

    with backend._running() as alone, backend._running() as second:
        assert (alone, second) == (False, True)
    backend.num_waiting = lambda: 1
    with backend._running() as alone:
        assert alone

    first, other = (backend.open(tmp_path, signature(16, 4, "y")) for _ in range(2))
    assert first.run({"x": np.ones((3, 16), np.float32)})["y"].shape == (3, 4)
    first.close()
    assert other.run({"x": np.ones((1, 16), np.float32)})["y"].shape == (1, 4)
    other.close()
