"""How Crucible's services talk: server, channel, TLS, errors, interceptors, logging. No domain words.

Import this package before `grpc`, which reads its environment once, when it is loaded. grpc's fork handlers are turned
off: they deadlock a process that starts children from an event loop. So are the lines that its core writes to stderr
past our logs, as for every stranger that fails a TLS handshake; `GRPC_VERBOSITY=info` brings them back. Sockets are
read by the thread that waits for grpc's completions, not by the pool of grpc's event engine, which wakes one thread
more for every message; `GRPC_EXPERIMENTS=` (empty) brings the pool back.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
