import json
import threading
from pathlib import Path

import pytest
import torch

from headrace_server.trainers.checkpoint import (
    BEST,
    STATE,
    VALUES,
    WEIGHTS,
    Checkpoint,
    Values,
    read_checkpoint,
    write_checkpoint,
)
from headrace_server.trainers.checkpoint_writer import CheckpointWriter, Importance
from headrace_server.trainers.failures import CheckpointDamaged
from headrace_server.trainers.reports import CheckpointWritten, TrainerReport, WarningRaised
from headrace_server.trainers.yardstick import Standing


def checkpoint(step: int = 7, best_step: int | None = 5) -> Checkpoint:
    weights = {"layer.weight": torch.arange(6.0).reshape(2, 3)}
    best = {"layer.weight": torch.ones(2, 3)} if best_step not in (None, step) else None
    values = Values(
        step=step,
        num_rows=10,
        is_over=False,
        standing=Standing(best_step=best_step, best_metrics={"loss": 0.5}, reference=0.5, num_without_progress=1),
        versions={"torch": "2"},
    )
    tensors = {"random.cpu": torch.arange(4, dtype=torch.uint8)}
    return Checkpoint(weights, weights if best_step == step else best, tensors, values)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    written = checkpoint()

    write_checkpoint(written, tmp_path / "c")
    read = read_checkpoint(tmp_path / "c")

    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == sorted([WEIGHTS, BEST, STATE, VALUES])
    assert read.values == written.values
    assert torch.equal(read.weights["layer.weight"], written.weights["layer.weight"])
    assert read.best_weights is not None
    assert torch.equal(read.best_weights["layer.weight"], torch.ones(2, 3))
    assert torch.equal(read.tensors["random.cpu"], written.tensors["random.cpu"])


def test_the_best_checkpoint_holds_its_weights_once(tmp_path: Path) -> None:
    write_checkpoint(checkpoint(step=5, best_step=5), tmp_path / "c")

    assert not (tmp_path / "c" / BEST).exists()
    read = read_checkpoint(tmp_path / "c")
    assert read.best_weights is read.weights


def test_before_the_first_evaluation_there_is_no_best(tmp_path: Path) -> None:
    write_checkpoint(checkpoint(best_step=None), tmp_path / "c")

    assert read_checkpoint(tmp_path / "c").best_weights is None


@pytest.mark.parametrize("name", [WEIGHTS, BEST, STATE, VALUES])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_any_damage_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    write_checkpoint(checkpoint(), tmp_path / "c")
    path = tmp_path / "c" / name
    content = bytearray(path.read_bytes())

    if damage == "truncate":
        path.write_bytes(content[:-5])
    elif damage == "flip":
        content[len(content) // 2] ^= 0x80
        path.write_bytes(content)
    else:
        path.unlink()

    with pytest.raises(CheckpointDamaged, match="the checkpoint c cannot be used"):
        read_checkpoint(tmp_path / "c")


def test_a_path_outside_the_folder_is_not_followed(tmp_path: Path) -> None:
    write_checkpoint(checkpoint(), tmp_path / "c")
    document = json.loads((tmp_path / "c" / VALUES).read_text())
    document["files"]["../secret"] = document["files"][WEIGHTS]
    (tmp_path / "c" / VALUES).write_text(json.dumps(document))

    with pytest.raises(CheckpointDamaged, match="not a file of a checkpoint"):
        read_checkpoint(tmp_path / "c")


def test_a_later_layout_is_refused(tmp_path: Path) -> None:
    write_checkpoint(checkpoint(), tmp_path / "c")
    document = json.loads((tmp_path / "c" / VALUES).read_text())
    document["values"]["layout"] = 2
    (tmp_path / "c" / VALUES).write_text(json.dumps(document))

    with pytest.raises(CheckpointDamaged, match="Input should be 1"):
        read_checkpoint(tmp_path / "c")


def test_a_disk_that_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "kept").touch()

    with pytest.raises(OSError, match="not empty"):
        write_checkpoint(checkpoint(), tmp_path / "c")

    assert [path.name for path in tmp_path.iterdir()] == ["c"]


class Heard(list[TrainerReport]):
    """Reports, with a bell for each."""

    def __init__(self) -> None:
        super().__init__()
        self._bell = threading.Condition()

    def __call__(self, report: TrainerReport) -> None:
        with self._bell:
            self.append(report)
            self._bell.notify_all()


def test_ordinary_checkpoints_wait_for_those_before_to_be_published(tmp_path: Path) -> None:
    heard = Heard()
    writer = CheckpointWriter(tmp_path, heard)
    for step in (1, 2, 3):
        assert writer.has_room(Importance.LAST)
        writer.write(checkpoint(step), Importance.BEST)
    writer.close()

    writer = CheckpointWriter(tmp_path, heard)
    assert not writer.has_room(Importance.ORDINARY)
    assert writer.has_room(Importance.BEST)
    published = heard[0]
    assert isinstance(published, CheckpointWritten)
    for path in Path(published.folder).iterdir():
        path.unlink()
    Path(published.folder).rmdir()

    assert writer.has_room(Importance.ORDINARY)
    writer.close()
    assert [(report.step, report.is_best) for report in heard if isinstance(report, CheckpointWritten)] == [
        (1, False),
        (2, False),
        (3, False),
    ]


def test_best_checkpoints_have_a_bound_too(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number:012d}").mkdir()
    writer = CheckpointWriter(tmp_path, Heard())

    assert not writer.has_room(Importance.BEST)
    assert writer.has_room(Importance.LAST)
    writer.close()


def test_a_failed_checkpoint_is_a_warning_and_the_last_one_an_error(tmp_path: Path) -> None:
    heard = Heard()
    folder = tmp_path / "checkpoints"
    writer = CheckpointWriter(folder, heard)
    folder.rmdir()
    folder.touch()  # no folder can be made in a file

    writer.write(checkpoint(1), Importance.ORDINARY)
    with pytest.raises(OSError, match="Not a directory"):
        writer.write(checkpoint(2), Importance.LAST)
    writer.close()

    (warning,) = heard
    assert isinstance(warning, WarningRaised)
    assert warning.code == "CHECKPOINT_FAILED"


def test_what_a_killed_process_had_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "000000000005.partial").mkdir()
    (tmp_path / "000000000005.partial" / WEIGHTS).touch()
    (tmp_path / "000000000004").mkdir()

    writer = CheckpointWriter(tmp_path, Heard())
    writer.write(checkpoint(4), Importance.LAST)
    writer.close()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000000004", "000000000004-2"]
