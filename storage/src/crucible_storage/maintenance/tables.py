"""What a database uses, as text."""

from collections.abc import Iterable, Sequence

from crucible_storage.maintenance.usage import TenantUsage, Usage

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def of(used: Usage) -> str:
    """Usage for people, in three tables."""
    lines = [f"database {_size(used.database_bytes)}"]
    if used.reusable_bytes is not None and used.free_disk_bytes is not None:
        lines[0] += f", of which {_size(used.reusable_bytes)} are free for reuse"
        lines[0] += f"; free disk {_size(used.free_disk_bytes)}"
    objects = used.artifacts
    lines += [f"artifacts {_size(objects.bytes)} in {objects.objects} objects"]
    if objects.passing_bytes:
        lines[-1] += f", of which {_size(objects.passing_bytes)} are being written or removed"
    lines += [""]
    lines += _table(("TABLE", "ROWS", "SIZE"), ((one.name, str(one.rows), _size(one.bytes)) for one in used.tables))
    lines += [""]
    lines += _table(
        ("TENANT", "EVALUATIONS", "OUTPUT", "PROGRAMS", "EVENTS", "SAMPLES", "ARTIFACTS", "MOVED OUTPUT"),
        ((one.tenant, str(one.evaluations), *map(_size, _parts(one))) for one in used.tenants),
    )
    lines += [""]
    lines += _table(("LARGEST", "TENANT", "SIZE"), ((one.name, one.tenant, _size(one.bytes)) for one in used.largest))
    return "\n".join(lines)


def _parts(one: TenantUsage) -> tuple[int, ...]:
    here = (one.output_bytes, one.program_bytes, one.event_bytes, one.sample_bytes)
    return (*here, one.artifact_bytes, one.moved_output_bytes)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _size(number: int) -> str:
    value = float(number)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{number} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError
