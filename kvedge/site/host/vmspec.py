"""From a VirtualMachineInstance to what QEMU shall run, every unsupported field at once.

The object has passed KubeVirt's admission, so this looks only for what this host cannot do.
"""

from __future__ import annotations

import dataclasses
import uuid
from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.site.host import accesskeys
from kvedge.site.host.quantities import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["DiskPlan", "GuestPlan", "Port", "plan_guest"]

_VOLUMES = (
    "cloudInitNoCloud",
    "configMap",
    "containerDisk",
    "dataVolume",
    "emptyDisk",
    "persistentVolumeClaim",
    "secret",
)
_NO_DEVICES = {
    "filesystems": "virtiofs is not there",
    "gpus": "no device passthrough",
    "hostDevices": "no device passthrough",
    "sound": "no sound device",
    "clientPassthrough": "no USB redirection",
    "panicDevices": "no panic device",
}
_ALL_PORTS = (22, 80, 443, 5671, 8080, 8883, 9600)
"""What is forwarded when an interface names no ports (masquerade then forwards all)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port of the guest, served at the VM's own address."""

    number: int
    protocol: str = "tcp"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """A disk and the volume behind it."""

    name: str
    serial: str
    boot_order: int | None
    read_only: bool
    volume: Mapping[str, Any]
    """The VMI's volume: `name` and one source."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuestPlan:
    """What one QEMU process shall be."""

    namespace: str
    name: str
    hostname: str
    uuid: str
    serial: str
    memory_mib: int
    sockets: int
    cores: int
    threads: int
    cpu_model: str
    """Empty for the best that this machine can do."""
    efi: bool
    tpm: str
    """`persistent`, `volatile` (fresh at every start), or empty for none."""
    owner: str
    """UID of the VirtualMachine, else of the VMI: what persists is kept for it."""
    disks: tuple[DiskPlan, ...]
    mac: str
    """Empty for a guest without a network."""
    ports: tuple[Port, ...]
    rng: bool
    graphics: bool
    watchdog: str
    """Action of an i6300esb watchdog, empty for none."""
    tablet: bool
    memory_balloon: bool
    paused: bool
    """Whether the guest waits for an unpause before its first instruction."""


def plan_guest(vmi: Mapping[str, Any]) -> GuestPlan:
    """Return the plan of a VMI.

    Raises:
        SpecError: fields that this host does not do, each with its path.
    """
    problems = list(_problems(vmi["spec"]))
    if problems:
        metadata = vmi["metadata"]
        raise errors.SpecError(
            f"VMI {metadata['namespace']}/{metadata['name']} cannot run on this node", problems
        )
    spec, metadata = vmi["spec"], vmi["metadata"]
    domain = spec["domain"]
    devices = domain.get("devices") or {}
    cpu = domain.get("cpu") or {}
    firmware = domain.get("firmware") or {}
    interfaces = devices.get("interfaces") or []
    watchdog = (devices.get("watchdog") or {}).get("i6300esb") or {}
    return GuestPlan(
        namespace=metadata["namespace"],
        name=metadata["name"],
        hostname=spec.get("hostname") or metadata["name"],
        uuid=firmware.get("uuid") or metadata["uid"],
        serial=firmware.get("serial") or "",
        memory_mib=max(16, parse_quantity(_memory(domain) or "64Mi") // 2**20),
        sockets=cpu.get("sockets") or 1,
        cores=cpu.get("cores") or 1,
        threads=cpu.get("threads") or 1,
        cpu_model=""
        if cpu.get("model") in {None, "", "host-model", "host-passthrough", "max"}
        else cpu["model"],
        efi="efi" in (firmware.get("bootloader") or {}),
        tpm=_tpm(devices.get("tpm")),
        owner=next(
            (one["uid"] for one in metadata.get("ownerReferences") or () if one.get("controller")),
            metadata["uid"],
        ),
        disks=tuple(_disks(spec)),
        mac=(interfaces[0].get("macAddress") or _mac(metadata["uid"])) if interfaces else "",
        ports=tuple(_ports(interfaces[0])) if interfaces else (),
        rng="rng" in devices,
        graphics=devices.get("autoattachGraphicsDevice", True),
        watchdog=watchdog.get("action", "") if watchdog else "",
        tablet=bool(devices.get("inputs")),
        paused=spec.get("startStrategy") == "Paused",
        memory_balloon=devices.get("autoattachMemBalloon", True),
    )


def _tpm(device: Mapping[str, Any] | None) -> str:
    if device is None or not device.get("enabled", True):
        return ""
    return "persistent" if device.get("persistent") else "volatile"


def _memory(domain: Mapping[str, Any]) -> str | None:
    resources = domain.get("resources") or {}
    return (
        (domain.get("memory") or {}).get("guest")
        or (resources.get("requests") or {}).get("memory")
        or (resources.get("limits") or {}).get("memory")
    )


def _mac(uid: str) -> str:
    """Return a locally administered unicast address that stays the same for a VMI."""
    tail = uuid.UUID(uid).bytes[-5:] if _is_uuid(uid) else uid.encode()[-5:].rjust(5, b"0")
    return ":".join(f"{byte:02x}" for byte in b"\x02" + tail)


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _ports(interface: Mapping[str, Any]) -> Iterator[Port]:
    if not interface.get("ports"):
        yield from (Port(number=number) for number in _ALL_PORTS)
    for port in interface.get("ports") or ():
        yield Port(number=port["port"], protocol=(port.get("protocol") or "TCP").lower())


def _disks(spec: Mapping[str, Any]) -> Iterator[DiskPlan]:
    volumes = {volume["name"]: volume for volume in spec.get("volumes") or ()}
    disks = (spec["domain"].get("devices") or {}).get("disks") or ()
    ordered = any(disk.get("bootOrder") for disk in disks)
    for position, disk in enumerate(disks, start=1):
        volume = volumes[disk["name"]]
        content = {"cloudInitNoCloud", "configMap", "secret"} & set(volume)
        yield DiskPlan(
            name=disk["name"],
            serial=disk.get("serial") or "",
            boot_order=disk.get("bootOrder") if ordered else (None if content else position),
            read_only=bool(content) or bool((disk.get("disk") or {}).get("readonly")),
            volume=volume,
        )


def _problems(spec: Mapping[str, Any]) -> Iterator[errors.Problem]:
    domain = spec["domain"]
    devices = domain.get("devices") or {}
    yield from _disk_problems(spec, devices)
    yield from _network_problems(spec, devices)
    for field, why in _NO_DEVICES.items():
        if devices.get(field) is not None and devices.get(field) != []:
            yield errors.Problem(path=f"spec.domain.devices.{field}", message=why)
    bootloader = (domain.get("firmware") or {}).get("bootloader") or {}
    if "efi" in bootloader:
        efi = bootloader["efi"] or {}
        if efi.get("secureBoot", True):
            yield errors.Problem(
                path="spec.domain.firmware.bootloader.efi.secureBoot",
                message="secure boot is not done here",
                hint="set it to false",
            )
        if efi.get("persistent"):
            yield errors.Problem(
                path="spec.domain.firmware.bootloader.efi.persistent",
                message="EFI variables are fresh at every start",
            )
    if (domain.get("firmware") or {}).get("kernelBoot"):
        yield errors.Problem(
            path="spec.domain.firmware.kernelBoot", message="guests boot from disk"
        )
    if (domain.get("memory") or {}).get("hugepages"):
        yield errors.Problem(path="spec.domain.memory.hugepages", message="no huge pages here")
    if (domain.get("cpu") or {}).get("dedicatedCpuPlacement"):
        yield errors.Problem(
            path="spec.domain.cpu.dedicatedCpuPlacement", message="cores are shared"
        )
    if domain.get("launchSecurity"):
        yield errors.Problem(path="spec.domain.launchSecurity", message="no SEV, SNP or TDX")
    for number, credential in enumerate(spec.get("accessCredentials") or ()):
        if accesskeys.unsupported(credential):
            yield errors.Problem(
                path=f"spec.accessCredentials[{number}]",
                message="only sshPublicKey by qemuGuestAgent",
                hint="use a secret volume or cloud-init",
            )
    if (spec.get("architecture") or "amd64") != "amd64":
        yield errors.Problem(path="spec.architecture", message="this node runs amd64 guests")


def _disk_problems(spec: Mapping[str, Any], devices: Mapping[str, Any]) -> Iterator[errors.Problem]:
    for number, disk in enumerate(devices.get("disks") or ()):
        path = f"spec.domain.devices.disks[{number}]"
        for kind in ("cdrom", "lun", "floppy"):
            if disk.get(kind) is not None:
                yield errors.Problem(
                    path=f"{path}.{kind}", message="only disks are attached", hint="use disk"
                )
        bus = (disk.get("disk") or {}).get("bus") or "virtio"
        if bus != "virtio":
            yield errors.Problem(
                path=f"{path}.disk.bus", message=f"bus {bus!r} is not done", hint="use virtio"
            )
    for number, volume in enumerate(spec.get("volumes") or ()):
        sources = sorted(set(volume) - {"name"})
        kind = sources[0] if sources else "none"
        path = f"spec.volumes[{number}].{kind}"
        if kind not in _VOLUMES:
            yield errors.Problem(path=path, message=f"volumes of kind {kind!r} are not done")
        elif kind == "containerDisk" and volume[kind].get("path"):
            yield errors.Problem(
                path=f"{path}.path", message="the first file below disk/ is always taken"
            )
        elif (volume[kind] or {}).get("hotpluggable"):
            yield errors.Problem(path=f"{path}.hotpluggable", message="nothing is hot-plugged")


def _network_problems(
    spec: Mapping[str, Any], devices: Mapping[str, Any]
) -> Iterator[errors.Problem]:
    for number, network in enumerate(spec.get("networks") or ()):
        if "pod" not in network:
            yield errors.Problem(
                path=f"spec.networks[{number}].multus", message="only the pod network exists"
            )
        elif (network["pod"] or {}).get("vmNetworkCIDR"):
            yield errors.Problem(
                path=f"spec.networks[{number}].pod.vmNetworkCIDR",
                message="guests are always in 10.0.2.0/24",
            )
    for number, interface in enumerate(devices.get("interfaces") or ()):
        path = f"spec.domain.devices.interfaces[{number}]"
        if "masquerade" not in interface:
            yield errors.Problem(
                path=path, message="only masquerade binding", hint="masquerade: {}"
            )
        if (interface.get("model") or "virtio") != "virtio":
            yield errors.Problem(path=f"{path}.model", message="only virtio interfaces")
        if number:
            yield errors.Problem(path=path, message="only one interface")
