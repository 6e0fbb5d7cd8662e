from prometheus_client import CollectorRegistry

from crucible_rpc import signing
from crucible_storage.metrics import Metrics
from crucible_storage.service import running
from tests.storage import world as w


async def test_metrics_tell_the_queue_by_state_and_the_commits_also_after_a_restart(tmp_path, clock, databases):
    signer, verifier = signing.Signer(w.TICKETS.private_pem), signing.Verifier.of(w.RECORDS.public_pem)

    def value(registry, name, **labels):
        return registry.get_sample_value(f"crucible_storage_{name}", labels)

    first = CollectorRegistry()
    async with running(
        tmp_path, w.POLICY, clock, signer, verifier, w.head_keys(), Metrics(first), databases.backend(tmp_path)
    ) as service:
        world = w.World(service, clock)
        await world.create()
        await world.create()
        await world.register()
        await world.lease_one()
        assert value(first, "evaluations", state="queued") == 1
        assert value(first, "evaluations", state="starting") == 1
        assert value(first, "events_total") == 3
        assert value(first, "log_position") == 3
        assert value(first, "commit_seconds_count") >= 4
        assert value(first, "batch_operations_sum") >= 4
    second = CollectorRegistry()
    async with running(
        tmp_path, w.POLICY, clock, signer, verifier, w.head_keys(), Metrics(second), databases.backend(tmp_path)
    ):
        assert value(second, "evaluations", state="queued") == 1
        assert value(second, "evaluations", state="succeeded") == 0
        assert value(second, "log_position") == 3
