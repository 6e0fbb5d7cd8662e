"""API keys. Storage never sees a key, only its SHA-256: of 256 random bits a plain digest is enough."""

import secrets

from sqlalchemy.engine import Connection
from sqlmodel import Session, col, select

from crucible_rpc.errors import AlreadyExistsError, NotFoundError, UnauthenticatedError
from crucible_storage import audit, tenants
from crucible_storage.clock import Clock
from crucible_storage.database import Database
from crucible_storage.login_failures import LoginFailures
from crucible_storage.models import ApiKeyRow
from crucible_storage.transaction import WriteTransaction

BOOTSTRAP_TENANT = "default"


class ApiKeys:
    """The keys of all tenants.

    Args:
        database: where.
        clock: for what storage records.
        failures: told of each key that is refused.
    """

    def __init__(self, database: Database, clock: Clock, failures: LoginFailures) -> None:
        self._database = database
        self._clock = clock
        self._failures = failures

    async def bootstrap(self, sha256: bytes) -> bool:
        """Stores the operator's admin key unless it is there; answers whether it did.

        A revoked one stays revoked. An operator who lost the first key is let in again by making another.
        """

        def run(transaction: WriteTransaction) -> bool:
            if _find(transaction.session, sha256) is not None:
                return False
            tenants.ensure(transaction, BOOTSTRAP_TENANT, self._clock.now())
            row = self._new(BOOTSTRAP_TENANT, "given by the operator", sha256, admin=True)
            transaction.session.add(row)
            _note_creation(transaction, row, by="")
            return True

        return await self._database.write(run)

    async def authenticate(self, sha256: bytes) -> ApiKeyRow:
        """The key with this digest.

        Raises:
            UnauthenticatedError: INVALID_API_KEY, unknown or revoked.
        """
        row = await self._database.read(lambda connection: _find(Session(connection), sha256))
        if row is None or row.revoke_time is not None:
            if row is None:
                self._failures.count()
            else:
                self._failures.count(tenant=row.tenant, key_id=row.id)
            raise UnauthenticatedError("INVALID_API_KEY", "the API key is not known or was revoked")
        return row

    async def create(self, tenant: str, description: str, sha256: bytes, *, admin: bool, by: str = "") -> ApiKeyRow:
        """Stores a key, and makes its tenant when there is none of that name; `by` is the key that asks for it.

        A request that comes again is answered as it was: who did not hear the answer would else drop a key that is
        valid, and nobody has the text of.

        Raises:
            AlreadyExistsError: this key is stored already, as something else or revoked.
        """

        def run(transaction: WriteTransaction) -> ApiKeyRow:
            found = _find(transaction.session, sha256)
            if found is not None:
                stored = (found.tenant, found.admin, found.description, found.revoke_time)
                if stored == (tenant, admin, description, None):
                    return found
                raise AlreadyExistsError("INVALID_FIELD", "this API key is stored already; make a new random one")
            tenants.ensure(transaction, tenant, self._clock.now())
            row = self._new(tenant, description, sha256, admin=admin)
            transaction.session.add(row)
            _note_creation(transaction, row, by)
            return row

        return await self._database.write(run)

    async def list(self) -> list[ApiKeyRow]:
        """All keys, oldest first."""

        def run(connection: Connection) -> list[ApiKeyRow]:
            query = select(ApiKeyRow).order_by(col(ApiKeyRow.create_time), col(ApiKeyRow.id))
            return list(Session(connection).exec(query))

        return await self._database.read(run)

    async def revoke(self, key_id: str, *, by: str = "") -> ApiKeyRow:
        """Ends a key's use; a revoked one is returned unchanged. `by` is the id of the key that asks for it.

        Raises:
            NotFoundError: API_KEY_NOT_FOUND.
        """

        def run(transaction: WriteTransaction) -> ApiKeyRow:
            row = transaction.session.get(ApiKeyRow, key_id)
            if row is None:
                raise NotFoundError("API_KEY_NOT_FOUND", "there is no such API key")
            if row.revoke_time is None:
                row.revoke_time = self._clock.now()
                transaction.session.add(row)
                audit.record(
                    transaction,
                    time=row.revoke_time,
                    tenant=row.tenant,
                    actor=audit.by_key(by),
                    action=audit.KEY_REVOKE,
                    subject=f"keys/{row.id}",
                )
            return row

        return await self._database.write(run)

    def _new(self, tenant: str, description: str, sha256: bytes, *, admin: bool) -> ApiKeyRow:
        return ApiKeyRow(
            id=f"key-{secrets.token_hex(8)}",
            tenant=tenant,
            admin=admin,
            description=description,
            sha256=sha256,
            create_time=self._clock.now(),
        )


def _note_creation(transaction: WriteTransaction, row: ApiKeyRow, by: str) -> None:
    audit.record(
        transaction,
        time=row.create_time,
        tenant=row.tenant,
        actor=audit.by_key(by),
        action=audit.KEY_CREATE,
        subject=f"keys/{row.id}",
        admin=row.admin,
    )


def _find(session: Session, sha256: bytes) -> ApiKeyRow | None:
    return session.exec(select(ApiKeyRow).where(ApiKeyRow.sha256 == sha256)).first()
