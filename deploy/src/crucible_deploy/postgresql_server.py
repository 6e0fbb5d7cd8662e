"""A real PostgreSQL server of our own, for tests and the benchmarks.

Its data and its Unix socket lie in a folder of its own, it listens on no port, and it ends with the process that
started it, however that ends. A server that the machine runs is not touched. As root it runs as an unprivileged user,
for PostgreSQL refuses root.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

OLDEST = 15
START_S = 60.0
_STOP_S = 30.0
_LOOK_S = 0.05
_PREFIX = "crucible-postgresql-"
_HOMES = Path("/usr/lib/postgresql")
_USERS = ("postgres", "nobody")
# Without these no test's data survives a power failure, and none needs to.
_NOT_DURABLE = ("fsync=off", "full_page_writes=off", "synchronous_commit=off")


class PostgreSqlServerError(Exception):
    """No server could be started; the text says why."""


class PostgreSqlServer:
    """One server: its folder, and the process while there is one.

    Args:
        durable: whether a commit is on the disk when it is answered, as it must be where speed is measured.
        folder: where its data goes; default: below the folder for temporary files.
        settings: further ones, as `name=value`.

    Raises:
        PostgreSqlServerError: there is no PostgreSQL, or no user for it.
    """

    def __init__(self, *, durable: bool = False, folder: Path | None = None, settings: Sequence[str] = ()) -> None:
        self._programs = programs()
        self._user = _unprivileged()
        _remove_leftovers(folder)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=folder))
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        self._settings = [*(() if durable else _NOT_DURABLE), *settings]
        self._process: subprocess.Popen[bytes] | None = None
        self._made = False

    @property
    def log(self) -> Path:
        """What the server says."""
        return self._folder / "log"

    def url(self, database: str) -> str:
        """Where a database of this server is; the same over starts."""
        return f"postgresql://crucible@/{database}?host={self._folder}"

    def admit(self, group: int) -> None:
        """Lets a group's users connect; otherwise those can who run it, and root."""
        os.chown(self._folder, -1, group)
        self._folder.chmod(0o710)

    def execute(self, statement: str) -> str:
        """Runs one statement as its administrator; answers what it printed, without a heading.

        Raises:
            PostgreSqlServerError: it failed.
        """
        done = self._run("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.url("postgres"), "-c", statement)
        if done.returncode:
            raise PostgreSqlServerError(f"PostgreSQL refused {statement!r}: {done.stdout.strip()[-500:]}")
        return done.stdout

    def start(self) -> None:
        """Starts it and waits until it answers. After `stop` or `kill` it goes on with what it had.

        It ends with the thread that calls this: let it be the main one.

        Raises:
            PostgreSqlServerError: it does not start.
        """
        data = self._folder / "data"
        if not self._made:
            made = self._run(
                "initdb", "-D", str(data), "-U", "crucible", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"
            )
            if made.returncode:
                raise PostgreSqlServerError(f"initdb failed: {made.stdout[-2000:]}")
            self._made = True
        options = [
            f"unix_socket_directories={self._folder}",
            "listen_addresses=",
            "max_connections=200",
            *self._settings,
        ]
        command = [str(self._programs / "postgres"), "-D", str(data)]
        for option in options:
            command += ["-c", option]
        with self.log.open("ab") as stream:
            # SIGQUIT ends it and all its children at once, also when we are killed. A session of its own: Ctrl-C at the
            # terminal ends it through us.
            self._process = subprocess.Popen(
                [*self._as_user(), "setpriv", "--pdeathsig", "QUIT", *command],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True, cwd="/",
            )  # fmt: skip
        self._wait()

    def stop(self) -> None:
        """Ends it as `systemctl stop` does: connections are cut, what was committed is written."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Ends it as a crash does: at once, and the next start recovers from its log."""
        self._end(signal.SIGQUIT)

    def remove(self) -> None:
        """Ends it and removes its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while self._run("pg_isready", "-q", "-h", str(self._folder), "-d", "postgres", "-U", "crucible").returncode:
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                raise PostgreSqlServerError(f"PostgreSQL did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(_LOOK_S)

    def _run(self, program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [*self._as_user(), str(self._programs / program), *arguments]
        return subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip

    def _as_user(self) -> list[str]:
        if self._user is None:
            return []
        return ["setpriv", f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]


@contextlib.contextmanager
def running(*, durable: bool = False, folder: Path | None = None) -> Iterator[PostgreSqlServer]:
    """A server that answers; removed in the end.

    Raises:
        PostgreSqlServerError: there is no PostgreSQL, or it does not start.
    """
    server = PostgreSqlServer(durable=durable, folder=folder)
    try:
        server.start()
        yield server
    finally:
        server.remove()


def programs() -> Path:
    """The folder of the newest PostgreSQL's programs.

    Raises:
        PostgreSqlServerError: there is none.
    """
    found = [home for home in _HOMES.glob("*/bin") if (home / "initdb").exists() and home.parent.name.isdecimal()]
    newest = max(found, key=lambda home: int(home.parent.name), default=None)
    if newest is None or int(newest.parent.name) < OLDEST:
        raise PostgreSqlServerError(
            f"PostgreSQL {OLDEST} or later is missing below {_HOMES}; Debian's package is postgresql: make setup-tests"
        )
    return newest


def _unprivileged() -> pwd.struct_passwd | None:
    """Who a server of ours runs as; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in _USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgreSqlServerError(f"this machine has none of the users {', '.join(_USERS)} for PostgreSQL to run as")


def _remove_leftovers(folder: Path | None) -> None:
    """Removes what servers left whose starter was killed: they ended with it."""
    for left in Path(folder or tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        starter = left.name.removeprefix(_PREFIX).partition("-")[0]
        if starter.isdecimal() and not Path("/proc", starter).exists():
            shutil.rmtree(left, ignore_errors=True)
