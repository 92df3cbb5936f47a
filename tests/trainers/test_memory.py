"""Batches that the memory does not hold, found before the first step."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from headrace_server.trainers import memory
from headrace_server.trainers.failures import BatchTooLarge
from headrace_server.trainers.loop import Outcome
from headrace_server.trainers.memory import free_bytes, rows_that_fit
from headrace_server.trainers.reports import WarningRaised
from tests.doubles.loop_run import PLAIN, Run
from tests.doubles.tiny_task import TinyTask

CPU = torch.device("cpu")


def wide() -> nn.Module:
    """Keeps three times 1,000 floats a row: what two tanh give, and nothing else that is not tiny."""
    return nn.Sequential(nn.Linear(1, 1000), nn.Tanh(), nn.Tanh(), nn.Linear(1000, 1))


def test_what_a_row_takes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    network = wide()
    monkeypatch.setattr(memory, "free_bytes", lambda: 10_000_000)

    def forward(rows: int) -> Tensor:
        loss: Tensor = network(torch.ones(rows, 1)).sum()
        return loss

    fits = rows_that_fit(forward, network, CPU, 100_000)

    assert 9_000_000 / 12_100 < fits < 9_000_000 / 7_900  # two or three times 4,000 bytes a row
    assert rows_that_fit(forward, network, CPU, fits) == fits
    assert all(parameter.grad is None for parameter in network.parameters())


def test_running_statistics_stay_as_they_were() -> None:
    network = nn.BatchNorm1d(3)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}

    rows_that_fit(lambda rows: network(torch.randn(rows, 3)).sum(), network, CPU, 64)

    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())


def test_there_is_memory() -> None:
    assert free_bytes() > 1_000_000


def test_a_batch_that_is_too_large_is_refused_with_the_size_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace_server.trainers.rehearsal.rows_that_fit", lambda *_: 3)

    with pytest.raises(BatchTooLarge, match=r"8 rows at once do not fit .* cpu; 3 would fit: ask for split_to_fit"):
        Run(tmp_path, PLAIN, TinyTask(is_plain=True)).go()


def test_a_batch_that_is_too_large_is_split_if_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Run(tmp_path / "whole", PLAIN, TinyTask(is_plain=True))
    whole.go()
    monkeypatch.setattr("headrace_server.trainers.rehearsal.rows_that_fit", lambda *_: 3)

    run = Run(tmp_path / "split", PLAIN.model_copy(update={"split_to_fit": True}), TinyTask(is_plain=True))

    assert run.go() is Outcome.COMPLETED
    (warning,) = [report for report in run.reports if isinstance(report, WarningRaised)]
    assert (warning.code, warning.message) == (
        "BATCH_SPLIT",
        "8 rows at once do not fit into the memory of cpu: 3 do",
    )
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(run.weights[name], tensor, rtol=1e-4, atol=1e-6)
