"""Package layers: mmdebstrap makes a tree of packages as a tar, without root rights.

Its hooks are in `images/hooks`; trees are made in memory where there is enough of it.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from images import content, locking, sources
from kvedge import processes, tools

if TYPE_CHECKING:
    from collections.abc import Iterator

    from images.plan import Plan, Step
    from images.recipe import Recipe
    from kvedge.progress import Progress

__all__ = ["HOOKS", "local_package", "make_layer", "make_root", "work_folder", "workspace"]

HOOKS = ("container.sh", "customize.sh", "essential.sh", "layer.sh", "unpack.sh")
_WORKSPACE = "kvedge-build-"
_MERGED_USR = Path("/usr/share/mmdebstrap/hooks/merged-usr")
_TMPFS = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a folder of our own in it
_TMPFS_NEEDS = 3 << 30


def local_package(name: str, folder: Path, epoch: int) -> Path:
    """Make a package that kvedge brings itself and return its file."""
    from kvedge.edgesim import packing

    makers = {"edgesim": packing.build_deb}
    return makers[name](folder, source_date_epoch=epoch)


def make_root(plan: Plan, step: Step, progress: Progress, folder: Path) -> dict[str, Any]:
    """Make the first layer into `root.tar` of a folder.

    Raises:
        BuildFailed: mmdebstrap failed.
    """
    assert step.layer is not None
    recipe = plan.recipe
    whole = recipe.kind == "disk"
    with workspace() as work:
        hooks = work / "hooks"
        # The variant `apt` would unpack apt twice; here it comes with the other packages.
        names = ["apt", *step.layer.packages] if whole else step.layer.packages
        argv = [f"--include={','.join(names)}"]
        if whole:
            argv.append(f"--essential-hook={hooks / 'essential.sh'}")
            argv.append(f"--customize-hook={hooks / 'customize.sh'}")
        else:
            # The variant that unpacks without installing has no later hook.
            argv.append(f"--extract-hook={hooks / 'container.sh'}")
        if _MERGED_USR.is_dir():
            # Its other hook is for trees that do not name the package themselves.
            first = f"--setup-hook={_MERGED_USR / 'setup00.sh'}"
            argv.append(first if "usr-is-merged" in names else f"--hook-dir={_MERGED_USR}")
        variant = "essential" if whole else "extract"
        _mmdebstrap(plan, step, variant, argv, folder / "root.tar", work, progress, env={})
    return {"layer": step.name}


def make_layer(
    plan: Plan, step: Step, below: Path, progress: Progress, folder: Path
) -> dict[str, Any]:
    """Make a further layer upon the tar of the one below, into `root.tar` of a folder.

    Raises:
        BuildFailed: mmdebstrap failed.
    """
    assert step.layer is not None
    with workspace() as work:
        hooks = work / "hooks"
        debs = [local_package(n, hooks, plan.recipe.epoch) for n in step.layer.local_packages]
        # Copied, because mmdebstrap's mapped users may not look into the recipe's folder.
        debs += [Path(shutil.copy(plan.recipe.place(path), hooks)) for path in step.layer.debs]
        argv = [
            "--skip=check/empty",
            f"--setup-hook={hooks / 'unpack.sh'}",
            f"--customize-hook={hooks / 'layer.sh'}",
            f"--customize-hook={hooks / 'customize.sh'}",
        ]
        env = {
            "KVEDGE_BASE": str(below),
            "KVEDGE_PACKAGES": " ".join(step.layer.packages),
            "KVEDGE_DEBS": " ".join(str(deb) for deb in debs),
            "KVEDGE_STAMP": "tmp/.kvedge-stamp",
        }
        _mmdebstrap(plan, step, "custom", argv, folder / "root.tar", work, progress, env=env)
    return {"layer": step.name}


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Make a folder for one build step, in memory if that has room, with the hooks in it.

    mmdebstrap's mapped users read the hooks there. What a killed build left is taken away first:
    its folder's name holds the process and when that started.
    """
    top = work_folder()
    for stale in top.glob(f"{_WORKSPACE}*"):
        pid, _, started = stale.name.removeprefix(_WORKSPACE).rpartition(".")[0].partition("-")
        if pid.isdigit() and str(processes.start_time(int(pid))) != started:
            _remove(stale)
    mine = os.getpid()
    prefix = f"{_WORKSPACE}{mine}-{processes.start_time(mine)}."
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=top))
    try:
        # Mapped users of mmdebstrap make their tree in it.
        folder.chmod(0o1777)
        hooks = folder / "hooks"
        hooks.mkdir(mode=0o755)
        source = importlib.resources.files("images") / "hooks"
        for name in HOOKS:
            (hooks / name).write_bytes((source / name).read_bytes())
            (hooks / name).chmod(0o755)
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists() and os.geteuid() != 0:
        # A killed mmdebstrap's tree belongs to the mapped users.
        processes.run(
            ["mmdebstrap", "--unshare-helper", "rm", "-rf", folder],
            what="take away what a killed build left", check=False,
        )  # fmt: skip


