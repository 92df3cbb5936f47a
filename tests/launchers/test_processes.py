"""Processes are killed for certain, or it is said that they were not."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from headrace_server.launchers.launcher import CannotKill
from headrace_server.launchers.processes import (
    MARK,
    descendants,
    find_marked,
    find_session,
    is_alive,
    kill_until_gone,
)

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]

# A process whose parent or child has died starts another; each makes a session of its own.
HYDRA = """
    import os, subprocess, sys, time
    program, folder = sys.argv[1:]
    open(f"{folder}/{os.getpid()}", "w").close()
    parent, child = os.getppid(), None
    while len(os.listdir(folder)) < 200:
        is_alone = child is None and len(os.listdir(folder)) < 2
        if is_alone or (child and child.poll() is not None) or os.getppid() != parent:
            parent = os.getppid()
            child = subprocess.Popen([sys.executable, "-S", program, program, folder], start_new_session=True)
        time.sleep(0.001)
    time.sleep(600)
"""


@pytest.fixture
def sleeper() -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen(SLEEP)
    yield process
    process.kill()
    process.wait()


def test_a_process_that_survives_its_kill_is_named(sleeper: "subprocess.Popen[bytes]") -> None:
    class Immortal(psutil.Process):
        def kill(self) -> None:
            pass

    with pytest.raises(CannotKill) as caught:
        kill_until_gone(lambda: [Immortal(sleeper.pid)], seconds=0.1)

    assert caught.value.pids == [sleeper.pid]


def test_nothing_to_kill_is_no_kill() -> None:
    assert kill_until_gone(list) == 0


def test_processes_that_start_each_other_again_are_all_ended(tmp_path: Path) -> None:
    program = tmp_path / "hydra.py"
    program.write_text(textwrap.dedent(HYDRA))
    heads = tmp_path / "heads"
    heads.mkdir()
    environment = {**os.environ, MARK: str(tmp_path)}
    first = subprocess.Popen([sys.executable, "-S", program, program, heads], env=environment)
    try:
        while len(list(heads.iterdir())) < 2:
            assert first.poll() is None
            time.sleep(0.01)

        num_killed = kill_until_gone(lambda: find_marked(tmp_path))

        assert num_killed >= 2
        assert not any(map(is_alive, find_marked(tmp_path)))
    finally:
        kill_until_gone(lambda: find_marked(tmp_path))
        first.wait()


def test_a_zombie_is_not_alive(sleeper: "subprocess.Popen[bytes]") -> None:
    process = psutil.Process(sleeper.pid)
    assert is_alive(process)

    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)

    assert process.is_running()
    assert not is_alive(process)


def test_descendants_are_found_at_every_depth() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', sys.argv[1]])"
    leaf = "print('up', flush=True); import time; time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-S", "-c", script, leaf], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()

    found = descendants({psutil.Process(process.pid)})

    assert len(found) == 2
    kill_until_gone(lambda: found)
    process.stdout.close()
    process.wait()


def test_a_process_that_is_gone_has_no_descendants(sleeper: "subprocess.Popen[bytes]") -> None:
    process = psutil.Process(sleeper.pid)
    sleeper.kill()
    sleeper.wait()

    assert descendants({process}) == set()


@pytest.mark.parametrize("session", [0, -1])
def test_no_session_has_no_members(tmp_path: Path, session: int) -> None:
    assert find_session(session, None, tmp_path) == set()
