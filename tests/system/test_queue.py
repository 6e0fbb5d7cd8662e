"""Quotas, pauses and the command line over the real stack."""

import asyncio
import json

import pytest

from crucible_client import AsyncClient, ClientSettings, Quota, State, errors
from tests.system.local import python


async def test_a_paused_queue_holds_work_back_until_it_is_resumed(stack, client):
    assert stack.crucible("queue", "pause", "--reason", "a test").returncode == 0
    try:
        held = await client.submit(python("print(1)"))
        drained = stack.crucible("queue", "drain", "--within", "30s")
        assert drained.returncode == 0, drained.stderr
        status = json.loads(stack.crucible("queue", "status", "--json").stdout)
        assert (status["queued"], status["running"], status["pauses"][0]["reason"]) == (1, 0, "a test")
        assert (await client.get(held.name)).state is State.QUEUED
    finally:
        stack.crucible("queue", "resume")
    assert (await client.wait(held.name)).state is State.SUCCEEDED


async def test_a_tenant_is_held_to_its_quota_and_its_use_is_shown(stack, client):
    key = (await client.create_api_key("quota-test")).secret
    settings = ClientSettings(stack.layout.address("gateway"), key, stack.layout.pki / "ca.crt")
    async with AsyncClient(settings) as plain:
        assert stack.crucible("tenant", "quota", "quota-test", "--evaluations-per-day", "2").returncode == 0
        for _ in range(2):
            assert (await plain.run(python("print(1)"))).state is State.SUCCEEDED
        with pytest.raises(errors.ResourceExhaustedError) as caught:
            await plain.submit(python("print(1)"))
        assert (caught.value.reason, caught.value.metadata["quota"]) == ("QUOTA_EXCEEDED", "evaluations_per_day")
        with pytest.raises(errors.PermissionDeniedError):
            await plain.set_quota("quota-test", Quota(evaluations_per_day=0))
    [tenant] = [one for one in await client.list_tenants() if one.name == "quota-test"]
    assert (tenant.use.evaluations_today, tenant.use.queued, tenant.use.running) == (2, 0, 0)
    assert tenant.use.cpu_seconds_today > 0
    assert tenant.use.stored_bytes > 0
    await asyncio.to_thread(stack.crucible, "tenant", "quota", "quota-test", "--evaluations-per-day", "0")
