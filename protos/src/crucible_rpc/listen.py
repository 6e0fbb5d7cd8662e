"""Addresses to listen on, checked by us: the libraries take `127.0.0.1:99999` for another port, and hide causes."""

import socket

from crucible_rpc.errors import StartError


def parsed(listen: str, what: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[ipv6]:port`; port 0 stands for any free one.

    Args:
        listen: the setting.
        what: what listens there, for the error.

    Raises:
        StartError: it is not such an address.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65_535:
        raise StartError(f"{what} cannot listen on {listen}: expected host:port with a port from 0 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def why_not(host: str, port: int) -> str:
    """What the operating system says about listening there, for libraries that only say that it failed."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen()
    except OSError as error:
        return f"{error.strerror or error}; stop what uses it or set another address"
    return "the address is not usable; set another one"
