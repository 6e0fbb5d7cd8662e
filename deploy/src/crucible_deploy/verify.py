"""`crucible verify`: the attack suite of the executor, judged from outside the sandbox.

Without `--stack` on this machine, as root: the suite is the executor's code and runs in the executor's environment, as
a child process; nothing here imports it. With `--stack` a running Crucible is asked to do it (`verify_stack.py`).
"""

import os
import subprocess
import sys
from pathlib import Path

import click

from crucible_deploy import environments, verify_stack
from crucible_deploy.layout import Layout, LayoutError
from crucible_deploy.spec import module_command

_MODULE = "crucible_executor.verify"


@click.command()
@click.option("--engine", default="gvisor", show_default=True, help="Which engine to try.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the scorecard to this file.")
@click.option("--controls", is_flag=True, help="Also prove that each judge can say VULNERABLE.")
@click.option("--demonstrate", is_flag=True, help="Attack nothing: show what a program sees beside what the host sees.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this attempt; may be repeated.")
@click.option("--stack", is_flag=True, help="Have a running Crucible do it: needs an administrator's key, not root.")
def verify(
    *,
    engine: str,
    as_json: bool,
    markdown: Path | None,
    controls: bool,
    demonstrate: bool,
    only: tuple[str, ...],
    stack: bool,
) -> int:
    """Attack the sandbox, and judge from outside whether it held. As root, on the executor's machine.

    The attempts aim only at what the suite made itself, in a network of its own without a way out. The exit code is 0
    only when every verdict is what the engine promises. For `docker` and `docker-gvisor` the suite starts a Docker
    daemon of its own.
    """
    if stack:
        if controls or markdown or demonstrate:
            raise click.UsageError(
                "--controls, --markdown and --demonstrate are for the machine itself: leave --stack out"
            )
        return verify_stack.run(engine, only, as_json=as_json)
    try:
        layout = Layout.of(os.environ)
    except LayoutError as error:
        raise click.UsageError(str(error)) from error
    if os.geteuid() != 0:
        raise click.ClickException("`crucible verify` must be started as root: it looks at the sandboxes from outside")
    arguments = ["--engine", engine]
    arguments += ["--json"] if as_json else []
    arguments += ["--controls"] if controls else []
    arguments += ["--demonstrate"] if demonstrate else []
    arguments += ["--markdown", str(markdown.resolve())] if markdown else []
    for name in only:
        arguments += ["--only", name]
    return _run([*module_command(interpreter(layout), _MODULE), *arguments], environment(layout))


def interpreter(layout: Layout) -> Path:
    """The executor's own Python; before the first `crucible up`, this checkout's."""
    own = environments.interpreter(layout, "executor")
    return own if own.is_file() and _has_suite(own) else Path(sys.executable)


def _has_suite(python: Path) -> bool:
    """Whether this environment's executor has the suite: it may be of an earlier version."""
    ask = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({_MODULE!r}) is None)"
    return subprocess.run([python, "-I", "-c", ask], capture_output=True, timeout=30, check=False).returncode == 0


def environment(layout: Layout) -> dict[str, str]:
    """What the suite is told of this machine: the executor's settings for what was built."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "CRUCIBLE_EXECUTOR_RUNSC": str(layout.paths.runsc),
        "CRUCIBLE_EXECUTOR_INIT_DIR": str(layout.paths.init),
        "CRUCIBLE_EXECUTOR_IMAGES_DIR": str(layout.paths.images),
    }


def _run(command: list[str], given: dict[str, str]) -> int:
    """Runs the suite to its end; Ctrl-C reaches it too, and it is given the time to clean up."""
    with subprocess.Popen(command, env=given, cwd="/", stdin=subprocess.DEVNULL) as suite:
        while True:
            try:
                return suite.wait()
            except KeyboardInterrupt:
                continue
