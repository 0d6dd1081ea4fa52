"""What a guest's QEMU is started with, and which accelerator really works here."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kvedge import errors, processes
from kvedge.site.host import tpm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kvedge.site.host.vmspec import DiskPlan, GuestPlan

__all__ = [
    "AGENT_PORT",
    "AGENT_SOCKET",
    "CONSOLE_LOG",
    "CONSOLE_SOCKET",
    "MACHINE",
    "MONITOR_SOCKET",
    "PROGRAM",
    "SCREEN_SOCKET",
    "AttachedDisk",
    "Firmware",
    "arguments",
    "boots",
    "find_firmware",
    "kvm_works",
]

PROGRAM = "qemu-system-x86_64"
MACHINE = "q35"
MONITOR_SOCKET = "qmp.sock"
CONSOLE_SOCKET = "console.sock"
SCREEN_SOCKET = "vnc.sock"
AGENT_SOCKET = "agent.sock"
CONSOLE_LOG = "console.log"
AGENT_PORT = "qga0"
"""Device id of the agent's port, as VSERPORT_CHANGE names it."""

_OVMF = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
)
_PROBE_SECONDS = 8.0
_PROBE_DISK = 2**20
_EMULATED_CPU = "max,-erms"
"""Guests copy byte by byte where a CPU says that it is quick at it, which emulated ones are not."""
_EXIT_BY_GUEST = 33
"""isa-debug-exit ends QEMU with (value << 1) | 1; the probe's guest writes 16."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttachedDisk:
    """A disk's file on this machine."""

    plan: DiskPlan
    file: Path
    format: str
    """`qcow2` or `raw`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """UEFI code and the template of its variables."""

    code: Path
    variables: Path


def find_firmware() -> Firmware | None:
    """Return this machine's OVMF, if it has one."""
    for code, variables in _OVMF:
        if Path(code).exists() and Path(variables).exists():
            return Firmware(code=Path(code), variables=Path(variables))
    return None


