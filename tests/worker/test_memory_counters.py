"""Memory is blamed only when the kernel says so."""

from pathlib import Path

import pytest

from headrace_server.worker.memory_counters import MemoryCounters


def counters(tmp_path: Path, groups: str, files: dict[str, str]) -> MemoryCounters:
    for name, content in files.items():
        (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / name).write_text(content)
    (tmp_path / "groups").write_text(groups)
    return MemoryCounters(tmp_path / "mount", tmp_path / "groups")


EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/jobs/a\n", {"jobs/a/memory.events": EVENTS, "memory.events": "oom_kill 99\n"}, 2),
        ("0::/\n", {"memory.events": EVENTS}, 2),
        ("0::/host/path\n", {"memory.events": EVENTS}, 2),
        ("4:memory:/a\n0::/\n", {"memory/a/memory.oom_control": CONTROL}, 5),
        ("4:cpu,memory:/unseen\n", {"memory/memory.oom_control": CONTROL}, 5),
        ("4:memory:/\n0::/u\n", {"memory/memory.oom_control": CONTROL, "unified/u/memory.events": EVENTS}, 7),
        ("0::/a\n", {}, None),
        ("0::/a\n", {"a/memory.events": "rubbish\noom_kill many\n"}, None),
        ("rubbish\n\n:\n", {"memory.events": EVENTS}, None),
    ],
)
def test_the_counter_of_our_own_group_is_read(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int | None
) -> None:
    assert counters(tmp_path, groups, files).num_killed() == expected


def test_without_control_groups_nothing_is_claimed(tmp_path: Path) -> None:
    assert MemoryCounters(tmp_path, tmp_path / "missing").num_killed() is None


def test_this_machines_own_counters_can_be_read() -> None:
    count = MemoryCounters().num_killed()

    assert count is None or count >= 0
