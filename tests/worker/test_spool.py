"""The spool returns what it was given, whatever is acknowledged in between and whatever the disk does."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace_server.worker.spool import Record, Spool


def read_all(spool: Spool, after: int, limit_bytes: int = 1 << 20) -> list[Record]:
    records: list[Record] = []
    while more := spool.read(records[-1].number if records else after, limit_bytes):
        records += more
    return records


def opened(folder: Path, segment_bytes: int = 64) -> Spool:
    spool = Spool(folder / "spool", segment_bytes)
    spool.open()
    return spool


class Disk:
    """A disk with room for so many bytes, in place of os.pwrite."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free_bytes: int | None = None
        self._pwrite = os.pwrite
        monkeypatch.setattr("headrace_server.worker.spool.os.pwrite", self.pwrite)

    def pwrite(self, descriptor: int, content: memoryview, offset: int) -> int:
        if self.free_bytes is None:
            return self._pwrite(descriptor, content, offset)
        if self.free_bytes == 0:
            raise OSError(28, "No space left on device")
        num_written = self._pwrite(descriptor, content[: self.free_bytes], offset)
        self.free_bytes -= num_written
        return num_written


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


class SpoolMachine(RuleBasedStateMachine):
    """The spool beside a plain list, with a disk that comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.monkeypatch = pytest.MonkeyPatch()
        self.disk = Disk(self.monkeypatch)
        self.now = 0.0
        self.written: list[bytes] = []
        self.acknowledged = 0

    @initialize(segment_bytes=st.integers(1, 200))
    def open(self, segment_bytes: int) -> None:
        self.spool = Spool(Path(self.folder.name) / "spool", segment_bytes, clock=lambda: self.now)
        self.spool.open()

    @rule(contents=st.lists(st.binary(max_size=60), max_size=20))
    def append(self, contents: Sequence[bytes]) -> None:
        self.spool.append(contents)
        self.written += contents

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        up_to = data.draw(st.integers(0, len(self.written) + 3))
        self.spool.acknowledge(up_to)
        self.acknowledged = max(self.acknowledged, min(up_to, len(self.written)))

    @rule(limit_bytes=st.integers(0, 300), data=st.data())
    def read(self, limit_bytes: int, data: st.DataObject) -> None:
        after = data.draw(st.integers(0, len(self.written)))
        first = max(after, self.acknowledged)
        expected = [Record(first + 1 + index, content) for index, content in enumerate(self.written[first:])]
        assert read_all(self.spool, after, limit_bytes) == expected

    @rule(free_bytes=st.integers(0, 100))
    def fill_disk(self, free_bytes: int) -> None:
        self.disk.free_bytes = free_bytes

    @precondition(lambda self: self.disk.free_bytes is not None)
    @rule()
    def free_disk(self) -> None:
        self.disk.free_bytes = None
        self.now += 2

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "spool"):
            return
        assert self.spool.last == len(self.written)
        assert self.spool.acknowledged == self.acknowledged
        assert self.spool.unacknowledged_bytes == sum(map(len, self.written[self.acknowledged :]))
        assert 0 <= self.spool.memory_bytes <= self.spool.unacknowledged_bytes

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
        self.monkeypatch.undo()
        self.folder.cleanup()


SpoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSpool = SpoolMachine.TestCase


def test_everything_acknowledged_leaves_one_small_file_at_most(tmp_path: Path) -> None:
    spool = opened(tmp_path, segment_bytes=100)
    for number in range(1, 200):
        spool.append([b"x" * 30])
        spool.acknowledge(number)

    files = list((tmp_path / "spool").iterdir())

    assert len(files) <= 1
    assert sum(file.stat().st_size for file in files) < 200


def test_acknowledged_segments_are_removed(tmp_path: Path) -> None:
    spool = opened(tmp_path, segment_bytes=100)
    spool.append([b"x" * 50] * 100)
    before = len(list((tmp_path / "spool").iterdir()))

    spool.acknowledge(90)

    assert before == 50
    assert len(list((tmp_path / "spool").iterdir())) == 5


def test_a_full_disk_is_survived_in_memory_and_left_again(tmp_path: Path, disk: Disk) -> None:
    now = 0.0
    spool = Spool(tmp_path / "spool", 1000, clock=lambda: now)
    spool.open()
    spool.append([b"first"])

    disk.free_bytes = 5
    spool.append([b"second", b"third"])

    assert spool.disk_problem == "No space left on device"
    assert spool.memory_bytes == len(b"secondthird")
    disk.free_bytes, now = None, 5.0
    spool.append([b"fourth"])
    assert spool.disk_problem == ""
    assert spool.memory_bytes == len(b"secondthird")
    assert [record.content for record in read_all(spool, 0)] == [b"first", b"second", b"third", b"fourth"]
    spool.acknowledge(4)
    assert spool.memory_bytes == 0


def test_a_disk_that_takes_nothing_at_all_is_survived(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    spool = Spool(tmp_path / "spool" / "deeper")
    spool.open()

    spool.append([b"a", b"b"])

    assert spool.disk_problem
    assert [record.content for record in read_all(spool, 0)] == [b"a", b"b"]


@pytest.mark.parametrize("damage", [b"", b"\0" * 10_000])
def test_damaged_records_keep_their_numbers(tmp_path: Path, damage: bytes) -> None:
    spool = opened(tmp_path, segment_bytes=1000)
    spool.append([b"a" * 100] * 3)
    (file,) = (tmp_path / "spool").iterdir()

    file.write_bytes(damage)

    assert read_all(spool, 0) == [Record(1, None), Record(2, None), Record(3, None)]


def test_one_flipped_bit_costs_one_record(tmp_path: Path) -> None:
    spool = opened(tmp_path, segment_bytes=1000)
    spool.append([b"aaaa", b"bbbb", b"cccc"])
    (file,) = (tmp_path / "spool").iterdir()
    content = bytearray(file.read_bytes())
    content[content.index(b"bbbb")] ^= 1

    file.write_bytes(content)

    assert read_all(spool, 0) == [Record(1, b"aaaa"), Record(2, None), Record(3, b"cccc")]


def test_a_file_that_was_taken_away_is_survived(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.append([b"a"])
    (file,) = (tmp_path / "spool").iterdir()

    file.unlink()

    assert read_all(spool, 0) == [Record(1, None)]
    spool.acknowledge(1)
    spool.append([b"b"])
    assert spool.last == 2


def test_a_read_holds_about_as_much_as_it_was_allowed(tmp_path: Path) -> None:
    spool = opened(tmp_path, segment_bytes=10_000)
    spool.append([b"x" * 100] * 50)

    part = spool.read(0, limit_bytes=1000)

    assert 1 <= len(part) <= 10


def test_an_old_spool_is_emptied(tmp_path: Path) -> None:
    opened(tmp_path).append([b"old"])

    spool = opened(tmp_path)

    assert read_all(spool, 0) == []
    assert list((tmp_path / "spool").iterdir()) == []
