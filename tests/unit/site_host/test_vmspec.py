"""From a VMI to the plan of its guest."""

import pytest

from kvedge import errors
from kvedge.site.host.vmspec import plan_guest


def test_a_plan_holds_what_the_vmi_says(vmi):
    """CPU, memory, identity, ports and disks come from the spec."""
    plan = plan_guest(vmi)
    assert (plan.cores, plan.memory_mib, plan.uuid) == (
        2,
        1024,
        vmi["spec"]["domain"]["firmware"]["uuid"],
    )
    assert [(port.number, port.protocol) for port in plan.ports] == [(22, "tcp")]
    assert [(disk.name, disk.boot_order, disk.read_only) for disk in plan.disks] == [
        ("os", 1, False),
        ("edge", None, True),
        ("ci", None, True),
    ]
    assert plan.disks[1].serial == "edge-config"


def test_without_boot_order_disks_boot_in_their_order(vmi):
    """Seeds and secrets are never booted from."""
    del vmi["spec"]["domain"]["devices"]["disks"][0]["bootOrder"]
    assert [disk.boot_order for disk in plan_guest(vmi).disks] == [1, None, None]


def test_a_mac_address_is_stable_and_local(vmi):
    """A VMI without a MAC gets the same locally administered one each time."""
    first = plan_guest(vmi).mac
    assert first == plan_guest(vmi).mac
    assert first.startswith("02:")
    vmi["spec"]["domain"]["devices"]["interfaces"][0]["macAddress"] = "02:00:00:00:00:07"
    assert plan_guest(vmi).mac == "02:00:00:00:00:07"


def test_no_declared_ports_still_means_ssh(vmi):
    """An interface without ports forwards at least 22."""
    del vmi["spec"]["domain"]["devices"]["interfaces"][0]["ports"]
    assert 22 in [port.number for port in plan_guest(vmi).ports]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (
            lambda s: s["domain"]["devices"]["disks"][0]["disk"].update(bus="sata"),
            "disks[0].disk.bus",
        ),
        (
            lambda s: s["domain"]["devices"]["disks"][2].update(cdrom={"bus": "sata"}),
            "disks[2].cdrom",
        ),
        (lambda s: s["domain"]["devices"].update(gpus=[{"name": "g"}]), "devices.gpus"),
        (
            lambda s: s["volumes"].append({"name": "h", "hostDisk": {"path": "/x"}}),
            "volumes[3].hostDisk",
        ),
        (
            lambda s: s["volumes"][0]["dataVolume"].update(hotpluggable=True),
            "volumes[0].dataVolume.hotpluggable",
        ),
        (
            lambda s: s["networks"].append({"name": "m", "multus": {"networkName": "x"}}),
            "networks[1].multus",
        ),
        (
            lambda s: s["domain"]["devices"]["interfaces"][0].update(model="e1000"),
            "interfaces[0].model",
        ),
        (lambda s: s["domain"]["firmware"].update(bootloader={"efi": {}}), "efi.secureBoot"),
        (lambda s: s["domain"]["memory"].update(hugepages={"pageSize": "2Mi"}), "memory.hugepages"),
        (lambda s: s.update(accessCredentials=[{}]), "spec.accessCredentials[0]"),
        (lambda s: s.update(architecture="arm64"), "spec.architecture"),
    ],
)
def test_what_is_not_done_is_refused_by_its_path(vmi, change, path):
    """Nothing that the host cannot do is dropped silently."""
    change(vmi["spec"])
    with pytest.raises(errors.SpecError) as found:
        plan_guest(vmi)
    assert any(problem.path.endswith(path) for problem in found.value.problems)


def test_all_problems_are_told_at_once(vmi):
    """A user mends a spec once, not field by field."""
    vmi["spec"]["domain"]["devices"].update(gpus=[{"name": "g"}], sound={"name": "s"})
    with pytest.raises(errors.SpecError) as found:
        plan_guest(vmi)
    assert len(found.value.problems) == 2


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        (None, ""),
        ({}, "volatile"),
        ({"persistent": True}, "persistent"),
        ({"enabled": False, "persistent": True}, ""),
    ],
)
def test_a_tpm_persists_when_it_shall(vmi, device, kind):
    """A persistent TPM belongs to the VirtualMachine, so a new instance has the same keys."""
    if device is not None:
        vmi["spec"]["domain"]["devices"]["tpm"] = device
    assert plan_guest(vmi).tpm == kind
    assert plan_guest(vmi).owner == vmi["metadata"]["uid"]
    vmi["metadata"]["ownerReferences"] = [{"uid": "the-vm", "controller": True}]
    assert plan_guest(vmi).owner == "the-vm"
