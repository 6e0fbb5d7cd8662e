"""Archives of all kinds through the real unpacking process: what arrives, what is refused, and what stays untouched."""

import gzip
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from crucible_deploy import unpacking, users
from crucible_deploy.failures import BuildError
from crucible_deploy.tree_digest import tree_digest
from crucible_deploy.unpacking import UnpackBounds, UnpackError
from tests.deploy import archives as a
from tests.deploy.archives import MADE, refused, tree

pytestmark = pytest.mark.root

PYTHON = sys.executable


@pytest.fixture
def outside():
    """A folder that every user may write: what an archive could do outside would be seen here."""
    folder = Path(tempfile.mkdtemp(prefix="crucible-outside-", dir="/tmp"))
    folder.chmod(0o777)
    (folder / "canary").write_bytes(b"alive")
    (folder / "canary").chmod(0o666)
    yield folder
    try:
        assert (folder / "canary").read_bytes() == b"alive"
        assert (folder / "canary").stat().st_mode & 0o7777 == 0o666
        assert [path.name for path in folder.iterdir()] == ["canary"]
    finally:
        shutil.rmtree(folder)


# --- what arrives ---


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_root_file_system_arrives_whole_and_belongs_to_root(unpack, format_):
    long = "usr/" + "/".join(["d" * 40] * 5) + "/file"
    entries = [
        a.folder("./", 0o700), a.folder("usr", 0o555), a.file("usr/one", b"1" * 700, 0o4755),
        a.file("./usr/two", mode=0o6600), a.symlink("bin", "usr/bin"), a.symlink("absolute", "/etc/passwd"),
        a.hardlink("usr/three", "usr/one"), a.folder("sticky", 0o1777),
    ]  # fmt: skip
    if format_ != tarfile.USTAR_FORMAT:
        entries.append(a.file(long, b"deep"))
    root = unpack(a.tar(*entries, format_=format_))
    found = tree(root)
    assert found["usr/one"] == found["usr/three"] == b"1" * 700
    assert (found["bin"], found["absolute"], found["usr/two"]) == ("usr/bin", "/etc/passwd", b"x")
    assert format_ == tarfile.USTAR_FORMAT or found[long] == b"deep"
    modes = {
        name: stat.S_IMODE((root / name).lstat().st_mode)
        for name in (".", "usr", "usr/one", "usr/two", "sticky", "tmp")
    }
    assert modes == {".": 0o755, "usr": 0o555, "usr/one": 0o755, "usr/two": 0o600, "sticky": 0o1777, "tmp": 0o1777}
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in (root, *root.rglob("*"))} == {(0, 0)}
    assert tree_digest(root).startswith("sha256:")


def test_devices_pipes_set_id_bits_and_attributes_are_left_out(unpack):
    kinds = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    specials = [a.entry(f"usr/{kind.decode()}", kind=kind) for kind in kinds]
    capable = a.entry("usr/capable", content=b"x", mode=0o7755, pax={"SCHILY.xattr.security.capability": "x" * 20})
    root = unpack(a.tar(*specials, capable, a.file("usr/gone"), a.entry("usr/gone", kind=tarfile.FIFOTYPE)))
    assert tree(root) == {"usr": None, "usr/capable": b"x"}
    assert unpack.said.left_out == 4
    assert os.listxattr(root / "usr/capable") == []
    assert stat.S_IMODE((root / "usr/capable").stat().st_mode) == 0o755


def test_gzip_of_several_members_and_padding_is_read(unpack):
    content = a.tar(a.file("etc/one", b"1" * 100_000))
    packed = gzip.compress(content[:5000]) + gzip.compress(content[5000:]) + b"\0" * 700
    assert tree(unpack(packed))["etc/one"] == b"1" * 100_000


