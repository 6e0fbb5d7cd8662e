"""The reader of tar archives alone: whatever the bytes are, it gives entries or says what is wrong with them."""

import io
import tarfile
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_deploy.unpack.errors import ArchiveError
from crucible_deploy.unpack.streams import Gunzip
from crucible_deploy.unpack.tar import PathBounds, TarReader
from tests.deploy import archives as a

VALID = a.tar(
    a.folder("etc"), a.file("etc/" + "n" * 120, b"x" * 700), a.symlink("l", "etc"), a.hardlink("h", "etc/" + "n" * 120)
)


def entries(content):
    stream = io.BytesIO(content)
    archive = TarReader(lambda size: stream.read(min(size, 300)), PathBounds())
    return [(b"/".join(entry.path), entry.size, b"".join(archive.content())) for entry in archive]


def read_or_refused(content):
    try:
        return entries(content)
    except ArchiveError:
        return None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_are_read_or_refused(content):
    read_or_refused(content)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_is_read_or_refused(changes):
    content = bytearray(VALID)
    for at, byte in changes:
        content[at] = byte
    read_or_refused(bytes(content))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([b"x", b"g", b"L", b"K", b"0", b"5", b"1", b"2"]))
def test_any_extension_header_is_read_or_refused(content, kind):
    read_or_refused(a.header(b"p", kind=kind, size=len(content)) + a.padded(content) + a.header(b"f") + a.END)


names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda name: name not in {".", ".."}
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(names, st.binary(max_size=600), max_size=5),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_what_was_packed_is_what_is_read(files, format_):
    packed = a.tar(*(a.file(name, content) for name, content in files.items()), format_=format_)
    expected = [(name.encode(), len(content), content) for name, content in files.items()]
    assert entries(packed) == expected


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_gzip_is_read_or_refused(content):
    stream = io.BytesIO(b"\x1f\x8b" + content)
    reader = Gunzip(stream.read)
    with suppress(ArchiveError):
        while reader.read(100):
            pass
