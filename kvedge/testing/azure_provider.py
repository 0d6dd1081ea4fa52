"""A double of pulumi-azure-native: a provider process that keeps resources in a folder.

Started by the engine as `pulumi-resource-azure-native`; `install` makes that program. It refuses
properties that the package's types do not have, remembers what was made in `made.json`, and answers
functions and read-only outputs from `answers.json`. Limits: no Azure; nothing is read back, and no
change asks for a replacement.
"""

# The names and arguments of a provider are those of its protocol.
# ruff: noqa: N802, ARG002

from __future__ import annotations

import json
import os
import sys
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2, json_format
from pulumi.runtime import proto
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from kvedge.testing import azure_types

__all__ = ["install", "made"]

_FOLDER = "KVEDGE_TEST_AZURE"


def install(
    pulumi_home: Path, folder: Path, version: str, *, types: Path, answers: dict[str, Any]
) -> dict[str, str]:
    """Make the provider known to a Pulumi home; return the variables that it needs.

    Args:
        types: what `scripts/azure-types` wrote.
        answers: by token: outputs of resources beside their inputs, and results of functions.
    """
    plugin = pulumi_home / "plugins" / f"resource-azure-native-v{version}"
    plugin.mkdir(parents=True, exist_ok=True)
    program = plugin / "pulumi-resource-azure-native"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m {__name__} "$@"\n')
    program.chmod(0o755)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answers.json").write_text(json.dumps(answers))
    (folder / "types.json").write_text(types.read_text())
    return {_FOLDER: str(folder)}


def made(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the properties of what is there, by token."""
    file = folder / "made.json"
    return json.loads(file.read_text()) if file.exists() else {}


class _Provider(provider_pb2_grpc.ResourceProviderServicer):
    """One method for each call that the engine makes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._types = json.loads((folder / "types.json").read_text())
        self._answers = json.loads((folder / "answers.json").read_text())

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return proto.plugin_pb2.PluginInfo(version=self._types["version"])

    def CheckConfig(self, request: Any, context: Any) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Configure(self, request: Any, context: Any) -> Any:
        return provider_pb2.ConfigureResponse(supportsPreview=True)

    def Check(self, request: Any, context: Any) -> Any:
        token, properties = _token(request.urn), json_format.MessageToDict(request.news)
        wrong = azure_types.mistakes(self._types, token, properties)
        failures = [provider_pb2.CheckFailure(property="", reason=text) for text in wrong]
        return provider_pb2.CheckResponse(inputs=request.news, failures=failures)

    def Diff(self, request: Any, context: Any) -> Any:
        kinds = provider_pb2.DiffResponse
        same = request.old_inputs == request.news
        return kinds(changes=kinds.DIFF_NONE if same else kinds.DIFF_SOME)

    def Create(self, request: Any, context: Any) -> Any:
        token = _token(request.urn)
        if not request.preview:
            self._keep(token, json_format.MessageToDict(request.properties))
        name = "" if request.preview else f"/subscriptions/0/{token}"
        return provider_pb2.CreateResponse(
            id=name, properties=self._outputs(token, request.properties, request.preview)
        )

    def Update(self, request: Any, context: Any) -> Any:
        token = _token(request.urn)
        if not request.preview:
            self._keep(token, json_format.MessageToDict(request.news))
        properties = self._outputs(token, request.news, request.preview)
        return provider_pb2.UpdateResponse(properties=properties)

    def Delete(self, request: Any, context: Any) -> Any:
        self._keep(_token(request.urn), None)
        return empty_pb2.Empty()

    def Invoke(self, request: Any, context: Any) -> Any:
        answer = self._answers[request.tok.partition(":")[2]]
        response = provider_pb2.InvokeResponse()
        json_format.ParseDict(answer, response.__getattribute__("return"))
        return response

    def Cancel(self, request: Any, context: Any) -> Any:
        return empty_pb2.Empty()

    def _outputs(self, token: str, properties: Any, preview: bool) -> Any:
        found = type(properties)()
        found.CopyFrom(properties)
        more = self._answers.get(token)
        if more and not preview:
            merged = json_format.MessageToDict(properties)
            for key, value in more.items():
                nested = isinstance(value, dict)
                merged[key] = {**merged.get(key, {}), **value} if nested else value
            found.Clear()
            json_format.ParseDict(merged, found)
        return found

    def _keep(self, token: str, properties: dict[str, Any] | None) -> None:
        found = made(self._folder)
        found.pop(token, None)
        if properties is not None:
            found[token] = properties
        fresh = self._folder / "made.new"
        fresh.write_text(json.dumps(found))
        fresh.replace(self._folder / "made.json")


def _token(urn: str) -> str:
    """Return the token of a URN without the package's name."""
    kind = urn.split("::")[2].rpartition("$")[2]
    return kind.partition(":")[2]


def _main() -> None:
    # One worker: what was made is one file.
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    provider = _Provider(Path(os.environ[_FOLDER]))
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    server.wait_for_termination()


if __name__ == "__main__":
    _main()
