"""The edge runtime's /etc/aziot/config.toml as types: what is written is what the runtime reads.

The runtime ignores most unknown keys, so a mistake there would be silent; here it cannot be made.
Keys: Azure/iotedge edgelet/contrib/config/linux/template.toml and Azure/iot-identity-service
aziotctl-common/src/config/super_config.rs (1.6).
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Any

from cloudinit import toml
from kvedge import errors, redact

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Agent",
    "DpsSymmetricKey",
    "DpsTpm",
    "DpsX509",
    "EdgeCa",
    "EdgeConfig",
    "ManualConnectionString",
    "ManualSas",
    "ManualX509",
    "Provisioning",
    "derived_key",
    "render_edge_config",
]

DPS_ENDPOINT = "https://global.azure-devices-provisioning.net"
_KEY_URI = re.compile(r"(file|pkcs11):\S+")
_CERT_URI = re.compile(r"file:///\S+")
_HOST = re.compile(r"(?=.{1,255}$)[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_REGISTRATION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:-]{0,126}[A-Za-z0-9])?")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ManualConnectionString:
    """The device is known to the hub; its connection string holds everything."""

    connection_string: redact.Secret


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ManualSas:
    """The device is known to the hub and has a symmetric key."""

    iothub_hostname: str
    device_id: str
    key: redact.Secret | str
    """The key itself (base64), or a URI of a file or PKCS #11 object that the VM has."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ManualX509:
    """The device is known to the hub and has a certificate."""

    iothub_hostname: str
    device_id: str
    identity_cert: str
    """URI of the certificate."""
    identity_pk: str
    """URI of its private key."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DpsSymmetricKey:
    """The provisioning service knows an enrollment with a symmetric key."""

    id_scope: str
    registration_id: str
    key: redact.Secret | str
    """The device's key (see `derived_key` for groups), or a URI of it."""
    global_endpoint: str = DPS_ENDPOINT


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DpsTpm:
    """The provisioning service knows the machine's TPM."""

    id_scope: str
    registration_id: str
    global_endpoint: str = DPS_ENDPOINT
    tcti: str = ""
    """TPM interface; empty means the machine's own."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DpsX509:
    """The provisioning service trusts the device's certificate."""

    id_scope: str
    identity_cert: str
    identity_pk: str
    registration_id: str = ""
    """Empty means the certificate's common name."""
    global_endpoint: str = DPS_ENDPOINT


Provisioning = ManualConnectionString | ManualSas | ManualX509 | DpsSymmetricKey | DpsTpm | DpsX509


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The edge agent that bootstraps all modules."""

    image: str = "mcr.microsoft.com/azureiotedge-agent:1.6"
    create_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pull_policy: str = "on-create"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EdgeCa:
    """The certificate that the device signs its modules' with."""

    cert: str = ""
    pk: str = ""
    auto_generated_days: int = 0
    """Validity of one that the device makes itself; 0 leaves the runtime's own default."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EdgeConfig:
    """One config.toml."""

    provisioning: Provisioning
    hostname: str
    """Final: the runtime refuses another one while module containers exist."""
    parent_hostname: str = ""
    """The device above, in a nested network."""
    trust_bundle: str = ""
    """file:/// URI of more certificate authorities to trust."""
    agent: Agent = dataclasses.field(default_factory=Agent)
    edge_ca: EdgeCa | None = None
    https_proxy: str = ""
    """Goes into the agent's environment; docker and the daemons get the same from cloud-init."""


def derived_key(group_key: redact.Secret, registration_id: str) -> redact.Secret:
    """Return a device's key of an enrollment group.

    It is the HMAC-SHA256 of the lower-case registration id with the group's key, as the
    provisioning service computes it.

    Raises:
        SpecError: the group's key is not base64.
    """
    try:
        key = base64.b64decode(group_key.reveal(), validate=True)
    except binascii.Error as cause:
        raise errors.SpecError(
            "enrollment group key", [errors.Problem(path="key", message="is not base64")]
        ) from cause
    digest = hmac.new(key, registration_id.lower().encode(), hashlib.sha256).digest()
    return redact.Secret(base64.b64encode(digest).decode())


def render_edge_config(config: EdgeConfig) -> str:
    """Return the text of config.toml; it holds secrets in the clear.

    Raises:
        SpecError: with every mistake that was found.
    """
    problems = list(_problems(config))
    if problems:
        raise errors.SpecError("edge configuration", problems)
    document: dict[str, Any] = {"hostname": config.hostname}
    if config.parent_hostname:
        document["parent_hostname"] = config.parent_hostname
    if config.trust_bundle:
        document["trust_bundle_cert"] = config.trust_bundle
    document["provisioning"] = _provisioning(config.provisioning)
    if isinstance(config.provisioning, DpsTpm) and config.provisioning.tcti:
        document["tpm"] = {"tcti": config.provisioning.tcti}
    document["agent"] = _agent(config)
    if config.edge_ca:
        document["edge_ca"] = _edge_ca(config.edge_ca)
    return toml.dumps(document)


