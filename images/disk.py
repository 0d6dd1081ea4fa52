"""From a root file system's tar to a bootable disk: no root rights, no loop devices, no mounts.

The disk boots by BIOS and by UEFI, has a tiny initrd of our own, and is the same, bit for bit,
whenever it is made from the same tar. Debian's initramfs-tools would make 15 MB that take two
seconds longer to boot under emulation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from images import content, gpt, roottree
from kvedge import errors, processes, tools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from images.recipe import Recipe

__all__ = [
    "DiskPlan",
    "as_qcow2",
    "make_initrd",
    "make_qcow2",
    "make_raw",
    "module_order",
    "tree_members",
]

_MIB = 1024 * 1024
_ESP_MIB = 32
_ROOT_MIB = 2 + _ESP_MIB
_QCOW2 = b"QFI\xfb"
_GRUB = Path("/usr/lib/grub")
_BIOS_MODULES = (
    "biosdisk part_gpt ext2 search_fs_uuid configfile normal linux test echo serial minicmd"
)
_EFI_MODULES = (
    "part_gpt ext2 search_fs_uuid configfile normal linux test echo serial minicmd efi_gop "
    "all_video"
)
_EARLY_MENU = """\
search.fs_uuid {uuid} root
set prefix=($root)/boot/grub
configfile $prefix/grub.cfg
"""
# Features are fixed here because /etc/mke2fs.conf differs between machines.
_MKE2FS_CONF = """\
[defaults]
	base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
	features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
	default_mntopts = acl,user_xattr
	enable_periodic_fsck = 0
	blocksize = 4096
	inode_size = 256
	inode_ratio = 16384
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """Everything that a disk is made of beside the tree."""

    recipe: Recipe
    identity: uuid.UUID
    """All GUIDs of the disk derive from it."""
    overlays: dict[str, dict[str, bytes]]

    def guid(self, name: str) -> uuid.UUID:
        """Return a GUID for one part of the disk."""
        return uuid.uuid5(self.identity, name)


def make_raw(
    tree: Path, raw: Path, plan: DiskPlan, *, on_bytes: Callable[[int], None] | None = None
) -> None:
    """Write a raw disk with the tree in it."""
    recipe = plan.recipe
    sectors = recipe.disk_mib * _MIB // gpt.SECTOR
    root_first = _ROOT_MIB * _MIB // gpt.SECTOR
    root_last = (recipe.disk_mib - 1) * _MIB // gpt.SECTOR - 1
    bios = _partition(plan, "bios", gpt.BIOS_BOOT, 2048, 4095)
    esp = _partition(plan, "esp", gpt.ESP, 4096, root_first - 1)
    root = _partition(plan, "root", gpt.ROOT_TYPES[recipe.arch], root_first, root_last)
    root_uuid = str(plan.guid("root file system"))
    work = raw.parent
    with raw.open("wb") as disk:
        disk.truncate(recipe.disk_mib * _MIB)
        gpt.write(disk, sectors=sectors, guid=plan.guid("disk"), partitions=[bios, esp, root])
        if recipe.arch == "amd64":
            boot, core = _grub_bios(work, root_uuid)
            gpt.embed_grub(disk, boot=boot, core=core, at=bios)
    _make_esp(work, raw, plan, esp, root_uuid)
    _make_root(tree, raw, plan, root, root_uuid, on_bytes)


def _partition(plan: DiskPlan, name: str, kind: uuid.UUID, first: int, last: int) -> gpt.Partition:
    return gpt.Partition(name=name, type=kind, guid=plan.guid(name), first=first, last=last)


def _grub_bios(work: Path, root_uuid: str) -> tuple[bytes, bytes]:
    folder = _GRUB / "i386-pc"
    _mkimage(work, "i386-pc", _BIOS_MODULES, root_uuid, work / "core.img")
    return (folder / "boot.img").read_bytes(), _taken(work / "core.img")


