"""What a pod's containers see."""

import pytest

from kvedge import errors
from kvedge.site.host.podcontent import expand, field_of, write_files
from kvedge.site.host.workloads import Workloads, repository

_POD = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "1"}},
    "spec": {"nodeName": "edge-host", "containers": []},
}


@pytest.mark.parametrize(
    ("text", "out"),
    [("$(A):$(A)", "1:1"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("plain", "plain")],
)
def test_references_are_expanded_as_kubernetes_does(text, out):
    """Known names are replaced, unknown ones stay, a doubled dollar escapes."""
    assert expand(text, {"A": "1"}) == out


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("status.podIP", "10.77.16.10"),
        ("metadata.labels['a']", "1"),
        ("metadata.labels", 'a="1"'),
        ("spec.nodeName", "edge-host"),
    ],
)
def test_fields_of_the_downward_api(path, value):
    """The address is known before the pod's status tells it."""
    assert field_of(_POD, path, address="10.77.16.10", host="10.77.0.4") == value


def test_an_unknown_field_is_refused():
    """A misspelt path is an error, not an empty text."""
    with pytest.raises(errors.SiteError, match="no field"):
        field_of(_POD, "status.podIp", address="", host="")


def test_files_are_exactly_those_of_the_volume(tmp_path):
    """Changed files are replaced, dropped ones vanish."""
    write_files(tmp_path / "v", {"a": b"1", "d/b": b"2"})
    write_files(tmp_path / "v", {"a": b"3"})
    assert (tmp_path / "v" / "a").read_bytes() == b"3"
    assert not (tmp_path / "v" / "d" / "b").exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_a_file_cannot_leave_its_volume(tmp_path, path):
    """Keys of objects are user input."""
    with pytest.raises(errors.SiteError, match="leads out"):
        write_files(tmp_path / "v", {path: b""})


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("registry.kvedge.test/kvedge/kvedge:0.1", "registry.kvedge.test/kvedge/kvedge"),
        ("localhost:5000/kvedge/kvedge@sha256:00", "localhost:5000/kvedge/kvedge"),
        ("localhost:5000/x", "localhost:5000/x"),
    ],
)
def test_the_repository_of_an_image(image, name):
    """A port is no tag."""
    assert repository(image) == name


def _pod(**spec):
    container = {
        "name": "c",
        "image": "registry.kvedge.test/kvedge/kvedge:1",
        **spec.pop("container", {}),
    }
    return {"metadata": {}, "spec": {"containers": [container], **spec}}


@pytest.mark.parametrize(
    ("pod", "why"),
    [
        (_pod(container={"image": "nginx"}), "runs no containers"),
        (_pod(container={"image": "evil/notkvedge/kvedge"}), "runs no containers"),
        (_pod(container={"command": ["sh"]}), "command"),
        (_pod(hostNetwork=True), "hostNetwork"),
        (_pod(initContainers=[{}]), "initContainers"),
        (_pod(volumes=[{"name": "v", "hostPath": {"path": "/"}}]), "hostPath"),
        (_pod(container={"volumeMounts": [{"name": "v", "mountPath": "/etc/x"}]}), "/etc/x"),
        (
            _pod(container={"volumeMounts": [{"name": "v", "mountPath": "/run/../etc"}]}),
            "only below",
        ),
        (_pod(container={"volumeMounts": [{"name": "v", "mountPath": "/run"}]}), "only below"),
    ],
)
def test_pods_that_are_no_local_process_are_refused(pod, why):
    """The reason names the field."""
    assert why in Workloads.refusal(None, pod)


def test_kvedges_own_pod_is_accepted():
    """The connector's pod has a token, secrets and an emptyDir below /var/run."""
    pod = _pod(
        container={
            "command": ["kvedge"],
            "volumeMounts": [
                {"name": "t", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
            ],
        },
        volumes=[{"name": "t", "projected": {"sources": []}}, {"name": "e", "emptyDir": {}}],
    )
    assert Workloads.refusal(None, pod) == ""
