"""What a pod's containers see: environment, files of volumes, and their access token.

Names, optional references and expansion follow the Kubernetes API (core/v1 EnvVar, Volume).
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.site.host.quantities import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvedge import kube

__all__ = ["VOLUME_KINDS", "PodContent", "expand", "field_of", "write_files"]

VOLUME_KINDS = ("configMap", "downwardAPI", "emptyDir", "projected", "secret")
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][\w.-]*)\)")
_KEYED = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")
_TOKEN_SHARE = 0.8
"""A token is renewed when this part of its life is over, as the kubelet does."""
_TOKEN_SECONDS = 3600


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by the variable; `$$` is a dollar, unknown names stay as they are."""

    def replace(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return variables.get(found[1], found[0])

    return _REFERENCE.sub(replace, text)


def field_of(pod: Mapping[str, Any], path: str, *, address: str, host: str) -> str:
    """Return a field for `fieldRef`.

    Args:
        address: the pod's own address, which its status may not tell yet.
        host: the node's address.

    Raises:
        SiteError: the downward API has no such field.
    """
    metadata, spec = pod["metadata"], pod["spec"]
    keyed = _KEYED.fullmatch(path)
    if keyed:
        return (metadata.get(keyed[1]) or {}).get(keyed[2], "")
    if path in {"metadata.labels", "metadata.annotations"}:
        items = (metadata.get(path.removeprefix("metadata.")) or {}).items()
        return "\n".join(f'{key}="{value}"' for key, value in sorted(items))
    plain = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": address,
        "status.podIPs": address,
        "status.hostIP": host,
        "status.hostIPs": host,
    }
    if path not in plain:
        raise errors.SiteError(f"the downward API has no field {path!r}")
    return plain[path]


@dataclasses.dataclass(slots=True, kw_only=True)
class _Token:
    text: bytes
    renew_at: datetime.datetime


