"""What a watcher is told when it cannot be served now."""

from datetime import timedelta

from crucible_rpc.errors import UnavailableError

RETRY_AFTER = timedelta(seconds=1)


def storage_unavailable() -> UnavailableError:
    """What a watcher is told when storage cannot be asked."""
    text = "storage cannot be reached now; nothing that was stored is lost; try again in a moment"
    return UnavailableError("PEER_UNAVAILABLE", text, retry_after=RETRY_AFTER, metadata={"peer": "storage"})


def shutting_down() -> UnavailableError:
    """What a watcher is told when the process stops."""
    text = "monitor is shutting down; call again with the position of the last event received"
    return UnavailableError("SHUTTING_DOWN", text, retry_after=timedelta(seconds=1))
