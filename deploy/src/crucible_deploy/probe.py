"""Asks a process over its admin port whether it is ready."""

import asyncio

_TIMEOUT_SECONDS = 2.0


async def is_ready(admin: str) -> bool:
    """Whether `GET /readyz` at `host:port` answers 200 within 2 s."""
    host, _, port = admin.rpartition(":")
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(host, int(port), limit=4096)
            try:
                writer.write(f"GET /readyz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