async def kvm_works() -> bool:
    """Whether a guest really boots under KVM; /dev/kvm alone proves nothing in a nested machine."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and await boots("kvm")


async def boots(accelerator: str) -> bool:
    """Boot a nine-byte guest that ends QEMU with a code of its own."""
    # mov dx,0xf4; mov al,16; out dx,al; hlt; jmp -3
    sector = b"\xba\xf4\x00\xb0\x10\xee\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"
    with tempfile.TemporaryDirectory(prefix="kvedge-boot-") as folder:
        image = Path(folder) / "boot.img"
        image.write_bytes(sector)
        # The firmware boots from no disk that is smaller than a track.
        os.truncate(image, _PROBE_DISK)
        argv = [
            "timeout", "-s", "KILL", f"{_PROBE_SECONDS:g}", PROGRAM, "-accel", accelerator,
            "-cpu", "max", "-machine", MACHINE, "-m", "32M", "-nodefaults", "-no-user-config",
            "-display", "none", "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
            "-drive", f"file={image},format=raw,if=ide",
        ]  # fmt: skip
        try:
            done = await processes.arun(argv, what=f"try {accelerator}", check=False)
        except errors.ToolMissing:
            return False
    return done.returncode == _EXIT_BY_GUEST


def arguments(
    plan: GuestPlan,
    disks: Sequence[AttachedDisk],
    *,
    address: str,
    accelerator: str,
    firmware: Firmware | None = None,
) -> list[str]:
    """Return QEMU's argv; it shall run with the guest's folder as its working directory.

    Args:
        address: the VM's own address, where its ports are served.
        accelerator: `kvm` or `tcg`.
        firmware: code and this guest's own copy of the variables, when the plan asks for EFI.
    """
    return [
        PROGRAM,
        *("-name", f"guest={plan.namespace}_{plan.name},debug-threads=on"),
        *("-accel", "kvm" if accelerator == "kvm" else _emulation(plan)),
        *("-machine", f"{MACHINE},usb=off,vmport=off"),
        *("-cpu", plan.cpu_model or ("max" if accelerator == "kvm" else _EMULATED_CPU)),
        *("-smp", f"sockets={plan.sockets},cores={plan.cores},threads={plan.threads}"),
        *("-m", f"{plan.memory_mib}M"),
        *("-nodefaults", "-no-user-config", "-no-shutdown"),
        *(("-S",) if plan.paused else ()),
        *("-rtc", "base=utc"),
        *("-uuid", plan.uuid),
        *("-smbios", _smbios(plan)),
        *_firmware(firmware),
        *(_tpm() if plan.tpm else ()),
        *_channels(),
        *(
            ("-device", "VGA", "-vnc", f"unix:{SCREEN_SOCKET}")
            if plan.graphics
            else ("-display", "none")
        ),
        *_network(plan, address),
        *_drives(disks),
        *(("-device", "virtio-rng-pci") if plan.rng else ()),
        *(("-device", "virtio-balloon-pci") if plan.memory_balloon else ()),
        *(("-device", "virtio-tablet-pci") if plan.tablet else ()),
        *(("-device", "i6300esb", "-action", f"watchdog={plan.watchdog}") if plan.watchdog else ()),
    ]


def _emulation(plan: GuestPlan) -> str:
    """Keep as much translated code as the guest has memory, between 256 MiB and 1 GiB.

    When the room is full, QEMU drops all and translates anew: 12 times while docker and a module
    start in a guest of 1 GiB with 256 MiB for it.
    """
    return f"tcg,thread=multi,tb-size={min(max(plan.memory_mib, 256), 1024)}"


def _smbios(plan: GuestPlan) -> str:
    return f"type=1,manufacturer=KubeVirt,product=None,family=KubeVirt,uuid={plan.uuid}" + (
        f",serial={_quoted(plan.serial)}" if plan.serial else ""
    )


def _quoted(value: str) -> str:
    """Double the commas: QEMU splits its option strings at single ones."""
    return value.replace(",", ",,")


def _firmware(firmware: Firmware | None) -> Iterator[str]:
    if firmware:
        yield from (
            "-drive",
            f"if=pflash,format=raw,unit=0,readonly=on,file={_quoted(str(firmware.code))}",
        )
        yield from (
            "-drive",
            f"if=pflash,format=raw,unit=1,file={_quoted(str(firmware.variables))}",
        )


def _tpm() -> Iterator[str]:
    yield from ("-chardev", f"socket,id=tpm0,path={tpm.SOCKET}")
    yield from ("-tpmdev", "emulator,id=tpm0,chardev=tpm0", "-device", "tpm-crb,tpmdev=tpm0")


def _channels() -> Iterator[str]:
    yield from ("-qmp", f"unix:{MONITOR_SOCKET},server=on,wait=off")
    yield from (
        "-chardev",
        f"socket,id=ser0,path={CONSOLE_SOCKET},server=on,wait=off,logfile={CONSOLE_LOG},logappend=on",
    )
    yield from ("-serial", "chardev:ser0")
    yield from ("-device", "virtio-serial-pci")
    yield from ("-chardev", f"socket,id={AGENT_PORT},path={AGENT_SOCKET},server=on,wait=off")
    yield from (
        "-device",
        f"virtserialport,chardev={AGENT_PORT},id={AGENT_PORT},name=org.qemu.guest_agent.0",
    )


def _network(plan: GuestPlan, address: str) -> Iterator[str]:
    if not plan.mac:
        return
    forwards = "".join(
        f",hostfwd={port.protocol}:{address}:{port.number}-:{port.number}" for port in plan.ports
    )
    yield from (
        "-netdev",
        "user,id=net0,net=10.0.2.0/24,host=10.0.2.1,dns=10.0.2.3,dhcpstart=10.0.2.2"
        f",hostname={_quoted(plan.hostname)}{forwards}",
    )
    yield from ("-device", f"virtio-net-pci,netdev=net0,mac={plan.mac},romfile=")


def _drives(disks: Iterable[AttachedDisk]) -> Iterator[str]:
    for number, disk in enumerate(disks):
        options = f"driver={disk.format},node-name=disk{number},file.driver=file"
        options += f",file.filename={_quoted(str(disk.file))}"
        if disk.plan.read_only:
            options += ",read-only=on,file.read-only=on"
        else:
            options += ",discard=unmap,file.discard=unmap"
        yield from ("-blockdev", options)
        device = f"virtio-blk-pci,drive=disk{number}"
        if disk.plan.serial:
            device += f",serial={_quoted(disk.plan.serial)}"
        if disk.plan.boot_order:
            device += f",bootindex={disk.plan.boot_order}"
        yield from ("-device", device)