class PodContent:
    """Reads what one pod refers to, with the node's identity."""

    def __init__(
        self, kube: kube.Client, pod: Mapping[str, Any], *, address: str, host: str
    ) -> None:
        self._kube = kube
        self._pod = pod
        self._namespace = pod["metadata"]["namespace"]
        self._address = address
        self._host = host
        self._tokens: dict[tuple[str, int], _Token] = {}

    async def environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        """Return a container's variables, later ones over earlier ones.

        Raises:
            SiteError: a reference that is not optional leads nowhere.
        """
        found: dict[str, str] = {}
        for source in container.get("envFrom") or ():
            prefix = source.get("prefix") or ""
            for field, kind in (("configMapRef", "configMap"), ("secretRef", "secret")):
                if field in source:
                    data = await self._data(kind, source[field]["name"], source[field])
                    found.update({prefix + key: text.decode() for key, text in data.items()})
        for item in container.get("env") or ():
            value = await self._variable(container, item, found)
            if value is not None:
                found[item["name"]] = value
        return found

    async def _variable(
        self, container: Mapping[str, Any], item: Mapping[str, Any], known: Mapping[str, str]
    ) -> str | None:
        source = item.get("valueFrom")
        if not source:
            return expand(item.get("value") or "", known)
        if "fieldRef" in source:
            return self._field(source["fieldRef"]["fieldPath"])
        if "resourceFieldRef" in source:
            return _resource(self._pod, container, source["resourceFieldRef"])
        for field, kind in (("configMapKeyRef", "configMap"), ("secretKeyRef", "secret")):
            if field in source:
                reference = source[field]
                data = await self._data(kind, reference["name"], reference)
                if reference["key"] in data:
                    return data[reference["key"]].decode()
                if reference.get("optional"):
                    return None
                raise errors.SiteError(
                    f"variable {item['name']!r}: {kind} {reference['name']!r} has no key "
                    f"{reference['key']!r}"
                )
        raise errors.SiteError(f"variable {item['name']!r} has a source that is not known here")

    def _field(self, path: str) -> str:
        return field_of(self._pod, path, address=self._address, host=self._host)

    async def _data(self, kind: str, name: str, reference: Mapping[str, Any]) -> dict[str, bytes]:
        plural = {"configMap": "configmaps", "secret": "secrets"}[kind]
        try:
            found = await self._kube.get(f"/api/v1/namespaces/{self._namespace}/{plural}/{name}")
        except (errors.NotFound, errors.Unauthorized) as cause:
            if reference.get("optional"):
                return {}
            raise errors.SiteError(
                f"{kind} {self._namespace}/{name}: {cause.reason or 'not found'}"
            ) from cause
        if kind == "secret":
            return {key: base64.b64decode(text) for key, text in (found.get("data") or {}).items()}
        binary = found.get("binaryData") or {}
        plain = {key: text.encode() for key, text in (found.get("data") or {}).items()}
        return plain | {key: base64.b64decode(text) for key, text in binary.items()}

    async def files(self, volume: Mapping[str, Any]) -> dict[str, bytes] | None:
        """Return the files of a volume by path, None for an emptyDir.

        Raises:
            SiteError: a reference that is not optional leads nowhere.
        """
        if "emptyDir" in volume:
            return None
        if "projected" in volume:
            found: dict[str, bytes] = {}
            for source in volume["projected"].get("sources") or ():
                found.update(await self._source(source))
            return found
        return await self._source({key: volume[key] for key in volume if key != "name"})

    async def _source(self, source: Mapping[str, Any]) -> dict[str, bytes]:
        kind, detail = next(iter(source.items()))
        if kind in {"configMap", "secret"}:
            name = detail.get("secretName") or detail["name"]
            data = await self._data(kind, name, detail)
            if not detail.get("items"):
                return data
            missing = [item["key"] for item in detail["items"] if item["key"] not in data]
            if missing and not detail.get("optional"):
                raise errors.SiteError(f"{kind} {name!r} has no key {missing[0]!r}")
            return {i["path"]: data[i["key"]] for i in detail["items"] if i["key"] in data}
        if kind == "downwardAPI":
            return {
                item["path"]: (
                    self._field(item["fieldRef"]["fieldPath"])
                    if "fieldRef" in item
                    else _resource(self._pod, {}, item["resourceFieldRef"])
                ).encode()
                for item in detail.get("items") or ()
            }
        if kind == "serviceAccountToken":
            seconds = detail.get("expirationSeconds") or _TOKEN_SECONDS
            return {detail["path"]: await self._token(detail.get("audience") or "", seconds)}
        raise errors.SiteError(f"projected source {kind!r} is not known here")

    async def _token(self, audience: str, seconds: int) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        kept = self._tokens.get((audience, seconds))
        if kept and now < kept.renew_at:
            return kept.text
        metadata = self._pod["metadata"]
        account = self._pod["spec"].get("serviceAccountName") or "default"
        answer = await self._kube.post(
            f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{account}/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {
                    "audiences": [audience] if audience else [],
                    "expirationSeconds": seconds,
                    "boundObjectRef": {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "name": metadata["name"],
                        "uid": metadata["uid"],
                    },
                },
            },
        )
        status = answer["status"]
        over = datetime.datetime.fromisoformat(status["expirationTimestamp"])
        kept = _Token(text=status["token"].encode(), renew_at=now + (over - now) * _TOKEN_SHARE)
        self._tokens[audience, seconds] = kept
        return kept.text


def _resource(
    pod: Mapping[str, Any], container: Mapping[str, Any], reference: Mapping[str, Any]
) -> str:
    name = reference.get("containerName")
    if name:
        container = next(item for item in pod["spec"]["containers"] if item["name"] == name)
    group, _, kind = reference["resource"].partition(".")
    text = ((container.get("resources") or {}).get(group) or {}).get(kind)
    if text is None:
        text = str(os.cpu_count() or 1) if kind == "cpu" else "0"
    divisor = parse_quantity(reference.get("divisor") or "1") or 1
    return str(-(-parse_quantity(text) // divisor))


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder hold exactly these files; a changed one is replaced in one step.

    Raises:
        SiteError: a path leads out of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path, content in files.items():
        relative = PurePosixPath(path)
        if relative.is_absolute() or ".." in relative.parts:
            raise errors.SiteError(f"file path {path!r} leads out of its volume")
        target = folder / relative
        if target.is_file() and target.read_bytes() == content:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        fresh.replace(target)
    _drop_others(folder, {folder / path for path in files})


def _drop_others(folder: Path, wanted: Iterable[Path]) -> None:
    keep = set(wanted)
    for found in folder.rglob("*"):
        if found.is_file() and found not in keep:
            found.unlink()
