"""`kvedge hub`: run the IoT Hub emulator, look into a hub, simulate devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

__all__ = ["hub"]

_SECONDS = click.FloatRange(min=0)
_BEHAVIOURS = ("success", "failing", "slow", "offline")
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_connection_file = click.option(
    "--connection-file",
    type=_FILE,
    envvar="KVEDGE_HUB_CONNECTION_STRING_FILE",
    required=True,
    help="File with the service connection string.",
)
_ca = click.option("--ca", type=_FILE, envvar="KVEDGE_HUB_CA_FILE", help="The hub's CA (PEM).")


_awkward: tuple[click.Option, ...] = (
    click.Option(["--tier"], type=click.Choice(["F1", "S1", "S2", "S3"]),
                 help="Throttle as a hub of this tier does."),
    click.Option(["--units"], type=click.IntRange(min=1), help="Units of the tier."),
    click.Option(["--latency-seconds"], type=_SECONDS, help="Added to each request."),
    click.Option(["--query-lag-seconds"], type=_SECONDS,
                 help="Queries see the hub as it was up to so long ago."),
    click.Option(["--fail-status"], type=click.Choice([429, 500, 503]),
                 help="Answer requests with this error."),
    click.Option(["--fail-count"], type=int, help="How many requests fail; -1: all."),
    click.Option(["--fail-seconds"], type=_SECONDS,
                 help="For so long at most, however few requests came."),
    click.Option(["--fail-every-seconds"], type=_SECONDS, help="Fail as many again so often."),
    click.Option(["--drop-every-seconds"], type=_SECONDS, help="End all MQTT sessions so often."),
)  # fmt: skip
"""How awkward the emulator is; each option is a knob of the same name."""


def _with_knobs(command: click.Command) -> click.Command:
    command.params += _awkward
    return command


def _turned(options: dict[str, Any]) -> dict[str, Any]:
    """Return the knobs that were given; a status without a count fails one request."""
    given = {name: value for name, value in options.items() if value is not None}
    if "fail_status" in given:
        given.setdefault("fail_count", 1)
    return given


@click.group()
def hub() -> None:
    """Run the IoT Hub emulator and look into a hub."""


def _place(_context: click.Context, _option: click.Parameter, text: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter("must be ADDRESS:PORT, such as 127.0.0.1:8883")
    return address.strip("[]") or "127.0.0.1", int(port)


@_with_knobs
@hub.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the store, the keys and the connection strings.",
)
@click.option("--ephemeral", is_flag=True, help="Keep nothing; the folder holds only keys.")
@click.option(
    "--https",
    default="127.0.0.1:0",
    show_default=True,
    callback=_place,
    help="Where services connect; port 0 takes a free one.",
)
@click.option(
    "--mqtt",
    default="127.0.0.1:0",
    show_default=True,
    callback=_place,
    help="Where devices connect (MQTT 3.1.1 over TLS).",
)
@click.option("--cert", type=_FILE, help="Server certificate (PEM); one is made without it.")
@click.option("--key", type=_FILE, help="Its key.")
@click.option("--host", default="hub.kvedge.test", show_default=True, help="The hub's own name.")
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="HOST[:PORT]",
    help="One more name that clients use; the first goes into service.connection.",
)
@click.option(
    "--evaluation-seconds",
    type=_SECONDS,
    default=0.2,
    show_default=True,
    help="Deployments are evaluated at most so often; the real service takes 300.",
)
@click.option("--verbose", is_flag=True, help="Tell of each connection.")
def emulate(
    directory: Path | None,
    ephemeral: bool,
    https: tuple[str, int],
    mqtt: tuple[str, int],
    cert: Path | None,
    key: Path | None,
    host: str,
    aliases: tuple[str, ...],
    evaluation_seconds: float,
    verbose: bool,
    **knobs: Any,
) -> None:
    """Run an IoT Hub on this machine until it is interrupted."""
    from kvedge.emulator import running

    if (cert is None) != (key is None):
        raise click.UsageError("--cert and --key belong together")
    if directory is None and not ephemeral:
        raise click.UsageError("give --dir to keep the hub's state, or --ephemeral")
    running.main(
        running.run(
            directory=directory,
            ephemeral=ephemeral,
            https=https,
            mqtt=mqtt,
            certificate=(cert, key) if cert and key else None,
            host=host,
            aliases=aliases,
            evaluation_seconds=evaluation_seconds,
            knobs=_turned(knobs),
            verbose=verbose,
            ready=lambda line: click.echo(line),
        )
    )


@hub.command("monitor-events")
@_connection_file
@_ca
@click.option("--device", default="", help="Only this device.")
@click.option("--from-start", is_flag=True, help="Begin with the oldest message that is kept.")
@click.option("--count", type=int, default=0, help="End after so many messages.")
def monitor_events(
    connection_file: Path, ca: Path | None, device: str, from_start: bool, count: int
) -> None:
    """Print the messages that devices send, one JSON object a line."""
    import asyncio

    from kvedge.emulator import monitoring

    async def follow() -> None:
        seen = 0
        connection = connection_file.read_text(encoding="utf-8")
        async for event in monitoring.events(
            connection, ca=ca, after=0 if from_start else -1, device_id=device
        ):
            click.echo(json.dumps(event))
            seen += 1
            if seen == count:
                return

    asyncio.run(follow())


@_with_knobs
@hub.command()
@_connection_file
@_ca
@click.option("--off", is_flag=True, help="Turn all knobs off.")
@click.option("--drop-connections", is_flag=True, help="End all MQTT connections now.")
def knobs(
    connection_file: Path, ca: Path | None, off: bool, drop_connections: bool, **knobs: Any
) -> None:
    """Make a running emulator more or less awkward; print its knobs as JSON.

    Knobs that are not named keep their values.
    """
    import asyncio

    from kvedge.emulator import monitoring

    async def turn() -> Any:
        connection = connection_file.read_text(encoding="utf-8")
        wanted = _turned(knobs) | ({"drop_connections": True} if drop_connections else {})
        before = await monitoring.ask(connection, "GET", "knobs", ca=ca)
        if not wanted and not off:
            return before
        body = wanted if off else before | wanted
        return await monitoring.ask(connection, "PUT", "knobs", ca=ca, body=body)

    click.echo(json.dumps(asyncio.run(turn()), indent=1))


@hub.command("export")
@_connection_file
@_ca
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def export_state(connection_file: Path, ca: Path | None, file: Path) -> None:
    """Write the emulator's whole state to a file (mode 0600: it holds the devices' keys)."""
    import asyncio

    from kvedge import errors
    from kvedge.emulator import monitoring

    connection = connection_file.read_text(encoding="utf-8")
    state = asyncio.run(monitoring.ask(connection, "GET", "state", ca=ca))
    try:
        file.touch(mode=0o600)
        file.chmod(0o600)
        file.write_text(json.dumps(state, indent=1), encoding="utf-8")
    except OSError as cause:
        raise errors.KvedgeError(
            f"cannot write {str(file)!r}: {cause.strerror}", hint="name a file in a folder of yours"
        ) from cause


@hub.command("import")
@_connection_file
@_ca
@click.argument("file", type=_FILE)
def import_state(connection_file: Path, ca: Path | None, file: Path) -> None:
    """Replace the emulator's whole state by an exported one."""
    import asyncio

    from kvedge.emulator import monitoring

    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise click.BadParameter(f"{file} is no JSON: {error}") from error
    connection = connection_file.read_text(encoding="utf-8")
    counts = asyncio.run(monitoring.ask(connection, "PUT", "state", ca=ca, body=state))
    click.echo(", ".join(f"{count} {kind}" for kind, count in counts.items()))


