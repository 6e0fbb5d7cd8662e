"""The only privileged process."""

import crucible_rpc  # noqa: F401  # sets up grpc, so it comes before whatever imports grpc
