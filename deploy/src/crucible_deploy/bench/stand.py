"""What the subjects share: running stacks, the baselines, and how much to measure."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from crucible_client import AsyncClient
from crucible_deploy.bench import bare, pool, processes
from crucible_deploy.bench.bare import BareRunsc
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.layout import PROCESSES, Layout
from crucible_deploy.private_stack import PrivateStack, private_stack
from crucible_deploy.stack import Options

Say = Callable[[str], None]

WIDE = 4
"""How many programs run at once where several do, on every side."""

POOL = 20
"""How many sandboxes wait in the stack with a pool."""


@dataclass(frozen=True)
class Sizes:
    """How often each thing is measured.

    Attributes:
        singles: single runs, warm and over a hand-made sandbox; a p99 wants at least 100.
        cold_every: after how many of these a cold one and a bare one follow.
        throughput: programs on each side, together.
        rounds: in how many interleaved rounds.
        burst: programs of one burst.
        bursts: how many bursts.
        at_once: programs that are submitted at the same moment.
        idle_s: how long waiting sandboxes are looked at.
        neighbour_rounds: how often a program is measured beside each of its bad neighbours.
        neighbour_s: for how long each time.
        compared: single runs of each peer.
        compared_wide: runs of each peer, four at once.
        traced: HumanEval programs with and without a trace.
        control: evaluations through the control plane alone, one call each.
        control_batch: in a batch.
        batch: items of each batch.
        lived: evaluations through storage alone, for each rate.
        stored_few: evaluations in the smaller of two databases that are compared; more than `stored_samples`.
        stored: evaluations in the larger one.
        stored_samples: calls of each kind to both.
        queue: evaluations in the queue that workers work off with an engine that returns at once.
        artifact_mib: MiB of the artifact that goes into storage and out.
        memory_step: evaluations between two looks at memory.
        budget_s: no subject begins later than this after the start; what is left out is shown.
    """

    singles: int = 110
    cold_every: int = 4
    throughput: int = 400
    rounds: int = 4
    burst: int = 16
    bursts: int = 3
    at_once: int = 100
    idle_s: float = 20.0
    neighbour_rounds: int = 3
    neighbour_s: float = 1.5
    compared: int = 12
    compared_wide: int = 16
    traced: int = 60
    control: int = 400
    control_batch: int = 2000
    batch: int = 10_000
    lived: int = 2000
    stored_few: int = 1000
    stored: int = 100_000
    stored_samples: int = 200
    queue: int = 2000
    artifact_mib: int = 1024
    memory_step: int = 1000
    budget_s: float = 12.5 * 60


FULL = Sizes(
    singles=400, rounds=8, throughput=800, bursts=10, idle_s=60, neighbour_rounds=5, neighbour_s=4,
    compared=40, compared_wide=60, traced=164, control=1000, control_batch=10_000, batch=50_000, lived=6400,
    stored=1_000_000, stored_samples=400, queue=20_000, memory_step=2000, budget_s=float("inf"),
)  # fmt: skip
TINY = Sizes(
    singles=3, cold_every=2, throughput=8, rounds=2, burst=4, bursts=1, at_once=8, idle_s=1, neighbour_rounds=1,
    neighbour_s=0.3, compared=1, compared_wide=4, traced=2, control=20, control_batch=20, batch=400, lived=64,
    stored_few=50, stored=200, stored_samples=10, queue=80, artifact_mib=16, memory_step=40,
)  # fmt: skip
"""Shows that everything can be measured, and nothing else."""


@dataclass(frozen=True)
class Choice:
    """What the user chose.

    Attributes:
        sizes: how much.
        go_judge: the binary of a go-judge to compare with.
    """

    sizes: Sizes = field(default_factory=Sizes)
    go_judge: Path | None = None


@dataclass(frozen=True)
class Stand:
    """Everything that subjects measure on.

    Attributes:
        common: the user's own layout; its cache is used, its home is not touched.
        say: told what is being done.
        choice: the user's.
        stack: with a pool of `POOL` and the engine `subprocess`.
        client: of it.
        cold_stack: the same without a pool.
        cold: its client.
        bare: runsc alone.
        resident_mib: what each process of `stack` held before anything ran.
    """

    common: Layout
    say: Say
    choice: Choice
    stack: PrivateStack
    client: AsyncClient
    cold_stack: PrivateStack
    cold: AsyncClient
    bare: BareRunsc
    resident_mib: dict[str, float]

    @property
    def stacks(self) -> tuple[PrivateStack, PrivateStack]:
        """Both."""
        return self.stack, self.cold_stack

    @property
    def sizes(self) -> Sizes:
        """How much to measure."""
        return self.choice.sizes

    async def full(self) -> None:
        """Waits until the pool is full."""
        await pool.until_full(self.stack, POOL)

    @asynccontextmanager
    async def another(self, options: Options) -> AsyncIterator[tuple[PrivateStack, AsyncClient]]:
        """One more stack with these options, gone afterwards, and its client.

        Raises:
            BenchError: a process of it was started again meanwhile, so what was measured is of two.
        """
        async with (
            private_stack(self.common, options, self.say, like=self.stack) as stack,
            stack.client() as client,
        ):
            ours = [stack.pid(process) for process in PROCESSES]
            yield stack, client
            if [stack.pid(process) for process in PROCESSES] != ours:
                raise BenchError("a process of the stack was started again meanwhile")


@asynccontextmanager
async def stand(common: Layout, say: Say, choice: Choice) -> AsyncIterator[Stand]:
    """Everything ready, and gone without a trace after.

    Raises:
        BenchError: a baseline cannot be made.
        PrepareError and its like (`prepare.EXPECTED_ERRORS`): a stack cannot be started.
    """
    options = Options(unsafe=True, slots=WIDE, pool=POOL)
    async with private_stack(common, options, say) as stack, stack.client() as client:
        # Before anything ran: what a process holds then is its own.
        resident = {name: processes.resident_mib(pid) for name, pid in processes.of_stack(stack).items()}
        say("the same without sandboxes booted ahead, for comparison")
        without = Options(unsafe=True, slots=WIDE, pool=0)
        async with private_stack(common, without, say, like=stack) as cold_stack, cold_stack.client() as cold:
            made = await bare.capture(stack.layout, client)
            say(f"filling the pool of {POOL}")
            await pool.fill(stack, client, POOL)
            yield Stand(common, say, choice, stack, client, cold_stack, cold, made, resident)
