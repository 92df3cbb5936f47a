"""What a training refuses to do, and how it ends when the machine cannot."""

import os
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from pydantic import ValidationError

from headrace_server.datasets.dataset import DatasetFormat
from headrace_server.errors import HeadraceError, InvalidDataset, InvalidSpec
from headrace_server.precision import Precision
from headrace_server.trainers.arithmetic import choose_device, choose_precision
from headrace_server.trainers.failures import CheckpointDamaged, Diverged, OutOfMemory
from headrace_server.trainers.job_file import JobFile
from headrace_server.trainers.loop import Loop
from headrace_server.trainers.pipe import Commands, ReportPipe, follow_commands
from headrace_server.trainers.recipe import Device, Evaluation, Recipe, Sgd, Steps
from headrace_server.trainers.reports import (
    TRAINER_REPORT,
    ExportWritten,
    PhaseChanged,
    TrainerReport,
    WarningRaised,
)
from headrace_server.trainers.training import Training

RECIPE = Recipe(length=Steps(count=2), seed=1, cpu_threads=1)


class Abandoned(BaseException):
    """Stands for the end of the process."""


def abandon(why: str) -> NoReturn:
    raise Abandoned(why)


def job(folder: Path, **changes: Any) -> JobFile:
    table = folder / "pets.csv"
    table.write_text("size,kind\n" + "".join(f"{row},{'ab'[row % 2]}\n" for row in range(20)), encoding="utf-8")
    values = {
        "job": "trainingJobs/j",
        "trainer": "tabular",
        "parameters": {"target": "kind"},
        "recipe": RECIPE,
        "dataset_path": table,
        "dataset_format": DatasetFormat.CSV,
        "workspace": folder,
        "resume_from": None,
        "report_descriptor": 1,
    }
    return JobFile.model_validate({**values, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"parameters": {"target": "kind", "features": ["sise"]}}, InvalidDataset, "sise"),
        ({"parameters": {"target": "kind", "wings": 2}}, ValidationError, "wings"),
        ({"trainer": "poetry"}, InvalidSpec, "no trainer 'poetry': it is not installed here"),
        ({"dataset_digest": "sha256:" + 64 * "0"}, InvalidDataset, "its content has changed"),
        ({"resume_from": Path("/nowhere")}, CheckpointDamaged, "the checkpoint nowhere cannot be used"),
        (
            {"recipe": RECIPE.model_copy(update={"evaluation": Evaluation(metric="rmse")})},
            InvalidSpec,
            "'rmse' is not one of",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_with_its_reason(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    reports: list[TrainerReport] = []

    with pytest.raises(error, match=message):
        Training(job(tmp_path, **changes), reports.append, threading.Event()).run()

    assert not any(isinstance(report, PhaseChanged) and report.phase == "training" for report in reports)


def test_a_rate_that_is_far_too_high_ends_as_a_divergence(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"length": Steps(count=1000), "optimizer": Sgd(learning_rate=100.0)})
    parameters = {"target": "size", "task": "regression", "features": ["kind"]}

    with pytest.raises(Diverged, match=r"learning rate was .* try a lower one"):
        Training(job(tmp_path, recipe=recipe, parameters=parameters), lambda _: None, threading.Event()).run()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_machine_without_memory_is_told_with_the_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(self: Loop) -> None:
        raise error

    monkeypatch.setattr(Loop, "run", fail)

    with pytest.raises(OutOfMemory, match="cpu is out of memory with a batch size of 64"):
        Training(job(tmp_path), lambda _: None, threading.Event()).run()


def test_a_stop_is_obeyed_between_phases(tmp_path: Path) -> None:
    for last_phase in ("preparing_data", "training", "exporting"):
        stop, reports = threading.Event(), list[TrainerReport]()

        def report(
            report: TrainerReport,
            last: str = last_phase,
            stop: threading.Event = stop,
            to: list[TrainerReport] = reports,
        ) -> None:
            to.append(report)
            if isinstance(report, PhaseChanged) and report.phase == last:
                stop.set()

        workspace = tmp_path / last_phase
        workspace.mkdir()
        assert Training(job(workspace), report, stop).run() is False
        assert [r.phase for r in reports if isinstance(r, PhaseChanged)][-1] == last_phase
        assert not any(isinstance(report, ExportWritten) for report in reports)


def test_a_gpu_that_is_not_there_is_refused_and_auto_makes_do_with_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert choose_device(Device.AUTO) == choose_device(Device.CPU) == torch.device("cpu")
    assert choose_precision(Precision.AUTO, torch.device("cpu")) is Precision.FP32
    with pytest.raises(HeadraceError, match="no GPU"):
        choose_device(Device.GPU)


def test_reports_of_many_threads_do_not_mix() -> None:
    read_end, write_end = os.pipe()
    pipe = ReportPipe(write_end, abandon)
    long = WarningRaised(code="LONG", message="x" * 20_000)

    def write_many() -> None:
        for _ in range(20):
            pipe.write(long)

    threads = [threading.Thread(target=write_many) for _ in range(4)]

    with os.fdopen(read_end, "rb") as reader:
        for thread in threads:
            thread.start()
        lines = [reader.readline() for _ in range(80)]
        for thread in threads:
            thread.join()
    os.close(write_end)

    assert all(TRAINER_REPORT.validate_json(line) == long for line in lines)


def test_a_pipe_that_nobody_reads_ends_the_process() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)

    with pytest.raises(Abandoned, match="Broken pipe"):
        ReportPipe(write_end, abandon).write(WarningRaised(code="A", message=""))
    os.close(write_end)


def test_commands_may_come_in_pieces_and_the_end_of_them_is_the_end() -> None:
    read_end, write_end = os.pipe()
    commands, ended = Commands(), threading.Event()

    follow_commands(read_end, commands, lambda _: ended.set())
    os.write(write_end, b'{"command":"profile","num_steps":3}\n{"comm')
    os.write(write_end, b'and":"stop"}\n')

    assert commands.stop.wait(60)
    assert commands.profiles.get(timeout=60) == 3
    assert not ended.is_set()
    os.close(write_end)
    assert ended.wait(60)
    os.close(read_end)
