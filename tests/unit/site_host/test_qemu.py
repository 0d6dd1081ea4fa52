"""What QEMU is started with."""

from pathlib import Path

from kvedge.site.host.qemu import AttachedDisk, Firmware, arguments
from kvedge.site.host.vmspec import plan_guest


def _argv(vmi, **options):
    plan = plan_guest(vmi)
    disks = [
        AttachedDisk(plan=disk, file=Path(f"/d/{disk.name},1.img"), format="qcow2")
        for disk in plan.disks
    ]
    return arguments(plan, disks, **{"address": "10.77.16.10", "accelerator": "tcg", **options})


def test_ports_are_served_at_the_vms_own_address(vmi):
    """Declared ports are forwarded from the VM's address; the guest sees masquerade's network."""
    netdev = next(word for word in _argv(vmi) if word.startswith("user,"))
    assert "hostfwd=tcp:10.77.16.10:22-:22" in netdev
    assert "net=10.0.2.0/24,host=10.0.2.1,dns=10.0.2.3,dhcpstart=10.0.2.2" in netdev


def test_disks_carry_serials_and_boot_order(vmi):
    """The guest finds disks by serial; only bootable ones have an order."""
    devices = [word for word in _argv(vmi) if word.startswith("virtio-blk-pci")]
    assert devices == [
        "virtio-blk-pci,drive=disk0,bootindex=1",
        "virtio-blk-pci,drive=disk1,serial=edge-config",
        "virtio-blk-pci,drive=disk2",
    ]


def test_commas_in_paths_do_not_become_options(vmi):
    """QEMU splits options at single commas."""
    assert any("/d/os,,1.img" in word for word in _argv(vmi))


def test_acceleration_is_software_unless_kvm_works(vmi):
    """TCG runs multi-threaded, with room for translated code by the guest's size."""
    assert "kvm" in _argv(vmi, accelerator="kvm")
    for memory, room in (("128Mi", 256), ("768Mi", 768), ("1Gi", 1024), ("4Gi", 1024)):
        vmi["spec"]["domain"]["memory"] = {"guest": memory}
        assert f"tcg,thread=multi,tb-size={room}" in _argv(vmi)


def test_efi_variables_are_the_guests_own(vmi):
    """UEFI code is shared and read only, the variables are not."""
    firmware = Firmware(code=Path("/c.fd"), variables=Path("/v.fd"))
    drives = [word for word in _argv(vmi, firmware=firmware) if word.startswith("if=pflash")]
    assert drives[0].endswith("readonly=on,file=/c.fd")
    assert drives[1].endswith("unit=1,file=/v.fd")


def test_a_guest_without_interfaces_has_no_network(vmi):
    """No interface means no network device at all."""
    vmi["spec"]["domain"]["devices"]["interfaces"] = []
    vmi["spec"]["networks"] = []
    assert not any("virtio-net" in word for word in _argv(vmi))
