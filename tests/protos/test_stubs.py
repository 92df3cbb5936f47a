"""The committed stubs are those of the committed contracts."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("stubs")
    generate = [sys.executable, str(ROOT / "protos/generate.py"), "--into", str(into)]
    subprocess.run(generate, check=True, timeout=280, capture_output=True)
    return into


def stubs(root: Path) -> dict[str, str]:
    found = [
        path for base in ("clients/python/headrace", "server/headrace_server") for path in (root / base).rglob("*.py*")
    ]
    return {
        str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in found if path.name.endswith(KINDS)
    }


def test_no_stub_is_missing_or_left_over(generated: Path) -> None:
    assert stubs(generated).keys() == stubs(ROOT).keys()


def test_every_stub_is_as_generated(generated: Path) -> None:
    fresh, committed = stubs(generated), stubs(ROOT)

    stale = [name for name in fresh if fresh[name] != committed.get(name)]

    assert not stale, "run `make protos`"
