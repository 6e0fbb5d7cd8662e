"""What an operator can set, by `CRUCIBLE_STORAGE_*`."""

import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from crucible_storage.artifacts.s3 import Bucket
from crucible_storage.deletion import Keep
from crucible_storage.policy import Policy
from crucible_storage.usage_samples import Ages

PREFIX = "CRUCIBLE_STORAGE_"
_LEAST_AGE = timedelta(minutes=1)
_AGE = re.compile(r"(\d{1,6})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True, slots=True)
class Settings:
    """Each field is the variable `CRUCIBLE_STORAGE_` and its name in capitals.

    Attributes:
        state: folder of the database; held by one process at a time.
        tls_cert: this process's certificate, PEM.
        tls_key: its private key.
        tls_ca: the authority whose client certificates are accepted.
        tickets_key: Ed25519 private key that signs tickets, PEM.
        heads_key: Ed25519 private key that signs heads of the audit log, PEM.
        public_keys: folder with the public half of each key that proofs were ever signed with, `heads/*.pub` and
            `records/*.pub`, PEM.
        records_pub: public keys of the executors, PEM files, separated by commas.
        listen: where to serve gRPC.
        admin: where to serve `/healthz`, `/readyz` and `/metrics`, plain HTTP.
        lease: see `Policy`, as the next five.
        orphan_grace: longer than `lease`.
        kill_margin: what a kill may take.
        max_attempts: attempts before an infrastructure failure is final.
        max_queued: evaluations that may wait at once, over all tenants; more are refused with QUEUE_FULL.
        database_url: `postgresql://…`, which several processes may share; empty: a file in `state`.
        database_password_file: holds the password for `database_url` on its first line.
        artifacts: the folder of artifacts; empty: `artifacts` in `state`. Processes that share a database share it too.
        max_artifact_bytes: see `Policy`, as the next one.
        inline_output_bytes: at least 16384.
        cache_bytes: see `Policy`.
        s3_bucket: keeps artifacts in a bucket instead; see `Bucket`, as the next seven.
        s3_endpoint: of its server.
        s3_region: of the bucket.
        s3_prefix: of the names of all objects.
        s3_access_key_id: of the credentials.
        s3_secret_access_key: of the credentials.
        s3_credentials_file: has them instead.
        s3_timeout: for one request.
        keep: how long an evaluation is kept after its end; empty: for ever.
        usage_samples_whole: how long usage samples are kept as they were taken, after the last of their attempt; then
            they are downsampled. Empty: for ever.
        usage_samples_keep: how long they are kept at all; empty: as long as their evaluation.
        keep_tenants: what differs from that, as `tenant=720h` or `tenant=forever`, separated by commas.
        bootstrap_key_sha256: hex SHA-256 of the operator's admin key, stored at the start unless it is there.

    Raises:
        ValueError: the values do not fit together.
    """

    state: Path
    tls_cert: Path
    tls_key: Path
    tls_ca: Path
    tickets_key: Path
    heads_key: Path
    public_keys: Path
    records_pub: tuple[str, ...]
    listen: str = "127.0.0.1:9101"
    admin: str = "127.0.0.1:9191"
    lease: timedelta = timedelta(seconds=10)
    orphan_grace: timedelta = timedelta(seconds=15)
    kill_margin: timedelta = timedelta(seconds=2)
    max_attempts: int = 3
    max_queued: int = 200_000
    database_url: str = ""
    database_password_file: Path | None = None
    artifacts: Path | None = None
    max_artifact_bytes: int = 1 << 30
    inline_output_bytes: int = 64 << 10
    cache_bytes: int = 32 << 20
    s3_bucket: str = ""
    s3_endpoint: str = ""
    s3_region: str = "us-east-1"
    s3_prefix: str = ""
    s3_access_key_id: str = ""
    s3_secret_access_key: str = field(default="", repr=False)
    s3_credentials_file: Path | None = None
    s3_timeout: timedelta = timedelta(seconds=30)
    keep: timedelta | None = None
    keep_tenants: tuple[str, ...] = ()
    usage_samples_whole: timedelta | None = timedelta(days=1)
    usage_samples_keep: timedelta | None = timedelta(days=30)
    bootstrap_key_sha256: str = ""

    def __post_init__(self) -> None:
        if not self.records_pub:
            raise ValueError("records_pub must name at least one public key")
        if len(self.bootstrap_digest) not in (0, 32):
            raise ValueError("bootstrap_key_sha256 must have 64 hex digits")
        _ = self.policy, self.retention, self.sample_ages
        if self.s3_timeout < timedelta(milliseconds=100):
            raise ValueError("s3_timeout must be at least 100ms")

    @property
    def bootstrap_digest(self) -> bytes:
        """The digest of the first admin key; empty when none is to be made."""
        return bytes.fromhex(self.bootstrap_key_sha256)

    @property
    def retention(self) -> Keep:
        """How long evaluations are kept."""
        named = [one.partition("=") for one in self.keep_tenants]
        if len({tenant for tenant, _, _ in named}) != len(named):
            raise ValueError("keep_tenants names a tenant twice")
        keep = Keep(self.keep, {tenant: _age(tenant, text) for tenant, _, text in named})
        if any(age is not None and age < _LEAST_AGE for age in (keep.default, *keep.tenants.values())):
            raise ValueError(
                "keep and keep_tenants must be at least one minute, or people could not read their results"
            )
        return keep

    @property
    def sample_ages(self) -> Ages:
        """How long usage samples are kept."""
        ages = Ages(self.usage_samples_whole, self.usage_samples_keep)
        if any(age is not None and age < _LEAST_AGE for age in (ages.whole, ages.keep)):
            raise ValueError("usage_samples_whole and usage_samples_keep must be at least one minute")
        return ages

    @property
    def policy(self) -> Policy:
        """The queue's numbers."""
        return Policy(
            lease=self.lease,
            orphan_grace=self.orphan_grace,
            kill_margin=self.kill_margin,
            max_attempts=self.max_attempts,
            max_queued=self.max_queued,
            max_artifact_bytes=self.max_artifact_bytes,
            inline_output_bytes=self.inline_output_bytes,
            cache_bytes=self.cache_bytes,
        )

    @property
    def bucket(self) -> Bucket | None:
        """Where artifacts are kept; None: in a folder."""
        if not self.s3_bucket:
            return None
        return Bucket(
            name=self.s3_bucket,
            endpoint=self.s3_endpoint,
            region=self.s3_region,
            prefix=self.s3_prefix,
            access_key_id=self.s3_access_key_id,
            secret_access_key=self.s3_secret_access_key,
            credentials_file=self.s3_credentials_file,
            timeout=self.s3_timeout,
        )


def _age(tenant: str, text: str) -> timedelta | None:
    match = _AGE.fullmatch(text)
    if not tenant or (match is None and text != "forever"):
        raise ValueError(
            f"keep_tenants has entries such as acme=720h, acme=30d or acme=forever, not {tenant[:64]}={text[:64]}"
        )
    return None if match is None else timedelta(**{_UNITS[match[2]]: int(match[1])})
