"""What is laid over the packages: overlay files, accounts, unit links, boot files. Pure.

Overlay files that begin with `#!` are executable, all others are 0644; all belong to root.
"""

from __future__ import annotations

import importlib.resources
import posixpath
from typing import TYPE_CHECKING

from images import roottree
from images.roottree import KEEP
from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from importlib.resources.abc import Traversable

    from images.recipe import Recipe, Source, User

__all__ = [
    "amendments",
    "apt_sources",
    "boot_members",
    "key_path",
    "members",
    "overlay_files",
]

_UNIT_FOLDERS = ("etc/systemd/system", "usr/lib/systemd/system")
_CONFIG = "etc/systemd/system"
_GRUB_MENU = """\
set timeout=0
serial --unit=0 --speed=115200
menuentry 'Linux' {{
	linux /vmlinuz root=UUID={uuid} {cmdline}
	initrd /initrd.img
}}
"""
_FSTAB = """\
UUID={uuid} / ext4 defaults,noatime,errors=remount-ro,x-systemd.growfs 0 1
"""
_DATA = "/var/lib/kvedge/data"
_BINDS = (
    ("aziot-state", "/var/lib/aziot"),
    ("aziot-config", "/etc/aziot"),
    ("docker", "/var/lib/docker"),
    ("storage", "/iotedge/storage"),
)


def overlay_files(name: str, recipe: Recipe | None = None) -> dict[str, bytes]:
    """Return the files of an overlay by their path in the image.

    Args:
        name: of a shipped one, or a path that begins with `./` beside the recipe.
        recipe: whose overlay it is; only needed for paths.

    Raises:
        SpecError: there is no such folder.
    """
    shipped = importlib.resources.files("images") / "overlays" / name
    top = recipe.place(name) if recipe and name.startswith("./") else shipped
    if not top.is_dir():
        problem = errors.Problem(
            path="content.overlays", message=f"{name!r}: no folder {str(top)!r}"
        )
        raise errors.SpecError("recipe", [problem])
    return dict(sorted(_walk(top, "")))


def key_path(source: Source) -> str:
    """Return where the image keeps the key of a further apt source, without leading slash."""
    return f"usr/share/keyrings/kvedge-{source.name}.asc"


def apt_sources(recipe: Recipe) -> str:
    """Return the image's own apt sources (sources.list(5), deb822 style).

    They are the recipe's mirrors, whatever the build took its packages from.
    """
    apt = recipe.apt
    safe = [suite for suite in apt.suites if suite.endswith("-security")]
    plain = [suite for suite in apt.suites if suite not in safe]
    ports = apt.ports_mirror if recipe.arch != "amd64" else ""
    groups = [(ports or apt.mirror, plain), (ports or apt.security_mirror, safe)]
    if groups[0][0] == groups[1][0]:
        groups = [(groups[0][0], [*apt.suites])]
    stanzas = [
        _stanza(uri, suites, apt.components, apt.keyring) for uri, suites in groups if suites
    ]
    stanzas += [
        _stanza(one.uri, [one.suite], one.components, f"/{key_path(one)}", arch=recipe.arch)
        for one in recipe.sources
    ]
    return "\n".join(stanzas)


def _stanza(
    uri: str, suites: list[str], components: tuple[str, ...], key: str, *, arch: str = ""
) -> str:
    lines = [
        "Types: deb",
        f"URIs: {uri}",
        f"Suites: {' '.join(suites)}",
        f"Components: {' '.join(components)}",
        *([f"Architectures: {arch}"] if arch else []),
        f"Signed-By: {key}",
    ]
    return "\n".join(lines) + "\n"


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for one in folder.iterdir():
        path = f"{prefix}{one.name}"
        if one.is_dir():
            yield from _walk(one, f"{path}/")
        else:
            yield path, one.read_bytes()


def members(
    recipe: Recipe, overlays: Mapping[str, Mapping[str, bytes]], units: Mapping[str, bytes]
) -> list[roottree.Member]:
    """Return everything that is laid over the tree, beside the boot files.

    Args:
        recipe: what is wanted.
        overlays: files of the recipe's overlays by overlay name.
        units: unit files that are in the tree, by path, to find where they want to be enabled.
    """
    found: dict[str, roottree.Member] = {}

    def add(*new: roottree.Member) -> None:
        found.update((member.path, member) for member in new)

    for name in recipe.content.overlays:
        for path, data in overlays[name].items():
            add(roottree.file(path, data, mode=0o755 if data.startswith(b"#!") else 0o644))
    add(
        roottree.file("etc/hostname", f"{recipe.content.hostname}\n"),
        roottree.file(
            "etc/hosts",
            f"127.0.0.1 localhost\n127.0.1.1 {recipe.content.hostname}\n"
            "::1 localhost ip6-localhost ip6-loopback\n",
        ),
        roottree.symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        roottree.file("etc/machine-id", b"", mode=0o444),
        # As new as /usr, so ConditionNeedsUpdate= finds nothing to do (systemd.unit(5)).
        roottree.file("etc/.updated", b""),
        roottree.file("var/.updated", b""),
        roottree.file("etc/apt/sources.list.d/kvedge.sources", apt_sources(recipe)),
        roottree.file(
            "usr/lib/kvedge/initrd-modules", "\n".join(recipe.boot.initrd_modules) + "\n"
        ),
        *(roottree.symlink(f"{_CONFIG}/{unit}", "/dev/null") for unit in recipe.content.mask),
    )
    known = {**units, **{path: member.data for path, member in found.items()}}
    for unit in recipe.content.enable:
        add(*_enabled(unit, known))
    for user in recipe.users:
        add(*_user_files(user))
    # An existing folder keeps the owner and mode that its package gave it.
    for _, target in (("", _DATA), *_BINDS):
        add(roottree.directory(target.lstrip("/"), mode=KEEP))
    return list(found.values())