def _provisioning(how: Provisioning) -> dict[str, Any]:
    match how:
        case ManualConnectionString():
            return {"source": "manual", "connection_string": how.connection_string.reveal()}
        case ManualSas():
            return {
                "source": "manual",
                "iothub_hostname": how.iothub_hostname,
                "device_id": how.device_id,
                "authentication": {"method": "sas", "device_id_pk": _key(how.key)},
            }
        case ManualX509():
            return {
                "source": "manual",
                "iothub_hostname": how.iothub_hostname,
                "device_id": how.device_id,
                "authentication": {
                    "method": "x509",
                    "identity_cert": how.identity_cert,
                    "identity_pk": how.identity_pk,
                },
            }
        case DpsSymmetricKey():
            attestation: dict[str, Any] = {
                "method": "symmetric_key",
                "registration_id": how.registration_id,
                "symmetric_key": _key(how.key),
            }
        case DpsTpm():
            attestation = {"method": "tpm", "registration_id": how.registration_id}
        case DpsX509():
            attestation = {
                "method": "x509",
                "registration_id": how.registration_id or None,
                "identity_cert": how.identity_cert,
                "identity_pk": how.identity_pk,
            }
    return {
        "source": "dps",
        "global_endpoint": how.global_endpoint,
        "id_scope": how.id_scope,
        "attestation": attestation,
    }


def _key(key: redact.Secret | str) -> dict[str, str]:
    return {"uri": key} if isinstance(key, str) else {"value": key.reveal()}


def _agent(config: EdgeConfig) -> dict[str, Any]:
    env = dict(config.agent.env)
    if config.https_proxy:
        env["https_proxy"] = config.https_proxy
    agent: dict[str, Any] = {
        "name": "edgeAgent",
        "type": "docker",
        "imagePullPolicy": config.agent.pull_policy,
        "config": {"image": config.agent.image},
    }
    if config.agent.create_options:
        agent["config"]["createOptions"] = dict(config.agent.create_options)
    if env:
        agent["env"] = dict(sorted(env.items()))
    return agent


def _edge_ca(ca: EdgeCa) -> dict[str, Any]:
    if ca.cert:
        return {"cert": ca.cert, "pk": ca.pk}
    return {"auto_generated_edge_ca_expiry_days": ca.auto_generated_days or None}


def _problems(config: EdgeConfig) -> list[errors.Problem]:
    found: list[errors.Problem] = []

    def check(path: str, value: str, pattern: re.Pattern[str], what: str) -> None:
        if not pattern.fullmatch(value):
            found.append(errors.Problem(path=path, message=f"{value!r} is not {what}"))

    def key(path: str, value: redact.Secret | str) -> None:
        if isinstance(value, str):
            check(path, value, _KEY_URI, "a file: or pkcs11: URI")
            return
        try:
            base64.b64decode(value.reveal(), validate=True)
        except binascii.Error:
            found.append(errors.Problem(path=path, message="is not base64"))

    check("hostname", config.hostname, _HOST, "a host name")
    if config.parent_hostname:
        check("parent_hostname", config.parent_hostname, _HOST, "a host name or address")
    if config.trust_bundle:
        check("trust_bundle", config.trust_bundle, _CERT_URI, "a file:/// URI")
    if config.agent.pull_policy not in {"on-create", "never"}:
        found.append(
            errors.Problem(path="agent.pull_policy", message="must be 'on-create' or 'never'")
        )
    if not config.agent.image:
        found.append(errors.Problem(path="agent.image", message="must not be empty"))
    for name in config.agent.env:
        check(f"agent.env.{name}", name, _ENV, "a variable's name")
    if config.edge_ca and bool(config.edge_ca.cert) != bool(config.edge_ca.pk):
        found.append(errors.Problem(path="edge_ca", message="cert and pk belong together"))
    how = config.provisioning
    if isinstance(how, ManualConnectionString):
        found += _connection_string_problems(how.connection_string.reveal())
    if isinstance(how, ManualSas | ManualX509):
        check("provisioning.iothub_hostname", how.iothub_hostname, _HOST, "a host name")
        if not how.device_id:
            found.append(errors.Problem(path="provisioning.device_id", message="missing"))
    if isinstance(how, ManualX509 | DpsX509):
        check("provisioning.identity_cert", how.identity_cert, _CERT_URI, "a file:/// URI")
        check("provisioning.identity_pk", how.identity_pk, _KEY_URI, "a file: or pkcs11: URI")
    if isinstance(how, ManualSas | DpsSymmetricKey):
        key("provisioning.key", how.key)
    if isinstance(how, DpsSymmetricKey | DpsTpm | DpsX509):
        if not how.id_scope:
            found.append(errors.Problem(path="provisioning.id_scope", message="missing"))
        if how.registration_id or not isinstance(how, DpsX509):
            check(
                "provisioning.registration_id", how.registration_id, _REGISTRATION,
                "a registration id",
            )  # fmt: skip
        check(
            "provisioning.global_endpoint",
            how.global_endpoint,
            re.compile(r"https://\S+"),
            "an https:// address",
        )
    return found


def _connection_string_problems(text: str) -> list[errors.Problem]:
    path = "provisioning.connection_string"
    parts = {k: v for k, _, v in (part.partition("=") for part in text.split(";"))}
    missing = [k for k in ("HostName", "DeviceId", "SharedAccessKey") if not parts.get(k)]
    if missing:
        return [errors.Problem(path=path, message=f"has no {', '.join(missing)}")]
    try:
        base64.b64decode(parts["SharedAccessKey"], validate=True)
    except binascii.Error:
        return [errors.Problem(path=path, message="SharedAccessKey is not base64")]
    return []
