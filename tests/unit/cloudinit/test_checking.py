"""Known traps are found before a machine meets them."""

import cloudinit

SCHEMA = {
    "$schema": "http://json-schema.org/draft-04/schema#",
    "type": "object",
    "properties": {"runcmd": {"type": "array", "items": {"type": ["array", "string"]}}},
    "additionalProperties": False,
}


def _paths(problems):
    return [problem.path for problem in problems]


def test_a_missing_first_line_is_found():
    """Without #cloud-config the guest ignores everything in silence."""
    (problem,) = cloudinit.lint("hostname: x\n")
    assert "#cloud-config" in problem.message
    assert cloudinit.validate("hostname: x\n", SCHEMA) == [problem]


def test_the_guests_schema_decides():
    """Mistakes are told with their path."""
    text = "#cloud-config\nruncmd: [[a], 7]\nnonsense: 1\n"
    assert _paths(cloudinit.validate(text, SCHEMA)) == ["runcmd[1]", "userdata"]
    assert cloudinit.validate("#cloud-config\nruncmd: [[a]]\n", SCHEMA) == []


def test_traps_are_found():
    """Formatting kept disks, shadowing the image's user, secrets and oversize inline data."""
    text = (
        "#cloud-config\nfs_setup: [{device: /dev/vdb, partition: none}]\n"
        "users: [default, {name: edge}]\nssh_keys: {}\n#" + "x" * 2048
    )
    assert _paths(cloudinit.lint(text, inline=True)) == [
        "userdata", "fs_setup[0].partition", "users[1]", "ssh_keys",
    ]  # fmt: skip


def test_the_time_zone_is_found():
    """What the guest will be asked for, to be looked up in the very image."""
    assert cloudinit.time_zone("#cloud-config\ntimezone: Europe/Paris\n") == "Europe/Paris"
    assert cloudinit.time_zone("#cloud-config\n{}\n") == ""
    assert cloudinit.time_zone("nonsense") == ""


def test_broken_yaml_is_told():
    """Text that is no YAML is one problem."""
    assert _paths(cloudinit.lint("#cloud-config\na: [")) == ["userdata"]


def test_clean_data_passes():
    """What render() prints has no traps."""
    assert cloudinit.lint(cloudinit.render(cloudinit.UserData(hostname="a")), inline=True) == []


def test_unknown_keys_are_told_where_the_schema_is_silent():
    """An older guest's schema allows any key; what no part of it describes is told all the same."""
    parts = {"allOf": [{"$ref": "#/$defs/a"}, {"properties": {"hostname": {}}}]}
    schema = {**parts, "$defs": {"a": {"type": "object", "properties": {"runcmd": {}}}}}
    text = "#cloud-config\nhostname: a\nruncmd: []\nruncdm: []\n"
    assert _paths(cloudinit.validate(text, schema)) == ["runcdm"]
