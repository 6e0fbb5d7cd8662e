"""What is measured, in this order: adding a subject is a module with `measure` and a line here."""

from collections.abc import Awaitable, Callable

from crucible_deploy.bench import burst, control_plane, idle, memory, neighbour, storage_alone, throughput, trace, warm
from crucible_deploy.bench.peers import compare
from crucible_deploy.bench.report import Measured
from crucible_deploy.bench.stand import Stand

SUBJECTS: dict[str, Callable[[Stand], Awaitable[Measured]]] = {
    "idle": idle.measure,
    "warm": warm.measure,
    "burst": burst.measure,
    "throughput": throughput.measure,
    "trace": trace.measure,
    "neighbour": neighbour.measure,
    "peers": compare.measure,
    "control-plane": control_plane.measure,
    "storage": storage_alone.measure,
    "memory": memory.measure,
}
