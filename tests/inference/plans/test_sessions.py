"""What a lane runs of a decision."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.plans.choice import Bucket, Decision
from headrace_server.inference.plans.measurement import Measurement, Source, Trial
from headrace_server.inference.plans.opening import PlanFiles
from headrace_server.inference.plans.plan import Plan, Runtime
from headrace_server.inference.plans.planner import Planned
from headrace_server.inference.plans.sessions import PlannedBackend
from headrace_server.precision import Precision
from tests.inference.plans.programs import signature

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
