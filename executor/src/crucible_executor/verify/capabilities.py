"""Linux capabilities by number, as capability.h has them: those that controls leave to a program."""

from __future__ import annotations

DAC_READ_SEARCH = 2
KILL = 5
SETGID = 6
SETUID = 7
NET_ADMIN = 12
NET_RAW = 13
SYS_CHROOT = 18
SYS_PTRACE = 19
SYS_ADMIN = 21
SYS_NICE = 23
MKNOD = 27
SETFCAP = 31
PERFMON = 38
BPF = 39
