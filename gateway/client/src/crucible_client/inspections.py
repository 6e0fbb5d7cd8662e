"""Self-tests and isolation checks of executors: how they are asked for, and what they answer as plain values."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from crucible.evaluation.v1 import evaluation_pb2
from crucible.gateway.v1 import platform_service_pb2 as platform
from crucible.selftest.v1 import inspection_pb2 as pb
from crucible_client import convert, errors
from crucible_client.results import Isolation


class CheckStatus(StrEnum):
    """What became of one check of a self-test. NOT_RUN: it cannot be measured there, which says nothing."""

    UNKNOWN = "UNKNOWN"
    PASSED = "PASSED"
    FAILED = "FAILED"
    NOT_RUN = "NOT_RUN"


class Verdict(StrEnum):
    """What the judges say of one attempt. NOT_RUN: it did not get to its end, so nothing is known."""

    UNKNOWN = "UNKNOWN"
    CONTAINED = "CONTAINED"
    VULNERABLE = "VULNERABLE"
    NOT_RUN = "NOT_RUN"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check of a self-test: of which part, what must hold, whether it does, and what was measured."""

    component: str
    name: str
    status: CheckStatus
    evidence: str
    duration: timedelta


@dataclass(frozen=True, slots=True)
class SelfTestSummary:
    """The end of a self-test of one executor."""

    executor: str
    passed: int
    failed: int
    not_run: int
    duration: timedelta

    @property
    def good(self) -> bool:
        """Whether nothing failed."""
        return self.failed == 0


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """One attempt of the attack suite; `promised`: the engine promises that it is CONTAINED."""

    name: str
    family: str
    breach: str
    verdict: Verdict
    promised: bool
    evidence: str
    duration: timedelta

    @property
    def short_of_promise(self) -> bool:
        """Whether this is less than what the engine promises."""
        return self.promised and self.verdict is not Verdict.CONTAINED


@dataclass(frozen=True, slots=True)
class VerificationSummary:
    """The end of a run of the attack suite; `attempts_known` is how many the suite has."""

    executor: str
    engine: str
    engine_version: str
    isolation: Isolation
    contained: int
    vulnerable: int
    not_run: int
    short_of_promise: int
    attempts_known: int
    duration: timedelta

    @property
    def good(self) -> bool:
        """Whether nothing is short of what the engine promises."""
        return self.short_of_promise == 0


def self_test_request(engine: str, service: str) -> platform.RunSelfTestRequest:
    """What `RunSelfTest` takes."""
    return platform.RunSelfTestRequest(service=service, engine=engine)


def verify_request(engine: str, attempts: Iterable[str]) -> platform.VerifyIsolationRequest:
    """What `VerifyIsolation` takes."""
    return platform.VerifyIsolationRequest(engine=engine, attempts=attempts)


def self_test_result(message: platform.RunSelfTestResponse) -> CheckResult | SelfTestSummary:
    """A message of `RunSelfTest`."""
    if message.HasField("check"):
        check = message.check
        status = convert.member(CheckStatus, pb.CheckStatus, check.status, "CHECK_STATUS_")
        return CheckResult(check.component, check.name, status, check.evidence, _duration(check))
    end = message.summary
    return SelfTestSummary(end.executor, end.passed, end.failed, end.not_run, _duration(end))


def verify_result(message: platform.VerifyIsolationResponse) -> AttemptResult | VerificationSummary:
    """A message of `VerifyIsolation`."""
    if message.HasField("attempt"):
        one = message.attempt
        verdict = convert.member(Verdict, pb.Verdict, one.verdict, "VERDICT_")
        return AttemptResult(one.name, one.family, one.breach, verdict, one.promised, one.evidence, _duration(one))
    end = message.summary
    return VerificationSummary(
        executor=end.executor,
        engine=end.engine,
        engine_version=end.engine_version,
        isolation=convert.member(Isolation, evaluation_pb2.Isolation, end.isolation, "ISOLATION_"),
        contained=end.contained,
        vulnerable=end.vulnerable,
        not_run=end.not_run,
        short_of_promise=end.short_of_promise,
        attempts_known=end.attempts_known,
        duration=_duration(end),
    )


def without_summary() -> errors.UnavailableError:
    """The error of a stream that ended before its summary: what came is true, and nobody knows the rest."""
    return errors.UnavailableError("STREAM_ENDED", "the server ended the inspection early; try again in a moment")


def _duration(message: Any) -> timedelta:
    try:
        value: timedelta = message.duration.ToTimedelta()
    except (ValueError, OverflowError):
        return timedelta(0)  # out of what a duration may be: as good as not said
    return value
