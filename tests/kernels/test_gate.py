"""A training waits while predictions run, for as long as it must and no longer, whoever is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from headrace_server import _native
from headrace_server.kernels.gate import LONGEST_WAIT_SECONDS, ServingGate, TrainingGate


def wait_in_thread(path: Path) -> tuple[threading.Thread, list[float], TrainingGate]:
    """Somebody who waits by now, what it has waited at its end, and its gate."""
    waited: list[float] = []
    gate, looking = TrainingGate(path), _native.Gate.train(str(path))
    before = looking.waiting
    thread = threading.Thread(target=lambda: waited.append(gate.wait(LONGEST_WAIT_SECONDS)))
    thread.start()
    deadline = time.monotonic() + 20
    while looking.waiting == before:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return thread, waited, gate


def test_nothing_is_waited_for_while_nothing_is_served(tmp_path: Path) -> None:
    ServingGate(tmp_path / "gate")

    gate = TrainingGate(tmp_path / "gate")

    assert gate.wait(10) == 0
    assert not gate.is_busy
    assert gate.latency_seconds == 0


def test_a_training_waits_until_the_last_has_left(tmp_path: Path) -> None:
    serving = ServingGate(tmp_path / "gate")
    with serving.passing():
        with serving.passing():
            assert serving.num_passing == 2
            thread, waited, gate = wait_in_thread(tmp_path / "gate")
        was_busy = gate.is_busy
        assert not waited
        assert serving.num_waiting == 1
    thread.join(10)

    assert waited
    assert was_busy
    assert waited[0] > 0
    assert gate.waited_seconds == waited[0]
    assert not gate.is_busy
    assert gate.latency_seconds > 0


def test_a_wait_has_an_end(tmp_path: Path) -> None:
    serving, gate = ServingGate(tmp_path / "gate"), TrainingGate(tmp_path / "gate")
    with serving.passing():
        assert gate.wait(0.05) >= 0.05
        assert gate.wait(0) == 0
        assert gate.wait(-1) == 0
        with pytest.raises(ValueError, match="not a number"):
            _native.Gate.train(str(tmp_path / "gate")).wait(float("nan"))


def test_waiting_lets_other_threads_go_on(tmp_path: Path) -> None:
    serving = ServingGate(tmp_path / "gate")
    with serving.passing():
        thread, waited, _ = wait_in_thread(tmp_path / "gate")
        # It waits, and yet we have the interpreter.
        assert not waited
    thread.join(10)
    assert waited


def test_a_block_that_raises_has_left(tmp_path: Path) -> None:
    serving = ServingGate(tmp_path / "gate")

    with pytest.raises(ZeroDivisionError), serving.passing():
        raise ZeroDivisionError

    assert serving.num_passing == 0


def test_whoever_serves_with_a_gate_has_it_alone(tmp_path: Path) -> None:
    first = ServingGate(tmp_path / "gate")

    with pytest.raises(OSError, match="busy"):
        ServingGate(tmp_path / "gate")

    first.close()
    ServingGate(tmp_path / "gate")


@pytest.mark.parametrize("content", [None, b"", b"x" * 10, b"x" * 4096])
def test_what_is_no_gate_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "gate").write_bytes(content)

    with pytest.raises((OSError, ValueError)):
        TrainingGate(tmp_path / "gate")


SERVER = """
import sys, time
from headrace_server.kernels.gate import ServingGate
from pathlib import Path
gate = ServingGate(Path(sys.argv[1]))
with gate.passing():
    print("inside", flush=True)
    time.sleep(600)
"""


def test_a_server_that_is_killed_inside_holds_nobody_back(tmp_path: Path) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path / "gate")], stdout=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()
    thread, waited, gate = wait_in_thread(tmp_path / "gate")
    was_busy = gate.is_busy

    server.kill()
    server.wait()
    server.stdout.close()
    thread.join(10)

    assert waited
    assert was_busy
    assert not gate.is_busy
    ServingGate(tmp_path / "gate")  # the next one takes it over
    assert gate.wait(10) == 0


TRAINER = """
import sys
from headrace_server.kernels.gate import TrainingGate
from pathlib import Path
gate = TrainingGate(Path(sys.argv[1]))
print("waits", flush=True)
gate.wait(60)
"""


def test_a_trainer_that_is_killed_while_it_waits_holds_nobody_back(tmp_path: Path) -> None:
    serving = ServingGate(tmp_path / "gate")
    with serving.passing():
        trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(tmp_path / "gate")], stdout=subprocess.PIPE)
        assert trainer.stdout is not None
        trainer.stdout.readline()
        while serving.num_waiting == 0:
            time.sleep(0.001)
        os.kill(trainer.pid, signal.SIGKILL)
        trainer.wait()
        trainer.stdout.close()

    with serving.passing():
        pass
    assert serving.num_passing == 0
    assert TrainingGate(tmp_path / "gate").wait(1) == 0
