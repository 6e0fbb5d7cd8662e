"""The processes of the stack and their settings, in one place: who runs as whom, with what, and who needs whom."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from crucible_deploy import environments
from crucible_deploy.credentials import Credentials
from crucible_deploy.layout import PROCESSES, Layout, LayoutError
from crucible_deploy.spec import ProcessSpec, module_command
from crucible_deploy.users import ROOT, Account

_STOP_SECONDS = {"executor": 30.0}
"""It lets runs go on for its `shutdown_grace` (10 s), then ends them, and must never be killed while it does."""


_BUCKET = {"bucket", "endpoint", "region", "prefix", "access_key_id", "secret_access_key"}
_MAX_SECRET = 16 << 10


@dataclass(frozen=True)
class Leases:
    """For how long things go on of which nothing is heard. As storage's and the executor's own defaults are.

    Attributes:
        lease: of a run, after its last renewal.
        orphan_grace: until the executor ends a run that nobody renews; longer than that.
    """

    lease: timedelta = timedelta(seconds=10)
    orphan_grace: timedelta = timedelta(seconds=15)


@dataclass(frozen=True)
class Options:
    """What the operator chooses at the start.

    Attributes:
        unsafe: also offer the engine `subprocess`.
        slots: programs at once; None: one per CPU.
        pool: sandboxes that wait for a program; None: the executor's default.
        trace: whether what programs try is watched, where an engine can be.
        docker_host: the Docker daemon to use; None: the executor's default.
        keep: how long evaluations are kept after their end, as `720h`; None: for ever.
        leases: how long leases last; None: the processes' defaults.
        runs_nothing: the executor's one engine is `nothing`, which runs no program; for the benchmarks alone.
    """

    unsafe: bool = False
    slots: int | None = None
    pool: int | None = None
    trace: bool = True
    docker_host: str | None = None
    keep: str | None = None
    leases: Leases | None = None
    runs_nothing: bool = False


def specs(
    layout: Layout, accounts: Mapping[str, Account], credentials: Credentials, options: Options
) -> list[ProcessSpec]:
    """The processes in the order in which they start.

    Args:
        layout: folders and ports.
        accounts: the users, by process; the executor has none of its own.
        credentials: what `credentials.ensure` returned.
        options: the operator's choice.
    """
    settings = {
        "storage": _storage(layout)
        | {"bootstrap_key_sha256": credentials.admin_key_sha256, "keep": options.keep or ""}
        | ({} if options.leases is None else _durations(options.leases)),
        "monitor": _monitor(layout),
        "executor": _executor(layout, options),
        "worker": _worker(layout),
        "gateway": _gateway(layout),
    }
    return [
        ProcessSpec(
            name=process,
            account=accounts.get(process, ROOT),
            command=_command(layout, process, options),
            environment=_variables(process, settings[process]),
            admin=layout.admin_address(process),
            stop_seconds=_STOP_SECONDS.get(process, 15.0),
        )
        for process in PROCESSES
    ]


def storage_environment(layout: Layout) -> dict[str, str]:
    """The settings of storage, for commands that work on its database."""
    return _variables("storage", _storage(layout))


def _variables(process: str, settings: Mapping[str, object]) -> dict[str, str]:
    return {f"CRUCIBLE_{process.upper()}_{name.upper()}": str(value) for name, value in settings.items()}


def _command(layout: Layout, process: str, options: Options) -> tuple[str, ...]:
    python, module = environments.interpreter(layout, process), f"crucible_{process}"
    if process == "executor" and options.runs_nothing:
        return module_command(python, f"{module}.benchmark")
    command = module_command(python, module)
    return (*command, "--unsafe") if process == "executor" and options.unsafe else command


def _tls(layout: Layout, process: str) -> dict[str, object]:
    own = layout.pki / process
    return {"tls_cert": own / "tls.crt", "tls_key": own / "tls.key", "tls_ca": own / "ca.crt"}


def _storage(layout: Layout) -> dict[str, object]:
    return {
        "listen": layout.address("storage"),
        "admin": layout.admin_address("storage"),
        "state": layout.state("storage"),
        "tickets_key": layout.pki / "storage" / "tickets.key",
        "heads_key": layout.pki / "storage" / "heads.key",
        "public_keys": layout.pki / "public",
        "records_pub": layout.pki / "public" / "records.pub",
        **_database(layout),
        **_bucket(layout),
        **_tls(layout, "storage"),
    }


def _durations(leases: Leases) -> dict[str, object]:
    return {name: f"{length.total_seconds():g}s" for name, length in asdict(leases).items()}


def _database(layout: Layout) -> dict[str, object]:
    """The database that the operator named in a file, which may hold a password; without it, storage's own file.

    Raises:
        LayoutError: others can read the file, or it is empty.
    """
    file = layout.database_file
    text = _secret(file)
    if text is None:
        return {}
    url = text.partition("\n")[0].strip()
    if not url:
        raise LayoutError(f"{file} is empty; write postgresql://… into it, or remove it")
    return {"database_url": url}


def _bucket(layout: Layout) -> dict[str, object]:
    """The bucket for artifacts that the operator named in a file; without it, storage's own folder.

    Raises:
        LayoutError: others can read the file, or it does not name a bucket.
    """
    file = layout.artifacts_file
    text = _secret(file)
    if text is None:
        return {}
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # whose text may show what is in the file
        raise LayoutError(f"{file} is no TOML") from None
    if not said.get("bucket") or not said.keys() <= _BUCKET or not all(isinstance(one, str) for one in said.values()):
        raise LayoutError(f"{file} needs `bucket`, and takes texts named {', '.join(sorted(_BUCKET))}")
    return {f"s3_{name}": value for name, value in said.items()}


def _secret(file: Path) -> str | None:
    """The text of a file that only root can read; None when there is none.

    Raises:
        LayoutError: others can read it.
    """
    try:
        with file.open() as stream:
            mode, text = os.fstat(stream.fileno()).st_mode, stream.read(_MAX_SECRET)
    except FileNotFoundError:
        return None
    if mode & 0o077:
        raise LayoutError(f"{file} may hold a password and others can read it: chmod 600 {file}")
    return text


def _monitor(layout: Layout) -> dict[str, object]:
    return {
        "listen": layout.address("monitor"),
        "admin": layout.admin_address("monitor"),
        "storage": layout.address("storage"),
        **_tls(layout, "monitor"),
    }


def _executor(layout: Layout, options: Options) -> dict[str, object]:
    settings: dict[str, object] = {
        "listen": layout.address("executor"),
        "admin_listen": layout.admin_address("executor"),
        "state_dir": layout.state("executor"),
        "run_dir": layout.sandboxes,
        "cgroup": layout.cgroup,
        "tickets_pub": layout.pki / "public" / "tickets.pub",
        "records_key": layout.pki / "executor" / "records.key",
        "runsc": layout.paths.runsc,
        "init_dir": layout.paths.init,
        "images_dir": layout.paths.images,
        **_tls(layout, "executor"),
    }
    if options.slots is not None:
        settings["slots"] = options.slots
    if options.pool is not None:
        settings["pool_size"] = options.pool
    if not options.trace:
        settings["trace"] = False
    if options.docker_host is not None:
        settings["docker_host"] = options.docker_host
    if options.leases is not None:
        settings["orphan_grace"] = _durations(options.leases)["orphan_grace"]
    return settings


def _worker(layout: Layout) -> dict[str, object]:
    return {
        "storage": layout.address("storage"),
        "executor": layout.address("executor"),
        "admin_listen": layout.admin_address("worker"),
        **_tls(layout, "worker"),
    }


def _gateway(layout: Layout) -> dict[str, object]:
    return {
        "listen": layout.address("gateway"),
        "admin": layout.admin_address("gateway"),
        "storage": layout.address("storage"),
        "monitor": layout.address("monitor"),
        **_tls(layout, "gateway"),
    }
