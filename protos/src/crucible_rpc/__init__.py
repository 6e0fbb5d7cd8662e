"""How Crucible's services talk: server, channel, TLS, errors, interceptors, logging. No domain words.

Import this package before `grpc`, which reads its environment once, when it is loaded. grpc's fork handlers are turned
off: they deadlock a process that starts children from an event loop. So are the lines that its core writes to stderr
past our logs, as for every stranger that fails a TLS handshake; `GRPC_VERBOSITY=info` brings them back.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
