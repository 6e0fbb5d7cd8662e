"""Generates the Python of the contracts, `protos/src/crucible/**`, from `protos/crucible/**.proto`.

    .venv/bin/python protos/generate.py            writes the generated code
    .venv/bin/python protos/generate.py --check    changes nothing; exit code 1 when the committed code is not current

Every folder gets an `__init__.py`, so that `crucible` is an ordinary package for mypy, hatch and importlib alike.
"""

# ruff: noqa: T201 -- a script speaks through its output
import argparse
import filecmp
import shutil
import sys
import sysconfig
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

HERE = Path(__file__).resolve().parent
CONTRACTS = HERE / "crucible"
TARGET = HERE / "src" / "crucible"
INIT = '"""Generated from the contracts in protos/; `make proto` writes it anew."""\n'


def main() -> int:
    """Generates, or with `--check` compares; returns the exit code."""
    parser = argparse.ArgumentParser(description="Generate the Python of the contracts.")
    parser.add_argument("--check", action="store_true", help="change nothing, fail when the code is not current")
    check: bool = parser.parse_args().check
    with tempfile.TemporaryDirectory(prefix="crucible-proto-") as scratch:
        generated = Path(scratch) / "crucible"
        if not _generate(Path(scratch)):
            return 1
        differences = _differences(generated, TARGET)
        if check:
            return _report(differences)
        _install(generated, TARGET)
    print(f"{TARGET.relative_to(HERE.parent)}: {len(differences)} of {len(_files(TARGET))} files changed")
    return 0


def _generate(out: Path) -> bool:
    protos = sorted(str(path.relative_to(HERE)) for path in CONTRACTS.rglob("*.proto"))
    if not protos:
        print(f"no .proto file below {CONTRACTS}", file=sys.stderr)
        return False
    scripts = Path(sysconfig.get_path("scripts"))
    arguments = [
        "protoc",
        f"--proto_path={HERE}",
        f"--proto_path={resources.files('grpc_tools') / '_proto'}",
        # googleapis-common-protos ships its .proto files, google/rpc among them, beside its Python.
        f"--proto_path={sysconfig.get_path('purelib')}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *protos,
    ]
    if protoc.main(arguments) != 0:
        return False
    _drop_empty_service_code(out)
    for folder in [out / "crucible", *(path for path in (out / "crucible").rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text(INIT)
    (out / "crucible" / "py.typed").touch()
    return True


def _drop_empty_service_code(out: Path) -> None:
    """Removes the `_pb2_grpc` modules of contracts without a service: they hold nothing but imports."""
    for proto in CONTRACTS.rglob("*.proto"):
        if not any(line.startswith("service ") for line in proto.read_text().splitlines()):
            stem = out / proto.relative_to(HERE).with_suffix("")
            for suffix in ("_pb2_grpc.py", "_pb2_grpc.pyi"):
                stem.with_name(stem.name + suffix).unlink(missing_ok=True)


def _files(root: Path) -> set[Path]:
    """The generated files below `root`, relative to it; compiled bytecode is none of them."""
    if not root.is_dir():
        return set()
    found = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root) for path in found}


def _differences(generated: Path, current: Path) -> list[str]:
    new, old = _files(generated), _files(current)
    missing = [f"missing: {path}" for path in new - old]
    stale = [f"no longer generated: {path}" for path in old - new]
    changed = [
        f"differs: {path}" for path in new & old if not filecmp.cmp(generated / path, current / path, shallow=False)
    ]
    return sorted(missing + stale + changed)


def _report(differences: list[str]) -> int:
    for line in differences:
        print(f"protos/src/crucible: {line}", file=sys.stderr)
    if differences:
        print("The generated code is not current: run `make proto` and commit what it writes.", file=sys.stderr)
        return 1
    print("protos/src/crucible is current")
    return 0


def _install(generated: Path, target: Path) -> None:
    """Makes `target` equal to `generated`; files that are equal keep their time, so that nothing is rebuilt."""
    wanted = _files(generated)
    for path in _files(target) - wanted:
        (target / path).unlink()
    for path in sorted(wanted):
        destination = target / path
        destination.parent.mkdir(parents=True, exist_ok=True)
        if not destination.is_file() or not filecmp.cmp(generated / path, destination, shallow=False):
            shutil.copyfile(generated / path, destination)
            destination.chmod(0o644)


if __name__ == "__main__":
    sys.exit(main())
