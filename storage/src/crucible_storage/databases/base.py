"""What differs between databases."""

from typing import Protocol

from sqlalchemy import Engine
from sqlalchemy.engine import Connection


class Listener(Protocol):
    """Hears what other processes announced, and shows them that this one is there; used by one thread."""

    def wait(self, seconds: float) -> list[str]:
        """The announcements that came within this time; returns as soon as there are some.

        Raises:
            Exception: the connection was lost; call again to listen on a new one.
        """

    def close(self) -> None:
        """Ends the connection, if there is one."""


class Backend(Protocol):
    """A database, not yet used by anybody.

    Attributes:
        place: where it is, for people; never with a password.
        shared: whether other processes may write to it at the same time.
        readers: how many connections read at once.
        writer: makes connections that write. Their transactions see what others committed, statement by statement.
        reader: makes connections that cannot write and see one snapshot in a transaction.
    """

    place: str
    shared: bool
    readers: int
    writer: Engine
    reader: Engine

    def begin_migration(self, connection: Connection) -> None:
        """Called in the transaction that may change the schema: keeps other processes from doing it meanwhile."""

    def announce(self, connection: Connection, text: str) -> None:
        """Tells the other processes something when the transaction commits."""

    def listener(self, process: int) -> Listener | None:
        """What hears the announcements of others, and shows them that this process is there; None without others."""

    def is_gone(self, connection: Connection, process: int) -> bool:
        """Whether the process with this number is not there any more."""

    def dispose(self) -> None:
        """Closes all connections."""
