"""A support bundle: what a helper needs to see, with every secret taken out before it is written.

Secrets are never read. What remains is cleaned twice: fields that are secret by name, wherever
they are in an object, and texts that look like a credential, wherever they are in a file. The
credentials in use here are taken out by their very value as well.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import platform
import re
import tarfile
import time
from typing import TYPE_CHECKING, Any

import kvedge
from kvedge import errors, names, redact
from kvedge.survey import happenings, logs
from kvedge.survey.fleet import read_fleet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from kvedge import iothub, kube
    from kvedge.survey.findings import Finding

__all__ = ["Sources", "cleaned", "collect", "write"]

_MASK = "***"
_MANAGED = f"{names.LABEL_MANAGED}=kvedge"
_OBJECTS = {
    "virtualmachines": ("/apis/kubevirt.io/v1/virtualmachines", _MANAGED),
    "virtualmachineinstances": ("/apis/kubevirt.io/v1/virtualmachineinstances", _MANAGED),
    "datavolumes": ("/apis/cdi.kubevirt.io/v1beta1/datavolumes", _MANAGED),
    "persistentvolumeclaims": ("/api/v1/persistentvolumeclaims", _MANAGED),
    "services": ("/api/v1/services", _MANAGED),
    "deployments": ("/apis/apps/v1/deployments", _MANAGED),
    "pods": ("/api/v1/pods", _MANAGED),
    "launchers": ("/api/v1/pods", "kubevirt.io=virt-launcher"),
    "nodes": ("/api/v1/nodes", ""),
    "storageclasses": ("/apis/storage.k8s.io/v1/storageclasses", ""),
    "kubevirts": ("/apis/kubevirt.io/v1/kubevirts", ""),
    "cdis": ("/apis/cdi.kubevirt.io/v1beta1/cdis", ""),
}
_LOG_LINES = 500
_LOG_BYTES = 512 * 1024
_SECRET_NAMES = re.compile(
    r"pass(word|wd|phrase)?$|secret(?!name|ref)|(?<!csrf)token$|credential|connection_?string"
    r"|(private|access|shared|primary|secondary|api|storage|account|symmetric)_?key"
    r"|^userdata|^networkdata|authorization|dockerconfig|^pwd$",
    re.IGNORECASE,
)
_SECRET_TEXTS = (
    (re.compile(r"(Bearer |Basic )[A-Za-z0-9._~+/=-]{8,}"), r"\1***"),
    (re.compile(r"eyJ[\w-]{8,}\.[\w-]{8,}(\.[\w-]*)?"), _MASK),
    (re.compile(r"(AccountKey=|sig=|SharedAccessKey=)[^;&\s\"']+"), r"\1***"),
    (re.compile(r"(://[^/\s:@]+:)[^@\s/]+(@)"), r"\1***\2"),
    (
        re.compile(
            r"((?:pass(?:word|wd|phrase)?|secret|token|api[_-]?key|access[_-]?key)"
            r"[\"']?\s*[=:]\s*[\"']?)[^\s\"',;}]+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
    (re.compile(r"\$(?:1|2[abxy]?|5|6|y|gy)\$[./A-Za-z0-9$=,]{10,}"), _MASK),
)
"""Tokens, keys, passwords in texts; the last are crypt(5) hashes, as cloud-config has them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where a bundle's content comes from; what is None is left out, and the bundle says so."""

    client: kube.Client | None = None
    hub: iothub.Hub | None = None
    findings: Sequence[Finding] = ()
    log_files: Sequence[Path] = ()
    """Files of a local site; the end of each is taken."""
    secrets: Sequence[redact.Secret] = ()
    """Values that must not appear anywhere."""


