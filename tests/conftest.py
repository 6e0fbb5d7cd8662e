"""What every test needs: the setting of gRPC that `crucible_rpc` makes must be there before grpc itself."""

import crucible_rpc  # noqa: F401  # first: it sets GRPC_ENABLE_FORK_SUPPORT
