"""`kvedge node run`: what it takes from Virtual Kubelet's command line, and what it says."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from kvedge import errors
from kvedge.cli.node import run

KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: c, context: {cluster: c}}]
current-context: c
"""


@pytest.fixture
def told(tmp_path):
    """Return what runs the command up to its first error and gives that."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)

    def call(*words, **env):
        done = CliRunner().invoke(run, [*words, "--kubeconfig", str(kubeconfig)], env=env)
        assert done.exception is not None
        return done.exception

    return call


def test_flags_of_go_are_taken(told):
    """A command line of Virtual Kubelet gets as far as the provider's own settings."""
    words = ["--nodename", "n", "--provider", "web", "--os", "Linux", "--disable-taint"]
    words += ["--pod-sync-workers", "10", "--full-resync-period=1m", "--startup-timeout", "10s"]
    words += ["--metrics-addr", ":10255", "--enable-node-lease", "--klog.v=2", "--log-level=warn"]
    words += ["--stream-idle-timeout=4h", "--trace-sample-rate", "0", "--taint", "key"]
    error = told(*words)
    assert isinstance(error, errors.KvedgeError)
    assert error.message == "provider 'web' has no endpoint"
    assert "WEB_ENDPOINT_URL" in error.hint


def test_unreachable_broker_is_named(told):
    """The endpoint comes from Virtual Kubelet's own variable, and is named when it is silent."""
    error = told("--provider", "web", WEB_ENDPOINT_URL="http://127.0.0.1:1")
    assert isinstance(error, errors.RemoteError)
    assert "http://127.0.0.1:1/capacity" in str(error)


def test_iotedge_is_the_connector(told):
    """The provider takes the common options here and its own from variables."""
    error = told("--provider", "iotedge", "--nodename", "n", "--pod-sync-workers", "10")
    assert isinstance(error, errors.KvedgeError)
    assert (error.message, "HUB_CONNECTION_STRING" in error.hint) == ("no hub is given", True)
    text = "HostName=127.0.0.1:1;SharedAccessKeyName=o;SharedAccessKey=c2VjcmV0"
    error = told("--provider", "iotedge", HUB_CONNECTION_STRING=text)
    assert isinstance(error, errors.RemoteError)
    assert "kube-system" in str(error), "it looks for the cluster's id, as the connector does"
    assert told("--provider", "iotedge", "--latency", "1").code == 2


def test_shards_are_checked(told):
    """A shard beyond the last is told with an example."""
    error = told("--shard", "3/3")
    assert isinstance(error, errors.KvedgeError)
    assert (error.message, error.hint) == (
        "--shard '3/3' is not I/N", "the first of three replicas is 0/3",
    )  # fmt: skip
