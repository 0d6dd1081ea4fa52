"""Packs the stand-in runtime into the Debian package `aziot-edge`.

The package takes the real pair's names, users, units and paths, so that an image with it is put
together and driven like one with the vendor's. Its description says what it is.
"""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING, Final

from kvedge.edgesim import debian, vendoring

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable
    from pathlib import Path

__all__ = ["FILE_NAME", "LIBRARY", "VERSION", "build_deb"]

VERSION: Final = "1.6.0+kvedge1"
FILE_NAME: Final = f"aziot-edge_{VERSION}_all.deb"
LIBRARY: Final = "/usr/lib/aziot-edge-standin"
"""Goes on `sys.path` in the VM; holds kvedge/edgesim and, below vendor/, the device client."""

_CONTROL: Final = f"""\
Package: aziot-edge
Version: {VERSION}
Architecture: all
Maintainer: The kvedge project <kvedge@localhost>
Section: admin
Priority: optional
Depends: python3 (>= 3.11) | python3-tomli, python3 (>= 3.10), ca-certificates, openssl, passwd
Provides: aziot-identity-service (= {VERSION})
Conflicts: aziot-identity-service, iotedge, libiothsm-std
Replaces: aziot-identity-service
Description: kvedge's stand-in for the Azure IoT Edge runtime (not Microsoft's)
 This is not Azure IoT Edge. It is a small replacement written by the kvedge
 project for virtual machines of its local test site, where the real packages
 cannot be redistributed. No part of that runtime is in it. It has the same
 users, units, paths and commands, and joins no hub other than kvedge's emulator.
 .
 It contains the azure-iot-device client and its dependencies, each under its own
 licence, see {LIBRARY}/vendor/licenses.
"""

_PROGRAM: Final = f"""\
#!/usr/bin/python3 -IS
import sys

sys.path[:0] = ["{LIBRARY}", "{LIBRARY}/vendor"]
from kvedge.edgesim.{{module}} import main

sys.exit(main())
"""

_RUNTIME_ONLY: Final = frozenset({"packing.py", "debian.py", "vendoring.py"})
_ALIASES: Final = ("aziot-certd", "aziot-identityd", "aziot-keyd", "aziot-tpmd")


def build_deb(destination: Path, *, source_date_epoch: int) -> Path:
    """Write the package into a folder and return its path; equal inputs give equal bytes.

    Raises:
        VendoringError: the device client is not installed, or in another version.
    """
    package = importlib.resources.files("kvedge.edgesim")
    templates = package / "package"
    data = debian.deb_bytes(
        control=_CONTROL,
        scripts={
            "conffiles": "/etc/aziot/config.toml.edge.template\n",
            **{
                name: (templates / name).read_text("utf-8")
                for name in ("preinst", "postinst", "prerm", "postrm")
            },
        },
        entries=_entries(package, templates),
        epoch=source_date_epoch,
    )
    destination.mkdir(parents=True, exist_ok=True)
    target = destination / FILE_NAME
    target.write_bytes(data)
    return target


def _entries(package: Traversable, templates: Traversable) -> Iterator[debian.Entry]:
    units = "/usr/lib/systemd/system"
    yield debian.Entry(
        path=f"{units}/aziot-edged.service",
        content=(templates / "aziot-edged.service").read_bytes(),
    )
    for alias in _ALIASES:
        yield debian.Entry(path=f"{units}/{alias}.service", link="aziot-edged.service")
    yield debian.Entry(
        path="/etc/aziot/config.toml.edge.template",
        content=(templates / "config.toml.edge.template").read_bytes(),
    )
    yield debian.Entry(
        path="/usr/share/doc/aziot-edge/copyright",
        content=(templates / "copyright").read_bytes(),
    )
    for path, module in (
        ("/usr/bin/iotedge", "commands"),
        ("/usr/libexec/aziot/aziot-edged", "daemon"),
    ):
        yield debian.Entry(path=path, content=_PROGRAM.format(module=module).encode(), mode=0o755)
    yield debian.Entry(path=f"{LIBRARY}/kvedge/__init__.py")
    for source in package.iterdir():
        if source.name.endswith(".py") and source.name not in _RUNTIME_ONLY:
            yield debian.Entry(
                path=f"{LIBRARY}/kvedge/edgesim/{source.name}", content=source.read_bytes()
            )
    for name, content in vendoring.vendored_files():
        yield debian.Entry(path=f"{LIBRARY}/vendor/{name}", content=content)
