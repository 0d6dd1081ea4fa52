"""Who may use the kubelet API: the API server decides, by TokenReview and SubjectAccessReview."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvedge.kube import Client

__all__ = ["Reviewer", "User", "Verdict"]

_TOKEN_SECONDS = 120.0
_ALLOW_SECONDS = 300.0
_DENY_SECONDS = 30.0
_VERBS = {
    "GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch",
    "DELETE": "delete",
}  # fmt: skip
_FINER = frozenset({"configz", "pods"})
"""Since Kubernetes 1.33 (KubeletFineGrainedAuthz)."""
_CACHE_LIMIT = 4096


class Verdict(NamedTuple):
    """Whether a request may go on; otherwise the HTTP status and a sentence."""

    status: int
    message: str


class User(NamedTuple):
    """Somebody whose identity is proved."""

    name: str
    groups: tuple[str, ...]


class Reviewer:
    """Checks requests and remembers the API server's answers for a while."""

    def __init__(self, client: Client, node: str) -> None:
        self._client, self._node = client, node
        self._tokens: dict[str, tuple[float, User | None]] = {}
        self._rights: dict[tuple[User, str, str], tuple[float, bool]] = {}

    async def review(
        self, method: str, subresource: str, token: str, peer: Mapping[str, Any] | None
    ) -> Verdict:
        """Return whether the caller may use a subresource of the node.

        Args:
            method: HTTP method.
            subresource: stats, metrics, log, pods, configz or proxy.
            token: bearer token; empty if there is none.
            peer: the verified client certificate as ssl tells it.
        """
        try:
            user = _user_of(peer) if peer else None
            if user is None and token:
                user = await self._user(token)
            if user is None:
                return Verdict(401, "Unauthorized")
            verb = _VERBS.get(method, method.lower())
            if await self._allowed(user, verb, subresource):
                return Verdict(200, "")
            # Roles from before the finer subresources name nodes/proxy for them.
            if subresource in _FINER and await self._allowed(user, verb, "proxy"):
                return Verdict(200, "")
        except errors.RemoteError as error:
            return Verdict(500, f"the API server cannot be asked: {error.message}")
        return Verdict(
            403, f"Forbidden (user={user.name}, verb={verb}, resource=nodes/{subresource})"
        )

    async def _user(self, token: str) -> User | None:
        digest = hashlib.sha256(token.encode()).hexdigest()
        now = asyncio.get_running_loop().time()
        kept = self._tokens.get(digest)
        if kept and now - kept[0] < _TOKEN_SECONDS:
            return kept[1]
        answer = await self._client.post(
            "/apis/authentication.k8s.io/v1/tokenreviews",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": token},
            },
        )
        status = answer.get("status") or {}
        user = None
        if status.get("authenticated"):
            found = status.get("user") or {}
            user = User(found.get("username", ""), tuple(found.get("groups") or ()))
        if len(self._tokens) > _CACHE_LIMIT:
            self._tokens.clear()
        self._tokens[digest] = (now, user)
        return user

    async def _allowed(self, user: User, verb: str, subresource: str) -> bool:
        now = asyncio.get_running_loop().time()
        key = (user, verb, subresource)
        kept = self._rights.get(key)
        if kept and now - kept[0] < (_ALLOW_SECONDS if kept[1] else _DENY_SECONDS):
            return kept[1]
        answer = await self._client.post(
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "user": user.name,
                    "groups": list(user.groups),
                    "resourceAttributes": {
                        "verb": verb,
                        "resource": "nodes",
                        "subresource": subresource,
                        "name": self._node,
                        "version": "v1",
                    },
                },
            },
        )
        allowed = bool((answer.get("status") or {}).get("allowed"))
        if len(self._rights) > _CACHE_LIMIT:
            self._rights.clear()
        self._rights[key] = (now, allowed)
        return allowed


def _user_of(peer: Mapping[str, Any]) -> User | None:
    names: dict[str, list[str]] = {}
    for part in peer.get("subject") or ():
        for field, value in part:
            names.setdefault(field, []).append(value)
    common = names.get("commonName")
    return User(common[0], tuple(names.get("organizationName", ()))) if common else None
