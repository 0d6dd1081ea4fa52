# ruff: noqa: T201 - this is a program that prints
"""The `iotedge` program: list, logs, restart, check, config, system and version.

Commands, columns and exit codes are the real program's as far as they go; what this stand-in
lacks is refused by name.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import socket
import sys
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvedge.edgesim import programs, times
from kvedge.edgesim import settings as configuration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["main"]

_UNIT: Final = "aziot-edged.service"
_UNITS: Final = (
    "aziot-edged",
    "aziot-identityd",
    "aziot-keyd",
    "aziot-certd",
    "aziot-tpmd",
)
_OWNER: Final = "iotedge"
_WIDTH: Final = 15
_VERSION: Final = "1.6.0 (kvedge stand-in)"


class _Failed(Exception):
    """A command failed; the text is for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except (_Failed, configuration.SettingsError, programs.ProgramError) as error:
        print(f"iotedge: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iotedge", description="Control kvedge's stand-in for the IoT Edge runtime."
    )
    parser.add_argument("--version", action="version", version=f"iotedge {_VERSION}")
    parser.add_argument(
        "-H", "--host", default=str(configuration.Paths().management), help="management socket"
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add("list", _list, "List modules")
    logs = add("logs", _logs, "Fetch the logs of a module")
    logs.add_argument("module")
    logs.add_argument("-f", "--follow", action="store_true")
    logs.add_argument("--tail", default="all")
    logs.add_argument("--since", default="")
    logs.add_argument("--until", default="")
    restart = add("restart", _restart, "Restart a module")
    restart.add_argument("module")
    check = add("check", _check, "Check for common problems")
    check.add_argument("--output", choices=("text", "json"), default="text")
    add("version", lambda _: print(f"iotedge {_VERSION}"), "Show the version")

    config = commands.add_parser("config", help="Manage the configuration").add_subparsers(
        required=True, metavar="command"
    )
    apply = config.add_parser("apply", help="Apply /etc/aziot/config.toml")
    apply.add_argument("-c", "--config-file", type=Path, default=configuration.SOURCE)
    apply.set_defaults(run=_config_apply)
    manual = config.add_parser("mp", help="Write a configuration with a connection string")
    manual.add_argument("--connection-string", required=True)
    manual.add_argument("--force", action="store_true")
    manual.add_argument("-c", "--config-file", type=Path, default=configuration.SOURCE)
    manual.set_defaults(run=_config_mp)

    system = commands.add_parser("system", help="Manage the services").add_subparsers(
        required=True, metavar="command"
    )
    for name, run in (
        ("status", _system_status),
        ("restart", _system_restart),
        ("stop", _system_stop),
        ("logs", _system_logs),
    ):
        system.add_parser(name).set_defaults(run=run)
    return parser


def _list(arguments: argparse.Namespace) -> None:
    modules = json.loads(b"".join(_request(arguments.host, "GET", "/modules")))["modules"]
    rows = [("NAME", "STATUS", "DESCRIPTION", "Config")]
    rows += [
        (
            module["name"],
            module["status"]["runtimeStatus"]["status"],
            _describe(module["status"]),
            module["config"]["settings"]["image"],
        )
        for module in modules
    ]
    widths = [max(_WIDTH, *(len(row[at]) for row in rows)) for at in range(3)]
    for row in rows:
        cells = [cell.ljust(width + 2) for cell, width in zip(row, widths, strict=False)]
        print("".join(cells) + row[3])


def _describe(status: dict[str, Any]) -> str:
    word = status["runtimeStatus"]["status"]
    ended = times.seconds(status["exitStatus"]["exitTime"])
    code = status["exitStatus"]["statusCode"]
    if word == "running":
        started = times.seconds(status["startTime"])
        return f"Up {_span(time.time() - started)}" if started else "Up"
    if word in {"stopped", "failed", "backoff"}:
        title = word.capitalize() + (f" ({code})" if word != "stopped" else "")
        return f"{title} {_span(time.time() - ended)} ago" if ended else title
    return "Unknown"


def _span(seconds: float) -> str:
    seconds = max(seconds, 0)
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        count = int(seconds // size)
        if count >= 1 or unit == "second":
            article = "an" if unit == "hour" else "a"
            return f"{article} {unit}" if count == 1 else f"{count} {unit}s"
    return ""


def _logs(arguments: argparse.Namespace) -> None:
    now = time.time()
    query = {"tail": arguments.tail}
    try:
        for key in ("since", "until"):
            moment = times.moment_text(getattr(arguments, key), now=now)
            if moment is not None:
                query[key] = str(moment)
    except ValueError as error:
        raise _Failed(str(error)) from error
    if arguments.follow:
        query["follow"] = "true"
    path = f"/modules/{urllib.parse.quote(arguments.module)}/logs?{urllib.parse.urlencode(query)}"
    for piece in _request(arguments.host, "GET", path):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def _restart(arguments: argparse.Namespace) -> None:
    path = f"/modules/{urllib.parse.quote(arguments.module)}/restart"
    list(_request(arguments.host, "POST", path))
    print(arguments.module)


def _request(host: str, method: str, path: str) -> Iterator[bytes]:
    """Yield the body of the daemon's answer."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(connection):
        try:
            connection.connect(host.removeprefix("unix://"))
            connection.sendall(f"{method} {path} HTTP/1.0\r\nHost: local\r\n\r\n".encode())
            stream = connection.makefile("rb")
            status = int(stream.readline().split()[1])
            while stream.readline().strip():
                pass
            if status >= 400:
                raise _Failed(json.loads(stream.read())["message"])
            while piece := stream.read1(65536):
                yield piece
        except PermissionError as error:
            raise _Failed(f"no access to {host}; be root or in group {_OWNER}") from error
        except (OSError, IndexError, ValueError) as error:
            raise _Failed(
                f"cannot reach the daemon at {host}: {error};"
                f" see 'systemctl status {_UNIT.removesuffix('.service')}'"
            ) from error


def _config_apply(arguments: argparse.Namespace) -> None:
    _be_root()
    try:
        text = arguments.config_file.read_text("utf-8")
    except OSError as error:
        raise _Failed(f"cannot read {arguments.config_file}: {error.strerror}") from error
    configuration.parse_settings(text, default_hostname=socket.gethostname())
    target = configuration.APPLIED
    owner = pwd.getpwnam(_OWNER)
    target.parent.mkdir(parents=True, exist_ok=True)
    for folder, mode in ((target.parent.parent, 0o755), (target.parent, 0o700)):
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        folder.chmod(mode)
    temporary = target.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    os.chown(temporary, owner.pw_uid, owner.pw_gid)
    temporary.write_text(text, "utf-8")
    temporary.replace(target)
    # Not waited for: at boot this runs in a unit that the daemon's unit comes after.
    with contextlib.suppress(programs.ProgramError):
        programs.output(("systemctl", "reset-failed", _UNIT))
    programs.output(("systemctl", "restart", "--no-block", _UNIT))
    print("Azure IoT Edge has been configured successfully! (kvedge stand-in)")


def _config_mp(arguments: argparse.Namespace) -> None:
    _be_root()
    target = arguments.config_file
    if target.exists() and not arguments.force:
        raise _Failed(f"{target} exists; --force writes over it")
    text = (
        f'[provisioning]\nsource = "manual"\n'
        f"connection_string = {json.dumps(arguments.connection_string)}\n"
    )
    configuration.parse_settings(text, default_hostname=socket.gethostname())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.touch(mode=0o600)
    target.write_text(text, "utf-8")
    print(f"{target} written; now run 'iotedge config apply'")


def _system_status(_: argparse.Namespace) -> int:
    print("System services:")
    healthy = True
    for unit in _UNITS:
        try:
            state = programs.output(("systemctl", "is-active", unit)).strip()
        except programs.ProgramError:
            state, healthy = "inactive or failed", False
        print(f"    {unit:<20} {state}")
    print("Use 'iotedge system logs' to check for non-fatal errors.")
    return 0 if healthy else 1


def _system_restart(_: argparse.Namespace) -> None:
    _be_root()
    programs.output(("systemctl", "restart", _UNIT))


def _system_stop(_: argparse.Namespace) -> None:
    _be_root()
    programs.output(("systemctl", "stop", _UNIT))


def _system_logs(_: argparse.Namespace) -> None:
    sys.stdout.write(programs.output(("journalctl", "--no-pager", "-u", _UNIT)))


def _check(arguments: argparse.Namespace) -> int:
    results: list[tuple[str, str, str]] = []

    def test(name: str, act: Any) -> Any:
        try:
            value = act()
        except Exception as error:  # noqa: BLE001 - a check's failure is its result
            results.append((name, "error", str(error)))
            return None
        results.append((name, "ok", ""))
        return value

    def read_settings() -> configuration.Settings:
        text = configuration.SOURCE.read_text("utf-8")
        return configuration.parse_settings(text, default_hostname=socket.gethostname())

    def up_to_date() -> None:
        applied = configuration.APPLIED.read_text("utf-8")
        if configuration.SOURCE.read_text("utf-8") != applied:
            raise _Failed("config.toml changed since it was applied; run 'iotedge config apply'")

    settings = test("aziot-edged-config-well-formed", read_settings)
    test("config-up-to-date", up_to_date)
    if settings is not None:
        from kvedge.edgesim.docker import Docker
        from kvedge.edgesim.identity import Registry

        test("container-engine-uri", lambda: Docker(settings.docker).info())
        test("host-connect-iothub-https", lambda: Registry(settings).check_hub())
    status = test(
        "connect-management-uri",
        lambda: json.loads(b"".join(_request(arguments.host, "GET", "/systeminfo"))),
    )
    if status is not None:

        def connected() -> None:
            if not status["connected"]:
                raise _Failed("the edge agent is not connected to the hub")

        test("edge-agent-connected", connected)
    failed = [result for result in results if result[1] != "ok"]
    if arguments.output == "json":
        checks = {
            name: {"result": word, **({"details": [text]} if text else {})}
            for name, word, text in results
        }
        print(json.dumps({"checks": checks}, indent=2))
    else:
        for name, word, text in results:
            mark = "\u221a" if word == "ok" else "\u00d7"
            print(f"{mark} {name} - {'OK' if word == 'ok' else 'Error'}")
            if text:
                print(f"    {text}")
        print(f"{len(results) - len(failed)} check(s) succeeded, {len(failed)} raised errors.")
    return 1 if failed else 0


def _be_root() -> None:
    if os.geteuid() != 0:
        raise _Failed("this command must be run as root")
