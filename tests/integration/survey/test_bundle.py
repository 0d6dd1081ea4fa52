"""A support bundle holds no secret, wherever one was planted, and still says what a helper needs."""

from __future__ import annotations

import json
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from kvedge import iothub
from kvedge.redact import Secret
from kvedge.survey import bundle, checks
from kvedge.testing import kinds

PLANTED = {
    "hub key": "aHViLWtleS1vZi10aGUtcG9saWN5MTIz",
    "device key": "ZGV2aWNlLWtleS1pbi1hLWNvbW1lbnQ",
    "registry password": "registry-Passw0rd-planted",
    "module environment": "env-value-planted-4711",
    "pod environment": "pod-env-planted-0815",
    "user data": "planted-cloud-config-password",
    "annotation": "annotated-planted-sig-9f3",
    "bearer token": "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJzdWIiOiJwbGFudGVkIn0.c2lnbmF0dXJl",
    "private key": "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ",
    "url password": "planted-url-password",
    "crypt hash": "$6$planted$abcdefghijklmnopqrstuvwxyz0123456789",
    "known value": "a-token-without-any-form",
    "create options": "planted-in-create-options",
}


def vm():
    """Return a VM object with secrets in places where people put them."""
    labels = {"app.kubernetes.io/managed-by": "kvedge", "kvedge.io/environment": "plant"}
    inline = f"#cloud-config\npassword: {PLANTED['user data']}\n"
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {
            "name": "edge1",
            "namespace": "default",
            "labels": labels,
            "annotations": {
                "note": f"SharedAccessSignature sr=x&sig={PLANTED['annotation']}&se=1",
                "kubectl.kubernetes.io/last-applied-configuration": json.dumps(
                    {"spec": {"userData": inline, "size": 3}}
                ),
            },
        },
        "spec": {
            "runStrategy": "RerunOnFailure",
            "template": {
                "spec": {
                    "volumes": [{"name": "c", "cloudInitNoCloud": {"userData": inline}}],
                    "hashed": PLANTED["crypt hash"],
                }
            },
        },
    }


def pod():
    """Return a pod with a secret in its environment, as plain text."""
    env = [
        {"name": "DB_PASSWORD", "value": PLANTED["pod environment"]},
        {"name": "LEVEL", "value": "debug-level-that-stays"},
        {"name": "URL", "value": f"https://me:{PLANTED['url password']}@host/path-that-stays"},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "app",
            "namespace": "default",
            "labels": {"app.kubernetes.io/managed-by": "kvedge"},
        },
        "spec": {"containers": [{"name": "c", "image": "image-that-stays", "env": env}]},
    }


def deployment():
    """Return a deployment of the hub with registry credentials and module settings."""
    options = json.dumps({"Env": [f"API_KEY={PLANTED['create options']}"], "Hostname": "stays"})
    module = {
        "type": "docker",
        "settings": {"image": "registry.test/sensor:1", "createOptions": options},
        "env": {"DB_PASSWORD": {"value": PLANTED["module environment"]}, "RATE": {"value": "5"}},
    }
    credentials = {"r": {"address": "registry.test", "username": "me",
                         "password": PLANTED["registry password"]}}  # fmt: skip
    agent = {
        "schemaVersion": "1.1",
        "runtime": {
            "type": "docker",
            "settings": {"minDockerVersion": "v1.25", "registryCredentials": credentials},
        },
        "systemModules": {
            "edgeAgent": {"type": "docker", "settings": {"image": "a"}},
            "edgeHub": {"type": "docker", "status": "running", "restartPolicy": "always",
                        "settings": {"image": "h"}},
        },
        "modules": {"sensor": {**module, "status": "running", "restartPolicy": "always",
                               "version": "1.0"}},
    }  # fmt: skip
    hub = {"schemaVersion": "1.1", "routes": {},
           "storeAndForwardConfiguration": {"timeToLiveSecs": 5}}  # fmt: skip
    content = {
        "modulesContent": {
            "$edgeAgent": {"properties.desired": agent},
            "$edgeHub": {"properties.desired": hub},
        }
    }
    return {"id": "base", "content": content, "priority": 1, "targetCondition": "tags.a='b'",
            "labels": {}}  # fmt: skip


async def test_planted_secrets_are_nowhere(good, hub, tmp_path):
    """Not one of the planted values is in the archive; names, images and states are."""
    await kinds.install(
        good,
        [
            kinds.definition("kubevirt.io", "v1", kind, plural)
            for kind, plural in (
                ("VirtualMachine", "virtualmachines"),
                ("VirtualMachineInstance", "virtualmachineinstances"),
            )
        ],
    )
    await good.apply(vm())
    await good.apply(pod())
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"kind": "VirtualMachine", "name": "edge1", "namespace": "default"},
        "reason": "Started",
        "message": f"password={PLANTED['url password']} was used",
    }
    await good.apply(event)
    log = tmp_path / "hub.log"
    log.write_text(
        f"Authorization: Bearer {PLANTED['bearer token']}\n"
        f"HostName=h;DeviceId=d;SharedAccessKey={PLANTED['device key']}\n"
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{PLANTED['private key']}\n"
        f"-----END OPENSSH PRIVATE KEY-----\nsaid {PLANTED['known value']}\nline that stays\n"
    )
    service = iothub.Hub.from_connection_string(
        Secret(hub.connection_string), ca_file=hub.ca, backoff=iothub.Backoff(tries=1)
    )
    async with service:
        await service.create_configuration(deployment())
        entries = await bundle.collect(
            bundle.Sources(
                client=good,
                hub=service,
                findings=await checks.check_cluster(good),
                log_files=[log],
                secrets=[Secret(PLANTED["known value"]), Secret(PLANTED["hub key"])],
            )
        )
    file = tmp_path / "support.tar.gz"
    await bundle.write(file, entries, name="support")
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as archive:
        texts = {m.name: archive.extractfile(m).read().decode() for m in archive.getmembers()}
    whole = "\n".join(texts.values())
    assert [what for what, value in PLANTED.items() if value in whole] == []
    for kept in ("image-that-stays", "debug-level-that-stays", "path-that-stays", "stays",
                 "line that stays", "registry.test/sensor:1", "RerunOnFailure", "Started"):  # fmt: skip
        assert kept in whole
    assert {"support/doctor.json", "support/about.json", "support/hub/deployments.json",
            "support/cluster/virtualmachines.json", "support/events/default.json"} <= set(texts)  # fmt: skip
    assert "console/default/edge1" in texts["support/failures.txt"]


async def test_what_cannot_be_read_is_told(tmp_path):
    """Without a cluster and a hub there is still a bundle, and it says what is not in it."""
    entries = await bundle.collect(bundle.Sources(log_files=[tmp_path / "none.log"]))
    assert entries["failures.txt"].splitlines() == [
        "cluster: none was named",
        "hub: none was named",
    ]
    assert "No such file" in entries["site/none.log"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


@given(json_values, st.sampled_from(["password", "hubConnectionString", "primaryKey", "userData"]))
def test_a_secret_name_hides_whatever_is_below(value, name):
    """No text under a secret name survives, however deep; the rest keeps its shape."""

    def leaves(found):
        if isinstance(found, dict):
            return [leaf for inner in found.values() for leaf in leaves(inner)]
        if isinstance(found, list):
            return [leaf for inner in found for leaf in leaves(inner)]
        return [found] if isinstance(found, str) else []

    cleaned = bundle.cleaned({name: value, "beside": 1})
    assert cleaned["beside"] == 1
    assert set(leaves(cleaned[name])) <= {"***", ""}
