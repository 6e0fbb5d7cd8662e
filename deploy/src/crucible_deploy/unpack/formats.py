"""What `docker save` and an OCI image layout say of an image: its layers, in their order, each with its digests."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crucible_deploy.unpack.errors import ArchiveError, shown
from crucible_deploy.unpack.members import Members, document

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MOST_LAYERS = 256
_MOST_INDEXES = 4
_TAG = "org.opencontainers.image.ref.name"
_FULL_TAG = "io.containerd.image.name"
_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        member: its name in the archive.
        diff_id: `sha256:<hex>` of the tar archive that it is.
        digest: of the file as it lies there, which may be compressed; None when nothing says it.
        size: of that file likewise.
    """

    member: bytes
    diff_id: str
    digest: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Wanted:
    """Which image of an archive.

    Attributes:
        architecture: in Docker's words: `amd64`, `arm64`.
        tag: None for the only one.
    """

    architecture: str
    tag: str | None = None


@dataclass(frozen=True)
class Description:
    """An image: `config` is the digest of its configuration, which names everything else."""

    config: str
    layers: tuple[Layer, ...]


def docker(members: Members, wanted: Wanted) -> Description:
    """The image of a `docker save`.

    Raises:
        ArchiveError: its description is damaged or lies, or holds no image that is wanted, or several.
    """
    images, _ = document(members, b"manifest.json")
    tagged = [(_strings(one, "RepoTags", missing=()), one) for one in _list(images, "manifest.json")]
    chosen = _chosen([(tags, one) for tags, one in tagged if wanted.tag is None or wanted.tag in tags], tagged, wanted)
    name = _string(chosen, "Config", "manifest.json")
    config, digest = document(members, _member(name))
    # The file is called by its digest, in both forms that Docker has used.
    hexadecimal = name.rpartition("/")[2].removesuffix(".json")
    if f"sha256:{hexadecimal}" != digest:
        raise ArchiveError(f"the configuration {shown(name)} has the digest {digest}")
    diff_ids = _diff_ids(config, wanted)
    files = _strings(chosen, "Layers")
    _same_count(files, diff_ids)
    return Description(digest, tuple(Layer(_member(file), diff) for file, diff in zip(files, diff_ids, strict=True)))


def oci(members: Members, wanted: Wanted) -> Description:
    """The image of an OCI image layout.

    Raises:
        ArchiveError: see `docker`.
    """
    layout, _ = document(members, b"oci-layout")
    if not isinstance(layout, dict) or layout.get("imageLayoutVersion") != "1.0.0":
        raise ArchiveError("its oci-layout does not say version 1.0.0")
    index, _ = document(members, b"index.json")
    descriptor = _choose(index, wanted, by_tag=True)
    for _ in range(_MOST_INDEXES):
        found = _described(members, descriptor)
        if descriptor.get("mediaType") not in _INDEX_TYPES:
            return _of_manifest(members, found, wanted)
        descriptor = _choose(found, wanted, by_tag=False)
    raise ArchiveError("its indexes lead to indexes without an end")


def _of_manifest(members: Members, manifest: Any, wanted: Wanted) -> Description:
    descriptor = _dict(manifest, "config", "a manifest")
    config = _described(members, descriptor)
    diff_ids = _diff_ids(config, wanted)
    layers = _list(manifest.get("layers"), "a manifest's layers")
    _same_count(layers, diff_ids)
    return Description(
        _digest(descriptor),
        tuple(_layer(one, diff) for one, diff in zip(layers, diff_ids, strict=True)),
    )


def _layer(descriptor: Any, diff_id: str) -> Layer:
    kind = _string(descriptor, "mediaType", "a layer")
    if "zstd" in kind:
        raise ArchiveError("a layer is compressed with zstd, which is not supported: save the image with gzip")
    if "tar" not in kind:
        raise ArchiveError(f"a layer is of the kind {shown(kind)}, which is not supported")
    return Layer(_blob(descriptor), diff_id, _digest(descriptor), _size(descriptor))


