"""Files that a program leaves in /workspace/out, from its sandbox to who reads them."""

import hashlib
import json
from datetime import timedelta

from crucible.executor.v1.executor_service_pb2 import FinalRecord
from crucible_client import Limit, Limits, State
from tests.system.local import python

LEAVES = """
import json, os
os.makedirs("out/plots")
with open("out/result.json", "w") as file:
    json.dump({"score": 0.5}, file)
with open("out/plots/a.bin", "wb") as file:
    file.write(bytes(range(256)) * 12000)
os.symlink("/etc/passwd", "out/link")
print("done")
"""


async def test_a_file_that_a_program_leaves_is_read_through_the_client(client, tmp_path):
    done = await client.run(python(LEAVES))
    assert done.state is State.SUCCEEDED
    listed = await client.list_artifacts(done.name)
    assert {file.path: file.bytes_total for file in listed.files} == {"plots/a.bin": 3_072_000, "result.json": 14}
    assert listed.omitted == 1
    await client.download_artifact(done.name, "result.json", tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == {"score": 0.5}
    data = b"".join([part async for part in client.stream_artifact(done.name, "plots/a.bin")])
    assert data == bytes(range(256)) * 12000
    record = FinalRecord.FromString(done.provenance.record.payload)
    assert [(file.path, file.sha256) for file in record.artifacts] == [
        ("plots/a.bin", hashlib.sha256(data).digest()),
        ("result.json", hashlib.sha256(b'{"score": 0.5}').digest()),
    ]
    assert not record.artifacts_not_collected


async def test_what_a_program_had_written_when_its_time_ran_out_is_there(client):
    code = LEAVES + "while True: pass\n"
    done = await client.run(python(code, limits=Limits(wall_time=timedelta(seconds=1))))
    assert done.termination.limit is Limit.WALL_TIME
    assert len((await client.list_artifacts(done.name)).files) == 2
    assert done.usage.wall_time < timedelta(seconds=2)
