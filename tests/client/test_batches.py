"""Batches by the SDK and the command, through a real gateway over a real storage."""

import asyncio
import json
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta

import pytest

from crucible_client import (
    AsyncClient,
    BatchItem,
    BatchOrder,
    BatchResult,
    BatchState,
    Client,
    ClientSettings,
    EvaluationSpec,
    File,
    Program,
    State,
)
from crucible_client import batches as sdk
from crucible_client.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from tests.client.conftest import CommandLine
from tests.gateway import real_storage
from tests.gateway.fake_servicer import Keys

pytestmark = pytest.mark.slow

KEY = "crucible_key-of-the-batches"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("batch-keys"))


class Stack:
    """A storage that can be reached through a gateway that can be ended and begun again."""

    def __init__(self, world, storage, keys, stack):
        self.world, self.storage, self.keys, self.stack = world, storage, keys, stack
        self.port = 0

    async def begin(self):
        self.gateway = AsyncExitStack()
        opened = real_storage.gateway(self.storage, self.keys, listen=f"127.0.0.1:{self.port}")
        self.port = (await self.gateway.enter_async_context(opened)).port

    @property
    def config(self):
        return ClientSettings(f"localhost:{self.port}", KEY, self.keys.ca)


@pytest.fixture
async def stack(tmp_path, keys):
    async with AsyncExitStack() as opened:
        world = await opened.enter_async_context(real_storage.storage_with(tmp_path / "state", {KEY: "acme"}))
        stack = Stack(world, await opened.enter_async_context(real_storage.served(world, keys)), keys, opened)
        await stack.begin()
        yield stack
        await stack.gateway.aclose()


@pytest.fixture
async def client(stack):
    async with AsyncClient(stack.config) as client:
        yield client


def spec(code="print(1)"):
    return EvaluationSpec(Program("python", (File("main.py", code.encode()),)))


def run_all(stack, count, code=0):
    return asyncio.create_task(real_storage.run_all(stack.world, count, code))


async def test_results_come_while_the_batch_is_still_being_sent(client, stack, monkeypatch):
    monkeypatch.setattr(sdk, "MAX_MESSAGE_ITEMS", 2)
    monkeypatch.setattr(sdk, "MAX_SEGMENT_MESSAGES", 1)
    first_came = asyncio.Event()

    async def items():
        for number in range(3):
            yield spec(f"print({number})")
        await first_came.wait()
        for number in range(3, 9):
            yield BatchItem(spec(f"print({number})"), key=f"k{number}")

    running = run_all(stack, 9)
    seen = []
    async with asyncio.timeout(30):
        async for one in client.run_batch(items(), order=BatchOrder.ITEM, labels={"a": "b"}):
            seen.append(one)
            first_came.set()
    await running
    assert [one.index for one in seen] == list(range(9))
    assert [one.key for one in seen] == ["0", "1", "2", *(f"k{number}" for number in range(3, 9))]
    assert {one.evaluation.state for one in seen} == {State.SUCCEEDED}
    assert all(one.evaluation.stdout.preview == one.evaluation.name.encode() for one in seen)
    [batch] = [one async for one in client.list_batches()]
    assert (batch.state, batch.items, batch.labels) == (BatchState.ENDED, 9, {"a": "b"})
    assert len([one async for one in client.list(batch=batch.name, page_size=4)]) == 9


async def test_leaving_the_loop_cancels_the_batch(client, stack):
    running = run_all(stack, 1)
    async with aclosing(client.run_batch([spec()] * 5)) as results:
        async for _ in results:
            break
    await running
    [batch] = [one async for one in client.list_batches()]
    assert batch.cancel_reason == "the caller ended the run"


async def test_an_item_that_is_refused_ends_the_run_with_its_number(client):
    with pytest.raises(InvalidArgumentError) as caught:
        async for _ in client.run_batch([spec(), EvaluationSpec(Program("python", ()))]):
            pass
    assert caught.value.violations[0].field == "items[1].spec.program.files"


