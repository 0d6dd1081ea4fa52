"""From the engine's configuration to the environment's model."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pulumi

from kvedge import settings

if TYPE_CHECKING:
    from kvedge import spec

__all__ = ["load", "stack_settings"]


def load() -> spec.Environment:
    """Return the environment of the running stack.

    Raises:
        SpecError: with every mistake in the settings.
    """
    return settings.parse(pulumi.get_stack(), stack_settings(), environ=os.environ)


def stack_settings() -> dict[str, Any]:
    """Return all settings of our namespace; the engine keeps structured ones as JSON text."""
    prefix = f"{settings.NAMESPACE}:"
    found: dict[str, Any] = {}
    # pulumi.Config answers only for keys that it is asked for; unknown keys must be found as well.
    for key, text in json.loads(os.environ.get("PULUMI_CONFIG", "{}")).items():
        if key.startswith(prefix):
            found[key.removeprefix(prefix)] = _plain(text)
    return found


def _plain(text: Any) -> Any:
    if isinstance(text, str) and text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
