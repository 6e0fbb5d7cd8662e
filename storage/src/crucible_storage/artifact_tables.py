"""The tables of artifacts: who refers to which object of the artifact store, and what is to become of it.

An object has a random name that is used once. So nothing that is about to be removed can ever be written anew, and
whoever adds a reference need only make sure of the row: see `artifacts.collector`.
"""

from sqlalchemy import Column, ForeignKey, Index, Integer, text
from sqlmodel import Field, SQLModel

from crucible_storage import columns

UPLOADING, PRESENT, DOOMED = 1, 2, 3
"""The states of a blob: being written; whole, and referred to; to be removed, and nobody may refer to it any more."""

WAITING, STORED, MOVED = 1, 2, 3
"""The states of large output: in the table `output`; in an object too; in the object alone."""

_PRESENT = text("state = 2")
_TO_LOOK_AT = text("state <> 2 OR released <> 0")
_NOT_CONFIRMED = text("confirmed = 0")
_NOT_MOVED = text("state <> 3")


class BlobRow(SQLModel, table=True):
    """An object of the artifact store. The same bytes are there once for each tenant.

    `name` is the object's, `time` when it entered its state, `released` 1 when a reference to it was dropped since it
    was last looked for whether there are others.
    """

    __tablename__ = "blob"
    __table_args__ = (
        Index("ix_blob_content", "tenant", "sha256", unique=True, **columns.only(_PRESENT)),
        Index("ix_blob_to_look_at", "seq", **columns.only(_TO_LOOK_AT)),
    )

    seq: int | None = Field(default=None, sa_column=columns.key())
    tenant: str
    name: str
    sha256: bytes = Field(sa_column=columns.blob())
    size: int = Field(sa_column=columns.number())
    state: int
    released: int
    time: int = Field(sa_column=columns.number())


class ArtifactRow(SQLModel, table=True):
    """A file that one attempt of an evaluation left.

    `total` is its size before it was cut, as the signed record says; `cut` 1 when storage kept less than that record
    says. `confirmed` is 0 until the record that lists it is stored.
    """

    __tablename__ = "artifact"
    __table_args__ = (
        Index("ix_artifact_blob", "blob_seq"),
        Index("ix_artifact_not_confirmed", "evaluation_seq", **columns.only(_NOT_CONFIRMED)),
    )

    evaluation_seq: int = Field(sa_column=columns.owner())
    attempt: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    path: str = Field(primary_key=True)
    tenant: str
    blob_seq: int = Field(sa_column=Column(columns.BIG, ForeignKey("blob.seq"), nullable=False))
    total: int = Field(sa_column=columns.number())
    cut: int
    confirmed: int


class LargeOutputRow(SQLModel, table=True):
    """What an attempt that has ended wrote to a stream, when that was much: it goes to the artifact store.

    `size` is its bytes, `blob_seq` where they are once they are stored. `preview` are the first of them, from then on.
    The rows of `output` stay, for the events refer to them; MOVED, their `data` is empty.
    """

    __tablename__ = "large_output"
    __table_args__ = (
        Index("ix_large_output_blob", "blob_seq"),
        Index("ix_large_output_to_move", "size", "evaluation_seq", "attempt", "stream", **columns.only(_NOT_MOVED)),
    )

    evaluation_seq: int = Field(sa_column=columns.owner())
    attempt: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    stream: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    tenant: str
    size: int = Field(sa_column=columns.number())
    state: int
    blob_seq: int | None = Field(sa_column=Column(columns.BIG, ForeignKey("blob.seq"), nullable=True))
    preview: bytes | None = Field(sa_column=columns.blob(nullable=True))