async def test_a_gateway_that_goes_away_in_between_loses_and_doubles_nothing(client, stack, monkeypatch):
    monkeypatch.setattr(sdk, "MAX_MESSAGE_ITEMS", 5)
    monkeypatch.setattr(sdk, "MAX_SEGMENT_MESSAGES", 2)

    async def items():
        for number in range(60):
            if number in (25, 42):
                await stack.gateway.aclose()
                await stack.begin()
            yield BatchItem(spec(f"print({number})"), key=f"k{number}")

    async with asyncio.timeout(60):
        batch = await client.create_batch(items(), request_id="r")
        assert (batch.state, batch.items) == (BatchState.RUNNING, 60)
        again = await client.create_batch(
            [BatchItem(spec(f"print({n})"), key=f"k{n}") for n in range(60)], request_id="r"
        )
        assert (again.name, again.items) == (batch.name, 60)
        with pytest.raises(AlreadyExistsError):
            await client.create_batch([BatchItem(spec("other"), key="k3")], request_id="r")
        watching = client.watch_batch(batch.name)
        assert (await anext(watching)).progress.queued == 60
        await stack.gateway.aclose()
        await stack.begin()
        running = run_all(stack, 60)
        results = [one async for one in watching if isinstance(one, BatchResult)]
        await running
    assert sorted(one.key for one in results) == sorted(f"k{n}" for n in range(60))
    more = [one async for one in client.watch_batch(batch.name, after_cursor=results[56].cursor)]
    assert [one.key for one in more if isinstance(one, BatchResult)] == [one.key for one in results[57:]]


async def test_a_skipped_item_names_what_failed(client, stack):
    running = run_all(stack, 1, code=1)
    items = [BatchItem(spec(), key="a"), BatchItem(spec("b"), after=("a",)), BatchItem(spec("c"), after=("1",))]
    async with asyncio.timeout(30):
        results = {one.key: one.evaluation async for one in client.run_batch(items)}
    await running
    assert results["1"].termination.dependency == results["a"].name
    assert results["2"].termination.dependency == results["1"].name


async def test_the_blocking_client_does_the_same(stack):
    def all_of_it():
        with Client(stack.config, retry_for=timedelta(seconds=10)) as client:
            results = list(client.run_batch([spec(str(n)) for n in range(3)], order=BatchOrder.ITEM))
            batch = client.get_batch(results[0].evaluation.batch)
            held = client.create_batch([spec("held")], start_when_complete=True)
            cancelled = client.cancel_batch(held.name, reason="enough")
            listed = [one.name for one in client.list_batches(page_size=1)]
            return results, batch, cancelled, listed

    running = run_all(stack, 3)
    results, batch, cancelled, listed = await asyncio.wait_for(asyncio.to_thread(all_of_it), 30)
    await running
    assert [one.index for one in results] == [0, 1, 2]
    assert (batch.state, batch.progress.succeeded) == (BatchState.ENDED, 3)
    assert cancelled.cancel_reason == "enough"
    assert listed == [cancelled.name, batch.name]


async def test_what_is_not_there_is_not_found(client):
    with pytest.raises(NotFoundError):
        await client.get_batch("0f8fad5b-d9cb-469f-a165-70867728950e")


@pytest.fixture
async def crucible(stack, bare_env):
    own = {"CRUCIBLE_ADDRESS": stack.config.address, "CRUCIBLE_API_KEY": KEY, "CRUCIBLE_CA_FILE": str(stack.keys.ca)}
    command = CommandLine(bare_env | own)
    yield command
    await command.close()


WORKFLOW = [
    {"key": "prepare", "code": "print('prepared')"},
    {"key": "run", "path": "run.py", "after": ["prepare"], "limits": {"wall_time": "10s", "memory": "256MiB"}},
    {"key": "grade", "files": {"main.py": "import a", "a.py": ""}, "entrypoint": "main.py", "after": ["run"]},
]