def _mkimage(work: Path, platform: str, modules: str, root_uuid: str, out: Path) -> None:
    if not (_GRUB / platform).is_dir():
        package = {"i386-pc": "grub-pc-bin", "x86_64-efi": "grub-efi-amd64-bin"}.get(
            platform, "grub-efi-arm64-bin"
        )
        raise errors.ToolMissing(
            package, f"GRUB's modules for {platform} not found", hint=f"apt-get install {package}"
        )
    early = work / "early.cfg"
    early.write_text(_EARLY_MENU.format(uuid=root_uuid))
    processes.run(
        ["grub-mkimage", "-O", platform, "-d", _GRUB / platform, "-c", early,
         "-p", "/boot/grub", "-o", out, *modules.split()],
        what=f"make GRUB for {platform}",
    )  # fmt: skip
    early.unlink()


def _make_esp(work: Path, raw: Path, plan: DiskPlan, esp: gpt.Partition, root_uuid: str) -> None:
    platform, name = {
        "amd64": ("x86_64-efi", "BOOTX64.EFI"), "arm64": ("arm64-efi", "BOOTAA64.EFI"),
    }[plan.recipe.arch]  # fmt: skip
    loader = work / name
    _mkimage(work, platform, _EFI_MODULES, root_uuid, loader)
    os.utime(loader, (plan.recipe.epoch, plan.recipe.epoch))
    env = _epoch_env(plan)
    volume = f"{plan.guid('esp volume').hex[:8]}"
    processes.run(
        ["mkfs.vfat", "--invariant", "-F", "16", "-n", "ESP", "-i", volume,
         f"--offset={esp.first}", raw, str(_ESP_MIB * 1024)],
        what="make the EFI partition", env=env,
    )  # fmt: skip
    at = f"{raw}@@{esp.first * gpt.SECTOR}"
    quiet = {**env, "MTOOLS_SKIP_CHECK": "1"}
    processes.run(
        ["mmd", "-i", at, "::EFI", "::EFI/BOOT"], what="fill the EFI partition", env=quiet
    )
    processes.run(
        ["mcopy", "-m", "-i", at, loader, f"::EFI/BOOT/{name}"],
        what="fill the EFI partition", env=quiet,
    )  # fmt: skip
    loader.unlink()


def _make_root(
    tree: Path,
    raw: Path,
    plan: DiskPlan,
    root: gpt.Partition,
    root_uuid: str,
    on_bytes: Callable[[int], None] | None,
) -> None:
    members = tree_members(tree, plan, root_uuid)
    config = raw.parent / "mke2fs.conf"
    config.write_text(_MKE2FS_CONF)
    size_kib = (root.last - root.first + 1) * gpt.SECTOR // 1024
    offset = root.first * gpt.SECTOR
    argv = [
        tools.path("mke2fs"), "-q", "-F", "-t", "ext4", "-d", "-", "-U", root_uuid, "-L", "root",
        "-m", "1", "-E",
        f"offset={offset},root_owner=0:0,hash_seed={plan.guid('hash seed')},"
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        raw, f"{size_kib}k",
    ]  # fmt: skip
    log = raw.parent / "mke2fs.log"
    reader, writer = os.pipe()
    with contextlib.suppress(OSError):
        # The most that an unprivileged process may ask for (pipe(7)): the two sides wait less.
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    child = processes.popen(
        argv, env={**_epoch_env(plan), "MKE2FS_CONFIG": str(config)}, log=log, stdin=reader
    )
    os.close(reader)
    try:
        with (
            contextlib.suppress(BrokenPipeError),
            os.fdopen(writer, "wb", 1 << 20) as sink,
            tree.open("rb") as stream,
        ):
            roottree.merge(
                stream,
                sink,
                members=members,
                amend=content.amendments(plan.recipe),
                epoch=plan.recipe.epoch,
                drop=plan.recipe.content.drop,
                on_bytes=on_bytes,
            )
        code = child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise
    if code != 0:
        raise errors.BuildFailed(
            "make the root file system",
            [str(word) for word in argv],
            exit_code=code,
            tail=log.read_text(errors="replace")[-2000:],
        )
    config.unlink()
    log.unlink()


def tree_members(tree: Path, plan: DiskPlan, root_uuid: str) -> list[roottree.Member]:
    """Return everything that is laid over the packages' tree, boot files included."""
    with tree.open("rb") as stream:
        facts = roottree.read(stream, _wanted)
    initrd = make_initrd(_initrd_files(plan.recipe, facts, plan.overlays))
    members = content.members(plan.recipe, plan.overlays, _units(facts))
    return members + content.boot_members(plan.recipe, root_uuid=root_uuid, initrd=initrd)


