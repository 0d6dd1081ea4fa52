"""`kvedge scp`, `kvedge sftp` and `kvedge ssh-config`: OpenSSH's own programs on our ways.

Files go by OpenSSH's client and not by a library: its options, globs, progress and interactive
sftp are what people know, and the configuration that it needs is the one that ssh-config writes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path

import click

from kvedge.cli import _common

__all__ = ["scp", "sftp", "ssh_config"]

_OPENSSH = "as root: apt-get install -y openssh-client"


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, required=True, metavar="SOURCE... DEST")
@click.option("-r", "--recursive", is_flag=True, help="Copy folders with what is in them.")
@click.option("-p", "--preserve", is_flag=True, help="Keep times and modes.")
@_common.identity_option
@click.option("-l", "--user", default="", help="User to log in as (default: edge).")
@_common.via_option
@_common.namespace_option
@_common.kubeconfig_option
def scp(words, recursive, preserve, identity, user, via, namespace, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Copy files, by OpenSSH's scp; SOURCE and DEST are paths or TARGET:PATH.

    TARGET is written as for `kvedge ssh`. Both ends may be VMs; the files then pass through here.
    """
    from kvedge import errors
    from kvedge.access import targets

    if len(words) < 2:
        raise click.UsageError("give at least one source and a destination")
    parts = [targets.parse_remote_path(word) for word in words]
    names = list(dict.fromkeys(part[0] for part in parts if part))
    if not names:
        problem = errors.Problem(path="SOURCE", message="neither end is TARGET:PATH")
        raise errors.SpecError("nothing to copy over ssh", [problem])
    options = [*(["-r"] if recursive else []), *(["-p"] if preserve else []), "-3"]
    with tempfile.TemporaryDirectory(prefix="kvedge-scp-") as folder:
        hosts = _configure(names, Path(folder), identity, user, via, namespace, kubeconfig)
        places = [
            f"{hosts[part[0]]}:{part[1]}" if part else _local(word)
            for word, part in zip(words, parts, strict=True)
        ]
        code = _openssh("scp", ["-F", f"{folder}/config", *options, "--", *places])
    sys.exit(code)


def _local(path: str) -> str:
    """Keep scp from taking a local name with a colon for a host."""
    return f"./{path}" if ":" in path and path[0] not in "./" else path


@click.command()
@click.argument("target")
@click.option("-b", "--batch", type=click.Path(dir_okay=False, allow_dash=True),
              help="File with sftp commands; - is stdin.")  # fmt: skip
@_common.identity_option
@click.option("-l", "--user", default="", help="User to log in as (default: edge).")
@_common.via_option
@_common.namespace_option
@_common.kubeconfig_option
def sftp(target, batch, identity, user, via, namespace, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Copy files interactively, by OpenSSH's sftp; TARGET[:PATH] is written as for `kvedge ssh`."""
    from kvedge.access import targets

    name, path = targets.parse_remote_path(target) or (target, "")
    with tempfile.TemporaryDirectory(prefix="kvedge-sftp-") as folder:
        hosts = _configure([name], Path(folder), identity, user, via, namespace, kubeconfig)
        place = f"{hosts[name]}:{path}" if path else hosts[name]
        extra = ["-b", batch] if batch else []
        code = _openssh("sftp", ["-F", f"{folder}/config", *extra, place])
    sys.exit(code)


def _configure(names, folder, identity, user, via, namespace, kubeconfig) -> dict[str, str]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Write OpenSSH's files for these targets and return each one's host name in them."""
    from kvedge import access, kube
    from kvedge.access import openssh

    _common.load_environment()
    config = kube.load_config(kubeconfig)
    wanted = {
        name: access.parse_target(name, namespace=namespace or config.namespace, user=user)
        for name in names
    }

    async def ask() -> dict[str, access.Guest]:
        async with kube.Client(config) as client:
            return {n: await access.find_guest(client, t) for n, t in wanted.items()}

    guests = asyncio.run(ask())
    openssh.write(
        list({guest.host_name: guest for guest in guests.values()}.values()),
        openssh.Settings(
            folder=folder,
            kubeconfig=_absolute(kubeconfig),
            identities=_common.site_identities(identity),
            through_address=via == "address",
        ),
    )
    return {name: guest.host_name for name, guest in guests.items()}


def _absolute(kubeconfig: Path | None) -> Path | None:
    named = kubeconfig or os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(named).absolute() if named else None


def _openssh(program: str, words: list[str]) -> int:
    from kvedge import errors, processes

    if not shutil.which(program):
        raise errors.ToolMissing(program, f"program {program!r} not found", hint=_OPENSSH)
    return processes.attached([program, *words])


@click.command("ssh-config")
@click.option("--dir", "folder", type=click.Path(path_type=Path, file_okay=False),
              default=Path("~/.ssh/kvedge"), show_default=True,
              help="Folder for config and known_hosts.")  # fmt: skip
@click.option("--selector", default="", help="Only VMs with these labels.")
@click.option("--install", is_flag=True, help="Put the Include line into ~/.ssh/config.")
@_common.identity_option
@click.option("-l", "--user", default="", help="User to log in as (default: edge).")
@_common.via_option
@_common.namespace_option
@_common.kubeconfig_option
def ssh_config(folder, selector, install, identity, user, via, namespace, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Write one file so that plain `ssh VM.ENVIRONMENT` works; scp, rsync and ansible too.

    Host keys are taken from the VMs into a known_hosts file beside it; OpenSSH learns none by
    itself. Run it again after VMs or host keys have changed.
    """
    from kvedge import access, kube, names
    from kvedge.access import openssh

    _common.load_environment()
    config = kube.load_config(kubeconfig)
    chosen = selector or f"{names.LABEL_MANAGED}=kvedge"

    async def ask() -> list[access.Guest]:
        async with kube.Client(config) as client:
            return await access.find_guests(
                client, namespace=namespace or "", selector=chosen, user=user
            )

    found = asyncio.run(ask())
    settings = openssh.Settings(
        folder=folder.expanduser().absolute(),
        kubeconfig=_absolute(kubeconfig),
        identities=[path.absolute() for path in _common.site_identities(identity)],
        through_address=via == "address",
    )
    fit = [guest for guest in found if guest.host_key and (guest.address or via == "api")]
    for guest in found:
        if guest not in fit:
            lack = "no LoadBalancer address" if guest.host_key else "no pinned host key"
            click.echo(f"note: {guest.host_name} is left out: {lack}", err=True)
    path = openssh.write(fit, settings)
    line = f'Include "{path}"'
    click.echo(f"{len(fit)} hosts in {path}" + (f": ssh {fit[0].host_name}" if fit else ""))
    if install:
        _install(Path("~/.ssh/config").expanduser(), line)
    else:
        click.echo(f"put at the top of ~/.ssh/config (or run with --install): {line}")


def _install(file: Path, line: str) -> None:
    """Put a line at the top, where no Host block before it takes it in."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if line in text.splitlines():
        return
    file.parent.mkdir(mode=0o700, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(f"{line}\n\n{text}" if text else f"{line}\n", encoding="utf-8")
