"""The Debian package."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile

import pytest

from kvedge.edgesim import packing

EPOCH = 1_700_000_000


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package built once."""
    return packing.build_deb(tmp_path_factory.mktemp("deb"), source_date_epoch=EPOCH)


def members(path):
    """Return the members of an ar archive."""
    data, at, found = path.read_bytes(), 8, {}
    while at < len(data):
        name, size = data[at : at + 16].decode().strip(), int(data[at + 48 : at + 58])
        found[name] = data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    return found


def test_equal_inputs_give_equal_bytes(package, tmp_path):
    """The image's cache depends on it."""
    again = packing.build_deb(tmp_path, source_date_epoch=EPOCH)
    assert again.read_bytes() == package.read_bytes()


def test_package_holds_what_the_units_start(package):
    """Programs, unit with its aliases, template and library are there, owned by root."""
    data = members(package)["data.tar.gz"]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        entries = {member.name: member for member in archive.getmembers()}
        service = archive.extractfile("./usr/lib/systemd/system/aziot-edged.service").read()
    assert {member.uid for member in entries.values()} == {0}
    assert {member.mtime for member in entries.values()} == {EPOCH}
    for name in (
        "./usr/bin/iotedge",
        "./usr/libexec/aziot/aziot-edged",
        "./etc/aziot/config.toml.edge.template",
        "./usr/lib/aziot-edge-standin/kvedge/edgesim/daemon.py",
        "./usr/lib/aziot-edge-standin/vendor/azure/iot/device/__init__.py",
        "./usr/lib/aziot-edge-standin/vendor/paho/mqtt/client.py",
    ):
        assert name in entries
    assert entries["./usr/bin/iotedge"].mode == 0o755
    assert entries["./usr/lib/systemd/system/aziot-identityd.service"].issym()
    assert b"RestartPreventExitStatus=153" in service
    assert not [name for name in entries if name.endswith((".so", ".pyc"))]


def test_description_says_what_it_is(package):
    """Nobody may take the package for the vendor's."""
    data = members(package)["control.tar.gz"]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        control = archive.extractfile("./control").read().decode()
    assert "Package: aziot-edge\n" in control
    assert "Provides: aziot-identity-service" in control
    assert "This is not Azure IoT Edge." in control


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is Debian's")
def test_dpkg_reads_the_package(package):
    """Debian's own program takes the archive."""
    done = subprocess.run(
        ["dpkg-deb", "--field", str(package), "Version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == packing.VERSION


def test_packed_library_runs_alone(package, tmp_path):
    """The daemon's modules import with nothing but the package's own folders on the path."""
    data = members(package)["data.tar.gz"]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        # Debian 12's Python 3.11.2 has no filters yet; later ones warn without.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **safe)
    library = tmp_path / packing.LIBRARY.lstrip("/")
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from kvedge.edgesim import commands, connecting, daemon, listening, management, methods,"
        " relay, upstream\n"
        "from azure.iot.device import IoTHubModuleClient\n"
        "from paho.mqtt import client\n"
    )
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    subprocess.run([python, "-ISc", code, library, library / "vendor"], check=True)
