"""Who may come in and where a connection goes."""

import pytest

from kvedge.site.host.loadbalancers import allowed, ready_targets


@pytest.mark.parametrize(
    ("address", "ranges", "good"),
    [
        ("127.0.0.1", [], True),
        ("127.0.0.1", ["0.0.0.0/0"], True),
        ("127.0.0.1", ["10.0.0.0/8"], False),
        ("10.1.2.3", ["192.0.2.0/24", " 10.0.0.0/8"], True),
    ],
)
def test_source_ranges(address, ranges, good):
    """No ranges let everybody in."""
    assert allowed(address, ranges) is good


def test_only_ready_endpoints_of_the_ports_name_are_targets():
    """Slices of several ports and states are told apart."""
    slices = {
        "1": {
            "ports": [{"name": "ssh", "port": 22}, {"name": "web", "port": 80}],
            "endpoints": [
                {"addresses": ["10.77.16.10"], "conditions": {"ready": True}},
                {"addresses": ["10.77.16.11"], "conditions": {"ready": False}},
                {"addresses": ["10.77.16.12"]},
            ],
        }
    }
    assert ready_targets(slices, {"name": "ssh", "port": 2222}) == [
        ("10.77.16.10", 22),
        ("10.77.16.12", 22),
    ]
    assert ready_targets(slices, {"name": "none", "port": 1}) == []
    assert ready_targets({}, {"port": 22}) == []
