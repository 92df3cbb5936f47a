"""Brings outcomes from lanes to the futures of an event loop: one wake-up for many, and no lane waits for the GIL."""

import asyncio
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np

from headrace_server import _native
from headrace_server.errors import ExpiredInQueue
from headrace_server.inference.batch import Answer
from headrace_server.tensors import Array, Tensors

_mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, _native.Mailbox] = WeakKeyDictionary()


def mailbox_of(loop: asyncio.AbstractEventLoop) -> _native.Mailbox:
    """The one mailbox of a loop, which watches it from now on."""
    mailbox = _mailboxes.get(loop)
    if mailbox is None:
        mailbox = _mailboxes[loop] = _native.Mailbox()
        loop.add_reader(mailbox.fileno(), deliver, mailbox)
    return mailbox


def deliver(mailbox: _native.Mailbox) -> None:
    """Settle the future of every call that has ended.  On the loop's thread."""
    for ticket in mailbox.empty():
        future = ticket.future
        if future.done():
            continue
        refusal = ticket.refusal
        if refusal is None:
            future.set_result(_answer(ticket))
        else:
            future.set_exception(_error(refusal))


def _answer(ticket: _native.Ticket) -> Answer:
    timing = ticket.timing
    return Answer(
        _join(ticket.rows),
        timing.queue_seconds,
        timing.assemble_seconds,
        timing.compute_seconds,
        timing.finished_at,
        timing.batch_rows,
        timing.batch_calls,
        timing.variant,
    )


def _join(shares: Sequence[tuple[Tensors, int, int, bool]]) -> dict[str, Array]:
    """The outputs of one call, whose slices come in order."""
    parts = [
        dict(outputs) if is_whole else {name: array[row : row + rows] for name, array in outputs.items()}
        for outputs, row, rows, is_whole in shares
    ]
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def _error(refusal: _native.Refusal) -> BaseException:
    if refusal.kind == "expired":
        return ExpiredInQueue(refusal.queue_seconds * 1000)
    return refusal.error or RuntimeError("the batcher ended without being closed")
