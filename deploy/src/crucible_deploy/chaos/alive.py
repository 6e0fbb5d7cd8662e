"""Which sandboxes live, looked up on the host every few milliseconds."""

import itertools
import re
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from crucible_deploy import host
from crucible_deploy.layout import Layout

_EVERY = 0.03


class Watcher(threading.Thread):
    """Looks until its block ends.

    Attributes:
        spans: first and last look (monotonic seconds) in which each sandbox of the gvisor engine had a process.
        looks: how many there were.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__(name="alive", daemon=True)
        self.spans: dict[str, tuple[float, float]] = {}
        self.looks = 0
        self._layout = layout
        self._pattern = re.compile(rf"{layout.sandboxes}/gvisor/(s[0-9a-f]+)")
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        """The thread."""
        while not self._ended.wait(_EVERY):
            now = time.monotonic()
            for sandbox in self._look():
                first, _ = self.spans.get(sandbox, (now, now))
                self.spans[sandbox] = (first, now)
            self.looks += 1

    def living(self) -> set[str]:
        """Those that have a process at this moment."""
        return self._look()

    def overlap(self, sandboxes: Sequence[str]) -> bool:
        """Whether two of these were alive in one look."""
        spans = sorted(span for one in sandboxes if (span := self.spans.get(one)) is not None)
        return any(later[0] <= earlier[1] for earlier, later in itertools.pairwise(spans))

    def _look(self) -> set[str]:
        commands = host.sandbox_processes(self._layout.sandboxes).values()
        return {match[1] for command in commands for match in self._pattern.finditer(command)}
