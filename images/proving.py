"""Proving a built disk: a static scan, then a boot by each firmware with what a user relies on.

Each check is one sentence with a command and what its output must be, so that a failure can be
tried by hand in the guest.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from images import booting, inspecting
from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from images.building import BuiltImage
    from kvedge.progress import Progress

__all__ = ["Outcome", "prove"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One check and what came of it."""

    stage: str
    """`scan`, `bios` or `uefi`."""
    claim: str
    holds: bool
    found: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class _Check:
    claim: str
    command: str
    expected: str
    """What the output must be, without surrounding blanks."""


_CHECKS = (
    _Check(
        "cloud-init is done without errors",
        "cloud-init status --wait >/dev/null; cloud-init status",
        "status: done",
    ),
    _Check("the boot is through", "systemctl is-system-running --wait", "running"),
    _Check("no unit failed", "systemctl --failed --no-legend", ""),
    _Check(
        "the secret disk was applied",
        "grep -o '\"ok\": true' /run/kvedge/apply.json",
        '"ok": true',
    ),
    _Check("docker is active", "systemctl is-active docker", "active"),
    _Check("the edge runtime is active", "systemctl is-active aziot-edged", "active"),
    _Check("the edge runtime starts at boot", "systemctl is-enabled aziot-edged", "enabled"),
    _Check(
        "only sshd listens to the outside",
        # 172.*: the engine's own networks.
        r"ss -Htln | awk '{print $4}' | grep -v -e '^127\.' -e '^\[::1\]' -e '^172\.'"
        " | sed 's/.*://' | sort -u",
        "22",
    ),
    _Check(
        "the root file system has grown",
        "test $(df --output=size -m / | tail -1) -gt 5000 && echo yes",
        "yes",
    ),
)
_SECRETS = {
    "config.toml": b"""\
hostname = "edge-1"

[provisioning]
source = "manual"
connection_string = "HostName=hub.invalid;DeviceId=edge-1;SharedAccessKey=cHJvdmluZw=="
""",
    # A hub that refuses connections, which the runtime has to live with.
    "hosts": b"127.0.0.1 hub.invalid\n",
}
"""What a VM's secret disk holds beside its keys."""
_FIRMWARE_FACT = {"bios": "no", "uefi": "yes"}


def prove(
    built: BuiltImage, *, firmwares: tuple[str, ...], deadline: float, progress: Progress
) -> Iterator[Outcome]:
    """Yield the outcome of each check as it is known.

    Args:
        built: a disk image.
        firmwares: any of `bios` and `uefi`.
        deadline: seconds that a boot may take until a login.
        progress: hears of each stage.
    """
    progress("scan", 0, 1)
    if built.disk is None:
        raise errors.KvedgeError(f"image {built.name!r} is no disk", hint="only disks boot")
    problems = inspecting.scan_disk(built.disk)
    progress("scan", 1, 1)
    yield Outcome(
        stage="scan",
        claim="holds nothing that machines must not share",
        holds=not problems,
        found="; ".join(str(problem) for problem in problems),
    )
    for firmware in firmwares:
        yield from _booted(built.disk, firmware, deadline, progress)


def _booted(disk: Path, firmware: str, deadline: float, progress: Progress) -> Iterator[Outcome]:
    task = f"boot by {firmware}"
    progress(task, 0, len(_CHECKS) + 2, "waiting for a login")
    with (
        tempfile.TemporaryDirectory(prefix="kvedge-guest-") as folder,
        booting.boot(disk, Path(folder), firmware=firmware, secrets=_SECRETS) as guest,
    ):
        try:
            client = guest.login(deadline=deadline)
        except errors.KvedgeError as cause:
            serial = (Path(folder) / "serial.log").read_text(errors="replace")[-600:]
            yield Outcome(
                stage=firmware,
                claim="logs in with the pinned host key",
                holds=False,
                found=f"{cause.message}; console ends with: {serial}",
            )
            return
        yield Outcome(stage=firmware, claim="logs in with the pinned host key", holds=True)
        checks = (
            _Check(
                "the right firmware started it",
                "test -d /sys/firmware/efi && echo yes || echo no",
                _FIRMWARE_FACT[firmware],
            ),
            *_CHECKS,
        )
        for at, check in enumerate(checks, 1):
            progress(task, at, len(checks) + 1, check.claim)
            _, text = guest.run(client, check.command, timeout=deadline)
            found = text.strip()
            yield Outcome(
                stage=firmware, claim=check.claim, holds=found == check.expected, found=found
            )
        client.close()
    progress(task, len(_CHECKS) + 2, len(_CHECKS) + 2)
