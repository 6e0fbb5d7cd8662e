"""When the reader of traces reads: it rests between reads, but neither the end of a trace nor a flood waits for it."""

from __future__ import annotations

import fcntl
import json
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from crucible_executor.tracing import reader
from crucible_executor.tracing.reader import ENDS, NUMBER_BYTES, Reader
from tests.executor import trace_messages as tm

NUMBER = bytes(NUMBER_BYTES)
LIMIT_S = 20
FOREVER_S = 3600.0


class Kernel:
    """The executor's and one sandbox's ends of a reader that serves in a thread."""

    def __init__(self) -> None:
        self.executor, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sandbox, connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.executor.settimeout(LIMIT_S)
        self.sandbox.settimeout(LIMIT_S)
        self._control = control
        self._thread = threading.Thread(target=Reader(control).serve)
        self._thread.start()
        socket.send_fds(self.executor, [NUMBER], [connection.fileno()])
        connection.close()

    def is_read(self) -> None:
        """Returns when all that was sent is."""
        deadline = time.monotonic() + LIMIT_S
        while unread(self.sandbox):
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def report(self) -> Any:
        while True:
            said = self.executor.recv(1 << 20)
            if said[NUMBER_BYTES : NUMBER_BYTES + 1] == ENDS:
                return json.loads(said[NUMBER_BYTES + 1 :])

    def close(self) -> None:
        self.sandbox.close()
        self.executor.close()
        self._thread.join(LIMIT_S)
        self._control.close()
        assert not self._thread.is_alive()


def unread(sender: socket.socket) -> int:
    """Bytes on their way, as the sender's kernel counts them (`SIOCOUTQ`)."""
    return int(struct.unpack("i", fcntl.ioctl(sender, termios.TIOCOUTQ, bytes(4)))[0])


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


def test_what_comes_during_a_rest_and_the_end_of_the_trace_are_read_when_it_ends(
    monkeypatch: pytest.MonkeyPatch, kernel: Kernel
):
    monkeypatch.setattr(reader, "REST_S", FOREVER_S)
    kernel.sandbox.send(tm.HANDSHAKE)
    kernel.is_read()
    for number in range(3):
        kernel.sandbox.send(tm.execve() if not number else tm.opened(b"/etc/shadow"))
    assert not select.select([kernel.executor], [], [], 0.2)[0]
    assert unread(kernel.sandbox)  # nobody woke for it
    kernel.sandbox.close()
    assert kernel.report()["kinds"]["probes"][0] == 2


def test_rest_ends_by_itself(kernel: Kernel):
    for message in (tm.HANDSHAKE, tm.execve(), tm.opened(b"/etc/shadow")):
        kernel.sandbox.send(message)
        kernel.is_read()
    kernel.sandbox.close()
    assert kernel.report()["kinds"]["probes"][0] == 1


def test_flood_is_read_with_short_rests(monkeypatch: pytest.MonkeyPatch, kernel: Kernel):
    many = 5000
    monkeypatch.setattr(reader, "REST_S", 1.0)
    kernel.sandbox.send(tm.HANDSHAKE)
    kernel.sandbox.send(tm.execve())
    began = time.monotonic()
    for _ in range(many):  # each waits while the socket is full
        kernel.sandbox.send(tm.opened(b"/etc/shadow"))
    kernel.sandbox.close()
    assert kernel.report()["kinds"]["probes"][0] == many
    assert time.monotonic() - began < 10  # with a rest of a second whenever the socket was full, it would be 20
