"""The agent's own log stays short."""

import os
from pathlib import Path

from headrace_server.worker.own_log import shorten


def test_a_log_that_grew_too_large_keeps_its_newest_lines(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    with path.open("ab", buffering=0) as file:
        file.write(b"".join(b"line %d\n" % number for number in range(1000)))

        assert shorten(file.fileno(), largest_bytes=1000, kept_bytes=100)
        file.write(b"next\n")

    lines = path.read_text().splitlines()
    assert len(path.read_bytes()) <= 110
    assert lines[-2:] == ["line 999", "next"]
    assert lines[0].startswith("line 9")


def test_a_short_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    with path.open("ab", buffering=0) as file:
        file.write(b"line\n")

        assert not shorten(file.fileno())

    assert path.read_bytes() == b"line\n"


def test_what_is_no_file_is_left_alone() -> None:
    read_end, write_end = os.pipe()
    try:
        assert not shorten(write_end, largest_bytes=0)
    finally:
        os.close(read_end)
        os.close(write_end)
