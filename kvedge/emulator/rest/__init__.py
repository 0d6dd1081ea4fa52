"""The hub's service side: REST over HTTPS, api-version 2021-04-12 and its neighbours."""

from kvedge.emulator.rest.serving import HttpsServer

__all__ = ["HttpsServer"]
