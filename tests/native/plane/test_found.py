"""What the fuzzer has found, and the messages that it begins with, read in this process."""

from pathlib import Path

from headrace_server._native import plane_testing as native
from tests.native.fuzz.run import ABOUT, ID, INFER, PREDICT, STATUS, STREAM, seeds

FOUND = Path(__file__).parents[1] / "fuzz" / "found"
READERS = {
    PREDICT: native.read_predict,
    INFER: native.read_infer,
    STREAM: native.read_stream_request,
    ABOUT: native.read_model_question,
}


def test_what_was_found_once_is_read_or_left_alone() -> None:
    for path in FOUND.glob("[!R]*"):
        reader, cut, *_ = content = path.read_bytes()
        message = content[2:]
        step = cut or len(message)
        pieces = [message[start : start + step] for start in range(0, len(message), step or 1)]
        for read in [READERS[reader % 6]] if reader % 6 in READERS else READERS.values():
            read(pieces)


def test_the_fuzzer_begins_with_messages_that_are_read() -> None:
    for reader, content in seeds():
        if reader not in (ID, STATUS):
            read = READERS[reader]([content])
            is_raw_only = reader == INFER and any(name in content for name in (b"FP16", b"BF16", b"FP8"))
            assert read is not None or is_raw_only
