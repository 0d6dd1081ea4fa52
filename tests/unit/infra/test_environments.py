"""Stack files of a project: listed, made, checked together; the schema knows what the parser does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from infra import engine, environments
from kvedge import errors, schema, settings

ROOT = Path(__file__).parents[3]
HUB = "HostName={}.azure-devices.net;SharedAccessKeyName=n;SharedAccessKey=k"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> engine.Project:
    """A project without stack files, in a folder without a site."""
    monkeypatch.chdir(tmp_path)
    for name in (*settings.ENVIRONMENT.values(), "KVEDGE_STATE"):
        monkeypatch.delenv(name, raising=False)
    return engine.Project(folder=tmp_path, stacks=tmp_path / "stacks")


def write(project: engine.Project, name: str, hub: str = "h", **more: Any) -> None:
    """Write a stack file."""
    raw = {
        "hub": {"connectionString": HUB.format(hub)}, "registry": {"push": "r"},
        "fleet": [{"name": "a"}], **more,
    }  # fmt: skip
    project.stacks.mkdir(exist_ok=True)
    config = {f"kvedge:{key}": value for key, value in raw.items()}
    (project.stacks / f"Pulumi.{name}.yaml").write_text(yaml.safe_dump({"config": config}))


def test_one_environment_of_a_hub_carries_the_platform(project: engine.Project) -> None:
    """Two of one hub are refused, each by name; of two hubs each may have its own."""
    write(project, "one", platform={})
    write(project, "two")
    write(project, "far", hub="g", platform={})
    assert [one.name for one in environments.check(project)] == ["far", "one", "two"]
    write(project, "two", platform={"baseTarget": ""})
    with pytest.raises(errors.SpecError) as caught:
        environments.check(project)
    assert [p.path for p in caught.value.problems] == ["one: platform", "two: platform"]
    assert "one, two" in caught.value.problems[0].message


def test_mistakes_of_all_environments_come_at_once(project: engine.Project) -> None:
    """Each path is below its environment's name."""
    write(project, "one", fleet=[{"name": "A"}])
    write(project, "two", site="L!")
    with pytest.raises(errors.SpecError) as caught:
        environments.check(project)
    assert [p.path for p in caught.value.problems] == ["one: fleet[0].name", "two: site"]
    with pytest.raises(errors.SpecError, match="no such stack file"):
        environments.check(project, ["three"])


def test_a_new_environment_is_explained_and_named(project: engine.Project) -> None:
    """The example with the name put in; an existing file is never written over."""
    file = environments.create(project, "plant")
    assert "  kvedge:site: plant\n" in file.read_text()
    with pytest.raises(errors.SpecError, match="is there already"):
        environments.create(project, "plant")
    with pytest.raises(errors.SpecError, match="not a DNS label"):
        environments.create(project, "Plant")
    assert [one.name for one in environments.listed(project)] == ["plant"]


def test_an_installed_kvedge_writes_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never into the installation, where the shipped files are."""
    monkeypatch.chdir(tmp_path)
    installed = engine.Project(folder=tmp_path / "state", stacks=ROOT / "infra" / "stacks")
    assert environments.create(installed, "plant") == tmp_path / "Pulumi.plant.yaml"
    assert [one.name for one in environments.listed(installed)] == ["plant"]


def test_a_copy_has_no_secrets_of_the_original(project: engine.Project) -> None:
    """The salt and the key seed are the original's own."""
    write(project, "one", site="lille")
    file = project.stacks / "Pulumi.one.yaml"
    text = file.read_text().replace("config:\n", "config:\n  kvedge:keySeed:\n    secure: v1:x\n")
    file.write_text(f"encryptionsalt: v1:y\n{text}")
    copy = environments.create(project, "two", like="one").read_text()
    assert "v1:" not in copy
    assert "kvedge:site: two" in copy


def test_the_schema_accepts_what_the_parser_accepts(raw: dict[str, Any]) -> None:
    """The shipped files and a file with every section."""
    validator = jsonschema.Draft7Validator(schema.stack_schema())
    config = {f"kvedge:{key}": value for key, value in raw.items()}
    documents: list[Any] = [{"config": config}]
    for name in ("dev", "site-example"):
        file = ROOT / "infra" / "stacks" / f"Pulumi.{name}.yaml"
        documents.append(yaml.safe_load(file.read_text()))
    counted = {"count": 2, "template": {"vcpus": 1}, "overrides": {"edge1": {"memory": "2Gi"}}}
    documents.append({"config": {"kvedge:fleet": counted, "other:key": "x"}})
    for document in documents:
        assert [error.message for error in validator.iter_errors(document)] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"flet": []}, {"fleet": [{"vcpus": "two"}]}, {"ssh": {"serviceType": "Loadbalancer"}},
        {"fleet": {"template": {"name": "a"}}}, {"rollout": {"readySeconds": 1}},
    ],
)  # fmt: skip
def test_the_schema_refuses_what_an_editor_can_see(wrong: dict[str, Any]) -> None:
    """Unknown names, wrong types, values out of bounds."""
    validator = jsonschema.Draft7Validator(schema.stack_schema())
    document = {"config": {f"kvedge:{key}": value for key, value in wrong.items()}}
    assert list(validator.iter_errors(document))


def test_every_setting_has_a_meaning_and_every_variable_a_setting() -> None:
    """The reference has no empty cell, and no variable is forgotten."""
    rows = schema.table()
    assert all(len(row.meaning) > 10 for row in rows)
    assert {row.variable for row in rows} - {""} == set(settings.ENVIRONMENT.values())
