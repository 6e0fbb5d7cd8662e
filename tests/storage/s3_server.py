"""A server of the S3 protocol (moto's) in a process of its own, and a proxy that misbehaves in front of it."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager

from crucible_storage.artifacts.s3 import Bucket

REGION = "us-east-1"
_START_SECONDS = 60.0
_BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class S3Server:
    """Asked by plain HTTP: moto looks at no signature unless it is told to."""

    def __init__(self, port):
        self.port = port
        self._buckets = 0

    def bucket(self, **parts):
        """A new, empty bucket."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        self.request("PUT", f"/{name}")
        plain = {"endpoint": f"http://127.0.0.1:{self.port}", "access_key_id": "id", "secret_access_key": "the-secret"}
        return Bucket(name, region=REGION, **plain | parts)

    def names(self, bucket):
        return self._listed(f"/{bucket.name}?list-type=2", "Contents")

    def unfinished(self, bucket):
        return self._listed(f"/{bucket.name}?uploads", "Upload")

    def check_credentials(self, wanted):
        self.request("POST", "/moto-api/reset-auth", b"0" if wanted else b"inf")

    def request(self, method, path, body=None):
        url = f"http://127.0.0.1:{self.port}{path}"
        headers = {"Content-Type": "text/plain"}
        headers["Authorization"] = f"AWS4-HMAC-SHA256 Credential=id/20260101/{REGION}/s3/aws4_request"
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method)) as answer:
            return answer.read()

    def _listed(self, path, tag):
        root = ElementTree.fromstring(self.request("GET", path))
        return [key.text for one in root.iter() if one.tag.endswith(tag) for key in one if key.tag.endswith("Key")]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def running():
    """A server, until the block ends."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(process, port)
            yield S3Server(port)
        finally:
            process.kill()


def _wait(process, port):
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError("moto's server did not start")


class FaultyProxy:
    """Stands before a server and does to new connections what `fault` says: pass, busy, hang, or cut."""

    def __init__(self, port):
        self.fault = "pass"
        self.cut_after = 0
        self.seen = asyncio.Semaphore(0)
        self._to = port
        self._server = None
        self._tasks = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        self.seen.release()
        try:
            if self.fault == "busy":
                await reader.read(1 << 16)
                writer.write(_BUSY)
                await writer.drain()
            elif self.fault == "hang":
                await asyncio.Event().wait()
            else:
                await self._pass(reader, writer)
        except OSError:
            pass
        finally:
            writer.close()

    async def _pass(self, reader, writer):
        behind, before = await asyncio.open_connection("127.0.0.1", self._to)
        left = self.cut_after if self.fault == "cut" else None
        back = asyncio.ensure_future(_copy(behind, writer))
        try:
            await _copy(reader, before, left)
        finally:
            back.cancel()
            before.close()


async def _copy(reader, writer, left=None):
    while data := await reader.read(1 << 16):
        writer.write(data[:left])
        await writer.drain()
        if left is not None:
            left -= len(data)
            if left <= 0:
                writer.transport.abort()
                return