def _choose(index: Any, wanted: Wanted, *, by_tag: bool) -> Mapping[str, Any]:
    """The descriptor of the image that is wanted, or of the index that holds it."""
    found = []
    for one in _list(index.get("manifests") if isinstance(index, dict) else None, "an index"):
        notes = one.get("annotations") or {} if isinstance(one, dict) else {}
        platform = one.get("platform") or {} if isinstance(one, dict) else {}
        if not isinstance(notes, dict) or not isinstance(platform, dict):
            raise ArchiveError("an index is damaged")
        if platform and (platform.get("os"), platform.get("architecture")) != ("linux", wanted.architecture):
            continue  # another machine's, or no image at all
        tags = tuple(notes[key] for key in (_TAG, _FULL_TAG) if isinstance(notes.get(key), str))
        found.append((tags, one))
    fit = [(tags, one) for tags, one in found if not by_tag or wanted.tag is None or wanted.tag in tags]
    return _chosen(fit, found, wanted)


def _chosen(fit: list[tuple[tuple[str, ...], Any]], all_: list[Any], wanted: Wanted) -> Mapping[str, Any]:
    if len(fit) == 1 and isinstance(fit[0][1], dict):
        return fit[0][1]
    tags = ", ".join(shown(tag) for one, _ in all_ for tag in one)[:300] or "none with a tag"
    if wanted.tag is not None:
        raise ArchiveError(f"no image is tagged {shown(wanted.tag)} for {wanted.architecture}; there are: {tags}")
    if not fit:
        raise ArchiveError(f"it holds no image for linux on {wanted.architecture}")
    raise ArchiveError(f"it holds {len(fit)} images; say which by its tag: {tags}")


def _described(members: Members, descriptor: Mapping[str, Any]) -> Any:
    """The document that a descriptor names, which must be what the descriptor says."""
    name = _blob(descriptor)
    found, digest = document(members, name)
    size = members.open(name)[1]
    if (digest, size) != (_digest(descriptor), _size(descriptor)):
        raise ArchiveError(
            f"{shown(name)} has the digest {digest} and {size} bytes, not what its descriptor says: it is damaged"
        )
    return found


def _member(name: str) -> bytes:
    """A file's name; JSON can hold characters that no name can."""
    return name.encode(errors="replace")


def _blob(descriptor: Any) -> bytes:
    return b"blobs/" + _digest(descriptor).replace(":", "/").encode()


def _digest(descriptor: Any) -> str:
    digest = _string(descriptor, "digest", "a descriptor")
    if not _DIGEST.fullmatch(digest):
        raise ArchiveError(f"the digest {shown(digest)} is not of the form sha256:<hex>")
    return digest


def _size(descriptor: Any) -> int:
    size = descriptor.get("size")
    if type(size) is not int or size < 0:
        raise ArchiveError("a descriptor has no size")
    return size


def _diff_ids(config: Any, wanted: Wanted) -> tuple[str, ...]:
    if not isinstance(config, dict):
        raise ArchiveError("the image's configuration is damaged")
    system, architecture = config.get("os", "linux"), config.get("architecture", wanted.architecture)
    if (system, architecture) != ("linux", wanted.architecture):
        what = shown(f"{system} on {architecture}")
        raise ArchiveError(f"the image is for {what}, this machine is linux on {wanted.architecture}")
    found = _strings(_dict(config, "rootfs", "the image's configuration"), "diff_ids")
    for one in found:
        if not _DIGEST.fullmatch(one):
            raise ArchiveError(f"the digest {shown(one)} is not of the form sha256:<hex>")
    return found


def _same_count(layers: Any, diff_ids: tuple[str, ...]) -> None:
    if len(layers) != len(diff_ids):
        raise ArchiveError(f"it has {len(layers)} layers and the digests of {len(diff_ids)}")
    if not 1 <= len(diff_ids) <= _MOST_LAYERS:
        raise ArchiveError(f"it has {len(diff_ids)} layers; 1 to {_MOST_LAYERS} are allowed")


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ArchiveError(f"{what} is damaged")
    return value


def _dict(value: Any, key: str, what: str) -> dict[str, Any]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        raise ArchiveError(f"{what} has no {key}")
    return found


def _string(value: Any, key: str, what: str) -> str:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, str):
        raise ArchiveError(f"{what} has no {key}")
    return found


def _strings(value: Any, key: str, missing: tuple[str, ...] | None = None) -> tuple[str, ...]:
    found = value.get(key) if isinstance(value, dict) else None
    if found is None and missing is not None:
        return missing
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ArchiveError(f"its description has no {key}")
    return tuple(found)
