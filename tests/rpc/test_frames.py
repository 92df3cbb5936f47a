from google.protobuf.wrappers_pb2 import BytesValue

from headrace_server.rpc.services.frames import Frames


def test_a_frame_is_found_as_it_was_kept() -> None:
    frames = Frames()

    kept = frames.keep("j", 1, BytesValue(value=b"x"))

    assert frames.find("j", 1) is kept
    assert frames.find("j", 2) is None
    assert frames.find("k", 1) is None


def test_the_oldest_leave_when_there_are_too_many() -> None:
    frames = Frames(limit_bytes=1000)
    for sequence in range(100):
        frames.keep("j", sequence, BytesValue(value=b"x" * 97))  # 99 bytes each

    assert frames.size_bytes <= 1000
    assert frames.find("j", 89) is None
    assert frames.find("j", 90) is not None


def test_one_frame_that_is_too_large_is_kept_all_the_same_until_the_next() -> None:
    frames = Frames(limit_bytes=10)
    frames.keep("j", 1, BytesValue(value=b"x" * 100))
    assert frames.find("j", 1) is not None

    frames.keep("j", 2, BytesValue(value=b"x"))
    assert frames.find("j", 1) is None


def test_keeping_an_entry_twice_counts_it_once() -> None:
    frames = Frames()
    for _ in range(5):
        frames.keep("j", 1, BytesValue(value=b"x" * 97))

    assert frames.size_bytes == 99
