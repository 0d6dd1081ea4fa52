"""The edge runtime's settings: every provisioning form against the runtime's own key names."""

import base64
import dataclasses
import tomllib

import pytest

import cloudinit
from kvedge import errors, redact

KEY = base64.b64encode(b"k" * 32).decode()
STRING = f"HostName=hub.kvedge.test;DeviceId=dev-1;SharedAccessKey={KEY}"

FORMS = {
    "manual-connection-string": cloudinit.ManualConnectionString(
        connection_string=redact.Secret(STRING)
    ),
    "manual-sas": cloudinit.ManualSas(
        iothub_hostname="hub.kvedge.test", device_id="dev-1", key=redact.Secret(KEY)
    ),
    "manual-x509": cloudinit.ManualX509(
        iothub_hostname="hub.kvedge.test",
        device_id="dev-1",
        identity_cert="file:///var/secrets/id.pem",
        identity_pk="pkcs11:token=edge;object=id",
    ),
    "dps-symmetric-key": cloudinit.DpsSymmetricKey(
        id_scope="0ne0001", registration_id="dev-1", key="file:///var/secrets/key"
    ),
    "dps-tpm": cloudinit.DpsTpm(id_scope="0ne0001", registration_id="dev-1", tcti="device"),
    "dps-x509": cloudinit.DpsX509(
        id_scope="0ne0001",
        identity_cert="file:///var/secrets/id.pem",
        identity_pk="file:///var/secrets/id.key",
    ),
}
# Keys of Azure/iotedge's template.toml and super_config.rs, for what is written here.
KNOWN = {
    "": {"hostname", "parent_hostname", "trust_bundle_cert", "provisioning", "tpm", "agent", "edge_ca"},
    "provisioning": {
        "source", "connection_string", "iothub_hostname", "device_id", "authentication",
        "global_endpoint", "id_scope", "attestation",
    },
    "provisioning.authentication": {"method", "device_id_pk", "identity_cert", "identity_pk"},
    "provisioning.authentication.device_id_pk": {"value", "uri"},
    "provisioning.attestation": {
        "method", "registration_id", "symmetric_key", "identity_cert", "identity_pk",
    },
    "provisioning.attestation.symmetric_key": {"value", "uri"},
    "tpm": {"tcti"},
    "agent": {"name", "type", "imagePullPolicy", "config", "env"},
    "agent.config": {"image", "createOptions"},
    "edge_ca": {"cert", "pk", "auto_generated_edge_ca_expiry_days"},
}  # fmt: skip


def _config(form, **more):
    return cloudinit.EdgeConfig(provisioning=FORMS[form], hostname="dev-1", **more)


def _unknown(table, path=""):
    if path.startswith(("agent.env", "agent.config.createOptions")):
        return
    for key, value in table.items():
        here = f"{path}.{key}" if path else key
        if key not in KNOWN[path]:
            yield here
        if isinstance(value, dict):
            yield from _unknown(value, here)


@pytest.mark.parametrize("form", FORMS)
def test_matches_the_golden_file(form: str, golden):
    """Each form is printed as it was reviewed."""
    golden(
        f"{form}.toml",
        cloudinit.render_edge_config(
            _config(
                form,
                trust_bundle="file:///etc/kvedge/trusted-ca.pem",
                parent_hostname="gateway.local",
                https_proxy="http://proxy:3128",
                agent=cloudinit.Agent(
                    env={"UpstreamProtocol": "AmqpWs"},
                    create_options={"HostConfig": {"Binds": ["/iotedge/storage:/iotedge/storage"]}},
                ),
                edge_ca=cloudinit.EdgeCa(auto_generated_days=90),
            )
        ),
    )


@pytest.mark.parametrize("form", FORMS)
def test_writes_only_keys_that_the_runtime_reads(form: str):
    """No key is written that the real runtime would ignore in silence."""
    document = tomllib.loads(
        cloudinit.render_edge_config(_config(form, edge_ca=cloudinit.EdgeCa(cert="a", pk="b")))
    )
    assert list(_unknown(document)) == []


def test_tells_all_mistakes_at_once():
    """Every wrong field is named in one error, and no secret is in it."""
    config = cloudinit.EdgeConfig(
        provisioning=cloudinit.ManualConnectionString(
            connection_string=redact.Secret("HostName=h;SharedAccessKey=top-secret!")
        ),
        hostname="-bad-",
        trust_bundle="/etc/ca.pem",
        agent=cloudinit.Agent(image="", pull_policy="always", env={"a b": "c"}),
        edge_ca=cloudinit.EdgeCa(cert="file:///a"),
    )
    with pytest.raises(errors.SpecError) as caught:
        cloudinit.render_edge_config(config)
    assert {problem.path for problem in caught.value.problems} == {
        "hostname", "trust_bundle", "agent.image", "agent.pull_policy", "agent.env.a b", "edge_ca",
        "provisioning.connection_string",
    }  # fmt: skip
    assert "top-secret" not in str(caught.value)


def test_keys_must_be_base64():
    """A key that the runtime could not decode is refused."""
    form = dataclasses.replace(FORMS["manual-sas"], key=redact.Secret("not base64!"))
    with pytest.raises(errors.SpecError, match="base64"):
        cloudinit.render_edge_config(cloudinit.EdgeConfig(provisioning=form, hostname="a"))


def test_group_key_derivation():
    """The device's key is the one of the provisioning service's documentation."""
    group = redact.Secret(
        "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw=="
    )
    key = cloudinit.derived_key(group, "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6")
    assert key.reveal() == "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc="
