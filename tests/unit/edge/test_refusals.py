"""Every bad pod is refused with the path of the field, and with a hint where one exists."""

from __future__ import annotations

import pytest

from kvedge import edge, errors
from kvedge.edge import refusing

_ON = {"restartPolicyRules": [{"action": "Restart"}], "os": {"name": "windows"}}


def pod(*, notes=None, container=None, **spec):
    """Return a pod that is fine but for what is given."""
    return {
        "metadata": {
            "name": "a",
            "namespace": "ns",
            "annotations": {"kvedge.io/target-condition": "*", **(notes or {})},
        },
        "spec": {"containers": [{"name": "m", "image": "i:1", **(container or {})}], **spec},
    }


def problems(bad, **inputs):
    """Return the problems by path."""
    with pytest.raises(errors.SpecError) as caught:
        edge.revision_of(edge.Inputs(pod=bad, cluster="c", node="n", **inputs))
    return {problem.path: problem for problem in caught.value.problems}


@pytest.mark.parametrize("field", sorted(refusing.REFUSED_POD))
def test_field_of_a_pod(field):
    """A field that devices cannot do is named with its reason and hint."""
    found = problems(pod(**{field: _ON.get(field, [{"name": "x"}])}))
    why, hint = refusing.REFUSED_POD[field]
    assert (found[f"spec.{field}"].message, found[f"spec.{field}"].hint) == (why, hint)


@pytest.mark.parametrize("field", sorted(refusing.REFUSED_CONTAINER))
def test_field_of_a_container(field):
    """So is a field of a container."""
    found = problems(pod(container={field: [{"name": "x"}]}))
    path = f"spec.containers[0].{field}"
    why, hint = refusing.REFUSED_CONTAINER[field]
    assert (found[path].message, found[path].hint) == (why, hint)


LONG = {f"Label{n}": "x" * 500 for n in range(120)}
LABELS = '{"Labels":{' + ",".join(f'"{key}":"{value}"' for key, value in LONG.items()) + "}}"
WIDE = '{"a":"' + "x" * 33_000 + '"}'
PULL = [{"name": "nope"}]
NODE = {"securityContext": {"runAsNonRoot": True}}
SECRET = {"volumes": [{"name": "s", "secret": {"secretName": "s"}}]}


@pytest.mark.parametrize(
    ("bad", "path", "words"),
    [
        (pod(newField=1), "spec.newField", "no counterpart"),
        (pod(container={"newField": 1}), "spec.containers[0].newField", "no counterpart"),
        (pod(container={"name": "x" * 129}), "spec.containers[0].name", "no module name"),
        (pod(container={"resources": {"limits": {"gpu": "1"}}}),
         "spec.containers[0].resources.limits[gpu]", "cpu and memory only"),
        (pod(container={"volumeMounts": [{"name": "x", "mountPath": "/x"}]}),
         "spec.containers[0].volumeMounts[0]", "no volume 'x'"),
        (pod(container=NODE), "spec.containers[0].securityContext.runAsNonRoot", "cannot check"),
        (pod(**SECRET), "spec.volumes[0].secret", "host paths and named volumes"),
        (pod(imagePullSecrets=PULL), "spec.imagePullSecrets[0]", "there is no Secret 'nope'"),
        (pod(initContainers=[{"name": "i", "image": "i:1"}]), "spec.initContainers[0]",
         "cannot wait"),
        (pod(notes={"kvedge.io/target-condition": ""}),
         "metadata.annotations[kvedge.io/target-condition]", "is missing"),
        (pod(notes={"kvedge.io/devices": "a b"}), "metadata.annotations[kvedge.io/devices]",
         "is not a device id"),
        (pod(notes={"kvedge.io/selector": "x", "kvedge.io/target-condition": ""}), "metadata.annotations[kvedge.io/selector]",
         "tag=value"),
        (pod(notes={"kvedge.io/priority": "1000"}), "metadata.annotations[kvedge.io/priority]",
         "0 to 999"),
        (pod(notes={"kvedge.io/min-ready": "some"}), "metadata.annotations[kvedge.io/min-ready]",
         "neither"),
        (pod(notes={"kvedge.io/deployment": "x"}), "metadata.annotations[kvedge.io/deployment]",
         "neither layered nor full"),
        (pod(notes={"kvedge.io/packed": "x"}), "metadata.annotations[kvedge.io/packed]",
         "neither true nor false"),
        (pod(notes={"kvedge.io/packed": "true", "kvedge.io/deployment": "full"}),
         "metadata.annotations[kvedge.io/packed]", "one pod's"),
        (pod(notes={"kvedge.io/packed": "true", "kvedge.io/rollback-after": "5m"}),
         "metadata.annotations[kvedge.io/packed]", "not rolled back"),
        (pod(notes={"kvedge.io/rollback-after": "soon"}),
         "metadata.annotations[kvedge.io/rollback-after]", "is not a time"),
        (pod(notes={"kvedge.io/other": "x"}), "metadata.annotations[kvedge.io/other]",
         "not a key of kvedge"),
        (pod(notes={"z.kvedge.io/routes": "{}"}), "metadata.annotations[z.kvedge.io/routes]",
         "no container 'z'"),
        (pod(notes={"m.kvedge.io/create-options": "{"}),
         "metadata.annotations[m.kvedge.io/create-options]", "is not JSON"),
        (pod(notes={"m.kvedge.io/create-options": LABELS}), "spec.containers[0]",
         "exceed 51200"),
        (pod(notes={"m.kvedge.io/desired-properties": WIDE}), "content[a-m]",
         "exceed a twin's 32768"),
    ],
)  # fmt: skip
def test_refused(bad, path, words):
    """The path leads to the field, the message says what is wrong with it."""
    assert words in problems(bad)[path].message


def test_variables():
    """Names and sizes that a twin cannot hold are refused by variable."""
    found = problems(pod(), env={"m": {"a.b": "x", "big": "y" * 5000}})
    assert "no '.'" in found["spec.containers[0].env[a.b]"].message
    assert "4096 bytes" in found["spec.containers[0].env[big]"].message


def test_all_mistakes_at_once():
    """A pod with several mistakes hears of all of them."""
    found = problems(pod(notes={"kvedge.io/priority": "x"}, subdomain="d", newField=1))
    assert len(found) == 3
