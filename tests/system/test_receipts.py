"""Receipts and the audit log of the real stack, checked by the commands that people use."""

import json

from tests.system.local import python


async def test_a_real_run_has_a_receipt_that_is_checked_offline_and_the_log_holds(stack, client, tmp_path):
    done = await client.run(python("print('proved')"))
    file, head = tmp_path / "receipt.json", tmp_path / "head.json"
    got = stack.crucible("receipt", "get", done.name, "--out", str(file))
    assert got.returncode == 0, got.stderr
    checked = stack.crucible("receipt", "verify", str(file), "--json")  # by the public keys in the stack's home
    assert checked.returncode == 0, checked.stderr
    told = json.loads(checked.stdout)
    assert (told["evaluation"], told["state"], told["termination"]) == (done.name, "SUCCEEDED", "exited 0")
    final = told["final_record"]
    assert final["stdout"] == {"bytes_total": 7, "bytes_kept": 7, "sha256": done.stdout.sha256.hex()}
    assert final["image_digest"] == done.provenance.image_digest
    assert final["engine"] == "gvisor"
    assert len(final["code_sha256"]) == 64

    saved = stack.crucible("audit", "verify", "--save", str(head))
    assert saved.returncode == 0, saved.stdout + saved.stderr
    cancelled = await client.submit(python("import time\ntime.sleep(60)"))
    await client.cancel(cancelled.name, reason="no more")
    await client.wait(cancelled.name)
    later = stack.crucible("audit", "verify", "--since", str(head))
    assert later.returncode == 0, later.stdout + later.stderr
    listed = stack.crucible("audit", "list", "--json", "--subject", cancelled.name)
    actions = [json.loads(line)["action"] for line in listed.stdout.splitlines()]
    assert actions == ["evaluation.finish", "evaluation.cancel", "evaluation.create"]

    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    spoilt = stack.crucible("receipt", "verify", str(file))
    assert spoilt.returncode == 1
    assert len(spoilt.stderr.splitlines()) == 1
