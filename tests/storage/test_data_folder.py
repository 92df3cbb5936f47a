import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from headrace_server.errors import CannotStart
from headrace_server.storage.data_folder import LONGEST_SOCKET_PATH, DataFolder


def test_it_makes_what_it_needs_and_only_its_owner_may_look(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "a" / "b")
    try:
        assert folder.work.is_dir()
        assert folder.scratch.is_dir()
        assert folder.socket == tmp_path / "a" / "b" / "run" / "worker.sock"
        assert folder.root.stat().st_mode & 0o077 == 0
    finally:
        folder.close()


def test_a_second_server_is_told_which_process_has_it(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    try:
        with pytest.raises(CannotStart, match=f"process {os.getpid()}"):
            DataFolder(tmp_path)
    finally:
        folder.close()


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from headrace_server.storage.data_folder import DataFolder; "
        "folder = DataFolder(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9

    DataFolder(tmp_path).close()


def test_scratch_is_emptied_and_work_is_not(tmp_path: Path) -> None:
    for name in ("scratch", "work"):
        (tmp_path / name / "j").mkdir(parents=True)
        (tmp_path / name / "j" / "file").write_text("x")

    DataFolder(tmp_path).close()

    assert list((tmp_path / "scratch").iterdir()) == []
    assert (tmp_path / "work" / "j" / "file").exists()


def test_a_long_path_has_a_short_socket_that_is_always_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = tmp_path / ("x" * LONGEST_SOCKET_PATH)
    paths = set()
    for _ in range(2):
        folder = DataFolder(root)
        paths.add(folder.socket)
        folder.close()

    (path,) = paths
    assert len(os.fsencode(path)) < len(os.fsencode(root))
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_socket_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o777)
    (tmp_path / "run").chmod(0o777)

    with pytest.raises(CannotStart, match="only this user"):
        DataFolder(tmp_path)

    (tmp_path / "run").chmod(0o700)
    DataFolder(tmp_path).close()


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")

    with pytest.raises(CannotStart, match="data"):
        DataFolder(tmp_path / "data")
