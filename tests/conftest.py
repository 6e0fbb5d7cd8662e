"""What every test needs: gRPC's setting, which must be there before grpc itself, and signals that reach our children.

A shell without job control starts what it puts in the background with SIGINT and SIGQUIT ignored, and a child inherits
that: a test that interrupts a command would then wait for ever.
"""

import signal

import crucible_rpc  # noqa: F401  # first: it sets GRPC_ENABLE_FORK_SUPPORT

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
