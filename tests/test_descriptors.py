"""How many connections a process may have."""

import resource
import subprocess
import sys

import pytest

SAYS_BOTH = """
import resource
from headrace_server import descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
print(descriptors.most(), descriptors.raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_a_server_takes_all_the_descriptors_that_it_may() -> None:
    said = subprocess.run([sys.executable, "-c", SAYS_BOTH], capture_output=True, text=True, check=True).stdout

    assert said.split() == ["128", "128", "128", "128"]


def test_a_self_check_says_when_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace_server import selfcheck

    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 1024))

    finding = selfcheck._connections()

    assert finding.verdict is selfcheck.Verdict.WARNING
    assert "1,024" in finding.detail
