"""Where the VM host finds its identities and certificates, and where it keeps its state."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from kvedge import names

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HostSettings"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """Everything that differs between two hosts."""

    directory: Path
    """The site's folder, absolute."""
    node: str = names.NODE_NAME
    address: str = names.NODE_ADDRESS
    """The node's address inside the site's namespace."""
    handler_port: int = 8186
    """Port of the virt-handler endpoints; virt-api is told it by --console-server-port."""
    kubelet_port: int = 10250
    stop_seconds: float = 25.0
    """How long guests may take to power off when the host is told to stop."""

    def identity(self, name: str) -> Path:
        """Return the kubeconfig of `node`, `handler` or `volumes`."""
        return self.directory / "identities" / f"{name}.kubeconfig"

    def pki(self, name: str) -> Path:
        """Return a file of the site's PKI folder."""
        return self.directory / "pki" / name

    @property
    def guests(self) -> Path:
        """Folder with one folder a VMI, named by its UID."""
        return self.directory / "vms"

    @property
    def tpms(self) -> Path:
        """Folder with one folder a persistent TPM, named by its VirtualMachine's UID."""
        return self.directory / "tpms"

    @property
    def pods(self) -> Path:
        """Folder with one folder a local-process pod, named by its UID."""
        return self.directory / "pods"

    @property
    def volumes(self) -> Path:
        """Folder with one folder a persistent volume, and `base` beside them."""
        return self.directory / "volumes"

    @property
    def images(self) -> Path:
        """Folder of imported disk images, one file a manifest digest."""
        return self.volumes / "base"

    @property
    def stopping(self) -> bool:
        """Whether the whole site goes down, not this process alone."""
        return (self.directory / "run" / "stopping").exists()

    @property
    def publisher(self) -> Path:
        """Socket of the process that publishes ports on the machine's own loopback."""
        return self.directory / "run" / "publisher.sock"
