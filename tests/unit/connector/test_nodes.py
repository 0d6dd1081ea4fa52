"""The file with several nodes."""

from __future__ import annotations

import pytest

from kvedge import errors
from kvedge.connector.nodes import nodes_from_file


def test_nodes_of_several_hubs(tmp_path):
    """Each entry is a node; its connection string comes from a file and is not shown."""
    (tmp_path / "hub0").write_text("HostName=h0;SharedAccessKey=secret\n")
    file = tmp_path / "nodes.yaml"
    file.write_text(
        f"nodes:\n- name: north\n  connectionStringFile: {tmp_path}/hub0\n  units: 2\n"
        f"  targetCondition: tags.line='north'\n  labels: {{line: north}}\n"
        f"- name: south\n  connectionStringFile: {tmp_path}/hub0\n"
    )
    north, south = nodes_from_file(file)
    assert (north.name, north.hub_units, north.labels) == ("north", 2, {"line": "north"})
    assert north.default_condition == "tags.line='north'"
    assert north.connection_string == south.connection_string
    assert "secret" not in repr(north)
    assert (south.hub_units, south.default_condition) == (1, "")


def test_every_mistake_at_once(tmp_path):
    """All mistakes are told with their paths."""
    file = tmp_path / "nodes.yaml"
    file.write_text("nodes:\n- {name: A_, units: -1, color: red}\n- 7\n")
    with pytest.raises(errors.SpecError) as caught:
        nodes_from_file(file)
    assert [problem.path for problem in caught.value.problems] == [
        "nodes[0].color",
        "nodes[0].name",
        "nodes[0].units",
        "nodes[0].connectionStringFile",
        "nodes[1]",
    ]
