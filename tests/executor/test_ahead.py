"""Which programs an interpreter may wait for."""

from __future__ import annotations

from datetime import timedelta

import pytest

from crucible_executor import ahead
from crucible_executor.model import File, Limits, Program

LIMITS = Limits(timedelta(seconds=20), None, 1, 128 << 20, 16, 64, 1 << 20, 1 << 20, None)
ENV = {"PATH": "/bin", "HOME": "/workspace", "LANG": "C.UTF-8"}


def waits(content: bytes = b"print()", name: str = "main.py", *, also: str = "data", **env: str) -> bool:
    program = Program(("/usr/bin/python3", name), (File(name, content), File(also, b"")), {**ENV, **env}, b"")
    made = ahead.interpreter(program, LIMITS, entrypoint=name, reads_whole_file=True)
    assert made is None or ahead.serves(made, program, LIMITS)
    return made is not None


def test_plain_programs_can_be_waited_for():
    assert waits()
    assert waits(b"")
    assert waits(b"# coding: utf-8\n")
    assert waits(b"#!/usr/bin/python3\n# vim: set fileencoding=UTF_8 :\n")
    assert waits(b"pass\n\n# coding: latin-1\n")  # CPython looks at the first two lines alone
    assert waits(b"x" * ahead.MAX_FILE_BYTES)
    assert waits(also="lib/local/x.py")


@pytest.mark.parametrize(
    "content",
    [
        b"# coding: latin-1\n",
        b"\n# -*- coding: cp1252 -*-\n",
        b"#!/x\r# coding=latin-1\r",
        b"PK\3\4\0\0",
        b"\xa7\r\r\n\0\0\0\0",
        b"x" * (ahead.MAX_FILE_BYTES + 1),
    ],
)
def test_files_that_cpython_seeks_in_or_a_pipe_cannot_hold_are_not(content: bytes):
    assert not waits(content)


def test_programs_that_an_interpreter_looks_at_before_it_reads_its_file_are_not():
    assert not waits(also=".local/lib/python3.11/site-packages/usercustomize.py")
    assert not waits(also="home/.local/lib/python3.11/site-packages/x.pth")
    assert not waits(PYTHONPATH="/workspace")
    assert not waits(LD_PRELOAD="/workspace/x.so")
    assert not waits(name="a/main.py")
    assert not waits(name="main.pyc")


def test_runtime_that_reads_as_it_goes_is_not():
    program = Program(("/bin/bash", "main.sh"), (File("main.sh", b"true"),), ENV, b"")
    assert ahead.interpreter(program, LIMITS, entrypoint="main.sh", reads_whole_file=False) is None
