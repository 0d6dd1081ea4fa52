"""EnrollmentGroup: an enrollment group of a Device Provisioning Service, with a key of our own.

Groups are not resources of Azure's management; they are written through the service's own API
(https://learn.microsoft.com/rest/api/iot-dps/service/enrollment-group).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, ResourceProvider, UpdateResult

from infra import dynamic
from kvedge import errors

__all__ = ["EnrollmentGroup", "EnrollmentGroupProvider"]

_API = "2021-10-01"
_SECONDS = 30.0
_KINDS = {404: errors.NotFound, 409: errors.Conflict, 412: errors.Conflict}


class EnrollmentGroupProvider(ResourceProvider):
    """Writes and removes one group."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Write the group with a fresh key."""
        group_key = base64.b64encode(secrets.token_bytes(64)).decode()
        with dynamic.plainly():
            try:
                outs = self._put(props, group_key)
            except errors.Conflict:
                # What a killed run left: the service itself is ours, so the group is.
                outs = self._put(props, group_key, anew=True)
        return CreateResult(id_=props["group"], outs=outs)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Another name or service is another group; a renewed policy key changes nothing in it."""
        other = [key for key in ("host", "group") if _olds[key] != _news[key]]
        changed = any(_olds[key] != _news[key] for key in ("policy", "key"))
        return DiffResult(changes=bool(other) or changed, replaces=other)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Write the group again, with the key that its devices have."""
        with dynamic.plainly():
            return UpdateResult(outs=self._put(_news, _olds["group_key"], anew=True))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Remove the group; a service that is gone has taken it along."""
        with dynamic.plainly(), contextlib.suppress(errors.NotFound):
            _send(_props, "DELETE")

    def _put(self, props: dict[str, Any], group_key: str, *, anew: bool = False) -> dict[str, Any]:
        secondary = base64.b64encode(secrets.token_bytes(64)).decode()
        _send(
            props,
            "PUT",
            {
                "enrollmentGroupId": props["group"],
                "attestation": {
                    "type": "symmetricKey",
                    "symmetricKey": {"primaryKey": group_key, "secondaryKey": secondary},
                },
                "capabilities": {"iotEdge": True},
                "provisioningStatus": "enabled",
                # A device that registers again keeps its twin, tags included.
                "reprovisionPolicy": {"updateHubAssignment": True, "migrateDeviceData": True},
            },
            anew=anew,
        )
        return {**props, "group_key": group_key}


class EnrollmentGroup(Resource, module="kvedge", name="EnrollmentGroup"):
    """A group whose devices derive their keys."""

    group_key: pulumi.Output[str]
    """A secret."""

    def __init__(
        self, *, host: pulumi.Input[str], policy: pulumi.Input[str], key: pulumi.Input[str],
        group: str, opts: pulumi.ResourceOptions | None = None,
    ) -> None:  # fmt: skip
        properties = {"host": host, "policy": policy, "key": key, "group": group}
        secret = pulumi.ResourceOptions(additional_secret_outputs=["key", "group_key"])
        super().__init__(
            EnrollmentGroupProvider(),
            "enrollment-group",
            {**properties, "group_key": None},
            pulumi.ResourceOptions.merge(opts, secret),
        )


def _send(props: dict[str, Any], method: str, body: Any = None, *, anew: bool = False) -> None:
    group, host = props["group"], props["host"]
    what = f"{'write' if body else 'remove'} enrollment group {group!r} at {host!r}"
    request = urllib.request.Request(
        f"https://{host}/enrollmentGroups/{group}?api-version={_API}",
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={
            "Authorization": _token(host, props["policy"], props["key"]),
            "Content-Type": "application/json",
            **({"If-Match": "*"} if anew else {}),
        },
    )
    try:
        context = ssl.create_default_context()
        with urllib.request.urlopen(request, timeout=_SECONDS, context=context):  # noqa: S310
            return
    except urllib.error.HTTPError as cause:
        kind = _KINDS.get(cause.code, errors.RemoteError)
        raise kind(what, status=cause.code, reason=str(cause.reason)) from cause
    except OSError as cause:
        raise errors.RemoteError(what, reason="Unreachable", details=str(cause)) from cause


def _token(host: str, policy: str, key: str) -> str:
    """Return a shared access signature of the service (a form of IoT Hub's)."""
    resource, expiry = urllib.parse.quote_plus(host), int(time.time()) + 600
    text = f"{resource}\n{expiry}".encode()
    digest = hmac.new(base64.b64decode(key), text, hashlib.sha256).digest()
    signature = urllib.parse.quote_plus(base64.b64encode(digest))
    return f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={policy}"
