"""Addresses that are given out once and remembered on disk."""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING

from kvedge import errors

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["AddressPool"]

_FIRST = 10
"""The first addresses of a network stay free for people."""


class AddressPool:
    """Addresses of one network by key (a UID); a freed one is given again last."""

    def __init__(self, network: str, file: Path) -> None:
        self._hosts = ipaddress.ip_network(network)
        self._file = file
        self._given: dict[str, str] = {}
        self._next = _FIRST
        if file.exists():
            kept = json.loads(file.read_text(encoding="utf-8"))
            self._given, self._next = kept["given"], kept["next"]

    def take(self, key: str, *, wanted: str | None = None) -> str:
        """Return the key's address; choose one at the first call.

        Args:
            wanted: an address to give if it is free, such as one found in an object's status.
        """
        if key in self._given:
            return self._given[key]
        used = set(self._given.values())
        if wanted and wanted not in used and ipaddress.ip_address(wanted) in self._hosts:
            return self._give(key, wanted)
        size = self._hosts.num_addresses
        for offset in range(size):
            place = (self._next + offset) % size
            if place < _FIRST or place == size - 1:
                continue
            address = str(self._hosts[place])
            if address not in used:
                self._next = place + 1
                return self._give(key, address)
        raise errors.SiteError(f"no free address in {self._hosts}", hint="delete pods or VMs")

    def free(self, key: str) -> None:
        """Take an address back."""
        if self._given.pop(key, None):
            self._save()

    def _give(self, key: str, address: str) -> str:
        self._given[key] = address
        self._save()
        return address

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({"given": self._given, "next": self._next}), encoding="utf-8")
        fresh.replace(self._file)