def _wanted(path: str) -> bool:
    return (
        path == "usr/bin/busybox"
        or (path.startswith("usr/lib/modules/") and path.endswith((".ko", "/modules.dep")))
        or (path.startswith(("usr/lib/systemd/system/", "etc/systemd/system/")))
    )


def _units(facts: dict[str, bytes]) -> dict[str, bytes]:
    return {path: data for path, data in facts.items() if "/systemd/system/" in path}


def _initrd_files(
    recipe: Recipe, facts: dict[str, bytes], overlays: dict[str, dict[str, bytes]]
) -> dict[str, bytes]:
    tables = [path for path in facts if path.endswith("/modules.dep")]
    busybox = facts.get("usr/bin/busybox")
    if len(tables) != 1 or busybox is None:
        raise errors.KvedgeError(
            f"recipe {recipe.name!r} has {len(tables)} kernels and "
            f"{'a' if busybox else 'no'} busybox, one of each is needed",
            hint="name linux-image-… and busybox-static in the recipe's packages",
        )
    top = tables[0].removesuffix("/modules.dep")
    order = module_order(facts[tables[0]].decode(), recipe.boot.initrd_modules)
    init = next((files[_INIT] for files in overlays.values() if _INIT in files), None)
    if init is None:
        raise errors.KvedgeError(f"recipe {recipe.name!r} has no overlay with {_INIT!r}")
    files = {"bin/busybox": busybox, "init": init}
    for path in order:
        files[f"modules/{path.rsplit('/', 1)[1]}"] = facts[f"{top}/{path}"]
    files["modules/order"] = "".join(f"{path.rsplit('/', 1)[1]}\n" for path in order).encode()
    return files


_INIT = "usr/lib/kvedge/initrd-init"


def module_order(modules_dep: str, wanted: Iterable[str]) -> list[str]:
    """Return module paths in loading order, dependencies first (modules.dep(5)).

    A wanted module that is not listed is built into the kernel.
    """
    needs = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {path.rsplit("/", 1)[1].split(".ko")[0].replace("-", "_"): path for path in needs}
    order: list[str] = []
    for name in wanted:
        path = by_name.get(name.replace("-", "_"))
        if path is None:
            continue
        # modules.dep lists what a module needs in reverse loading order.
        order += [one for one in (*reversed(needs[path]), path) if one not in order]
    return order


def make_initrd(files: dict[str, bytes]) -> bytes:
    """Return an uncompressed cpio archive ("newc", kernel's buffer-format.rst); all executable."""
    folders = {"dev", "proc", "root", "sys"}
    for path in files:
        parent = path.rpartition("/")[0]
        if parent:
            folders.add(parent)
    out = bytearray()
    for number, path in enumerate(sorted(folders), 1):
        out += _cpio(number, path, 0o40755, b"")
    for number, (path, data) in enumerate(sorted(files.items()), 1000):
        out += _cpio(number, path, 0o100755, data)
    return bytes(out + _cpio(0, "TRAILER!!!", 0, b""))


def _cpio(inode: int, path: str, mode: int, data: bytes) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if mode & 0o40000 else 1
    numbers = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(f"{number:08x}".encode() for number in numbers) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def make_qcow2(raw: Path, out: Path, *, threads: int = 4) -> None:
    """Compress a raw disk into a qcow2 file, deterministically."""
    # -W would let blocks land in any order.
    processes.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-m", str(threads),
         "-o", "compression_type=zstd", raw, out],
        what="compress the disk",
    )  # fmt: skip


def as_qcow2(image: Path, out: Path) -> None:
    """Make a qcow2 file of a disk that is one already (it is moved) or is raw (it goes)."""
    with image.open("rb") as file:
        if file.read(4) == _QCOW2:
            image.rename(out)
            return
    make_qcow2(image, out)
    image.unlink()


def _epoch_env(plan: DiskPlan) -> dict[str, str]:
    return {"SOURCE_DATE_EPOCH": str(plan.recipe.epoch), "TZ": "UTC", "LC_ALL": "C.UTF-8"}


def _taken(path: Path) -> bytes:
    data = path.read_bytes()
    path.unlink()
    return data
