"""Plain kubeconfigs are read without the official client."""

import base64
import json

import pytest

from kvedge import errors, kube


def write(tmp_path, **changes):
    """Write a kubeconfig with one context."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1/"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "n"}}],
        "current-context": "x",
        **changes,
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(document))
    return path


def test_server_token_and_namespace_are_taken_from_the_context(tmp_path):
    """The current context decides."""
    config = kube.load_config(write(tmp_path))
    assert (config.server, config.token(), config.namespace) == ("http://127.0.0.1:1", "t", "n")


def test_token_file_is_relative_to_the_kubeconfig(tmp_path):
    """client-go resolves paths against the file's folder, and so do we."""
    (tmp_path / "token").write_text("from-file\n")
    path = write(tmp_path, users=[{"name": "u", "user": {"tokenFile": "token"}}])
    assert kube.load_config(path).token() == "from-file"


def test_missing_context_names_those_there_are(tmp_path):
    """The error lists the contexts to choose from."""
    with pytest.raises(errors.KvedgeError, match="no context 'y'; it has 'x'"):
        kube.load_config(write(tmp_path), "y")


def test_missing_file_names_the_way_out(tmp_path):
    """The hint names --kubeconfig."""
    with pytest.raises(errors.KvedgeError, match="No such file") as caught:
        kube.load_config(tmp_path / "nowhere")
    assert "--kubeconfig" in caught.value.hint


def test_broken_certificate_is_an_error_of_the_file(tmp_path):
    """Bad CA data is told with the context's name, not as a traceback."""
    cluster = {
        "server": "https://127.0.0.1:1",
        "certificate-authority-data": base64.b64encode(b"junk").decode(),
    }
    path = write(tmp_path, clusters=[{"name": "c", "cluster": cluster}])
    with pytest.raises(errors.KvedgeError, match="certificates of context 'x'"):
        kube.load_config(path)
