"""What is written for OpenSSH, and how a guest's address and names are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvedge import access, errors
from kvedge.access import openssh, targets

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtTXCjXpvyNRE3uQJ5Q3GTcPXJfPJrTwqQ9jM2d6aBq me@here"


def guest(**more):
    """Return a guest with everything that a Host block needs."""
    target = access.Target(name="edge1", namespace="plant")
    given = {"target": target, "environment": "dev", "host_key": KEY, "address": "10.0.0.1:2222"}
    return access.Guest(**{**given, **more})


def settings(**more):
    """Return settings with a folder that has a blank and a percent sign."""
    return openssh.Settings(folder=Path("/home/me/a b%c"), **more)


def test_both_files_pin_the_same_alias():
    """known_hosts holds the key under virtctl's name, without a comment, and the block uses it."""
    text = openssh.config_text([guest()], settings())
    assert openssh.known_hosts_text([guest()]) == f"vm.edge1.plant {' '.join(KEY.split()[:2])}\n"
    assert "Host edge1.dev\n" in text
    assert "  HostKeyAlias vm.edge1.plant\n" in text
    assert "  StrictHostKeyChecking yes\n" in text
    assert '  UserKnownHostsFile "/home/me/a b%%c/known_hosts"\n' in text


def test_ways_exclude_each_other():
    """Through the API there is a ProxyCommand, at the address a host and port, never both."""
    kubeconfig = Path("/k 1")
    through_api = openssh.config_text([guest()], settings(kubeconfig=kubeconfig))
    assert "ProxyCommand" in through_api
    assert "--kubeconfig '/k 1' vmi/edge1/plant 22" in through_api
    assert "HostName" not in through_api
    at_address = openssh.config_text([guest()], settings(through_address=True))
    assert "  HostName 10.0.0.1\n  Port 2222\n" in at_address
    assert "ProxyCommand" not in at_address


@pytest.mark.parametrize(
    ("broken", "way", "words"),
    [({"host_key": ""}, False, "kvedge.io/host-key"), ({"address": ""}, True, "LoadBalancer")],
)
def test_nothing_is_written_without_identity_or_address(broken, way, words):
    """No block is made that would have to trust at first use or lead nowhere."""
    with pytest.raises(errors.KvedgeError, match=words):
        openssh.config_text([guest(**broken)], settings(through_address=way))


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("10.0.0.1:2222", ("10.0.0.1", 2222)),
        ("[fd00::1]:22", ("fd00::1", 22)),
        ("edge.example:22", ("edge.example", 22)),
    ],
)
def test_addresses_are_read(address, place):
    """Ports and IPv6 brackets are understood."""
    assert guest(address=address).service() == place


def vm(labels):
    """Return a VM whose guests carry labels."""
    return {
        "metadata": {"name": "edge1", "namespace": "plant"},
        "spec": {"template": {"metadata": {"labels": labels}}},
    }


def service(**more):
    """Return a LoadBalancer Service with an address."""
    given = {
        "metadata": {"name": "s", "namespace": "plant"},
        "spec": {
            "type": "LoadBalancer",
            "selector": {"kvedge.io/vm": "edge1"},
            "ports": [{"port": 80}, {"port": 2022, "targetPort": 22}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.7"}]}},
    }
    return {**given, **more}


def test_the_services_ssh_port_is_found():
    """The port that leads to 22 counts, and only a Service that selects the guest."""
    mine = vm({"kvedge.io/vm": "edge1", "more": "x"})
    assert access.service_address(mine, [service()]) == "10.0.0.7:2022"
    assert access.service_address(vm({"kvedge.io/vm": "edge2"}), [service()]) == ""
    assert access.service_address(mine, [service(status={})]) == ""
    other = {"metadata": {"name": "s", "namespace": "elsewhere"}}
    assert access.service_address(mine, [service(**other)]) == ""
    web = {**service()["spec"], "ports": [{"port": 80}]}
    assert access.service_address(mine, [service(spec=web), service()]) == "10.0.0.7:2022"


@pytest.mark.parametrize(
    ("published", "place"),
    [("80=127.0.0.1:1,2022=127.0.0.1:2", "127.0.0.1:2"), ("80=127.0.0.1:1", "10.0.0.7:2022")],
)
def test_the_place_where_a_local_site_publishes_ssh_comes_first(published, place):
    """Of several published ports, ssh's counts."""
    metadata = {
        "name": "s", "namespace": "plant", "annotations": {"kvedge.io/published": published},
    }  # fmt: skip
    mine = vm({"kvedge.io/vm": "edge1"})
    assert access.service_address(mine, [service(metadata=metadata)]) == place


@given(st.text(alphabet="abc.:/@-_ ", min_size=1, max_size=12))
def test_local_paths_are_never_taken_for_vms(path):
    """Whatever follows `./` or `/` is a local path; a name with a colon is a VM's."""
    assert targets.parse_remote_path(f"./{path}") is None
    assert targets.parse_remote_path(f"/{path}") is None
    assert targets.parse_remote_path(f"edge1:{path}") == ("edge1", path)
