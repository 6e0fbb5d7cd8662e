"""Between a worker and storage: loses, repeats, delays and reorders what they say to each other."""

# ruff: noqa: N802  # RPC names are the contract's
import asyncio
import random
from collections import Counter
from contextlib import asynccontextmanager

from crucible.storage.v1 import work_service_pb2_grpc
from crucible_rpc.channel import connect
from crucible_rpc.errors import UnavailableError
from tests.storage.carried import serving
from tests.worker.support import PERMISSIONS

RELAYED = {method: callers for method, callers in PERMISSIONS.items() if "WorkService/" in method}
WAYS = ("request lost", "answer lost", "twice", "delayed", "overtaken", "late again")


class Relay(work_service_pb2_grpc.WorkServiceServicer):
    """Every third call of a method meets one of `WAYS`, one way after the other in an order of chance, until `calm`.

    Attributes:
        happened: how often each way.
        sent: copies that were sent on and whose caller went on without them.
        calm: set: everything passes.
    """

    def __init__(self, stub, seed):
        self._stub = stub
        self._chance = random.Random(seed)
        self._calls = Counter()
        self._ways = self._in_turn()
        self.happened = Counter()
        self.sent = set()
        self.calm = asyncio.Event()

    def _in_turn(self):
        while True:
            yield from self._chance.sample(WAYS, len(WAYS))

    def _way(self, method):
        self._calls[method] += 1
        first_work = method == "LeaseWork" and self._calls[method] == 1  # lost on its way, its leases end by themselves
        if self.calm.is_set() or (self._calls[method] % 3 and not first_work):
            return ""
        way = "answer lost" if first_work else next(self._ways)
        self.happened[way] += 1
        return way

    async def _pass(self, method, request):
        forward = getattr(self._stub, method)
        way = self._way(method)
        if way == "request lost":
            raise UnavailableError("PEER_UNAVAILABLE", "the request got lost")
        if way == "delayed":
            await asyncio.sleep(self._chance.uniform(0.05, 0.4))
        elif way == "overtaken":  # the caller is told that it failed, and what it says next arrives first
            self._later(forward, request, self._chance.uniform(0.2, 1.5))
            raise UnavailableError("PEER_UNAVAILABLE", "the request is on its way")
        elif way == "late again":
            self._later(forward, request, self._chance.uniform(0.2, 3.0))
        elif way == "twice":
            first, _ = await asyncio.gather(forward(request, timeout=30), forward(request, timeout=30))
            return first
        answer = await forward(request, timeout=30)
        if way == "answer lost":
            raise UnavailableError("PEER_UNAVAILABLE", "the answer got lost")
        return answer

    def _later(self, forward, request, seconds):
        async def send():
            await asyncio.sleep(seconds)
            await forward(request, timeout=30)

        sending = asyncio.create_task(send())
        self.sent.add(sending)

    async def RegisterExecutor(self, request, context):
        return await self._pass("RegisterExecutor", request)

    async def LeaseWork(self, request, context):
        return await self._pass("LeaseWork", request)

    async def RenewLeases(self, request, context):
        return await self._pass("RenewLeases", request)

    async def ReportRuns(self, request, context):
        return await self._pass("ReportRuns", request)

    async def WatchStops(self, request, context):
        async for answer in self._stub.WatchStops(request):
            yield answer

    async def settled(self):
        """Returns when every copy has arrived."""
        await asyncio.gather(*self.sent, return_exceptions=True)


@asynccontextmanager
async def relaying(keys, port, seed):
    """A relay to storage, and its port; its channel is a worker's."""
    async with connect(f"127.0.0.1:{port}", keys.tls("worker"), "storage") as channel:
        relay = Relay(work_service_pb2_grpc.WorkServiceStub(channel), seed)

        def add(server):
            server.add(work_service_pb2_grpc.add_WorkServiceServicer_to_server, relay)

        async with serving(keys, add, RELAYED) as listening:
            yield relay, listening
            for one in relay.sent:
                one.cancel()