async def collect(sources: Sources) -> dict[str, str]:
    """Read everything and return clean text by file name; what failed is in `failures.txt`."""
    raw: dict[str, Any] = {
        "about.json": {
            "kvedge": kvedge.__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
        "doctor.json": [dataclasses.asdict(finding) for finding in sources.findings],
    }
    failures: list[str] = []
    if sources.client is None:
        failures.append("cluster: none was named")
    else:
        await _cluster(sources.client, sources.hub, raw, failures)
    if sources.hub is None:
        failures.append("hub: none was named")
    else:
        await _hub(sources.hub, raw, failures)
    for file in sources.log_files:
        raw[f"site/{file.name}"] = _end_of(file)
    raw["failures.txt"] = "\n".join(failures) + "\n"
    values = [secret.reveal() for secret in sources.secrets if secret]
    return {name: _clean_file(content, values) for name, content in sorted(raw.items())}


async def _cluster(
    client: kube.Client, hub: iothub.Hub | None, raw: dict[str, Any], failures: list[str]
) -> None:
    for name, (path, selector) in _OBJECTS.items():
        try:
            listed = await client.get(path, labelSelector=selector or None)
        except errors.RemoteError as error:
            failures.append(f"cluster/{name}: {error}")
        else:
            raw[f"cluster/{name}.json"] = listed["items"]
    vms = [_place(one) for one in raw.get("cluster/virtualmachines.json", ())]
    for namespace in sorted({namespace for namespace, _ in vms}):
        try:
            found = await happenings.read_events(client, namespace=namespace)
        except errors.RemoteError as error:
            failures.append(f"events/{namespace}: {error}")
        else:
            raw[f"events/{namespace}.json"] = [dataclasses.asdict(one) for one in found]
    for namespace, vm in vms:
        options = logs.LogOptions(tail=_LOG_LINES)
        try:
            chunks = [c async for c in logs.console_log(client, namespace, vm, options)]
        except errors.RemoteError as error:
            failures.append(f"console/{namespace}/{vm}: {error}")
        else:
            raw[f"console/{namespace}/{vm}.log"] = b"".join(chunks).decode(errors="replace")
    try:
        raw["status.json"] = dataclasses.asdict(await read_fleet(client, hub))
    except errors.RemoteError as error:
        failures.append(f"status: {error}")


def _place(vm: Mapping[str, Any]) -> tuple[str, str]:
    return vm["metadata"]["namespace"], vm["metadata"]["name"]


async def _hub(hub: iothub.Hub, raw: dict[str, Any], failures: list[str]) -> None:
    agents = "SELECT * FROM devices.modules WHERE moduleId = '$edgeAgent'"
    for name, ask in (
        ("statistics", hub.statistics()),
        ("deployments", hub.configurations()),
        ("agents", hub.query(agents)),
    ):
        try:
            raw[f"hub/{name}.json"] = await ask
        except errors.RemoteError as error:
            failures.append(f"hub/{name}: {error}")


def _end_of(file: Path) -> str:
    try:
        with file.open("rb") as source:
            size = source.seek(0, io.SEEK_END)
            source.seek(max(0, size - _LOG_BYTES))
            return source.read().decode(errors="replace")
    except OSError as error:
        return f"not read: {error.strerror}\n"


def cleaned(value: Any) -> Any:
    """Return raw JSON without secrets: values of secret names, and values that look like one."""
    if isinstance(value, dict):
        return {key: _clean_field(str(key), value) for key in value if key != "managedFields"}
    if isinstance(value, list | tuple):
        return [cleaned(item) for item in value]
    if isinstance(value, str):
        return _clean_text(value)
    return value


def _clean_field(key: str, owner: Mapping[str, Any]) -> Any:
    value = owner[key]
    if key == "value" and _SECRET_NAMES.search(str(owner.get("name", ""))):
        return _MASK  # an environment variable of a pod
    if _SECRET_NAMES.search(key) and not isinstance(value, bool | int | float) and value:
        if isinstance(value, dict) and set(value) == {"value"}:
            return {"value": _MASK}  # an environment variable of a module
        return _MASK if isinstance(value, str) else _masked_leaves(value)
    return cleaned(value)


def _masked_leaves(value: Any) -> Any:
    """Mask each text below a secret name; the shape stays, so that a helper sees what is set."""
    if isinstance(value, dict):
        return {key: _masked_leaves(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked_leaves(inner) for inner in value]
    return _MASK if isinstance(value, str) else value


def _clean_text(text: str) -> str:
    stripped = text.lstrip()
    if stripped[:1] in "{[" and len(stripped) > 1:
        # A document inside a string, such as createOptions or an annotation.
        try:
            return json.dumps(cleaned(json.loads(text)))
        except ValueError:
            pass
    text = redact.redacted(text)
    for pattern, form in _SECRET_TEXTS:
        text = pattern.sub(form, text)
    return text


def _clean_file(content: Any, values: Iterable[str]) -> str:
    text = (
        _clean_text(content)
        if isinstance(content, str)
        else json.dumps(cleaned(content), indent=1, sort_keys=True, default=str)
    )
    for value in values:
        if len(value) >= 8:
            text = text.replace(value, _MASK)
    return text


async def write(file: Path, entries: Mapping[str, str], *, name: str) -> None:
    """Write the entries as a tar.gz of mode 0600, all in one folder."""

    def pack() -> None:
        file.touch(mode=0o600)
        file.chmod(0o600)
        with tarfile.open(file, "w:gz") as archive:
            for path, text in entries.items():
                data = text.encode()
                entry = tarfile.TarInfo(f"{name}/{path}")
                entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
                archive.addfile(entry, io.BytesIO(data))

    await asyncio.to_thread(pack)
