"""The command line: one file a command group; parse, call, print; no logic.

Groups are loaded when they are called, so that `kvedge --help` imports nothing heavy.
"""

from __future__ import annotations

import importlib
import sys

import click

import kvedge
from kvedge import errors

__all__ = ["main", "root"]

_COMMANDS = {
    "up": ("kvedge.cli.environments:up", "Bring an environment to what its settings say."),
    "down": ("kvedge.cli.environments:down", "Take everything of an environment away."),
    "rollout": ("kvedge.cli.render:rollout", "Restart VMs that changed, a few at once."),
    "render": ("kvedge.cli.render:render", "Write an environment's objects as YAML for GitOps."),
    "migrate": ("kvedge.cli.migrate:migrate", "Take over what another tool made."),
    "env": ("kvedge.cli.env:env", "List, make, check and show environments."),
    "config": ("kvedge.cli.config:config", "Show settings and where they come from."),
    "status": ("kvedge.cli.status:status", "Show VMs, devices, deployments and pods."),
    "events": ("kvedge.cli.events:events", "Show what happened to VMs and pods."),
    "logs": ("kvedge.cli.logs:logs", "Show a VM's serial console or a module's log."),
    "dashboard": ("kvedge.cli.dashboard:dashboard", "Serve a read-only page of the fleet."),
    "ssh": ("kvedge.cli.ssh:ssh", "Log in to an edge VM, or run a command in it."),
    "scp": ("kvedge.cli.copying:scp", "Copy files from and to edge VMs."),
    "sftp": ("kvedge.cli.copying:sftp", "Copy files interactively."),
    "ssh-config": ("kvedge.cli.copying:ssh_config", "Let plain ssh, rsync and ansible in."),
    "exec": ("kvedge.cli.executing:execute", "Run a command in many edge VMs at once."),
    "console": ("kvedge.cli.guests:console", "Open a VM's serial console."),
    "vnc": ("kvedge.cli.guests:vnc", "Open a VM's screen."),
    "port-forward": ("kvedge.cli.ssh:port_forward", "Reach a port of an edge VM."),
    "start": ("kvedge.cli.guests:start", "Start a VM."),
    "stop": ("kvedge.cli.guests:stop", "Stop a VM."),
    "restart": ("kvedge.cli.guests:restart", "Restart a VM."),
    "doctor": ("kvedge.cli.doctor:doctor", "Check this machine and the cluster; say the fix."),
    "support-bundle": (
        "kvedge.cli.supporting:support_bundle",
        "Collect what a helper needs, without secrets.",
    ),
    "site": ("kvedge.cli.site:site", "Run a complete site on this machine."),
    "tools": ("kvedge.cli.tools:tools", "Find or build the programs that kvedge drives."),
    "image": ("kvedge.cli.image:image", "Build, push and look into disk images."),
    "cloudinit": ("kvedge.cli.cloudinit:cloudinit", "Print and check first-boot data."),
    "hub": ("kvedge.cli.hub:hub", "Run the IoT Hub emulator and look into a hub."),
    "connector": ("kvedge.cli.connector:connector", "Run the IoT Edge connector."),
    "node": ("kvedge.cli.node:node", "Run a virtual node on another provider of pods."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = _COMMANDS.get(cmd_name)
        if found is None:
            return None
        module, _, name = found[0].partition(":")
        return getattr(importlib.import_module(module), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(kvedge.__version__, prog_name="kvedge")
@click.option("--debug", is_flag=True, help="Show tracebacks and the programs that are started.")
@click.pass_context
def root(ctx: click.Context, debug: bool) -> None:
    """Drive Azure IoT Edge devices that are KubeVirt VMs."""
    ctx.obj = {"debug": debug}


def main() -> None:
    """Run the command line and end the process with the exit code of CONVENTIONS."""
    debug = "--debug" in sys.argv[1:]
    try:
        code = root.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except errors.KvedgeError as error:
        if debug:
            raise
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        sys.exit(error.exit_code)
