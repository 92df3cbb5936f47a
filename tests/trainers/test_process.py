"""The trainer process as its agent sees it: a real process, its pipe, its exit, and its death."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.tensors import DataType
from headrace_server.trainers.export import MANIFEST, ONNX, WEIGHTS
from headrace_server.trainers.job_file import ExportManifest, JobFile
from headrace_server.trainers.recipe import AdamW, Epochs, Evaluation, Recipe, Steps
from headrace_server.trainers.reports import (
    TRAINER_REPORT,
    CheckpointWritten,
    ExportWritten,
    Failed,
    Finished,
    PhaseChanged,
    StepCompleted,
    Stopped,
    TrainerReport,
)

SHORT = Recipe(length=Epochs(count=12), batch_size=16, optimizer=AdamW(learning_rate=0.01), seed=1, cpu_threads=1)
ENDLESS = SHORT.model_copy(update={"length": Steps(count=10_000_000)})
PATIENCE_SECONDS = 240


class Trainer:
    """A trainer process and what it reports; its checkpoints are kept, as if published at once."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        folder.mkdir(exist_ok=True)
        read_end, write_end = os.pipe()
        file = JobFile.model_validate(
            {"job": "trainingJobs/j", "workspace": folder, "resume_from": None, "report_descriptor": write_end, **job}
        )
        (folder / "job.json").write_text(file.model_dump_json())
        self.process = subprocess.Popen(
            [sys.executable, "-m", "headrace_server.trainers", str(folder / "job.json")],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[write_end],
        )
        os.close(write_end)
        self.pipe: IO[bytes] = os.fdopen(read_end, "rb")
        self.reports: list[TrainerReport] = []
        self._published = folder / "published"
        self._published.mkdir(exist_ok=True)

    def until(self, is_awaited: Callable[[TrainerReport], bool]) -> TrainerReport:
        """Read reports until one is what is waited for."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        for line in self.pipe:
            report = TRAINER_REPORT.validate_json(line)
            if isinstance(report, CheckpointWritten):
                target = self._published / Path(report.folder).name
                shutil.move(report.folder, target)
                report = report.model_copy(update={"folder": str(target)})
            self.reports.append(report)
            if is_awaited(report):
                return report
            assert time.monotonic() < deadline
        raise AssertionError(f"the trainer ended after {self.reports[-3:]}")

    def rest(self) -> int:
        """Read everything that is left; returns the exit code."""
        with pytest.raises(AssertionError, match="the trainer ended"):
            self.until(lambda _: False)
        return self.process.wait(PATIENCE_SECONDS)

    def tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def of(self, kind: type[TrainerReport]) -> list[Any]:
        return [report for report in self.reports if isinstance(report, kind)]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_SECONDS)
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.process.stdin.close()
        self.process.stderr.close()
        self.pipe.close()


Start = Callable[..., Trainer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start trainers over a small table; they are ended with the test."""
    table = tmp_path / "pets.csv"
    rows = [f"{row % 7},{('red', 'green', 'blue')[row % 3]},{('cat', 'dog')[row % 7 > 3]}" for row in range(120)]
    table.write_text("\n".join(["size,colour,kind", *rows]) + "\n", encoding="utf-8")
    job = {
        "trainer": "tabular",
        "parameters": {"target": "kind", "hidden_widths": [8]},
        "recipe": SHORT,
        "dataset_path": table,
        "dataset_format": DatasetFormat.CSV,
    }
    trainers: list[Trainer] = []

    def begin(name: str = "workspace", **changes: Any) -> Trainer:
        trainers.append(Trainer(tmp_path / name, {**job, **changes}))
        return trainers[-1]

    yield begin
    for trainer in trainers:
        trainer.close()


def is_step(report: TrainerReport) -> bool:
    return isinstance(report, StepCompleted)


