"""Speaks with a Docker daemon on this machine: bounded calls of its SDK in threads of our own, and the attached stream.

Every call has a deadline of ours, so that a daemon which hangs costs its caller an error and never a wait without end.
A call cannot be taken back: who cancels one has to reckon with its effect (`Daemon.settled`).
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, NotFound

PING_S = 3.0
CALL_S = 30.0
_THREADS = 8
_MOST_HEAD_BYTES = 16384
_MOST_STDERR_BYTES = 2000
_HEAD_BYTES = 8

_Result = TypeVar("_Result")


class DaemonError(Exception):
    """The daemon refused, does not answer, or is not there; the message is one sentence for people."""


class MissingError(DaemonError):
    """The daemon does not have what the call was about."""


class Daemon:
    """One Docker daemon of this machine.

    Args:
        host: `unix://` and the path of its socket. Other machines' daemons are refused: their processes and cgroups
            could not be looked at from here.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="docker")
        self._client: APIClient | None = None
        self._connecting = threading.Lock()
        self._running: set[asyncio.Future[Any]] = set()

    @property
    def socket_path(self) -> str:
        """The socket's path.

        Raises:
            DaemonError: the setting names no Unix socket.
        """
        scheme, separator, path = self._host.partition("://")
        if scheme != "unix" or not separator or not path.startswith("/"):
            raise DaemonError(f"{self._host!r} is no Unix socket: set CRUCIBLE_EXECUTOR_DOCKER_HOST to unix:///path.")
        return path

    async def call(self, what: str, request: Callable[[APIClient], _Result], limit_s: float = CALL_S) -> _Result:
        """Makes one request in a thread.

        Raises:
            MissingError: the daemon knows no such container or image.
            DaemonError: every other failure; `what` begins its message ("The container could not be started").
        """
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._threads, self._request, request)
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        running.add_done_callback(lambda one: one.cancelled() or one.exception())  # nobody may be left to hear of it
        try:
            return await asyncio.wait_for(asyncio.shield(running), limit_s)
        except TimeoutError as error:
            raise DaemonError(f"{what}: dockerd at {self._host} did not answer within {limit_s:g} s.") from error
        except NotFound as error:
            raise MissingError(f"{what}: {error.explanation}.") from error
        except APIError as error:
            raise DaemonError(f"{what}: {str(error.explanation).strip()[:500]}.") from error
        except (DockerException, requests.RequestException, OSError) as error:
            raise DaemonError(
                f"{what}: dockerd at {self._host} does not answer ({_innermost(error)}); is it running?"
            ) from error

    async def settled(self) -> None:
        """Waits until no call is under way any more, cancelled ones included, at most `CALL_S`."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=CALL_S)

    def _request(self, request: Callable[[APIClient], _Result]) -> _Result:
        with self._connecting:
            if self._client is None:
                self._client = APIClient(base_url=f"unix://{self.socket_path}", version="auto", timeout=PING_S)
                self._client.timeout = CALL_S
                # It keeps a pool of connections per URL, so that none is used again and some stay open: rather none.
                self._client.headers["Connection"] = "close"
                self._client.close()  # the pools, with the connection that asked for the version
        return request(self._client)

    async def attach(self, container: str) -> socket.socket:
        """Attaches to a container that was not started yet, so that nothing of its output can be missed.

        Returns a non-blocking socket: what is written to it is the container's stdin, which ends with the connection;
        what is read from it goes through `AttachedStream`. It ends with the container. On the event loop and without
        the SDK, whose stream would need a thread for as long as the container lives.

        Raises:
            DaemonError: it could not.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            async with asyncio.timeout(CALL_S):
                await self._upgrade(connection, container)
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError | OSError):
                raise DaemonError(
                    f"dockerd at {self._host} does not attach to a container ({error or 'timeout'})."
                ) from error
            raise
        return connection

    async def _upgrade(self, connection: socket.socket, container: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, self.socket_path)
        request = (
            f"POST /containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\n"
            "Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
        )
        await loop.sock_sendall(connection, request.encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            # Byte by byte, a few hundred of them once: nothing of the stream behind it may be swallowed.
            got = await loop.sock_recv(connection, 1)
            head += got
            if not got or len(head) > _MOST_HEAD_BYTES:
                raise DaemonError("dockerd ended the attached connection at once.")
        status = head.split(b"\r\n", 1)[0].decode(errors="replace")
        if " 101 " not in f"{status} ":
            raise DaemonError(f"dockerd does not attach to a container: {status!r}.")


class AttachedStream:
    """Takes Docker's framing of an attached stream apart: 8 bytes with stream and length, then the bytes.

    Args:
        on_stdout: called with the bytes of the container's stdout, as they come.

    Attributes:
        stderr: the first bytes of the container's stderr; nothing writes there but a runtime in trouble.
    """

    def __init__(self, on_stdout: Callable[[bytes], None]) -> None:
        self._on_stdout = on_stdout
        self._head = b""
        self._is_stdout = False
        self._left = 0
        self.stderr = b""

    def feed(self, data: bytes) -> None:
        """Takes bytes as they come."""
        while data:
            if not self._left:
                needed = _HEAD_BYTES - len(self._head)
                self._head, data = self._head + data[:needed], data[needed:]
                if len(self._head) == _HEAD_BYTES:
                    self._is_stdout, self._left = self._head[0] == 1, int.from_bytes(self._head[4:], "big")
                    self._head = b""
                continue
            part, data = data[: self._left], data[self._left :]
            self._left -= len(part)
            if self._is_stdout:
                self._on_stdout(part)
            else:
                self.stderr += part[: _MOST_STDERR_BYTES - len(self.stderr)]


def _innermost(error: BaseException) -> str:
    """The system's own word behind the layers of an HTTP library."""
    at = error
    for _ in range(16):
        inner = next((one for one in at.args if isinstance(one, BaseException)), None) or at.__cause__ or at.__context__
        if inner is None:
            break
        at = inner
    return getattr(at, "strerror", None) or str(at)[:200] or type(at).__name__
