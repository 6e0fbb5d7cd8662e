"""Which Crucible to call and with which key: explicit arguments, then the environment, then `client.toml`."""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_HOME = Path("/var/lib/crucible")
FILE_NAME = "client.toml"

_KEYS = ("address", "api_key", "ca_file")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_API_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_MAX_FILE_BYTES = 64 << 10


class ClientSettingsError(Exception):
    """A setting is missing or malformed; the text is one line that says what to do and holds no key."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Which Crucible to call.

    Attributes:
        address: `host:port` of the gateway.
        api_key: sent with every call; never printed.
        ca_file: the authority to trust, as PEM; None: the roots that come with gRPC.
    """

    address: str
    api_key: str = field(repr=False)
    ca_file: Path | None = None


def load(
    *,
    address: str | None = None,
    api_key: str | None = None,
    ca_file: str | Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ClientSettings:
    """Settles each setting by the first that has it: argument, `CRUCIBLE_*` variable, `$CRUCIBLE_HOME/client.toml`.

    Raises:
        ClientSettingsError: the address or the key is missing, or something is malformed.
    """
    given = {"address": address, "api_key": api_key, "ca_file": str(ca_file) if ca_file else None}
    found = {key: given[key] or environ.get(f"CRUCIBLE_{key.upper()}") for key in _KEYS}
    file = Path(environ.get("CRUCIBLE_HOME") or DEFAULT_HOME) / FILE_NAME
    why_not = ""
    if not all(found.values()):
        stored, why_not = _read(file)
        found = {key: value or stored.get(key) for key, value in found.items()}
    missing = [f"CRUCIBLE_{key.upper()}" for key in ("address", "api_key") if not found[key]]
    if missing:
        raise ClientSettingsError(
            f"no {' and no '.join(missing)}: {why_not or f'{file} does not have it'}; set the variable, "
            "or start a Crucible on this machine with `crucible up` and use its client.toml as root"
        )
    return _checked(found)


def _read(file: Path) -> tuple[dict[str, str], str]:
    """The file's settings, and why there are none."""
    try:
        with file.open("rb") as stream:
            values = tomllib.loads(stream.read(_MAX_FILE_BYTES).decode())
    except FileNotFoundError:
        return {}, f"{file} does not exist"
    except OSError as error:
        return {}, f"{file} cannot be read ({error.strerror})"
    except ValueError:  # TOML and UTF-8 both; the parser's text may quote the key
        raise ClientSettingsError(f"{file} is not valid TOML; it holds the keys {', '.join(_KEYS)}") from None
    wrong = sorted(key for key, value in values.items() if key not in _KEYS or not isinstance(value, str))
    if wrong:
        raise ClientSettingsError(f"{file}: {wrong[0]!r} is not one of the texts {', '.join(_KEYS)}")
    return values, ""


def _checked(found: Mapping[str, str | None]) -> ClientSettings:
    address, api_key, ca_file = str(found["address"]), str(found["api_key"]), found["ca_file"]
    match = _ADDRESS.fullmatch(address)
    if not match or not 0 < int(match[1]) < 65536:
        raise ClientSettingsError(f"CRUCIBLE_ADDRESS={address[:80]!r} is not valid; expected host:port")
    if not _API_KEY.fullmatch(api_key):
        raise ClientSettingsError("CRUCIBLE_API_KEY is not valid; expected the key as `crucible key create` printed it")
    return ClientSettings(address, api_key, Path(ca_file) if ca_file else None)
