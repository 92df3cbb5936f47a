"""A trainer's output becomes lines, within bounds, whatever it writes."""

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from headrace_server.rpc.wire.worker import report_from_proto
from headrace_server.training.events import LogLine, LogSource
from headrace_server.worker.lines import LineCutter
from headrace_server.worker.outbox import LONGEST_TEXT, Outbox
from headrace_server.worker.output import LONGEST_EVIDENCE, Output, Rate
from headrace_server.worker.spool import Spool


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=10), st.integers(1, 20))
def test_lines_do_not_depend_on_how_the_bytes_arrive(content: bytes, cuts: list[int], limit: int) -> None:
    cutter = LineCutter(limit)
    edges = [0, *sorted(cuts), len(content)]

    lines = [line for begin, end in pairwise(edges) for line in cutter.feed(content[begin:end])]
    rest = cutter.end()

    *whole, last = content.split(b"\n")
    assert lines == [line[:limit] for line in whole]
    assert rest == (last[:limit] or None)


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    outbox = Outbox(Spool(tmp_path / "spool"))
    await outbox.open()
    yield outbox
    await outbox.close()


async def logged(output: Output, outbox: Outbox, *writes: bytes) -> list[LogLine]:
    stdout, stderr = output.stream(LogSource.STDOUT), output.stream(LogSource.STDERR)
    for content in writes:
        stdout.data_received(content)
    stdout.connection_lost(None)
    stderr.connection_lost(None)
    await output.pump()
    found: list[LogLine] = []
    while part := await outbox.read(len(found)):
        found += [line for report in part if isinstance(line := report_from_proto(report).content, LogLine)]
    return found


async def test_lines_go_to_the_log_with_their_source(outbox: Outbox) -> None:
    lines = await logged(Output(outbox), outbox, b"one\ntw", b"o\r\nlast without an end")

    assert lines == [LogLine(source=LogSource.STDOUT, text=text) for text in ("one", "two", "last without an end")]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (b"\xff\xfe caf\xc3\xa9\n", "\ufffd\ufffd café"),
        (b"10%\r50%\r100%\n", "100%"),
        (b"a\0b\n", "a\ufffdb"),
        (b"\n", ""),
        ("é".encode() * 10_000 + b"\n", "é" * LONGEST_TEXT),
        ("\N{PILE OF POO}".encode() * 10_000 + b"\n", "\N{PILE OF POO}" * LONGEST_TEXT),
    ],
    ids=["no text", "progress bar", "nul", "empty", "long", "long and wide"],
)
async def test_what_is_no_tidy_text_becomes_tidy_text(outbox: Outbox, written: bytes, text: str) -> None:
    (line,) = await logged(Output(outbox), outbox, written)

    assert line.text == text


async def test_more_than_the_rate_is_left_out_and_counted(outbox: Outbox) -> None:
    output = Output(outbox, Rate(burst=10, lines_per_second=1), clock=lambda: 0.0)

    *lines, note = await logged(output, outbox, b"".join(b"%d\n" % number for number in range(500)))

    assert [line.text for line in lines] == [str(number) for number in range(10)]
    assert note == LogLine(
        source=LogSource.WORKER, text="490 lines were left out: the trainer writes faster than the log takes"
    )
    assert output.last_lines == tuple(str(number) for number in range(400, 500))


async def test_after_a_pause_lines_go_to_the_log_again(outbox: Outbox) -> None:
    now = 0.0
    output = Output(outbox, Rate(burst=2, lines_per_second=1), clock=lambda: now)
    stream = output.stream(LogSource.STDOUT)
    stream.data_received(b"a\nb\nc\n")

    now = 1.0
    stream.data_received(b"d\ne\n")
    stream.connection_lost(None)
    await output.pump()

    texts = [
        content.text
        for report in await outbox.read(0)
        if isinstance(content := report_from_proto(report).content, LogLine)
    ]
    assert texts[:3] == ["a", "b", "d"]
    assert texts[3].startswith("2 lines were left out")


async def test_evidence_is_bounded(outbox: Outbox) -> None:
    output = Output(outbox)

    await logged(output, outbox, (b"x" * 100_000 + b"\n") * 300)

    assert len(output.last_lines) == 100
    assert {len(line) for line in output.last_lines} == {LONGEST_EVIDENCE}
