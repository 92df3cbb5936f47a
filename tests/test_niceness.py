import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_server.niceness import be_nice

AUTOGROUP = Path("/proc/self/autogroup")


@pytest.fixture
def a_process() -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    yield process
    process.kill()
    process.communicate()


def test_a_process_gives_way_to_everybody(a_process: "subprocess.Popen[bytes]") -> None:
    be_nice(a_process.pid, 7)

    assert os.getpriority(os.PRIO_PROCESS, a_process.pid) == 7


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not group processes by session")
def test_it_gives_way_to_other_sessions_too(a_process: "subprocess.Popen[bytes]") -> None:
    mine = AUTOGROUP.read_text()

    be_nice(a_process.pid, 7)

    assert Path(f"/proc/{a_process.pid}/autogroup").read_text().endswith("nice 7\n")
    assert AUTOGROUP.read_text() == mine


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not group processes by session")
def test_whoever_shares_a_session_with_others_does_not_make_them_give_way() -> None:
    mine = AUTOGROUP.read_text()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        be_nice(process.pid, 7)

        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 7
        assert AUTOGROUP.read_text() == mine


def test_one_that_is_gone_is_let_be() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass

    be_nice(process.pid, 7)
