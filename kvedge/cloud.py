"""Reading the `azure:` section: what is made in Azure before an environment.

Names follow Azure's own rules (Microsoft.Resources naming rules of each kind), so that a wrong one
is told here and not after minutes of a run.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kvedge import spec
from kvedge.redact import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvedge.fields import Fields

__all__ = ["hub_name", "read"]

_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_TAGS = 50
# D, E and F series of the third generation on; `p` in the middle is Arm64, which has no nesting.
_NESTING = re.compile(r"Standard_[DEF]\d+(?!\w*p\w*_v)[a-z]*_v([3-9]|\d\d)")


def read(top: Fields, secret: Callable[[Fields, str], str]) -> spec.Azure | None:
    """Return the section, if there is one; mistakes are noted in `top`.

    Args:
        secret: reads a setting that may be encrypted.
    """
    if not top.has("azure"):
        top.raw("azure")
        return None
    part = top.section("azure")
    if not part.usable:
        return None
    hub, plain = part.section("hub"), spec.AzureHub(name="")
    azure = spec.Azure(
        location=_needed(part, "location", r"[a-z0-9]+", "such as westeurope"),
        resource_group=_needed(part, "resourceGroup", r"[\w.()-]{0,89}[\w()-]", "its name"),
        subscription=part.text("subscription", check=_guid, hint="az account show"),
        hub=spec.AzureHub(
            name=_needed(hub, "name", r"[A-Za-z0-9][A-Za-z0-9-]{1,48}[A-Za-z0-9]", _NAME),
            sku=hub.choice("sku", plain.sku, ("S1", "S2", "S3")),
            units=hub.whole("units", plain.units, 1, 200),
        ),
        dps=_dps(part),
        aks=_aks(part),
        arc=_arc(part, secret),
        tags=part.mapping("tags", key=_tag_key, value=_tag_value),
    )
    hub.done()
    part.done()
    if len(azure.tags) > _TAGS:
        part.problem("tags", f"are {len(azure.tags)}, and a resource takes {_TAGS}")
    return azure


def hub_name(top: Fields) -> str:
    """Return the name of the hub that the section makes, whatever else is wrong in it."""
    azure = top.raw("azure")
    hub = azure.get("hub") if isinstance(azure, dict) else None
    name = hub.get("name") if isinstance(hub, dict) else None
    return name if isinstance(name, str) else ""


_NAME = "3 to 50 letters, digits and '-'"


def _dps(part: Fields) -> spec.AzureDps | None:
    inner = _optional(part, "dps")
    if inner is None:
        return None
    dps = spec.AzureDps(
        name=_needed(inner, "name", r"[A-Za-z0-9][A-Za-z0-9-]{1,62}[A-Za-z0-9]", "3 to 64 of them"),
        group=inner.text(
            "group", spec.AzureDps(name="").group, check=_like(r"[a-z0-9][a-z0-9._:-]{0,127}")
        ),
    )
    inner.done()
    return dps


def _aks(part: Fields) -> spec.Aks | None:
    inner = _optional(part, "aks")
    if inner is None:
        return None
    plain = spec.Aks(name="")
    aks = spec.Aks(
        name=_needed(inner, "name", r"[A-Za-z0-9]([A-Za-z0-9-]{0,52}[A-Za-z0-9])?", "at most 54"),
        node_size=inner.text("nodeSize", plain.node_size, check=_nesting),
        nodes=inner.whole("nodes", plain.nodes, 1, 100),
        version=inner.text("version", check=_like(r"1\.\d{1,2}(\.\d{1,2})?"), hint="such as 1.33"),
    )
    inner.done()
    return aks


def _arc(part: Fields, secret: Callable[[Fields, str], str]) -> spec.Arc | None:
    inner = _optional(part, "arc")
    if inner is None:
        return None
    arc = spec.Arc(
        name=_needed(inner, "name", r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", "at most 63"),
        connect=inner.flag("connect", default=False),
        flux=_flux(inner, secret),
    )
    inner.done()
    return arc


def _flux(part: Fields, secret: Callable[[Fields, str], str]) -> spec.Flux | None:
    inner = _optional(part, "flux")
    if inner is None:
        return None
    token, plain = secret(inner, "token"), spec.Flux(url="", path="")
    flux = spec.Flux(
        url=_needed(inner, "url", r"(https|ssh)://[^\s/@]+(@[^\s/]+)?/\S+", "https:// or ssh://"),
        path=_needed(inner, "path", r"(?!/)(?!.*\.\.)\S+", "a folder in the repository"),
        branch=inner.text("branch", plain.branch, check=_like(r"[^\s~^:?*\[\\]+")),
        interval_seconds=inner.whole("intervalSeconds", plain.interval_seconds, 60, 86400),
        user=inner.text("user"),
        token=Secret(token) if token else None,
    )
    if inner.has("user") != inner.has("token"):
        inner.problem("user", "and token belong together", "give both, or none")
    inner.done()
    return flux


def _optional(part: Fields, field: str) -> Fields | None:
    if part.has(field):
        return part.section(field)
    part.raw(field)
    return None


def _needed(part: Fields, field: str, pattern: str, hint: str) -> str:
    """Return a text that must be given."""
    if part.usable and not part.has(field):
        part.problem(field, "is missing", hint)
    return part.text(field, check=_like(pattern), hint=hint)


def _like(pattern: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        return "" if compiled.fullmatch(text) else "does not fit"

    return check


def _guid(text: str) -> str:
    return "" if _GUID.fullmatch(text) else "is not a subscription's id"


def _nesting(text: str) -> str:
    return "" if _NESTING.fullmatch(text) else "is not known to have nested virtualization"


def _tag_key(text: str) -> str:
    fits = len(text) <= 512 and not re.search(r"[<>%&\\?/]", text)
    return "" if text and fits else "is not a tag's name"


def _tag_value(text: str) -> str:
    return "" if len(text) <= 256 else "is longer than 256 characters"
