"""Connecting to Azure Arc: what the Azure CLI is asked, with a program in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.cloud.arc import ArcConnectionProvider

PROPERTIES: dict[str, Any] = {
    "name": "lille", "resource_group": "group", "location": "westeurope", "cluster": "c1",
    "context": "", "file": "", "kubeconfig": "kind: Config\n",
}  # fmt: skip
AZ = """\
#!/bin/sh
echo "$@" >>"$AZ_CALLS"
for word in "$@"; do [ -f "$word" ] && cat "$word" >>"$AZ_CALLS"; done
echo "$AZ_SAYS" >&2
exit "$AZ_EXITS"
"""


@pytest.fixture
def az(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `az` that writes down how it is called; return that file."""
    program = tmp_path / "bin" / "az"
    program.parent.mkdir()
    program.write_text(AZ)
    program.chmod(0o755)
    calls = tmp_path / "calls"
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("AZ_CALLS", str(calls))
    monkeypatch.setenv("AZ_SAYS", "")
    monkeypatch.setenv("AZ_EXITS", "0")
    return calls


def test_a_cluster_is_connected_with_a_kubeconfig_that_is_gone_afterwards(az: Path) -> None:
    """The kubeconfig of a new cluster is a file only while the CLI runs."""
    made = ArcConnectionProvider().create(PROPERTIES)
    assert made.id == "group/lille"
    call, text = az.read_text().splitlines()
    words = call.split()
    assert words[:6] == ["connectedk8s", "connect", "--name", "lille", "--resource-group", "group"]
    assert text == "kind: Config"
    assert not Path(words[words.index("--kube-config") + 1]).exists()


def test_a_rotated_kubeconfig_is_no_change(az: Path) -> None:
    """Only another name, group, place or cluster connects anew."""
    provider = ArcConnectionProvider()
    rotated = {**PROPERTIES, "kubeconfig": "other", "context": "other"}
    assert not provider.diff("", PROPERTIES, rotated).changes
    moved = provider.diff("", PROPERTIES, {**PROPERTIES, "cluster": "c2"})
    assert (moved.changes, moved.replaces) == (True, ["cluster"])


def test_what_is_gone_already_is_no_error(az: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking down again is safe; any other failure is told in the CLI's words."""
    monkeypatch.setenv("AZ_EXITS", "3")
    monkeypatch.setenv("AZ_SAYS", "(ResourceNotFound) The Resource was not found.")
    ArcConnectionProvider().delete("", PROPERTIES)
    monkeypatch.setenv("AZ_SAYS", "AADSTS70043: sign in again")
    with pytest.raises(RuntimeError, match="sign in again"):
        ArcConnectionProvider().delete("", PROPERTIES)


def test_without_the_azure_cli_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next act is in the message."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="'az'"):
        ArcConnectionProvider().create(PROPERTIES)
