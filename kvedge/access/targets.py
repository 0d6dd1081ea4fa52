"""Target syntax, as virtctl's: `[user@]NAME[.NAMESPACE]`, `[user@]vm/NAME[/NAMESPACE]`, `vmi/…`.

And what of a guest is reached: a TCP port, the serial console or the screen.
"""

from __future__ import annotations

import dataclasses

from kvedge import errors, names

__all__ = ["CONSOLE", "SCREEN", "Channel", "Target", "parse_remote_path", "parse_target", "tcp"]

_DEFAULT_USER = "edge"
_KINDS = {
    "vm": "vm",
    "virtualmachine": "vm",
    "vmi": "vmi",
    "virtualmachineinstance": "vmi",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A byte stream that a guest offers through the Kubernetes API."""

    subresource: str
    """Last part of the path on the API server."""
    name: str
    """How messages call it."""


CONSOLE = Channel(subresource="console", name="serial console")
SCREEN = Channel(subresource="vnc", name="screen")


def tcp(port: int) -> Channel:
    """Return a TCP port as a channel."""
    return Channel(subresource=f"portforward/{port}/tcp", name=f"port {port}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A VM that someone wants to reach."""

    user: str = _DEFAULT_USER
    name: str
    namespace: str
    kind: str = "vm"
    """`vm` or `vmi`, for the alias only: both reach the same guest."""

    @property
    def alias(self) -> str:
        """The name under which known_hosts holds the key; the same as virtctl's."""
        return f"{self.kind}.{self.name}.{self.namespace}"

    @property
    def vm_path(self) -> str:
        """The VirtualMachine's path on the API server."""
        return f"/apis/kubevirt.io/v1/namespaces/{self.namespace}/virtualmachines/{self.name}"

    def path(self, channel: Channel) -> str:
        """Return a channel's path on the API server."""
        return (
            f"/apis/subresources.kubevirt.io/v1/namespaces/{self.namespace}"
            f"/virtualmachineinstances/{self.name}/{channel.subresource}"
        )

    def act_path(self, act: str) -> str:
        """Return the path of `start`, `stop` or `restart`."""
        return (
            f"/apis/subresources.kubevirt.io/v1/namespaces/{self.namespace}"
            f"/virtualmachines/{self.name}/{act}"
        )


def parse_target(text: str, *, namespace: str, user: str = "") -> Target:
    """Read a target.

    Args:
        namespace: used when the text names none.
        user: wins over the one in the text; the image's `edge` is the default.

    Raises:
        SpecError: the text is not a target.
    """
    before, at, rest = text.rpartition("@")
    parts = rest.split("/")
    kind = "vm"
    if len(parts) > 1:
        kind = _KINDS.get(parts[0].lower(), "")
        parts = parts[1:]
    if len(parts) == 1:
        parts = parts[0].split(".")
    name = parts[0]
    found_namespace = parts[1] if len(parts) == 2 else namespace
    valid = (
        kind
        and len(parts) <= 2
        and names.DNS_LABEL.fullmatch(name)
        and names.DNS_LABEL.fullmatch(found_namespace)
        and (before or not at)
    )
    if not valid:
        problem = errors.Problem(
            path="TARGET",
            message=f"{text!r} is not a VM",
            hint="write NAME, NAME.NAMESPACE or vm/NAME/NAMESPACE, with user@ before it if wanted",
        )
        raise errors.SpecError("cannot read the target", [problem])
    return Target(
        user=user or before or _DEFAULT_USER, name=name, namespace=found_namespace, kind=kind
    )


def parse_remote_path(text: str) -> tuple[str, str] | None:
    """Split `TARGET:PATH` as scp does; None for a local path.

    A colon after a slash that belongs to a path (`./a:b`, `/a:b`) is part of a local name.
    """
    target, colon, path = text.partition(":")
    if not colon or not target or target[0] in "./":
        return None
    return target, path
