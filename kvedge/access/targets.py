"""Target syntax, as virtctl's: `[user@]NAME`, `[user@]vm/NAME[/NAMESPACE]`, `vmi/…`."""

from __future__ import annotations

import dataclasses

from kvedge import errors, names

__all__ = ["Target", "parse_target"]

_DEFAULT_USER = "edge"
_KINDS = {
    "vm": "vm",
    "virtualmachine": "vm",
    "vmi": "vmi",
    "virtualmachineinstance": "vmi",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A VM that someone wants to reach."""

    user: str
    name: str
    namespace: str
    kind: str = "vm"
    """`vm` or `vmi`, for the alias only: both reach the same guest."""

    @property
    def alias(self) -> str:
        """The name under which known_hosts holds the key; the same as virtctl's."""
        return f"{self.kind}.{self.name}.{self.namespace}"

    def portforward_path(self, port: int) -> str:
        """Return the subresource's path on the API server."""
        return (
            f"/apis/subresources.kubevirt.io/v1/namespaces/{self.namespace}"
            f"/virtualmachineinstances/{self.name}/portforward/{port}/tcp"
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
            hint="write NAME, vm/NAME or vm/NAME/NAMESPACE, with user@ before it if wanted",
        )
        raise errors.SpecError("cannot read the target", [problem])
    return Target(
        user=user or before or _DEFAULT_USER, name=name, namespace=found_namespace, kind=kind
    )