def _enabled(unit: str, known: Mapping[str, bytes]) -> Iterator[roottree.Member]:
    template = unit
    if "@" in unit:
        template = unit.split("@", 1)[0] + "@." + unit.rsplit(".", 1)[1]
    for folder in _UNIT_FOLDERS:
        if (text := known.get(f"{folder}/{template}")) is None:
            continue
        for line in text.decode(errors="replace").splitlines():
            key, _, value = line.partition("=")
            kinds = {"WantedBy": "wants", "RequiredBy": "requires"}
            if key in kinds:
                for target in value.split():
                    yield roottree.symlink(
                        f"{_CONFIG}/{target}.{kinds[key]}/{unit}", f"/{folder}/{template}"
                    )
            elif key == "Alias":
                for alias in value.split():
                    yield roottree.symlink(f"{_CONFIG}/{alias}", f"/{folder}/{template}")
            elif key == "Also":
                for other in value.split():
                    if other != unit:
                        yield from _enabled(other, known)
        return


def _user_files(user: User) -> Iterator[roottree.Member]:
    home = f"home/{user.name}"
    yield roottree.directory(home, mode=0o750, uid=user.uid, gid=user.uid)
    yield roottree.directory(f"{home}/.ssh", mode=0o700, uid=user.uid, gid=user.uid)
    if user.sudo:
        rule = f"{user.name} ALL=(ALL:ALL) NOPASSWD: ALL\n"
        yield roottree.file(f"etc/sudoers.d/90-{user.name}", rule, mode=0o440)


def amendments(recipe: Recipe) -> dict[str, Callable[[bytes], bytes]]:
    """Return how single files of the tree are rewritten, by path."""
    users = recipe.users

    def accounts(old: bytes) -> bytes:
        lines = "".join(
            f"{u.name}:x:{u.uid}:{u.uid}:{u.name}:/home/{u.name}:/bin/bash\n" for u in users
        )
        return old + lines.encode()

    def shadow(old: bytes) -> bytes:
        # "*" forbids passwords but, unlike "!", not a login by key.
        days = recipe.epoch // 86400
        return old + "".join(f"{u.name}:*:{days}:0:99999:7:::\n" for u in users).encode()

    def groups(old: bytes) -> bytes:
        return _joined(old, users) + "".join(f"{u.name}:x:{u.uid}:\n" for u in users).encode()

    def group_shadow(old: bytes) -> bytes:
        return _joined(old, users) + "".join(f"{u.name}:!::\n" for u in users).encode()

    return {
        "etc/passwd": accounts,
        "etc/shadow": shadow,
        "etc/group": groups,
        "etc/gshadow": group_shadow,
    }


def _joined(text: bytes, users: tuple[User, ...]) -> bytes:
    """Return group(5) or gshadow(5) with users added; members are the last field."""
    lines = []
    for line in text.decode().splitlines():
        name, _, _ = line.partition(":")
        wanted = [u.name for u in users if name in u.groups]
        head, _, last = line.rpartition(":")
        present = [one for one in last.split(",") if one]
        lines.append(f"{head}:{','.join(present + [w for w in wanted if w not in present])}\n")
    return "".join(lines).encode()


def boot_members(recipe: Recipe, *, root_uuid: str, initrd: bytes) -> list[roottree.Member]:
    """Return the files that tie a tree to its disk: fstab, boot menu, initrd."""
    data = (
        f"/dev/disk/by-id/virtio-edge-data {_DATA} ext4 noatime,nofail,x-systemd.makefs,"
        "x-systemd.growfs,x-systemd.device-timeout=300s 0 2\n"
    )
    for name, target in _BINDS:
        data += (
            f"{posixpath.join(_DATA, name)} {target} none bind,nofail,"
            "x-systemd.requires=kvedge-data.service 0 0\n"
        )
    menu = _GRUB_MENU.format(uuid=root_uuid, cmdline=recipe.boot.cmdline)
    return [
        roottree.file("etc/fstab", _FSTAB.format(uuid=root_uuid)),
        roottree.file("etc/kvedge/fstab.edge-data", data),
        roottree.file("boot/grub/grub.cfg", menu),
        roottree.file("boot/initrd.img-kvedge", initrd),
        roottree.symlink("initrd.img", "boot/initrd.img-kvedge"),
        # Debian's kernel package keeps /vmlinuz, Ubuntu's /boot/vmlinuz (linux-update-symlinks).
        *([roottree.symlink("vmlinuz", "boot/vmlinuz")] if recipe.os == "ubuntu" else []),
    ]
