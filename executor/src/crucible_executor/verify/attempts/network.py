"""The network: metadata addresses, DNS, the host's loopback and address, abstract and raw sockets."""

from __future__ import annotations

from crucible_executor.verify.capabilities import NET_ADMIN, NET_RAW
from crucible_executor.verify.model import Attempt, Control, Family

_CONNECT = """
def reach(kind, host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = tried(socket.socket, family, kind)
    if made is None:
        return
    with made as s:
        s.settimeout(0.3)
        if tried(lambda: (s.connect((host, port)), True)):
            tried(s.send, b"GET /latest/meta-data/iam HTTP/1.0\\r\\n\\r\\n" + TOKEN.encode())
"""

_METADATA = (
    _CONNECT
    + """
for host in AIM["metadata"]:
    reach(socket.SOCK_STREAM, host, AIM["port"])
"""
)

_DNS = (
    _CONNECT
    + """
query = b"\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0"
query += bytes([len(TOKEN)]) + TOKEN.encode() + b"\\x04test\\0\\0\\x01\\0\\x01"
for host in (AIM["resolver"], "127.0.0.1"):
    made = tried(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    if made is not None:
        tried(made.sendto, query, (host, AIM["port"]))
    reach(socket.SOCK_STREAM, host, AIM["port"])
"""
)

_LOOPBACK_TCP = (
    _CONNECT
    + """
for host in ("127.0.0.1", "127.0.0.53", "::1", "::ffff:127.0.0.1", "0.0.0.0"):
    reach(socket.SOCK_STREAM, host, AIM["port"])
"""
)

_LOOPBACK_UDP = (
    _CONNECT
    + """
for host in ("127.0.0.1", "::1", "0.0.0.0"):
    reach(socket.SOCK_DGRAM, host, AIM["port"])
"""
)

_HOST_ADDRESS = (
    _CONNECT
    + """
for host in AIM["host_addresses"]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        reach(kind, host, AIM["port"])
"""
)

_ABSTRACT = """
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    made = tried(socket.socket, socket.AF_UNIX, kind)
    if made is not None and tried(lambda: (made.connect("\\0" + AIM["abstract"]), True)):
        tried(made.send, TOKEN.encode())
"""

_RAW = """
packet = TOKEN.encode()
for protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_RAW, 253):
    made = tried(socket.socket, socket.AF_INET, socket.SOCK_RAW, protocol)
    if made is not None:
        tried(made.sendto, b"\\x08\\0" + bytes(6) + packet, ("127.0.0.1", 0))
made = tried(socket.socket, socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
if made is not None:
    tried(made.sendto, b"\\x08\\0" + bytes(6) + packet, ("127.0.0.1", 0))
"""

_PACKET = """
made = tried(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0x0300)
if made is not None:
    if tried(lambda: (made.bind(("lo", 0x0800)), True)):
        tried(made.send, bytes(12) + b"\\x08\\0" + TOKEN.encode() + bytes(60))
"""

_ADDRESS = """
made = tried(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
if made is not None:
    request = struct.pack("<16sHH4s8x", b"lo:66", socket.AF_INET, 0, socket.inet_aton(AIM["new_address"]))
    tried(fcntl.ioctl, made.fileno(), 0x8916, request)
hold()
"""

_UNIX_DATAGRAM = """
for path in (AIM["docker"], AIM["datagram"], "/run/systemd/notify", "/dev/log"):
    made = tried(socket.socket, socket.AF_UNIX, socket.SOCK_DGRAM)
    if made is not None and path.startswith(AIM["folder"]):
        tried(made.sendto, TOKEN.encode(), path)
"""

_NET = Control(listeners=True)

ATTEMPTS = (
    Attempt("metadata-service", Family.NETWORK, "a cloud's metadata address is reached", _METADATA, ("calls",), _NET),
    Attempt("dns", Family.NETWORK, "a name server is asked", _DNS, ("calls",), _NET),
    Attempt(
        "loopback-tcp", Family.NETWORK, "a TCP listener on the host's loopback is reached",
        _LOOPBACK_TCP, ("calls",), _NET,
    ),
    Attempt(
        "loopback-udp", Family.NETWORK, "a UDP socket on the host's loopback is reached",
        _LOOPBACK_UDP, ("calls",), _NET,
    ),
    Attempt("host-address", Family.NETWORK, "the host's own address is reached", _HOST_ADDRESS, ("calls",), _NET),
    Attempt(
        "abstract-socket", Family.NETWORK, "an abstract Unix socket of the host is reached",
        _ABSTRACT, ("calls",), _NET,
    ),
    Attempt(
        "unix-datagram", Family.NETWORK, "a Unix datagram socket of the host is reached",
        _UNIX_DATAGRAM, ("calls",), Control(bait=True),
    ),
    Attempt(
        "raw-socket", Family.NETWORK, "a raw packet is seen on the host's network",
        _RAW, ("packets",), Control(listeners=True, capabilities=(NET_RAW,)),
    ),
    Attempt(
        "packet-socket", Family.NETWORK, "a frame is seen on the host's network",
        _PACKET, ("packets",), Control(listeners=True, capabilities=(NET_RAW,)),
    ),
    Attempt(
        "network-address", Family.NETWORK, "the host's network gets another address",
        _ADDRESS, ("addresses",), Control(capabilities=(NET_ADMIN,)),
    ),
)  # fmt: skip
