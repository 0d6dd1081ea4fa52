"""A running emulator for these tests."""

from kvedge.testing.hubs import hub, hub_certificates

__all__ = ["hub", "hub_certificates"]