@pytest.mark.slow
def test_a_job_is_trained_exported_and_verified_and_its_program_answers(start: Start) -> None:
    trainer = start()

    assert trainer.rest() == 0
    assert isinstance(trainer.reports[-1], Finished)
    assert [report.phase for report in trainer.of(PhaseChanged)] == [
        "preparing_data", "building", "training", "exporting", "verifying",
    ]  # fmt: skip
    (exported,) = trainer.of(ExportWritten)
    folder = Path(exported.folder)
    manifest = ExportManifest.model_validate_json((folder / MANIFEST).read_bytes())
    assert manifest.metrics["accuracy"] == 1.0
    assert manifest.lineage.environment["device"] == "cpu"
    assert manifest.lineage.environment["threads"] == "1"
    assert manifest.lineage.parity[ONNX].num_rows == 24
    assert trainer.of(CheckpointWritten)[-1].step == 72
    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    feed = {}
    for spec in manifest.signature.inputs:
        known = {"size": [1, 6], "colour": [spec.class_names.index("red")] * 2 if spec.class_names else []}
        feed[spec.name] = np.array(known[spec.name], spec.data_type.dtype)
    _, label = session.run(None, feed)
    class_names = manifest.signature.outputs[0].class_names
    assert [class_names[index] for index in label] == ["cat", "dog"]
    assert manifest.signature.inputs[1].data_type is DataType.INT64


def test_a_stop_ends_with_a_checkpoint_at_the_last_reported_step(start: Start) -> None:
    trainer = start(recipe=ENDLESS)
    trainer.until(is_step)

    trainer.tell(b'nonsense\n{"command":"stop"}\n')

    assert trainer.rest() == 0
    assert isinstance(trainer.reports[-1], Stopped)
    assert isinstance(trainer.reports[-2], CheckpointWritten)
    assert trainer.reports[-2].step == trainer.of(StepCompleted)[-1].step


def test_sigterm_is_a_stop(start: Start) -> None:
    trainer = start(recipe=ENDLESS)
    trainer.until(is_step)

    trainer.process.send_signal(signal.SIGTERM)

    assert trainer.rest() == 0
    assert isinstance(trainer.reports[-1], Stopped)


def test_a_trainer_whose_agent_has_gone_ends_at_once(start: Start) -> None:
    trainer = start(recipe=ENDLESS)
    trainer.until(is_step)

    trainer.hang_up()

    assert trainer.rest() == 4
    assert not trainer.of(Stopped)


def test_a_trainer_whose_reports_nobody_reads_ends_at_once(start: Start) -> None:
    trainer = start(recipe=ENDLESS)
    trainer.until(is_step)

    trainer.pipe.close()

    assert trainer.process.wait(PATIENCE_SECONDS) == 4


@pytest.mark.slow
def test_a_trainer_that_was_killed_goes_on_from_its_checkpoint_to_the_same_bits(start: Start) -> None:
    recipe = SHORT.model_copy(update={"length": Epochs(count=300), "evaluation": Evaluation(every_epochs=20)})
    parameters = {"target": "kind", "hidden_widths": [256, 256]}
    whole = start("whole", recipe=recipe, parameters=parameters)

    killed = start("killed", recipe=recipe, parameters=parameters)
    killed.until(lambda report: isinstance(report, CheckpointWritten))
    killed.until(is_step)
    killed.process.kill()
    assert killed.rest() == -signal.SIGKILL
    last_step = killed.of(StepCompleted)[-1].step
    last_checkpoint = killed.of(CheckpointWritten)[-1]
    resumed = start("resumed", recipe=recipe, parameters=parameters, resume_from=Path(last_checkpoint.folder))

    assert last_checkpoint.step < last_step < 1800
    assert (whole.rest(), resumed.rest()) == (0, 0)
    assert all(report.step > last_checkpoint.step for report in resumed.of(StepCompleted))
    weights = [load_file(Path(trainer.of(ExportWritten)[0].folder) / WEIGHTS) for trainer in (whole, resumed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_fault_of_the_code_is_told_by_type_and_its_trace_goes_to_the_log(start: Start) -> None:
    trainer = start(dataset_path=Path("/nowhere.csv"))

    assert trainer.rest() == 3
    failed = trainer.reports[-1]
    assert isinstance(failed, Failed)
    assert failed.error == "FileNotFoundError"
    assert "nowhere.csv" in failed.message
    assert trainer.process.stderr is not None
    assert b"Traceback" in trainer.process.stderr.read()


def test_a_job_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps({"job": 1}))

    ended = subprocess.run(
        [sys.executable, "-m", "headrace_server.trainers", str(tmp_path / "job.json")],
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )

    assert ended.returncode == 2
    assert b"job.json" in ended.stderr
