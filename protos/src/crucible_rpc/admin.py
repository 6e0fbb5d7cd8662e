"""A small HTTP server for `/healthz`, `/readyz` and `/metrics`: one request per connection, everything bounded.

At most `MAX_CONNECTIONS` at a time are answered, each within seconds; more are closed at once.
"""

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from crucible_rpc import listen as addresses
from crucible_rpc.errors import StartError

MAX_HEAD_BYTES = 8192
MAX_CONNECTIONS = 64

_TIMEOUT_SECONDS = 5.0
_MAX_READ_OUT_BYTES = 1 << 20
_PLAIN = "text/plain; charset=utf-8"
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
_log = logging.getLogger(__name__)


class AdminServer:
    """Tells an operator's tools how this process is; plain HTTP, so loopback unless set otherwise.

    Args:
        listen: `host:port`; port 0 takes a free one (see `port`).
        ready: whether the process can do its work now.
        why_not: why it cannot, where that is known.
        registry: the metrics to show.
    """

    def __init__(
        self,
        listen: str,
        *,
        ready: Callable[[], bool],
        why_not: Callable[[], str] = lambda: "",
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self.port = 0
        self._listen = listen
        self._ready = ready
        self._why_not = why_not
        self._registry = registry
        self._open = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Starts to listen and returns the port.

        Raises:
            StartError: the address is malformed, taken or not this machine's.
        """
        host, port = addresses.parsed(self._listen, "the admin port")
        try:
            self._server = await asyncio.start_server(
                self._serve, host, port, limit=MAX_HEAD_BYTES, backlog=MAX_CONNECTIONS
            )
        except OSError:
            why = addresses.why_not(host, port)
            raise StartError(f"the admin port cannot listen on {self._listen}: {why}") from None
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    async def stop(self) -> None:
        """Stops to listen; requests under way are answered within their timeout."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= MAX_CONNECTIONS:
            writer.close()
            return
        self._open += 1
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                writer.write(await self._answer(reader))
                writer.write_eof()
                await _read_out(reader)
        except (TimeoutError, ConnectionError):
            _log.debug("an admin client was too slow or left")
        except Exception:
            _log.exception("an admin request failed")
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(431, f"a request may have {MAX_HEAD_BYTES} bytes of headers")
        except asyncio.IncompleteReadError:
            return _response(400, "the request ended early")
        line = head.split(b"\r\n", 1)[0].split(b" ")
        if len(line) != 3 or not line[2].startswith(b"HTTP/1."):
            return _response(400, "not an HTTP/1 request")
        if line[0] not in (b"GET", b"HEAD"):
            return _response(405, "only GET")
        response = self._page(line[1].split(b"?", 1)[0])
        return response if line[0] == b"GET" else response.split(b"\r\n\r\n", 1)[0] + b"\r\n\r\n"

    def _page(self, path: bytes) -> bytes:
        if path == b"/healthz":
            return _response(200, "ok")
        if path == b"/readyz":
            why = self._why_not()
            return (
                _response(200, "ready")
                if self._ready()
                else _response(503, f"not ready: {why}" if why else "not ready")
            )
        if path == b"/metrics":
            return _response(200, generate_latest(self._registry), CONTENT_TYPE_LATEST)
        return _response(404, "there are /healthz, /readyz and /metrics")


async def _read_out(reader: asyncio.StreamReader) -> None:
    """Takes in what a refused client still sends: closing over unread bytes would reset away the answer."""
    for _ in range(_MAX_READ_OUT_BYTES // MAX_HEAD_BYTES):
        if not await reader.read(MAX_HEAD_BYTES):
            return


def _response(code: int, body: str | bytes, content_type: str = _PLAIN) -> bytes:
    content = f"{body}\n".encode() if isinstance(body, str) else body
    head = (
        f"HTTP/1.1 {code} {_REASONS[code]}\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
        "Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\r\n"
    )
    return head.encode() + content
