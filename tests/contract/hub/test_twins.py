"""Twins from the service's side, driven by azure-iot-hub."""

from __future__ import annotations

import pytest
from azure.iot.hub.models import QuerySpecification, Twin, TwinProperties
from msrest.exceptions import HttpOperationError


@pytest.fixture
def device(registry, new_id):
    name = new_id()
    registry.create_device_with_sas(name, "", "", "enabled", iot_edge=True)
    return name


def desired(**values):
    return Twin(properties=TwinProperties(desired=values))


def test_a_patch_merges(registry, device):
    """Objects merge, null removes, arrays are replaced, and the version counts."""
    registry.update_twin(device, desired(a={"x": 1, "y": 2}, list=[1, 2]), "*")
    twin = registry.update_twin(device, desired(a={"x": None}, list=[3]), "*")
    values = twin.properties.desired
    assert {k: v for k, v in values.items() if k[0] != "$"} == {"a": {"y": 2}, "list": [3]}
    assert values["$version"] == 3
    assert "$lastUpdated" in values["$metadata"]["a"]["y"]
    assert "x" not in values["$metadata"]["a"]


def test_the_last_null_leaves_an_empty_object(registry, device):
    """An object whose last member is removed stays as {}."""
    registry.update_twin(device, desired(a={"x": 1}), "*")
    twin = registry.update_twin(device, desired(a={"x": None}), "*")
    assert twin.properties.desired["a"] == {}


def test_tags_merge(registry, device):
    """Tags follow the same rules as desired properties."""
    registry.update_twin(device, Twin(tags={"site": {"city": "lille", "line": 1}}), "*")
    twin = registry.update_twin(device, Twin(tags={"site": {"line": None}, "new": True}), "*")
    assert twin.tags == {"site": {"city": "lille"}, "new": True}


def test_replacing_keeps_nothing(registry, device):
    """PUT replaces tags and desired properties whole and leaves the reported ones."""
    registry.update_twin(device, Twin(tags={"a": 1}, properties=TwinProperties(desired={"b": 1})))
    twin = registry.replace_twin(device, Twin(properties=TwinProperties(desired={"c": 2})), "*")
    assert twin.tags == {}
    assert {k for k in twin.properties.desired if k[0] != "$"} == {"c"}


def test_a_stale_etag_is_refused(registry, device):
    """Only the twin's current etag, or `*`, is taken."""
    old = registry.get_twin(device).etag
    new = registry.update_twin(device, desired(a=1), old).etag
    assert new != old
    with pytest.raises(HttpOperationError) as failed:
        registry.update_twin(device, desired(a=2), old)
    assert failed.value.response.status_code == 412


def test_module_twins(registry, device):
    """A module has a twin of its own."""
    twin = registry.update_module_twin(device, "$edgeAgent", desired(k="v"), "*")
    assert (twin.device_id, twin.module_id) == (device, "$edgeAgent")
    assert registry.get_module_twin(device, "$edgeAgent").properties.desired["k"] == "v"
    twin = registry.replace_module_twin(device, "$edgeAgent", desired(n=1), "*")
    assert "k" not in twin.properties.desired


@pytest.mark.parametrize(
    ("patch", "status", "text"),
    [
        ({"big": "x" * 4097}, 400, "should be maximum 4096 bytes. Error in Property/Tag big"),
        ({"a.b": 1}, 400, "name"),
        ({"a b": 1}, 400, "name"),
        ({"n": 2**53}, 400, "n"),
        ({f"k{n}": "x" * 4000 for n in range(9)}, 403, "size should be less than 32768 bytes"),
    ],
)
def test_limits(registry, device, patch, status, text):
    """What the service would not store is refused with its text."""
    with pytest.raises(HttpOperationError) as failed:
        registry.update_twin(device, desired(**patch), "*")
    assert failed.value.response.status_code == status
    assert text in failed.value.response.json()["Message"]


def test_ten_levels_and_no_more(registry, device):
    """The tenth level is taken, the eleventh refused."""

    def nested(levels):
        return {"a": nested(levels - 1)} if levels else 1

    registry.update_twin(device, Twin(properties=TwinProperties(desired=nested(10))), "*")
    with pytest.raises(HttpOperationError):
        registry.update_twin(device, Twin(properties=TwinProperties(desired=nested(11))), "*")


def test_queries_see_twins(registry, device, eventually):
    """A changed tag is found, by whole twins and by columns."""
    registry.update_twin(device, Twin(tags={"mark": device}), "*")

    def found():
        text = f"SELECT * FROM devices WHERE tags.mark = '{device}'"
        return registry.query_iot_hub(QuerySpecification(query=text)).items

    assert [twin.device_id for twin in eventually(found)] == [device]
    text = (
        "SELECT deviceId, moduleId AS m, properties.desired.$version AS v FROM devices.modules "
        f"WHERE deviceId = '{device}' AND moduleId IN ['$edgeAgent', '$edgeHub']"
    )
    rows = registry.query_iot_hub(QuerySpecification(query=text)).items
    assert sorted(row.additional_properties["m"] for row in rows) == ["$edgeAgent", "$edgeHub"]
    assert {row.additional_properties["v"] for row in rows} == {1}


def test_aggregates(registry, new_id, eventually):
    """Devices are counted by a tag."""
    mark = new_id()
    for colour in ("red", "red", "blue"):
        name = new_id()
        registry.create_device_with_sas(name, "", "", "enabled")
        registry.update_twin(name, Twin(tags={"mark": mark, "colour": colour}), "*")
    text = (
        "SELECT tags.colour AS colour, COUNT() AS n FROM devices "
        f"WHERE tags.mark = '{mark}' GROUP BY tags.colour"
    )

    def counted():
        rows = registry.query_iot_hub(QuerySpecification(query=text)).items
        counts = {
            row.additional_properties["colour"]: row.additional_properties["n"] for row in rows
        }
        return counts == {"red": 2, "blue": 1}

    eventually(counted)


def test_pages(registry, new_id, eventually):
    """A long answer comes in pages, each row once."""
    mark = new_id()
    names = {new_id() for _ in range(5)}
    for name in names:
        registry.create_device_with_sas(name, "", "", "enabled")
        registry.update_twin(name, Twin(tags={"mark": mark}), "*")
    query = QuerySpecification(query=f"SELECT * FROM devices WHERE tags.mark = '{mark}'")
    eventually(lambda: len(registry.query_iot_hub(query).items) == 5)
    seen, token, pages = [], None, 0
    while True:
        page = registry.query_iot_hub(query, token, "2")
        seen += [twin.device_id for twin in page.items]
        pages, token = pages + 1, page.continuation_token
        if not token:
            break
    assert sorted(seen) == sorted(names)
    assert pages == 3


@pytest.mark.parametrize(
    "text",
    ["", "SELECT", "SELECT * FROM nowhere", "SELECT * FROM devices WHERE", "DROP devices",
     "SELECT * FROM devices WHERE LOWER(tags.a) = 'b'", "SELECT * FROM devices WHERE tags.a = 'b"],
)  # fmt: skip
def test_no_queries(registry, text):
    """A text that is no query is an invalid argument."""
    with pytest.raises(HttpOperationError) as failed:
        registry.query_iot_hub(QuerySpecification(query=text))
    assert failed.value.response.status_code == 400
    assert failed.value.response.headers["iothub-errorcode"] == "ArgumentInvalid"
