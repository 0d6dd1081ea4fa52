"""The static scan finds what must not be in an image."""

import io

from images import roottree, scanning, trees

GOOD = [
    roottree.file("etc/machine-id", b""),
    roottree.file("etc/fstab", "x"),
    roottree.file("boot/grub/grub.cfg", "x"),
    roottree.file("etc/ssh/sshd_config.d/10-kvedge.conf", "x"),
    roottree.file("etc/shadow", "root:*:1:0:99999:7:::\n"),
    roottree.file("usr/bin/sudo", "x", mode=0o4755),
]


def _tree(*members):
    out = io.BytesIO()
    everything = {member.path: member for member in (*GOOD, *members)}
    roottree.merge(io.BytesIO(), out, members=everything.values(), amend={}, epoch=0)
    return trees.TarTree(out)


def test_a_clean_tree_has_no_problems():
    """What belongs there is not reported."""
    assert scanning.scan(_tree()) == []


def test_finds_each_kind():
    """Host keys, machine id, authorized keys, passwords, secrets and set-user-id files are found."""
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\n" + "A" * 60 + "\n"
    problems = scanning.scan(
        _tree(
            roottree.file("etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 A"),
            roottree.file("etc/machine-id", "abc\n"),
            roottree.file("home/edge/.ssh/authorized_keys", "ssh-ed25519 A"),
            roottree.file("etc/shadow", "root:$y$abc:1:0:99999:7:::\n"),
            roottree.file("etc/some.key", key),
            roottree.file("etc/aziot/config.toml", 'x = "SharedAccessKey=' + "A" * 44 + '"'),
            roottree.file("usr/bin/bad", "x", mode=0o4755),
        )
    )
    assert {problem.path for problem in problems} == {
        "/etc/ssh/ssh_host_ed25519_key.pub",
        "/etc/machine-id",
        "/home/edge/.ssh/authorized_keys",
        "/etc/shadow",
        "/etc/some.key",
        "/etc/aziot/config.toml",
        "/usr/bin/bad",
    }


def test_reads_installed_packages():
    """Packages come from dpkg's status; removed ones are left out."""
    status = (
        "Package: a\nStatus: install ok installed\nInstalled-Size: 7\nArchitecture: all\n"
        "Source: src (2)\nVersion: 1\nDescription: x\n Package: not this\n\n"
        "Package: b\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\n"
    )
    found = scanning.packages(_tree(roottree.file("var/lib/dpkg/status", status)))
    assert [(one.name, one.source, one.installed_kib) for one in found] == [("a", "src (2)", 7)]
