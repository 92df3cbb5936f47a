"""A folder of compiled code stays sound and bounded, whoever uses it."""

import os
from pathlib import Path

import pytest

from headrace_server.trainers.compile_cache import CompileCache
from headrace_server.trainers.compile_record import ASSUMED_GAIN, CompileRecord


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/nowhere")  # put back after the test, whatever it sets


def opened(folder: Path, most_bytes: int = 1 << 20) -> CompileCache:
    cache = CompileCache(folder, most_bytes)
    cache.open()
    return cache


def write(folder: Path, **contents: bytes) -> None:
    for name, content in contents.items():
        (folder / "inductor" / "deeper").mkdir(exist_ok=True)
        (folder / "inductor" / "deeper" / name).write_bytes(content)


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "inductor").rglob("*") if path.is_file()}


def test_what_one_leaves_the_next_finds(tmp_path: Path) -> None:
    first = opened(tmp_path)
    write(tmp_path, one=b"1", two=b"22")
    first.close()

    opened(tmp_path)

    assert names(tmp_path) == {"one", "two"}
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")


def test_what_was_damaged_or_left_half_done_is_removed(tmp_path: Path) -> None:
    first = opened(tmp_path)
    write(tmp_path, sound=b"1", damaged=b"22", short=b"333")
    first.close()
    write(tmp_path, damaged=b"23", short=b"33", unfinished=b"4")  # a disk, a power cut, a trainer that was killed

    opened(tmp_path)

    assert names(tmp_path) == {"sound"}


def test_nothing_is_trusted_where_the_seals_are_gone(tmp_path: Path) -> None:
    first = opened(tmp_path)
    write(tmp_path, one=b"1")
    first.close()
    (tmp_path / "seals.json").write_text("{")

    opened(tmp_path)

    assert names(tmp_path) == set()


def test_what_was_not_read_for_longest_makes_room(tmp_path: Path) -> None:
    first = opened(tmp_path, most_bytes=10)
    write(tmp_path, old=b"1234", used=b"1234", new=b"1234")
    for age, name in ((300, "old"), (100, "used"), (200, "new")):
        path = tmp_path / "inductor" / "deeper" / name
        os.utime(path, (path.stat().st_mtime - age, path.stat().st_mtime))

    first.close()

    assert names(tmp_path) == {"used", "new"}


def test_looking_at_a_file_is_no_use_of_it(tmp_path: Path) -> None:
    first = opened(tmp_path)
    write(tmp_path, one=b"1")
    path = tmp_path / "inductor" / "deeper" / "one"
    long_ago = path.stat().st_mtime - 100_000
    os.utime(path, (long_ago, path.stat().st_mtime))

    first.close()
    opened(tmp_path)

    assert path.stat().st_atime == long_ago


def test_nobody_cleans_up_while_another_compiles(tmp_path: Path) -> None:
    busy = opened(tmp_path)
    write(tmp_path, working=b"1")

    other = opened(tmp_path)
    other.close()
    assert names(tmp_path) == {"working"}

    busy.close()
    opened(tmp_path)
    assert names(tmp_path) == {"working"}


def test_a_trainer_that_is_killed_leaves_what_it_has_sealed(tmp_path: Path) -> None:
    first = opened(tmp_path)
    write(tmp_path, one=b"1")
    first.seal()
    write(tmp_path, two=b"2")
    assert first._lock is not None
    os.close(first._lock)  # as the kernel does

    opened(tmp_path).close()

    assert names(tmp_path) == {"one"}


def test_a_network_is_predicted_by_itself_then_by_others_of_the_hardware_then_by_assumption(
    tmp_path: Path,
) -> None:
    path = tmp_path / "learned.json"
    assert CompileRecord(path, "H100").predict("a", 2).gain == ASSUMED_GAIN
    CompileRecord(path, "H100").note("a", 2, seconds=10, gain=1.5)
    CompileRecord(path, "H100").note("a", 2, seconds=1, gain=1.6)  # its code lay in the cache
    CompileRecord(path, "H100").note("b", 4, seconds=40, gain=1.1)
    CompileRecord(path, "A100").note("a", 2, seconds=99, gain=9)

    record = CompileRecord(path, "H100")

    own, other = record.predict("a", 2), record.predict("c", 10)
    assert (own.seconds, own.gain, own.basis) == (1, 1.6, "network")
    assert (other.seconds, other.basis) == (75, "hardware")
    assert other.gain == pytest.approx(1.35)
    assert CompileRecord(path, "L4").predict("a", 2).basis == "assumption"


def test_a_record_that_cannot_be_read_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "learned.json"
    path.write_text("[]")

    CompileRecord(path, "H100").note("a", 2, seconds=10, gain=1.5)

    assert CompileRecord(path, "H100").predict("a", 2).basis == "network"


def test_a_prediction_weighs_what_is_left_against_the_cost(tmp_path: Path) -> None:
    prediction = CompileRecord(None, "H100").predict("a", 2)

    assert prediction.is_worth_it(0.010, 100_000)
    assert not prediction.is_worth_it(0.010, 10_000)