def test_standard_input_is_read(unpack, tmp_path):
    work = tmp_path / "piped"
    work.mkdir(mode=0o700)
    script = (
        "import sys; from pathlib import Path; from crucible_deploy.unpacking import unpack\n"
        "unpack(Path('-'), Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [PYTHON, "-c", script, str(work)],
        input=a.tar(a.file("etc/one", b"piped")), capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tree(work / "rootfs")["etc/one"] == b"piped"


def test_the_folders_of_a_sandbox_are_made_whatever_has_their_names(unpack, outside):
    root = unpack(
        a.tar(
            a.symlink("tmp", str(outside)),
            a.symlink("workspace", "/"),
            a.file("proc"),
            a.file("dev/sda"),
            a.file("sys/x"),
        )
    )
    assert tree(root) == {}
    assert all((root / name).is_dir() and not (root / name).is_symlink() for name in MADE)


def test_a_later_entry_takes_the_place_of_an_earlier_one(unpack):
    root = unpack(
        a.tar(
            a.file("a"), a.file("a", b"second"), a.folder("b"), a.file("b/in"), a.file("b", b"file now"),
            a.file("c"), a.folder("c"), a.file("c/in", b"below"), a.symlink("d", "c"), a.file("d", b"no link"),
        )
    )  # fmt: skip
    assert tree(root) == {"a": b"second", "b": b"file now", "c": None, "c/in": b"below", "d": b"no link"}


def test_writing_over_a_hard_link_leaves_the_other_name_alone(unpack):
    root = unpack(a.tar(a.file("a", b"kept"), a.hardlink("b", "a"), a.file("b", b"changed")))
    assert tree(root) == {"a": b"kept", "b": b"changed"}


# --- what is refused ---


def climbing(outside):
    up = "../" * 12 + str(outside)[1:]
    link = [a.folder("etc"), a.symlink("etc/out", str(outside))]
    yield "absolute", [a.file(f"{outside}/made")], "absolute"
    yield "dots", [a.file(f"{up}/made")], "leads out"
    yield "dots within", [a.file(f"etc/../../{up}/made")], "leads out"
    yield "below a link", [*link, a.file("etc/out/made")], "a link or a file"
    yield "folder below a link", [*link, a.folder("etc/out/made")], "a link or a file"
    yield "link below a link", [*link, a.symlink("etc/out/made", "x")], "a link or a file"
    yield "below a relative link", [a.symlink("up", up), a.file("up/made")], "a link or a file"
    yield (
        "folder that becomes a link",
        [a.folder("etc/out"), a.file("etc/out/in"), *link, a.file("etc/out/canary")],
        "a link or",
    )
    yield "link to a link", [*link, a.symlink("second", "etc/out"), a.file("second/made")], "a link or a file"
    yield "hard link to outside", [a.hardlink("etc/made", f"{outside}/canary")], "absolute"
    yield "hard link by dots", [a.hardlink("etc/made", f"{up}/canary")], "leads out"
    yield "hard link through a link", [*link, a.hardlink("made", "etc/out/canary")], "a link or a file"
    yield "hard link to a folder", [a.folder("etc"), a.hardlink("made", "etc")], "no file"
    yield "hard link to itself", [a.file("made"), a.hardlink("made", "made")], "itself"
    yield "hard link in the place of its target", [a.file("x/made"), a.hardlink("x", "x/made")], "takes the place"
    yield "below a file", [a.file("etc"), a.file("etc/made")], "a link or a file"
    yield "in the place of the root", [a.symlink("./", str(outside))], "root"
    yield "pax path", [a.entry("etc/made", content=b"x", pax={"path": f"{up}/made"})], "leads out"
    yield "pax link path", [a.entry("m", kind=tarfile.LNKTYPE, pax={"linkpath": f"{outside}/canary"})], "absolute"


@pytest.mark.parametrize("case", [name for name, _, _ in climbing(Path("/tmp/none"))])
def test_nothing_leads_out_of_the_store(unpack, outside, case):
    entries, match = next((entries, match) for name, entries, match in climbing(outside) if name == case)
    refused(unpack, a.tar(a.file("first"), *entries), match)


def test_a_file_that_replaces_a_link_is_made_beside_it_not_through_it(unpack, outside):
    root = unpack(a.tar(a.symlink("etc/out", f"{outside}/canary"), a.file("etc/out", b"mine", 0o644)))
    assert tree(root) == {"etc": None, "etc/out": b"mine"}
    root = unpack(a.tar(a.symlink("etc", str(outside)), a.folder("etc", 0o700), a.file("etc/made")))
    assert tree(root) == {"etc": None, "etc/made": b"x"}


def test_long_names_by_gnu_are_bounded_and_checked(unpack, outside):
    path = b"../" * 12 + str(outside).encode() + b"/made"
    long_name = a.header(b"././@LongLink", kind=b"L", size=len(path)) + a.padded(path)
    refused(unpack, long_name + a.header(b"x") + a.END, "leads out")
    long_link = a.header(b"././@LongLink", kind=b"K", size=len(path)) + a.padded(path)
    refused(unpack, long_link + a.header(b"x", kind=b"1") + a.END, "leads out")
    refused(unpack, a.header(b"././@LongLink", kind=b"L", size=2 << 20) + a.END, "extension header")
    refused(unpack, long_name * 20 + a.header(b"x") + a.END, "too many extension")
    refused(unpack, long_name, "ends after an extension")


LIES = {
    "names too long": (a.tar(a.file("n" * 300)), "too long"),
    "path too long": (a.tar(a.file("/".join(["n" * 100] * 12))), "too long"),
    "path too deep": (a.tar(a.file("n/" * 80 + "f")), "too long"),
    "sparse by GNU": (a.header(b"s", kind=b"S", raw_size=b"00077777777\0") + a.END, "sparse"),
    "sparse by pax": (
        a.pax(GNU__sparse__major=b"1", GNU__sparse__realsize=b"99999999999") + a.header(b"s", size=0) + a.END,
        "sparse",
    ),
    "size beyond the end": (a.header(b"f", size=1 << 19) + b"x" * 600, "ends within"),
    "size of petabytes": (a.header(b"f", raw_size=b"\x80" + b"\x7f" * 11) + a.END, "says that it has"),
    "size by pax": (a.pax(size=b"9" * 19) + a.header(b"f") + a.END, "says that it has"),
    "negative size": (a.header(b"f", raw_size=b"-0000000001\0") + a.END, "no number"),
    "binary negative size": (a.header(b"f", raw_size=b"\xff" * 12) + a.END, "no number"),
    "link with content": (a.header(b"l", kind=b"2", size=512, target=b"x") + b"x" * 512 + a.END, "has content"),
    "folder with content": (a.header(b"l", kind=b"5", size=512) + b"x" * 512 + a.END, "has content"),
    "unknown kind": (a.header(b"l", kind=b"Z") + a.END, "unknown kind"),
    "wrong checksum": (a.header(b"l")[:-1] + b"x" + a.END, "checksum"),
    "cut in a header": (a.tar(a.file("f"))[:100], "ends within a header|no tar"),
    "no tar": (b"hello\n" * 1000, "no tar archive"),
    "pax record too long": (a.header(b"p", kind=b"x", size=10) + a.padded(b"99 path=x\n") + a.END, "pax header"),
    "pax record without end": (a.header(b"p", kind=b"x", size=9) + a.padded(b"9 path=xx") + a.END, "pax header"),
    "pax path with NUL": (a.pax(path=b"a\0b") + a.header(b"f") + a.END, "NUL"),
    "global names": (a.header(b"g", kind=b"g", size=10) + a.padded(b"10 path=x\n") + a.header(b"f") + a.END, "global"),
    "empty link": (a.header(b"l", kind=b"2") + a.END, "no path"),
    "damaged gzip": (gzip.compress(a.tar(a.file("f")))[:60] + b"\xff" * 60, "damaged"),
    "cut gzip": (gzip.compress(a.tar(a.file("f", os.urandom(9000))))[:-3000], "too early"),
    "zstd": (b"\x28\xb5\x2f\xfd" + b"\0" * 600, "zstd"),
    "xz": (b"\xfd7zXZ\0" + b"\0" * 600, "xz"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_lie_is_one_clear_error(unpack, case):
    content, match = LIES[case]
    refused(unpack, content, match)


def test_an_empty_file_is_an_empty_archive(unpack):
    assert tree(unpack(b"")) == {}


def test_a_global_header_without_names_is_passed_over(unpack):
    comment = a.header(b"g", kind=b"g", size=13) + a.padded(b"13 comment=x\n")
    assert tree(unpack(comment + a.header(b"f") + a.END)) == {"f": b""}


# --- bounds ---


def test_bombs_end_at_their_bounds(unpack):
    zeros = gzip.compress(b"\0" * (8 << 20))
    bomb = gzip.compress(a.tar(a.file("f", b"\0" * (2 << 20))))
    refused(unpack, bomb, "bytes that are allowed")
    refused(unpack, a.tar(a.file("f", b"\0" * (2 << 20))), "bytes that are allowed")
    refused(unpack, zeros, "larger than")
    refused(unpack, a.tar(*(a.file(f"f{number}") for number in range(300))), "entries that are allowed")
    refused(unpack, a.tar(a.file("/".join("d" * 60))), "entries", bounds=UnpackBounds(1 << 20, 20, 60))
    repeated = [a.file("same", b"\0" * (1 << 19))] * 3
    refused(unpack, a.tar(*repeated), "bytes that are allowed")


def test_hidden_bombs_in_a_layer_end_at_their_bounds(unpack):
    layer = a.tar(a.file("f")) + b"\0" * (3 << 20)
    refused(unpack, a.oci_tar(a.oci_files(layer, compress=True)), "larger than")


def test_an_archive_that_takes_too_long_is_stopped_and_leaves_no_process(unpack, monkeypatch):
    account = users.transient()
    monkeypatch.setattr(users, "transient", lambda: account)
    reading, writing = os.pipe()
    saved = os.dup(0)
    os.dup2(reading, 0)
    try:
        with pytest.raises(UnpackError, match="too long"):
            unpack(Path("-"), bounds=UnpackBounds(1 << 20, 100, 1))
    finally:
        os.dup2(saved, 0)
        for descriptor in (reading, writing, saved):
            os.close(descriptor)
    deadline = time.monotonic() + 20
    while processes_of(account.uid):  # it has closed its files by now, and may still be on its way out
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_that_says_rubbish_or_too_much_is_not_believed(unpack, monkeypatch):
    content = a.tar(a.file("f"))
    for text, match in (("import os; os._exit(3)", "ended with 3"), ("print('x' * 200_000)", "says too much"),
                        ("print('[]')", "ended with 0"), ("print('{\"error\": 7}')", "ended with")):  # fmt: skip
        monkeypatch.setattr(unpacking, "_code", code_of(text))
        refused(unpack, content, match)


def test_what_the_process_could_not_have_made_by_fair_means_is_not_taken_over(unpack, monkeypatch, outside):
    answer = json.dumps({"format": "rootfs", "config": "", "layers": 1, "left_out": 0})
    for act, match in (
        (f"os.symlink({str(outside)!r}, 'fine', dir_fd=root); os.mkfifo('pipe', dir_fd=root)", "neither a file"),
        ("[os.close(os.open(f'f{n}', os.O_CREAT | os.O_WRONLY, dir_fd=root)) for n in range(300)]", "more than"),
        ("fd = os.open('f', os.O_CREAT | os.O_WRONLY, dir_fd=root); os.ftruncate(fd, 1 << 30)", "more than"),
    ):
        text = f"import json, os, sys; root = json.loads(sys.argv[1])['root']; {act}; print({answer!r})"
        monkeypatch.setattr(unpacking, "_code", code_of(text))
        with pytest.raises(BuildError, match=match):
            unpack(a.tar())


def code_of(text):
    @contextmanager
    def code():
        descriptor = os.memfd_create("test")
        os.write(descriptor, text.encode())
        os.fchmod(descriptor, 0o444)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    return code


LOOK = """
import json, os, resource, socket
with open("/proc/self/status") as file:
    status = dict(line.rstrip().split(":", 1) for line in file)
names = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
found = {name: status[name].strip() for name in names}
names = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_CORE", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_NOFILE")
found["limits"] = {name: resource.getrlimit(getattr(resource, name))[1] for name in names}
found["interfaces"] = [name for _, name in socket.if_nameindex()]
found["namespaces"] = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "net", "mnt", "ipc", "uts")}
found["environ"] = sorted(os.environ)
print(json.dumps({"error": json.dumps(found)}))
"""


def test_the_process_has_no_privilege_no_network_and_few_resources(unpack, monkeypatch):
    """What a process taken over by its input would find."""
    monkeypatch.setattr(unpacking, "_code", code_of(LOOK))
    found = json.loads(refused(unpack, a.tar(), "Uid"))
    user, *others = {*found["Uid"].split(), *found["Gid"].split()}
    assert not others
    assert 61184 <= int(user) <= 65519
    assert found["Groups"] == ""
    assert {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert found["NoNewPrivs"] == "1"
    limits = found["limits"]
    assert (limits["RLIMIT_AS"], limits["RLIMIT_CPU"], limits["RLIMIT_CORE"], limits["RLIMIT_NPROC"]) == (
        1 << 30,
        60,
        0,
        1,
    )
    assert limits["RLIMIT_NOFILE"] < 300
    assert found["interfaces"] == ["lo"]
    own = {name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in found["namespaces"]}
    assert not set(own.values()) & set(found["namespaces"].values())
    assert found["environ"] == ["LC_ALL", "PATH"]


def test_a_full_disk_is_one_clear_error(tmp_path):
    """A small file system of its own, in a mount namespace of its own."""
    (tmp_path / "archive").write_bytes(gzip.compress(a.tar(a.file("f", b"x" * (4 << 20)))))
    script = (
        "import sys; from pathlib import Path; from crucible_deploy import unpacking\n"
        "try: unpacking.unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except unpacking.UnpackError as error: print(error)"
    )
    (tmp_path / "small").mkdir()
    mounted = (
        f"mount -t tmpfs -o size=2m,mode=0700 small {tmp_path}/small && "
        f"exec {PYTHON} -c '{script}' {tmp_path}/archive {tmp_path}/small"
    )
    done = subprocess.run(["unshare", "--mount", "sh", "-c", mounted], capture_output=True, text=True, check=False)
    assert "no space left on the disk" in done.stdout, done


def processes_of(uid):
    found = []
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            if path.name.isdigit() and path.stat().st_uid == uid:
                found.append(path.name)
    return found
