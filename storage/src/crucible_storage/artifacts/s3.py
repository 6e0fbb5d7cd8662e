"""An artifact store in a bucket that speaks the S3 protocol."""

import configparser
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from crucible_rpc.errors import StartError
from crucible_storage.artifacts.blob_store import BlobStore

if TYPE_CHECKING:
    from obstore.store import S3Config

_SECTION = "default"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where a bucket is.

    Attributes:
        name: of the bucket.
        endpoint: `https://host[:port]` of its server; empty: Amazon's for the region.
        region: of the bucket.
        prefix: what the names of all objects begin with; empty: nothing.
        access_key_id: whose secret is used.
        secret_access_key: that secret.
        credentials_file: in place of these two, a file as the `credentials` of Amazon's tools, section `default`.
            Without either, what the machine's role gives.
        timeout: for one request, of which an upload of many parts makes many.
    """

    name: str
    endpoint: str = ""
    region: str = "us-east-1"
    prefix: str = ""
    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    credentials_file: Path | None = None
    timeout: timedelta = timedelta(seconds=30)


def in_bucket(bucket: Bucket) -> BlobStore:
    """A store in a bucket; nothing is asked of it yet.

    Raises:
        StartError: the file with the credentials cannot be read, or a value is none.
    """
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    config: S3Config = {"region": bucket.region, **_credentials(bucket)}
    if bucket.endpoint:
        config["endpoint"] = bucket.endpoint
    second = timedelta(seconds=1)
    try:
        store = S3Store(
            bucket.name,
            prefix=bucket.prefix or None,
            config=config,
            client_options={
                "allow_http": bucket.endpoint.startswith("http://"),
                "connect_timeout": min(5 * second, bucket.timeout),
                "timeout": bucket.timeout,
            },
            retry_config={
                "max_retries": 3,
                "retry_timeout": bucket.timeout,
                "backoff": {"init_backoff": second / 10, "max_backoff": 2 * second, "base": 2},
            },
        )
    except (BaseError, ValueError) as error:
        line = " ".join(str(error).partition("\n\nDebug source")[0].split())[:300]
        raise StartError(f"the bucket {bucket.name} cannot be used: {line}") from None
    return BlobStore(lambda: store, f"s3://{bucket.name}/{bucket.prefix}".rstrip("/"))


def _credentials(bucket: Bucket) -> "S3Config":
    if bucket.credentials_file is not None:
        return _of_file(bucket.credentials_file)
    if not bucket.access_key_id:
        return {}
    return {"access_key_id": bucket.access_key_id, "secret_access_key": bucket.secret_access_key}


def _of_file(file: Path) -> "S3Config":
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with file.open() as stream:
            parser.read_file(stream)
        section = parser[_SECTION]
        made: S3Config = {
            "access_key_id": section["aws_access_key_id"],
            "secret_access_key": section["aws_secret_access_key"],
        }
        if (token := section.get("aws_session_token")) is not None:
            made["session_token"] = token
        return made
    except OSError as error:
        raise StartError(f"the credentials file {file} cannot be read: {error.strerror}") from None
    except (configparser.Error, KeyError, UnicodeDecodeError):  # whose texts may show what is in the file
        text = "needs a section [default] with aws_access_key_id and aws_secret_access_key"
        raise StartError(f"the credentials file {file} {text}") from None