async def test_the_command_submits_watches_and_prints_a_workflow(crucible, stack, tmp_path):
    file = tmp_path / "workflow.jsonl"
    file.write_text("\n".join(json.dumps(one) for one in WORKFLOW) + "\n\n")
    (tmp_path / "run.py").write_text("print('ran')")
    running = run_all(stack, 3)
    done = await crucible("batch", "submit", str(file), "--request-id", "w1", "--watch", "--json")
    assert done.code == 0, done.err  # 1 unless all succeeded
    await running
    batch = json.loads(done.out)
    assert (batch["state"], batch["items"], batch["progress"]["succeeded"]) == ("ENDED", 3, 3)
    name = batch["name"]
    assert b"3 of 3 have ended" in done.err
    again = await crucible("batch", "submit", str(file), "--request-id", "w1")
    assert again.lines == [name]
    results = await crucible("batch", "results", name, "--order", "item", "--json")
    assert [json.loads(line)["key"] for line in results.lines] == ["prepare", "run", "grade"]
    assert json.loads(results.lines[1])["evaluation"]["spec"]["limits"]["memory_bytes"] == 256 << 20
    shown = await crucible("batch", "results", name, "--order", "item", "--after", "2")
    assert [line.split("\t")[1] for line in shown.lines] == ["grade"]
    status = await crucible("batch", "status", name)
    assert "state\tENDED" in status.lines
    assert (await crucible("batch", "list")).lines[0].startswith(f"{name}\tENDED\t3\t3\t")
    assert len((await crucible("list", "--batch", name)).lines) == 3


async def test_the_command_cancels_and_waits_until_all_have_ended(crucible, stack):
    lines = b"".join(json.dumps({"code": str(n)}).encode() + b"\n" for n in range(4))
    submitted = await crucible("batch", "submit", "-", stdin=lines)
    [name] = submitted.lines
    cancelled = await crucible("batch", "cancel", name, "--reason", "enough")
    assert "cancelled\t4" in cancelled.lines
    assert cancelled.code == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"cod": ""}', "unknown key 'cod'"),
        (b"{}", "expected one of code, files and path"),
        (b'{"code": "", "path": "x.py"}', "expected one of"),
        (b'{"code": 1}', "code: expected a text"),
        (b'{"path": "missing.py"}', "cannot read"),
        (b'{"code": "x", "after": "a"}', "after: expected a list of texts"),
        (b'{"code": "x", "env": {"A": 1}}', "env: expected an object of texts"),
        (b'{"code": "x", "run_anyway": 1}', "run_anyway"),
        (b'{"code": "x", "limits": {"wall": "1s"}}', "limits: unknown 'wall'"),
        (b'{"code": "x", "limits": {"wall_time": 3}}', "limits.wall_time"),
        (b'{"code": "x", "limits": {"memory": "many"}}', "limits.memory"),
        (b'{"code": "x", "priority": true}', "priority"),
        (b'{"code": "\\ud800"}', "surrogate"),
    ],
)
def test_a_line_that_is_no_item_is_one_clear_sentence(line, words, tmp_path):
    from crucible_client.cli.batch_file import items_of
    from crucible_client.specs import ProgramError

    with pytest.raises(ProgramError, match=words) as caught:
        list(items_of([b'{"code": "fine"}', line], "items.jsonl", tmp_path))
    assert str(caught.value).startswith("items.jsonl, line 2: ")


def test_segments_are_bounded_and_number_their_items():
    segments = sdk.Segments("r")
    full = [one for number in range(5000) if (one := segments.add(spec(str(number)))) is not None]
    last = segments.last()
    counted = 0
    for segment in [*full, last]:
        assert segment[0].header.request_id == "r"
        for message in segment[1:]:
            if message.HasField("items"):
                assert message.items.first_index == counted
                assert len(message.items.items) <= sdk.MAX_MESSAGE_ITEMS
                counted += len(message.items.items)
        assert len(segment) <= sdk.MAX_SEGMENT_MESSAGES + 2
    assert counted == last[-1].end.items == 5000
