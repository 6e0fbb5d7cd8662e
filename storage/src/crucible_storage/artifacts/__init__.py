"""The files that programs leave in `/workspace/out`: stored beside the database, in a folder or a bucket."""

from pathlib import Path

from crucible_storage.artifacts.blob_store import BlobStore, in_folder
from crucible_storage.artifacts.s3 import Bucket, in_bucket

FOLDER = "artifacts"


def choose(bucket: Bucket | None, folder: Path | None, state: Path) -> BlobStore:
    """The artifact store that an operator chose.

    Args:
        bucket: where; None: in a folder.
        folder: which; None: one in the state folder.
        state: the state folder.

    Raises:
        StartError: it cannot be used.
    """
    return in_folder(folder or state / FOLDER) if bucket is None else in_bucket(bucket)