def _tags(
    _context: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise click.BadParameter("must be NAME=VALUE, such as site=lille")
    return tuple((name, value) for name, _, value in pairs)


def _mix(_context: click.Context, _option: click.Parameter, text: str) -> dict[str, int]:
    shares: dict[str, int] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition("=")
        if name not in _BEHAVIOURS or not share.isdecimal():
            raise click.BadParameter(
                f"{part!r} must be a whole share of one of {', '.join(_BEHAVIOURS)}, "
                "such as failing=5"
            )
        shares[name] = int(share)
    if not any(shares.values()):
        raise click.BadParameter("one of the shares must be above 0")
    return shares


@hub.command()
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True)
@_connection_file
@_ca
@click.option("--mqtt", required=True, callback=_place, help="The hub's device side.")
@click.option("--host", default="hub.kvedge.test", show_default=True, help="The hub's own name.")
@click.option("--prefix", default="sim", show_default=True, help="Device ids begin with it.")
@click.option(
    "--tag", "tags", multiple=True, metavar="NAME=VALUE", callback=_tags, help="A twin tag."
)
@click.option(
    "--mix",
    default="success=1",
    show_default=True,
    callback=_mix,
    help="Shares, such as success=90,failing=5,slow=3,offline=2.",
)
@click.option(
    "--delay",
    "delay_seconds",
    type=_SECONDS,
    default=2.0,
    show_default=True,
    help="Seconds from a new manifest to its report.",
)
def simulate(
    devices: int,
    connection_file: Path,
    ca: Path | None,
    mqtt: tuple[str, int],
    host: str,
    prefix: str,
    tags: tuple[tuple[str, str], ...],
    mix: dict[str, int],
    delay_seconds: float,
) -> None:
    """Run simulated edge devices until interrupted."""
    import asyncio
    import collections

    from kvedge.emulator import running, simulation

    plan = simulation.Plan(
        connection_string=connection_file.read_text(encoding="utf-8"),
        mqtt=mqtt,
        host=host,
        ca=ca,
        devices=devices,
        prefix=prefix,
        tags=dict(tags),
        mix={simulation.Behaviour(name): share for name, share in mix.items()},
        delay_seconds=delay_seconds,
    )

    async def run() -> None:
        async with simulation.Simulation(plan) as fleet:
            await fleet.connected()
            kinds = collections.Counter(item.behaviour for item in fleet.devices.values())
            told = ", ".join(
                f"{kinds[kind]} {kind}" for kind in simulation.Behaviour if kinds[kind]
            )
            click.echo(f"{devices} devices ({told}); Ctrl-C ends them")
            await asyncio.Event().wait()

    running.main(run())
