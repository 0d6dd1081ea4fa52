"""When a run needs no engine: the same settings, code and state as after the last good run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from infra import applied, publishing
from kvedge import settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WANTED = publishing.Wanted(kind="disk", name="d", repository="kvedge/d", key="k1")


class Stack:
    """Files and state of a stack, without any engine; changed by the tests."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "project"
        (self.project / "infra").mkdir(parents=True)
        self.program = self.project / "infra" / "program.py"
        self.program.write_text("pass\n")
        self.source, self.file = folder / "Pulumi.plant.yaml", folder / "copy.yaml"
        self.source.write_text("config: {}\n")
        self.file.write_text("config: {seed: encrypted}\n")
        self.state = "{}"
        self.wanted = WANTED

    def fingerprint(self) -> str:
        """Return the state, which is short here."""
        return self.state


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stack whose keys and note are in the test's folder."""
    monkeypatch.setenv("KVEDGE_STATE", str(tmp_path / "state"))
    return Stack(tmp_path)


def recalled(stack: Any, raw: dict[str, Any]) -> dict[str, int] | None:
    """Return what is recalled for these settings."""
    environment = settings.parse("plant", raw, environ={})
    return applied.recall(stack, environment, applied.inputs(stack, environment, [stack.wanted]))


def noted(stack: Any, raw: dict[str, Any], changes: dict[str, int]) -> None:
    """Note a run's changes."""
    environment = settings.parse("plant", raw, environ={})
    made_from = applied.inputs(stack, environment, [stack.wanted])
    applied.note(stack, environment, made_from, changes)


def test_the_same_again_is_recalled_with_its_count(stack: Any, raw: dict[str, Any]) -> None:
    """All that was made or was there; the note holds no secret."""
    assert recalled(stack, raw) is None
    noted(stack, raw, {"create": 3, "update": 1, "same": 4})
    assert recalled(stack, raw) == {"same": 8}
    (note,) = stack.source.parent.glob("state/applied.plant.json")
    assert "c2VjcmV0" not in note.read_text()
    applied.forget(settings.parse("plant", raw, environ={}))
    assert recalled(stack, raw) is None


@pytest.mark.parametrize("operation", ["delete", "replace", "create-replacement", "refresh"])
def test_a_run_that_may_have_left_something_is_not_noted(
    stack: Any, raw: dict[str, Any], operation: str
) -> None:
    """Then the next one asks the engine."""
    noted(stack, raw, {"same": 8, operation: 1})
    assert recalled(stack, raw) is None


CHANGES: dict[str, Callable[[Any, dict[str, Any]], object]] = {
    "a setting": lambda _, raw: raw["fleet"][1].update(vcpus=8),
    "a tag": lambda _, raw: raw["fleet"][0]["tags"].update(line="paint"),
    "a VM's cloud-config": lambda _, raw: raw["fleet"][0].update(cloudInit={"runcmd": ["true"]}),
    "the hub's key": lambda _, raw: raw["hub"].update(
        connectionString=raw["hub"]["connectionString"].replace("c2VjcmV0", "b3RoZXI=")
    ),
    "the stack file": lambda stack, _: stack.source.write_text("config: {a: 1}\n"),
    "the key seed": lambda stack, _: stack.file.write_text("config: {seed: other}\n"),
    "an authority": lambda _, raw: _append(raw["hub"]["caFile"]),
    "the image": lambda stack, _: setattr(stack, "wanted", dataclasses.replace(WANTED, key="k2")),
    "the program": lambda stack, _: stack.program.write_text("pass  # other\n"),
    "the user's key": lambda stack, _: _key(stack),
    "the state": lambda stack, _: setattr(stack, "state", '{"resources": []}'),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_the_program_is_made_from_leads_to_a_run(
    stack: Any, raw: dict[str, Any], what: str
) -> None:
    """One change of each kind."""
    noted(stack, raw, {"same": 8})
    assert recalled(stack, raw) == {"same": 8}
    CHANGES[what](stack, raw)
    assert recalled(stack, raw) is None


def test_a_damaged_note_is_as_good_as_none(stack: Any, raw: dict[str, Any]) -> None:
    """Half a file is what a full disk leaves."""
    noted(stack, raw, {"same": 8})
    (note,) = stack.source.parent.glob("state/applied.plant.json")
    note.write_text(note.read_text()[:20])
    assert recalled(stack, raw) is None


def _append(file: str) -> None:
    with open(file, "a", encoding="utf-8") as out:
        out.write("-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n")


def _key(stack: Any) -> None:
    folder = stack.source.parent / "state" / "keys"
    folder.mkdir(parents=True)
    (folder / "id_ed25519.pub").write_text("ssh-ed25519 AAAA other\n")
