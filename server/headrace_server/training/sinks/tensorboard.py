"""Keeps trainings as event files for TensorBoard: a folder of runs, one for each job.

A file only ever grows, by whole batches; beside it lies a note of how far it is good and of the last entry in it.  What
was written without being noted, because the process ended in between, is cut off before the next batch: so nothing is
there twice, and nothing half.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.text.plugin_data_pb2 import TextPluginData
from tensorboard.summary.writer.record_writer import RecordWriter

from headrace_server.training.sinks.sink import (
    Batch,
    Entry,
    Figures,
    Options,
    Run,
    SinkKind,
    SinkUnavailable,
    StateNote,
)

NOTE_FILE = "headrace.json"


class TensorboardOptions(Options):
    """Where the runs are: what `tensorboard --logdir` is given."""

    folder: Path


class _Position(BaseModel):
    """How far the file of a run is good."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int = 0
    """The last entry that is in it."""
    size_bytes: int = 0
    step: int = 0
    """The step of the last figures."""


class TensorboardSink:
    """One folder of runs."""

    def __init__(self, options: TensorboardOptions) -> None:
        self._folder = options.folder

    def write(self, batch: Batch) -> None:
        """Append to the file of one job, and have it on the disk."""
        run = batch.run
        # With its birth: the id of a job that was deleted may be given again.
        folder = self._folder / f"{run.id}-{run.created_at:%Y%m%d-%H%M%S}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _append(folder, batch)
        except OSError as error:
            raise SinkUnavailable(f"{folder} cannot be written: {error}") from error

    def close(self) -> None:
        """No file is open between batches."""


def _append(folder: Path, batch: Batch) -> None:
    position = _read_position(folder / NOTE_FILE)
    entries = [entry for entry in batch.entries if entry.sequence > position.sequence]
    if not entries:
        return
    step = position.step
    with (folder / f"events.out.tfevents.{int(batch.run.created_at.timestamp())}.headrace").open("ab") as file:
        file.truncate(position.size_bytes)
        writer = RecordWriter(file)
        if position.size_bytes == 0:
            for event in _opening(batch.run):
                writer.write(event.SerializeToString())
        for entry in entries:
            if isinstance(entry, Figures):
                step = entry.step
            writer.write(_event(entry, step).SerializeToString())
        writer.flush()
        os.fsync(file.fileno())
        size_bytes = file.seek(0, os.SEEK_END)
    _write_position(folder / NOTE_FILE, _Position(sequence=entries[-1].sequence, size_bytes=size_bytes, step=step))


def _read_position(note: Path) -> _Position:
    try:
        return _Position.model_validate_json(note.read_bytes())
    except FileNotFoundError:
        return _Position()
    except ValidationError as error:
        raise SinkUnavailable(f"{note} is not what was written there: {error.errors()[0]['msg']}") from error


def _write_position(note: Path, position: _Position) -> None:
    new = note.with_suffix(".new")
    with new.open("wb") as file:
        file.write(position.model_dump_json().encode())
        file.flush()
        os.fsync(file.fileno())
    new.replace(note)


def _opening(run: Run) -> Iterator[Any]:
    """What every file begins with: its version, and what the job was asked to do, for the tables of both plug-ins."""
    born = run.created_at.timestamp()
    yield Event(wall_time=born, file_version="brain.Event:2")
    summary = hparams.hparams_pb(dict(run.parameters), trial_id=run.key, start_time_secs=born)
    yield Event(wall_time=born, summary=Summary.FromString(summary.SerializeToString()))
    rows = [*run.parameters.items(), *((f"label {key}", value) for key, value in run.labels.items())]
    table = "\n".join(
        ["| parameter | value |", "|---|---|", *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows)]
    )
    yield Event(wall_time=born, summary=_text("job", table))


def _event(entry: Entry, step: int) -> Any:
    time = entry.time.timestamp()
    if isinstance(entry, Figures):
        values = [Summary.Value(tag=name, simple_value=value) for name, value in entry.values.items()]
        return Event(wall_time=time, step=entry.step, summary=Summary(value=values))
    if isinstance(entry, StateNote):
        text = f"{entry.state}: {entry.reason}" + (f", {entry.message}" if entry.message else "")
        return Event(wall_time=time, step=step, summary=_text("state", text))
    return Event(wall_time=time, step=step, summary=_text(entry.kind, entry.text))


def _text(tag: str, text: str) -> Any:
    plugin = SummaryMetadata.PluginData(plugin_name="text", content=TextPluginData(version=0).SerializeToString())
    tensor = TensorProto(
        dtype=DT_STRING,
        string_val=[text.encode()],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _open(options: Options) -> TensorboardSink:
    assert isinstance(options, TensorboardOptions)
    return TensorboardSink(options)


TENSORBOARD = SinkKind("tensorboard", TensorboardOptions, _open)
