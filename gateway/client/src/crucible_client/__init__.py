"""The Crucible SDK: `AsyncClient` and `Client`, what they take (`specs`) and what they answer (`results`).

from crucible_client import Client, EvaluationSpec, program_from_files

with Client.from_settings() as client:
    evaluation = client.run(EvaluationSpec(program_from_files("hello.py")))
    print(evaluation.termination, client.output(evaluation.name))
"""

import crucible_rpc  # noqa: F401  # first: it sets what grpc reads when it is loaded
from crucible_client.async_client import AsyncClient
from crucible_client.audit import AuditFault, AuditFinding, AuditRecord, AuditSummary
from crucible_client.batches import Batch, BatchItem, BatchOrder, BatchProgress, BatchResult, BatchState
from crucible_client.errors import CallError
from crucible_client.inspections import (
    AttemptResult,
    CheckResult,
    CheckStatus,
    SelfTestSummary,
    Verdict,
    VerificationSummary,
)
from crucible_client.many import Outcome
from crucible_client.public_keys import PublicKeys
from crucible_client.receipts import ProvenReceipt, ReceiptError
from crucible_client.results import (
    ActionKind,
    Behaviour,
    BehaviourSeen,
    Cancelled,
    Evaluation,
    Event,
    Exited,
    InfrastructureFailure,
    Limit,
    LimitExceeded,
    Role,
    SeenAction,
    Signalled,
    State,
    Stream,
    Termination,
    Usage,
)
from crucible_client.settings import ClientSettings, ClientSettingsError
from crucible_client.specs import EvaluationSpec, File, Limits, Program, ProgramError, program_from_files
from crucible_client.sync_client import Client
from crucible_client.tenants import Quota
from crucible_client.usage_samples import UsagePoint, UsageSamples

__all__ = [
    "ActionKind",
    "AsyncClient",
    "AttemptResult",
    "AuditFault",
    "AuditFinding",
    "AuditRecord",
    "AuditSummary",
    "Batch",
    "BatchItem",
    "BatchOrder",
    "BatchProgress",
    "BatchResult",
    "BatchState",
    "Behaviour",
    "BehaviourSeen",
    "CallError",
    "Cancelled",
    "CheckResult",
    "CheckStatus",
    "Client",
    "ClientSettings",
    "ClientSettingsError",
    "Evaluation",
    "EvaluationSpec",
    "Event",
    "Exited",
    "File",
    "InfrastructureFailure",
    "Limit",
    "LimitExceeded",
    "Limits",
    "Outcome",
    "Program",
    "ProgramError",
    "ProvenReceipt",
    "PublicKeys",
    "Quota",
    "ReceiptError",
    "Role",
    "SeenAction",
    "SelfTestSummary",
    "Signalled",
    "State",
    "Stream",
    "Termination",
    "Usage",
    "UsagePoint",
    "UsageSamples",
    "Verdict",
    "VerificationSummary",
    "program_from_files",
]
