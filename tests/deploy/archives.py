"""For the tests of importing: archives, `docker save`, OCI layouts, hostile headers by hand, and what came of them."""

import gzip
import hashlib
import io
import json
import platform
import tarfile

import pytest

from crucible_deploy.unpacking import UnpackBounds, UnpackError

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def entry(name, *, kind=tarfile.REGTYPE, content=b"", target="", mode=0o644, pax=None):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, target, mode, len(content)
    info.pax_headers = pax or {}
    return info, content


def file(name, content=b"x", mode=0o644):
    return entry(name, content=content, mode=mode)


def folder(name, mode=0o755):
    return entry(name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name, target):
    return entry(name, kind=tarfile.SYMTYPE, target=target)


def hardlink(name, target):
    return entry(name, kind=tarfile.LNKTYPE, target=target)


def tar(*entries, format_=tarfile.PAX_FORMAT):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=format_) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def header(name, *, kind=b"0", size=0, target=b"", prefix=b"", magic=b"ustar\x0000", raw_size=None):
    """One header block, whatever it says."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = raw_size if raw_size is not None else b"%011o\0" % size
    block[136:148], block[156:157] = b"00000000000\0", kind
    block[157 : 157 + len(target)] = target
    block[257 : 257 + len(magic)] = magic
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content):
    return content + b"\0" * (-len(content) % 512)


def pax(**records):
    body = b""
    for key, value in records.items():
        record = b" " + key.replace("__", ".").encode() + b"=" + value + b"\n"
        length = len(record) + len(str(len(record) + 3))
        length = len(record) + len(str(length))
        body += str(length).encode() + record
    return header(b"pax", kind=b"x", size=len(body)) + padded(body)


END = b"\0" * 1024


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def config(layers, **changed):
    return json.dumps(
        {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
            **changed,
        }
    ).encode()


def docker_save(*layers, tags=("test:1",), changed_config=None, changed_layers=None, old=False):
    """As Docker writes it: the old form names things by their content, the newer one puts them into `blobs`."""
    described = config(layers) if changed_config is None else changed_config
    names = [f"{digest(one)[7:]}/layer.tar" if old else f"blobs/sha256/{digest(one)[7:]}" for one in layers]
    hexadecimal = digest(config(layers) if changed_config is None else described)[7:]
    config_name = f"{hexadecimal}.json" if old else f"blobs/sha256/{hexadecimal}"
    manifest = json.dumps([{"Config": config_name, "RepoTags": list(tags), "Layers": names}]).encode()
    files = [file(name, content) for name, content in zip(names, changed_layers or layers, strict=True)]
    return tar(*files, file(config_name, described), file("manifest.json", manifest))


def oci_files(*layers, compress=False, kind=None, changed_config=None, tag="test", platforms=None):
    """The files of an OCI layout by name."""
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}

    def blob(content, media_type, **more):
        files[f"blobs/sha256/{digest(content)[7:]}"] = content
        return {"mediaType": media_type, "digest": digest(content), "size": len(content), **more}

    suffix = "tar+gzip" if compress else "tar"
    stored = [gzip.compress(one, mtime=0) if compress else one for one in layers]
    media_type = kind or f"application/vnd.oci.image.layer.v1.{suffix}"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": blob(
                config(layers) if changed_config is None else changed_config, "application/vnd.oci.image.config.v1+json"
            ),
            "layers": [blob(one, media_type) for one in stored],
        }
    ).encode()
    notes = {"annotations": {"org.opencontainers.image.ref.name": tag}}
    described = [
        blob(manifest, "application/vnd.oci.image.manifest.v1+json", **notes, **({"platform": one} if one else {}))
        for one in platforms or [None]
    ]
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": described}).encode()
    return files


def oci_tar(files):
    return tar(*(file(name, content) for name, content in files.items()))


SMALL = UnpackBounds(content_bytes=1 << 20, entries=200, seconds=60)
MADE = {"dev", "proc", "run", "sys", "tmp", "workspace"}


def tree(root):
    """What is there besides the folders that every image has: content, target, or None for a folder."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name in MADE:
            continue
        found[name] = str(path.readlink()) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
    return found


def refused(unpack, content, match, **options):
    with pytest.raises(UnpackError, match=match) as caught:
        unpack(content, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