def work_folder() -> Path:
    """Return a folder for trees: memory where there is enough, which halves the time."""
    try:
        stat = os.statvfs(_TMPFS)
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return Path(tempfile.gettempdir())
    room = stat.f_bavail * stat.f_frsize
    enough = room > _TMPFS_NEEDS and available > _TMPFS_NEEDS and os.access(_TMPFS, os.W_OK)
    return _TMPFS if enough else Path(tempfile.gettempdir())


def _mmdebstrap(
    plan: Plan,
    step: Step,
    variant: str,
    extra: list[str],
    out: Path,
    work: Path,
    progress: Progress,
    *,
    env: dict[str, str],
) -> None:
    recipe = plan.recipe
    task = f"image {recipe.name}: {step.name}"
    seen = 0

    def on_line(line: str) -> None:
        nonlocal seen
        if line.startswith("I: ") or "Setting up" in line:
            seen += 1
            progress(task, seen, None, line.removeprefix("I: ")[:60])

    locked = []
    if recipe.lock:
        preferences = work / "kvedge-lock.pref"
        preferences.write_text(locking.preferences(recipe.lock))
        preferences.chmod(0o644)
        place = "etc/apt/preferences.d/kvedge-lock.pref"
        locked = [
            f'--setup-hook=mkdir -p "$1/etc/apt/preferences.d"; cp {preferences} "$1/{place}"',
            f'--customize-hook=rm -f "$1/{place}"',
        ]
    archive_keys = sources.keyring(recipe)
    if archive_keys != Path(recipe.apt.keyring):
        # Copied, because apt's and mmdebstrap's own users may not look into a home.
        archive_keys = Path(shutil.copy(archive_keys, work))
        archive_keys.chmod(0o644)
    further = [one for one in recipe.sources if step.layer and one.name in step.layer.sources]
    vendor_lines = []
    for source in further:
        file = work / f"{source.name}.asc"
        file.write_bytes(sources.signing_key(source, recipe.place(source.key)))
        file.chmod(0o644)
        place = content.key_path(source)
        locked.append(f'--customize-hook=mkdir -p "$1/usr/share/keyrings"; cp {file} "$1/{place}"')
        vendor_lines.append(sources.vendor_line(source, recipe.arch, file))
    options = [
        'Acquire::CompressionTypes::Order:: "gz"',
        'Acquire::Languages "none"',
        'APT::Install-Recommends "false"',
    ]
    argv = [
        *_mmdebstrap_mounting(),
        f"--variant={variant}",
        f"--architectures={recipe.arch}",
        "--format=tar",
        *(f"--aptopt={one}" for one in [*options, *sources.apt_options()]),
        *locked,
        *extra,
        "",
        str(out),
        *sources.deb_lines(recipe, archive_keys, machine=sources.configured()),
        *vendor_lines,
    ]
    progress(task, 0, None, "packages")
    processes.run(
        argv,
        what=f"image {recipe.name!r}, layer {step.name!r}",
        env={
            "SOURCE_DATE_EPOCH": str(recipe.epoch),
            "INITRD": "No",
            "LC_ALL": "C.UTF-8",
            "TMPDIR": str(work),
            **env,
        },
        on_line=on_line,
        log=_log_file(recipe, step),
    )
    progress(task, max(seen, 1), max(seen, 1))


def _mmdebstrap_mounting() -> list[str]:
    """Return mmdebstrap's start, so that what it mounts ends with it, also when it is killed.

    As root it mounts /dev/shm and more into its tree: to take away a tree in which that was left
    would empty the machine's. So it mounts in a namespace or not at all.
    """
    if os.geteuid() != 0:
        return ["mmdebstrap", "--mode=unshare"]
    prefix = ["unshare", "--mount"]
    able = processes.run([*prefix, "true"], what="try a mount namespace", check=False)
    if able.returncode == 0:
        return [*prefix, "mmdebstrap", "--mode=root"]
    return ["mmdebstrap", "--mode=root", "--skip=chroot/mount"]


def _log_file(recipe: Recipe, step: Step) -> Path:
    folder = tools.cache_dir() / "images" / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{recipe.name}-{step.name}.log"
    file.unlink(missing_ok=True)
    return file
