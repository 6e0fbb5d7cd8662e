"""What a program can see and reach, told by the program and, where it could lie, looked up on the host."""

from __future__ import annotations

import re
import socket

from crucible_executor.engines.base import Engine
from crucible_executor.model import Exited
from tests.conformance.harness import Result, python, run
from tests.conformance.promises import Promise, needs

pytestmark = needs(Promise.ISOLATION)


async def tell(engine: Engine, code: str) -> str:
    result: Result = await run(engine, python(code))
    assert result.termination == Exited(0), result.stderr
    return result.stdout.decode().strip()


async def test_program_is_nobody_with_no_group_and_no_capability(engine: Engine):
    code = (
        "import os\nprint(os.getresuid(), os.getresgid(), os.getgroups())\n"
        "print({l.split()[1] for l in open('/proc/self/status') if l.startswith('Cap')})"
    )
    expected = "(65534, 65534, 65534) (65534, 65534, 65534) []\n{'0000000000000000'}"
    assert await tell(engine, code) == expected


async def test_no_new_privileges_is_set(engine: Engine):
    pr_get_no_new_privs = 39
    assert (
        await tell(engine, f"import ctypes; print(ctypes.CDLL(None).prctl({pr_get_no_new_privs}, 0, 0, 0, 0))") == "1"
    )


async def test_privileges_cannot_be_regained(engine: Engine):
    code = (
        "import os, ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "for call in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.chroot('/tmp')):\n"
        "    try: call(); print('done')\n    except PermissionError: print('refused')\n"
        "print(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None), libc.unshare(0x00020000))"
    )
    assert (await tell(engine, code)).split() == ["refused"] * 3 + ["-1", "-1"]


async def test_no_user_namespace_gives_the_capabilities_back(engine: Engine):
    code = (
        "import ctypes, errno, os, platform, threading\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "clone, unshare = (56, 272) if platform.machine() == 'x86_64' else (220, 97)\n"
        "def call(*args): return libc.syscall(*args) == -1 and errno.errorcode[ctypes.get_errno()]\n"
        "newuser, newns = 0x10000000, 0x00020000\n"
        "asked = (ctypes.c_uint64 * 11)(newuser, 0, 0, 0, 17)\n"
        "print(call(unshare, newuser), call(unshare, newuser | newns), call(clone, newuser | 17, 0, 0, 0, 0))\n"
        "print(call(435, ctypes.byref(asked), 88))\n"
        "print({l.split()[1] for l in open('/proc/self/status') if l.startswith('Cap')})\n"
        "threading.Thread(target=print, args=('thread',)).start()\n"  # the C library may ask for clone3 first
    )
    assert (await tell(engine, code)).splitlines() == ["EPERM EPERM EPERM", "ENOSYS", "{'0000000000000000'}", "thread"]


async def test_root_is_read_only_and_nothing_else_is_writable(engine: Engine):
    code = (
        "import os\n"
        "def writable(at):\n"
        "    try: open(os.path.join(at, '.probe'), 'w').close(); os.unlink(os.path.join(at, '.probe')); return True\n"
        "    except OSError: return False\n"
        "found = []\n"
        "for at, folders, _ in os.walk('/'):\n"
        "    if at.startswith(('/proc', '/sys')): folders[:] = []; continue\n"
        "    if writable(at): found.append(at)\n"
        "print(sorted(found))"
    )
    writable = await tell(engine, code)
    assert writable == "['/dev/shm', '/tmp', '/workspace']"


async def test_init_is_out_of_reach(engine: Engine):
    code = (
        "import os, ctypes\n"
        "def refused(call, *args):\n    try: call(*args)\n    except PermissionError: return True\n    return False\n"
        "print(refused(os.listdir, '/proc/1/fd'), refused(open, '/proc/1/fd/3', 'wb'))\n"
        "print(refused(open, '/proc/1/mem', 'rb'), refused(os.kill, 1, 9), refused(os.kill, 1, 19))\n"
        "print(ctypes.CDLL(None).ptrace(16, 1, 0, 0), os.getppid())"
    )
    assert await tell(engine, code) == "True True\nTrue True True\n-1 1"


async def test_killing_everything_in_reach_ends_only_the_program(engine: Engine):
    code = "import os, signal\ntry: os.kill(-1, signal.SIGKILL)\nexcept ProcessLookupError: print('nobody else')"
    result = await run(engine, python(code))
    assert (result.termination, result.stdout) == (Exited(0), b"nobody else\n")


async def test_nothing_can_be_reported_in_the_inits_name(engine: Engine):
    """The program writes a forged record wherever it can; the outcome stays its own."""
    code = (
        "import os, struct\nrecord = struct.pack('<4sIIIQQQQ16x', b'RPRT', 3, 0, 0, 0, 0, 0, 0)\n"
        "for fd in range(3, 64):\n"
        "    try: os.write(fd, record)\n    except OSError: pass\n"
        "for pid in os.listdir('/proc'):\n"
        "    if pid.isdigit() and int(pid) != os.getpid():\n"
        "        for fd in range(10):\n"
        "            try: open(f'/proc/{pid}/fd/{fd}', 'wb').write(record)\n            except OSError: pass\n"
        "raise SystemExit(7)"
    )
    assert (await run(engine, python(code))).termination == Exited(7)


async def test_there_is_no_network(engine: Engine):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        code = (
            "import socket\n"
            f"for at in (('127.0.0.1', {port}), ('10.0.0.1', 80), ('1.1.1.1', 53)):\n"
            "    try: socket.create_connection(at, 1); print('connected')\n    except OSError: print('refused')\n"
            "print([name for _, name in socket.if_nameindex() if name != 'lo'])"
        )
        assert (await tell(engine, code)).splitlines() == ["refused"] * 3 + ["[]"]


async def test_host_is_not_visible(engine: Engine):
    code = (
        "import os, socket\nprint(socket.gethostname())\n"
        "print(open('/proc/mounts').read(), open('/proc/self/mountinfo').read(), open('/proc/cmdline').read())\n"
        "print(open('/proc/version').read(), os.uname())\n"
        "for pid in os.listdir('/proc'):\n    if pid.isdigit(): print(open(f'/proc/{pid}/cmdline').read())"
    )
    told = await tell(engine, code)
    assert told.splitlines()[0] == "sandbox"
    for secret in (socket.gethostname(), "/var/", "/home", "runsc", "crucible-test"):
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", told)


async def test_two_sandboxes_share_nothing(engine: Engine):
    await run(engine, python("for f in ('/tmp/x', '/workspace/x'): open(f, 'w').write('here')"))
    assert (
        await tell(engine, "import os; print(os.path.exists('/tmp/x'), os.path.exists('/workspace/x'))")
        == "False False"
    )
