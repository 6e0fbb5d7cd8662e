"""What tests of artifacts do most: store files of a run, end it, and look at the folder where objects are."""

import hashlib

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_storage.artifacts.uploads import Wanted
from crucible_storage.names import parse_run_id
from tests.storage.world import exited, final_record, report, signed, started


def listed(**files):
    """As an executor's record lists files; their names here have `_` for `/`."""
    made = [listing(name.replace("_", "/"), data) for name, data in files.items()]
    return sorted(made, key=lambda one: one.path.encode())


def listing(path, data, total=None):
    return ex.RunArtifact(
        path=path,
        bytes_total=len(data) if total is None else total,
        bytes_kept=len(data),
        sha256=hashlib.sha256(data).digest(),
    )


def wanted(assignment, path, data, *, executor="ex-1", **changes):
    facts = {"size": len(data), "sha256": hashlib.sha256(data).digest(), "epoch": assignment.epoch}
    return Wanted(executor=executor, run=parse_run_id(assignment.run_id), path=path, **facts | changes)


async def parts_of(data, size=1 << 20, error=None):
    for start in range(0, len(data), size):
        yield data[start : start + size]
    if error is not None:
        raise error


async def unread():
    raise AssertionError("storage has these bytes and must not ask for them")
    yield b""


async def put(world, assignment, path, data, **changes):
    return await world.service.uploads.store(wanted(assignment, path, data, **changes), parts_of(data))


def end(assignment, artifacts, omitted=0, termination=None, not_collected=""):
    """The report of a run's end, with the record that lists these files."""
    final = final_record(assignment, termination or exited(), artifacts_omitted=omitted)
    final.artifacts_not_collected = not_collected
    final.artifacts.extend(artifacts)
    return report(assignment, started(), ex.RunEvent(finished=signed(final)))


async def ran(world, tenant="t", **files):
    """An evaluation that left these files and has ended."""
    await world.create(tenant)
    await world.register()
    assignment = await world.lease_one()
    for one, data in zip(listed(**files), _in_order(files), strict=True):
        await put(world, assignment, one.path, data)
    assert await world.report(end(assignment, listed(**files))) == []
    return assignment


def _in_order(files):
    return [files[name] for name in sorted(files, key=lambda name: name.replace("_", "/").encode())]


def evaluation_id(assignment):
    return assignment.evaluation.removeprefix("evaluations/")


async def paths(world, assignment, tenant="t"):
    return [one.path for one in (await world.service.artifacts.list(tenant, evaluation_id(assignment))).artifacts]


async def read(world, assignment, path, offset=0, limit=0, tenant="t"):
    got = b""
    async for _, at, data in world.service.artifacts.read(tenant, evaluation_id(assignment), path, offset, limit):
        assert at == offset + len(got)
        got += data
    return got


def objects(folder):
    """The files of the artifact store of a state folder."""
    return sorted(path for path in (folder / "artifacts").rglob("*") if path.is_file())
