"""Small JSON documents in the state folder, written whole and only when they change."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Keeper"]

_LOG = logging.getLogger("edgeAgent")


class Keeper:
    """One folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def recall(self, name: str, default: Any) -> Any:
        """Return a kept document, or the default when there is none that can be read."""
        try:
            return json.loads((self._folder / name).read_text("utf-8"))
        except (OSError, ValueError):
            return default

    def keep(self, name: str, value: Any) -> None:
        """Keep a document; a write that fails is only told, since the runtime goes on without."""
        text = json.dumps(value)
        path = self._folder / name
        try:
            if path.exists() and path.read_text("utf-8") == text:
                return
            temporary = path.with_suffix(".new")
            temporary.touch(mode=0o600)
            temporary.write_text(text, "utf-8")
            temporary.replace(path)
        except OSError as error:
            _LOG.warning("cannot keep %s: %s", name, error)
