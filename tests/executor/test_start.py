"""An executor that cannot start says why in one line, and starts nothing."""

import os
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from crucible_executor import composition
from crucible_executor.engines.base import EngineUnavailableError
from crucible_executor.journal import JournalError
from crucible_executor.settings import Settings
from crucible_rpc.errors import FailedPreconditionError, StartError
from tests.executor.support import ScriptedEngine, running


async def fails(keys, state, engine=None, **changes):
    with pytest.raises(StartError) as caught:
        async with running(keys, state, engine, **changes):
            pass
    assert "\n" not in str(caught.value)
    return caught.value


async def test_missing_signing_key(keys, tmp_path):
    error = await fails(keys, tmp_path / "state", records_key=tmp_path / "none.key")
    assert "none.key" in str(error)


async def test_key_of_another_kind(keys, tmp_path):
    error = await fails(keys, tmp_path / "state", records_key=keys.folder / "worker/tls.key")
    assert "Ed25519" in str(error)


async def test_state_folder_that_cannot_be_made(keys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    error = await fails(keys, tmp_path / "file" / "state")
    assert "state folder" in str(error)


async def test_damaged_journal(keys, tmp_path):
    async with running(keys, tmp_path / "state") as executor:
        for _ in range(3):
            await executor.execute()
    journal = tmp_path / "state/journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[1][:20] + b"#" + lines[1][21:] + b"".join(lines[2:]))
    assert isinstance(await fails(keys, tmp_path / "state"), JournalError)


async def test_leftovers_that_cannot_be_removed(keys, tmp_path):
    class Stuck(ScriptedEngine):
        async def sweep(self) -> int:
            raise OSError("a mount is busy")

    error = await fails(keys, tmp_path / "state", Stuck(tmp_path / "starts"))
    assert "a mount is busy" in str(error)


async def test_engine_that_cannot_be_used_is_offered_with_the_reason_and_never_replaced(keys, tmp_path):
    class Missing(ScriptedEngine):
        async def check(self) -> None:
            raise EngineUnavailableError("there is no such program; install it")

    from crucible.executor.v1 import executor_service_pb2 as ex

    async with running(keys, tmp_path / "state", Missing(tmp_path / "starts")) as executor:
        (engine,) = (await executor.stub.GetExecutor(ex.GetExecutorRequest())).executor.engines
        assert not engine.available
        assert engine.unavailable_reason == "there is no such program; install it"
        with pytest.raises(FailedPreconditionError) as caught:
            await executor.execute()
        assert caught.value.reason == "ENGINE_NOT_AVAILABLE"
        assert executor.engine.created == 0


@pytest.mark.parametrize("unsafe", [False, True])
def test_engine_without_isolation_is_there_only_when_asked_for(tmp_path, unsafe):
    settings = Settings(run_dir=tmp_path, images_dir=tmp_path, init_dir=tmp_path, runsc=tmp_path / "runsc")
    names = [
        engine.capabilities.name
        for engine in composition.engines_of(settings, unsafe=unsafe, registry=CollectorRegistry())
    ]
    assert names == (["gvisor", "subprocess"] if unsafe else ["gvisor"])


async def test_process_says_in_one_line_what_is_wrong(tmp_path):
    import asyncio

    env = {**os.environ, "CRUCIBLE_EXECUTOR_SLOTS": "many"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "crucible_executor", env=env, cwd=Path(tmp_path), stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert errors.decode().count("\n") == 1
    assert "CRUCIBLE_EXECUTOR_SLOTS" in errors.decode()
