"""Signals, and processes that want to stay."""

from __future__ import annotations

from datetime import timedelta

from crucible_executor.model import Limit
from crucible_executor.verify.model import Attempt, Control, Family, bounds

_DEAF = """
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
time.sleep(60)
"""

_DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        time.sleep(30)
    os._exit(0)
os.wait()
"""

_STOPPED = """
os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(60)
"""

_KILL_VICTIMS = """
for pid in AIM["victims"]:
    for number in (signal.SIGKILL, signal.SIGTERM):
        tried(os.kill, pid, number)
"""

_KILL_ALL = """
tried(os.kill, -1, signal.SIGKILL)
"""

_PIDFD = """
for pid in AIM["victims"]:
    pidfd = tried(os.pidfd_open, pid)
    if pidfd is not None:
        tried(signal.pidfd_send_signal, pidfd, signal.SIGSTOP)
        tried(signal.pidfd_send_signal, pidfd, signal.SIGKILL)
"""

_GROUPS = """
for pid in AIM["victims"]:
    tried(os.killpg, pid, signal.SIGKILL)
    system(234, pid, pid, 9)
    system(200, pid, 9)
"""

_FORK_RACE = """
def child():
    while True:
        if tried(os.fork):
            os._exit(0)
for _ in range(3):
    if tried(os.fork) == 0:
        os.setsid()
        child()
time.sleep(0.3)
"""

_CHURN = """
children = []
for _ in range(10):
    made = tried(os.fork)
    if made == 0:
        os.setsid()
        for number in (1, 2, 3, 15):
            signal.signal(number, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(30)
        os._exit(0)
"""

_WALL_TIME = timedelta(seconds=3)  # an interpreter has to begin in it, on a busy machine too
_WALL = frozenset({Limit.WALL_TIME})

ATTEMPTS = (
    Attempt(
        "ignores-signals", Family.PROCESSES, "it is alive after its deadline", _DEAF, ("gone",),
        Control(no_deadline=True), ends=_WALL, limits=bounds(wall_time=_WALL_TIME),
    ),
    Attempt("daemon", Family.PROCESSES, "a daemon outlives the run", _DAEMON, ("gone",), Control(reap=False)),
    Attempt(
        "stopped", Family.PROCESSES, "it is there after its deadline, stopped", _STOPPED, ("gone",),
        Control(no_deadline=True), ends=_WALL, limits=bounds(wall_time=_WALL_TIME),
    ),
    Attempt(
        "stopped-children", Family.PROCESSES, "stopped children outlive the run",
        _CHURN, ("gone",), Control(reap=False),
    ),
    Attempt(
        "fork-race", Family.PROCESSES, "a child that forks and ends all the time outlives the run",
        _FORK_RACE, ("gone",), Control(reap=False),
    ),
    Attempt(
        "kill", Family.PROCESSES, "a process of the host gets a signal",
        _KILL_VICTIMS, ("victims",), Control(victims=True),
    ),
    Attempt(
        "kill-everybody", Family.PROCESSES, "processes of the host get a signal", _KILL_ALL, ("victims",),
        Control(victims=True),
    ),
    Attempt(
        "kill-by-pidfd", Family.PROCESSES, "a process of the host gets a signal by pidfd",
        _PIDFD, ("victims",), Control(victims=True),
    ),
    Attempt(
        "kill-by-group", Family.PROCESSES, "a process of the host gets a signal by group or thread",
        _GROUPS, ("victims",), Control(victims=True),
    ),
)  # fmt: skip
