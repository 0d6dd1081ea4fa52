"""Programs of Debian packages, unpacked into the cache without installing anything.

Installing docker-registry would start a service, and e2fsprogs from backports would replace the
host's own. So apt runs with a configuration, lists and keys of its own: it needs no privilege, and
checks signatures and hashes as ever. The mirror is the one that the host uses.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kvedge import errors, processes
from kvedge.tools import layout
from kvedge.tools.building import place
from kvedge.tools.recipes import Packaged

if TYPE_CHECKING:
    from kvedge.progress import Progress
    from kvedge.tools.recipes import Debian, Family

__all__ = ["unpack"]

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MIRROR_HINT = "set KVEDGE_DEBIAN_MIRROR to the address of a Debian mirror"
# Third parties also have suites called bookworm, but no component `main` with them as a rule.
_MAIN_ARCHIVE = re.compile(
    r"'([^']*debian[^']*)/dists/(?:bookworm|trixie|forky|sid|stable|testing)/main/binary-[^/]+/"
)
_WRAPPER = """\
#!/bin/sh
# Runs {program} with the shared libraries and the configuration that came with it.
root=$(dirname "$(readlink -f "$0")")/../root
LD_LIBRARY_PATH="{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
MKE2FS_CONFIG="${{MKE2FS_CONFIG:-$root/etc/mke2fs.conf}}"
export LD_LIBRARY_PATH MKE2FS_CONFIG
exec "$root/{program}" "$@"
"""


def unpack(family: Family, folder: Path, *, cache: Path, log: Path, progress: Progress) -> None:
    """Download a family's packages and put its programs into its folder.

    Raises:
        ToolMissing: this is no Debian, or no mirror or archive key is known.
        BuildFailed: apt or dpkg failed.
    """
    assert family.debian is not None
    task = f"unpack {family.name}"
    progress(task, 0, 3, "package lists")
    with (
        layout.locked(cache / "apt" / "lock"),
        tempfile.TemporaryDirectory(prefix=".unpack-", dir=_made(cache / "tools")) as name,
    ):
        work = Path(name)
        config = _configure(family.debian, cache / "apt", family.name)
        env = {"APT_CONFIG": str(config), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        what = f"fetch Debian packages of {family.name!r}"
        processes.run(["apt-get", "update"], what=what, env=env, log=log)
        progress(task, 1, 3, "packages")
        argv = ["apt-get", "download", *family.debian.packages]
        processes.run(argv, what=what, env=env, cwd=work, log=log)
        progress(task, 2, 3, "files")
        root = work / "root"
        for package in sorted(work.glob("*.deb")):
            processes.run(["dpkg-deb", "-x", package, root], what=what, log=log)
        shutil.rmtree(folder / "root", ignore_errors=True)
        place(root, folder / "root")
        for tool in family.tools:
            assert isinstance(tool.recipe, Packaged)
            made = work / tool.name
            if tool.recipe.wrapped:
                made.write_text(_wrapper(tool.recipe.path, folder / "root"), encoding="utf-8")
                made.chmod(0o755)
            else:
                made.symlink_to(f"../root/{tool.recipe.path}")
            place(made, folder / tool.file)
    progress(task, 3, 3)


def _wrapper(program: str, root: Path) -> str:
    folders = sorted(
        {file.parent.relative_to(root) for file in root.rglob("lib*.so*") if file.is_file()}
    )
    return _WRAPPER.format(
        program=program, libraries=":".join(f"$root/{folder}" for folder in folders)
    )


def _configure(debian: Debian, home: Path, name: str) -> Path:
    """Write apt's private configuration and return its file."""
    for program in ("apt-get", "apt-config", "dpkg", "dpkg-deb"):
        if shutil.which(program) is None:
            raise errors.ToolMissing(
                name,
                f"cannot unpack {name!r}: {program!r} not found, this is no Debian",
                hint=f"install {name} so that it is on PATH",
            )
    for folder in ("state/lists/partial", "cache/archives/partial", "sources", "none"):
        _made(home / folder)
    (home / "status").touch()
    architecture = processes.run(["dpkg", "--print-architecture"], what="ask dpkg").stdout.strip()
    source = ["Types: deb", f"URIs: {_mirror()}", f"Suites: {' '.join(debian.suites)}"]
    source += ["Components: main", f"Architectures: {architecture}"]
    if _KEYRING.is_file():
        source.append(f"Signed-By: {_KEYRING}")
    (home / "sources" / "debian.sources").write_text("\n".join(source) + "\n", encoding="utf-8")
    config = home / "apt.conf"
    config.write_text(_configuration(home), encoding="utf-8")
    return config


def _configuration(home: Path) -> str:
    """Return our settings after the host's own for downloading (proxies, certificates)."""
    dump = processes.run(["apt-config", "dump"], what="read apt's configuration").stdout
    kept = [
        line
        for line in dump.splitlines()
        if line.startswith("Acquire::") and not line.startswith("Acquire::IndexTargets")
    ]
    ours = {
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowWeakRepositories": "false",
        "Acquire::AllowDowngradeToInsecureRepositories": "false",
        "APT::Get::AllowUnauthenticated": "false",
        # root's apt drops to a user who may not write here.
        "APT::Sandbox::User": "",
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": f"{home}/none",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": f"{home}/none",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": f"{home}/sources",
        "Dir::State": f"{home}/state",
        "Dir::State::status": f"{home}/status",
        "Dir::Cache": f"{home}/cache",
        # Two downloads do not pay for a binary index of 40 MB.
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
    }
    return "\n".join([*kept, *(f'{key} "{value}";' for key, value in ours.items()), ""])


def _mirror() -> str:
    own = os.environ.get("KVEDGE_DEBIAN_MIRROR")
    if own:
        return own
    # Unlike `indextargets`, this also answers before the first update, and needs no privilege.
    argv = ["apt-get", "update", "--print-uris"]
    listed = processes.run(argv, what="ask apt for its mirror", env={"LC_ALL": "C"}).stdout
    found = _MAIN_ARCHIVE.search(listed)
    if found:
        return found.group(1)
    raise errors.ToolMissing("apt", "no Debian mirror in apt's sources", hint=_MIRROR_HINT)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
