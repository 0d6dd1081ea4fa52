"""First-boot data: one document, stable, and refused when it is wrong."""

import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import cloudinit
from kvedge import errors

FULL = cloudinit.UserData(
    hostname="edge-1",
    users=(
        cloudinit.User(
            name="ops", authorized_keys=("ssh-ed25519 AAAA ops",), groups=("docker",), sudo=True
        ),
    ),
    files=(cloudinit.File(path="/etc/motd", content="two\nlines\n", mode="0600"),),
    packages=("tcpdump",),
    commands=(("systemctl", "restart", "x"),),
    ntp_servers=("time.example",),
    timezone="Europe/Paris",
    https_proxy="http://proxy:3128",
    no_proxy="10.0.0.0/8",
    extra={"runcmd": [["true"]], "swap": {"filename": "/swap", "size": 1024}},
)


def test_matches_the_golden_file(golden):
    """A document with everything is printed as it was reviewed."""
    golden("full.cloud-config.yaml", cloudinit.render(FULL))


def test_network_matches_the_golden_file(golden):
    """Fixed addresses and DHCP are printed as they were reviewed."""
    fixed = cloudinit.NetworkData(
        mac="02:00:00:00:00:01",
        addresses=("192.0.2.7/24",),
        gateway="192.0.2.1",
        nameservers=("192.0.2.53",),
    )
    golden("fixed.network.yaml", cloudinit.render_network(fixed))
    golden("dhcp.network.yaml", cloudinit.render_network(cloudinit.NetworkData(mac=fixed.mac)))


def test_extra_lists_are_appended():
    """A fragment's list follows the typed one; nothing is dropped as cloud-init's merging does."""
    document = yaml.safe_load(cloudinit.render(FULL))
    assert document["runcmd"][-2:] == [["systemctl", "restart", "x"], ["true"]]


def test_daemons_that_run_already_get_the_proxy():
    """Docker starts before cloud-init writes its drop-in, so the first boot restarts it."""
    document = yaml.safe_load(cloudinit.render(FULL))
    assert document["runcmd"][0] == ["systemctl", "daemon-reload"]
    assert {"try-restart", "docker.service"} <= set(document["runcmd"][1])
    plain = yaml.safe_load(cloudinit.render(dataclasses.replace(FULL, https_proxy="", no_proxy="")))
    assert plain["runcmd"][0] == ["systemctl", "restart", "x"]


def test_conflicts_are_refused():
    """A fragment that says otherwise than a typed field is an error, not a silent winner."""
    data = dataclasses.replace(FULL, extra={"hostname": "other"})
    with pytest.raises(errors.SpecError, match=r"extra\.hostname"):
        cloudinit.render(data)


def test_tells_all_mistakes_at_once():
    """Every wrong field is named."""
    data = cloudinit.UserData(
        hostname="Not A Label",
        users=(cloudinit.User(name="1x", authorized_keys=("nokey",)),),
        files=(
            cloudinit.File(path="relative", content=""),
            cloudinit.File(path="/a", content="", mode="rw"),
            cloudinit.File(path="/a", content=""),
        ),
    )
    with pytest.raises(errors.SpecError) as caught:
        cloudinit.render(data)
    assert [problem.path for problem in caught.value.problems] == [
        "hostname", "users[0].name", "users[0].authorized_keys[0]", "files[0].path",
        "files[1].mode", "files[2].path",
    ]  # fmt: skip


TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc"), whitelist_characters="\n\t"))


@given(content=TEXT, name=st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True))
def test_text_survives(content: str, name: str):
    """Any file content and host name comes out of YAML as it went in, and rendering is stable."""
    data = cloudinit.UserData(hostname=name, files=(cloudinit.File(path="/f", content=content),))
    text = cloudinit.render(data)
    assert text == cloudinit.render(data)
    document = yaml.safe_load(text)
    assert document["hostname"] == name
    assert document["write_files"][0]["content"] == content


@pytest.mark.parametrize(
    "data",
    [
        cloudinit.NetworkData(mac="nonsense"),
        cloudinit.NetworkData(mac="02:00:00:00:00:01", gateway="192.0.2.1"),
    ],
)
def test_bad_networks_are_refused(data):
    """A wrong address and a gateway without addresses are told."""
    with pytest.raises(errors.SpecError):
        cloudinit.render_network(data)


def test_parses_what_people_write():
    """A YAML file gives the same data as the types."""
    text = """
        hostname: edge-1
        users: [{name: ops, authorized_keys: [ssh-ed25519 AAAA], groups: [docker], sudo: true}]
        files: [{path: /a, content: b, mode: "0600"}]
        commands: [[systemctl, restart, x]]
        extra: {swap: {filename: /swap}}
    """
    assert cloudinit.parse_user_data(text) == cloudinit.UserData(
        hostname="edge-1",
        users=(
            cloudinit.User(
                name="ops", authorized_keys=("ssh-ed25519 AAAA",), groups=("docker",), sudo=True
            ),
        ),
        files=(cloudinit.File(path="/a", content="b", mode="0600"),),
        commands=(("systemctl", "restart", "x"),),
        extra={"swap": {"filename": "/swap"}},
    )


def test_parsing_tells_all_mistakes_at_once():
    """Unknown, missing and mistyped fields are told together."""
    text = "users: [{nam: x, sudo: 1}]\nfiles: {}\ncommands: [ls]\npackages: [1]\ncolour: red\n"
    with pytest.raises(errors.SpecError) as caught:
        cloudinit.parse_user_data(text)
    assert {problem.path for problem in caught.value.problems} == {
        "users[0].nam", "users[0].sudo", "users[0].name", "files", "commands", "packages",
        "colour", "hostname",
    }  # fmt: skip


def test_fragments_are_merged_key_by_key():
    """Tables and lists of two fragments are joined; what contradicts is told with its path."""
    first = {"apt": {"http_proxy": "http://a"}, "runcmd": ["a"]}
    second = {"apt": {"https_proxy": "http://b"}, "runcmd": ["b"], "timezone": "UTC"}
    assert cloudinit.merge(first, second) == {
        "apt": {"http_proxy": "http://a", "https_proxy": "http://b"},
        "runcmd": ["a", "b"],
        "timezone": "UTC",
    }
    with pytest.raises(errors.SpecError) as caught:
        cloudinit.merge(first, {"apt": {"http_proxy": "http://c"}})
    assert [one.path for one in caught.value.problems] == ["fragment.apt.http_proxy"]
