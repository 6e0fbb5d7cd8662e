"""The interceptor that admits public calls: an API key for everything but health and reflection."""

import logging
from collections.abc import Callable
from typing import Any

from crucible_gateway import caller as callers
from crucible_gateway.auth import Authenticator
from crucible_rpc import identity, logs
from crucible_rpc.errors import PermissionDeniedError, UnauthenticatedError
from crucible_rpc.interceptors import UNKNOWN_METHOD, Call, Method

# What needs an administrator's key: one service, and what puts an executor's whole machine to work.
ADMIN_PREFIXES = ("/crucible.gateway.v1.AdminService/", "/crucible.gateway.v1.PlatformService/VerifyIsolation")
STATUS_METHOD = "/crucible.gateway.v1.PlatformService/GetStatus"

# Health for probes; reflection describes the published contracts and nothing else. A method that is not there is
# UNIMPLEMENTED for everybody: clients of reflection find the version they speak by that.
OPEN_PREFIXES = (identity.HEALTH_PREFIX, "/grpc.reflection.")

_log = logging.getLogger(__name__)


class ApiKeyAuthentication:
    """Admits a call when its API key is good; some need an administrator's (`ADMIN_PREFIXES`).

    Args:
        authenticator: knows callers by their keys.
        refused: called for each refused call, to count it.
    """

    def __init__(self, authenticator: Authenticator, refused: Callable[[], None] = lambda: None) -> None:
        self._authenticator = authenticator
        self._refused = refused

    def intercept(self, method: Method, call: Call) -> Call:
        """See `crucible_rpc.interceptors.Interceptor`."""
        if method is UNKNOWN_METHOD or method.full_name.startswith(OPEN_PREFIXES):
            return call
        needs_admin = method.full_name.startswith(ADMIN_PREFIXES)
        # GetStatus must also answer while storage, which knows the keys, is down.
        allow_stale = method.full_name == STATUS_METHOD

        async def authenticated(request: Any, context: Any) -> Any:
            header = next((value for key, value in context.invocation_metadata() if key == "authorization"), None)
            try:
                caller = await self._authenticator.authenticate(header, allow_stale=allow_stale)
                if needs_admin:
                    _check_admin(caller)
            except (UnauthenticatedError, PermissionDeniedError) as error:
                self._refused()
                _log.info("call refused", extra=logs.fields(method=method.full_name, reason=error.reason))
                raise
            logs.bind(tenant=caller.tenant, key_id=caller.key_id)
            callers.begin(caller)
            return await call(request, context)

        return authenticated


def _check_admin(caller: callers.Caller) -> None:
    if not caller.admin:
        raise PermissionDeniedError("NOT_PERMITTED", "this call needs an administrator's API key")
