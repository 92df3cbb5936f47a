"""Real event files, read back by TensorBoard's own reader."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator

from headrace_server.settings import SinkSettings
from headrace_server.training.sinks import tensorboard
from headrace_server.training.sinks.sink import Batch, Figures, Note, Run, SinkUnavailable, StateNote
from headrace_server.training.sinks.tensorboard import TENSORBOARD, TensorboardOptions, TensorboardSink
from tests.doubles.training_house import PATIENT, training_house
from tests.doubles.until import until

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
RUN = Run(
    id="j1",
    created_at=NOON,
    model="models/digits",
    dataset="datasets/digits/versions/1",
    trainer="tabular",
    parameters={"recipe.seed": "7", "trainer": "tabular"},
    labels={"team": "green|blue"},
)


def loss(sequence: int, step: int, value: float = 1.0) -> Figures:
    return Figures(sequence, NOON, step, {"train/loss": value})


def read(folder: Path) -> EventAccumulator:
    """The one run of a folder, as TensorBoard sees it."""
    (run,) = folder.iterdir()
    found = EventAccumulator(str(run), size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE)
    found.Reload()
    return found


def steps(found: EventAccumulator) -> list[int]:
    return [event.step for event in found.Scalars("train/loss")]


def texts(found: EventAccumulator, tag: str) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in found.Tensors(tag)]


async def test_a_job_can_be_seen_in_tensorboard(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    sink = SinkSettings.model_validate({"kind": "tensorboard", "period_seconds": 0, "options": {"folder": str(folder)}})
    settings = PATIENT.model_copy(update={"sinks": (sink,)})
    async with training_house(tmp_path / "house", settings=settings, kinds=[TENSORBOARD]) as house:
        job = await house.over(await house.start())
        await until(lambda: _has_all(folder, job))
        await house.desk.drain()

    found = read(folder)
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [
        (1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)),
    ]  # fmt: skip
    assert [event.value for event in found.Scalars("train/learning_rate")] == pytest.approx([0.001] * 3)
    assert [text.split(":")[0] for text in texts(found, "state")] == [
        "QUEUED", "PREPARING", "RUNNING", "FINALIZING", "SUCCEEDED",
    ]  # fmt: skip
    assert texts(found, "model_version") == ["models/flowers/versions/1"]
    (table,) = texts(found, "job")
    assert f"| dataset_digest | {job.spec.dataset_digest} |" in table
    assert found.PluginTagToContent("hparams")


def _has_all(folder: Path, job: Any) -> bool:
    return any(f'"sequence":{job.latest_sequence},' in note.read_text() for note in folder.glob("*/headrace.json"))


def test_numbers_that_are_not_finite_are_kept_as_they_are(tmp_path: Path) -> None:
    sink = TensorboardSink(TensorboardOptions(folder=tmp_path))

    sink.write(Batch(RUN, [loss(1, 1, math.nan), loss(2, 2, math.inf)]))

    values = [event.value for event in read(tmp_path).Scalars("train/loss")]
    assert math.isnan(values[0])
    assert values[1] == math.inf


def test_an_earlier_job_of_the_same_id_keeps_its_own_run(tmp_path: Path) -> None:
    sink = TensorboardSink(TensorboardOptions(folder=tmp_path))
    later = Run(**{**{name: getattr(RUN, name) for name in Run.__slots__}, "created_at": NOON.replace(hour=13)})

    sink.write(Batch(RUN, [loss(1, 1)]))
    sink.write(Batch(later, [loss(1, 1)]))

    assert len([*tmp_path.iterdir()]) == 2


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=8),
    st.lists(st.sampled_from(["fine", "repeated", "torn", "unnoted"]), min_size=8, max_size=8),
)
def test_however_often_the_process_ends_in_the_middle_nothing_is_there_twice_or_missing(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], fates: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    sequence = 0
    for size, fate in zip(sizes, fates, strict=False):
        batch = Batch(RUN, [loss(sequence + 1 + n, sequence + 1 + n) for n in range(size)])
        _write(folder, batch, fate)
        sequence += size

    found = read(folder)
    assert steps(found) == list(range(1, sequence + 1))
    assert len(texts(found, "job")) == 1


def _write(folder: Path, batch: Batch, fate: str) -> None:
    """Write a batch; how the process ends meanwhile, so that another writes it again."""
    before = {file: file.read_bytes() for file in folder.glob("*/*")}
    TensorboardSink(TensorboardOptions(folder=folder)).write(batch)
    if fate in ("torn", "unnoted"):  # there are more bytes than are noted: whole records, or half of one
        (note,) = folder.glob(f"*/{tensorboard.NOTE_FILE}")
        (file,) = folder.glob("*/events.out.tfevents.*")
        note.write_bytes(before[note]) if note in before else note.unlink()
        if fate == "torn":
            file.write_bytes(file.read_bytes()[: len(before.get(file, b"")) + 7])
    if fate != "fine":
        TensorboardSink(TensorboardOptions(folder=folder)).write(batch)


def test_a_folder_that_cannot_be_written_is_a_sink_that_is_away(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    sink = TensorboardSink(TensorboardOptions(folder=tmp_path / "runs"))

    with pytest.raises(SinkUnavailable, match="cannot be written"):
        sink.write(Batch(RUN, [loss(1, 1)]))


def test_states_and_notes_stand_at_the_step_before_them(tmp_path: Path) -> None:
    sink = TensorboardSink(TensorboardOptions(folder=tmp_path))

    sink.write(Batch(RUN, [loss(1, 40)]))
    sink.write(Batch(RUN, [Note(2, NOON, "warning", "SLOW: a warning"), StateNote(3, NOON, "FAILED", "X", "", True)]))

    found = read(tmp_path)
    assert [event.step for event in found.Tensors("warning")] == [40]
    assert texts(found, "state") == ["FAILED: X"]
