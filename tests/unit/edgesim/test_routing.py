"""The edge hub's routes."""

from __future__ import annotations

import pytest

from kvedge.edgesim import routing


def config(routes, **more):
    """Parse desired properties with some routes."""
    return routing.parse_hub_config(
        {"schemaVersion": "1.2", "$version": 2, "routes": routes, **more}
    )


@pytest.mark.parametrize(
    ("source", "path", "matches"),
    [
        ("/*", "/messages/modules/m", True),
        ("/messages/*", "/messages/modules/m/outputs/o", True),
        ("/messages/modules/m/*", "/messages/modules/m", True),
        ("/messages/modules/m/*", "/messages/modules/mm/outputs/o", False),
        ("/messages/modules/m/outputs/o", "/messages/modules/m/outputs/o", True),
        ("/messages/modules/m/outputs/o", "/messages/modules/m/outputs/p", False),
    ],
)
def test_source_selects_messages(source, path, matches):
    """A source is a path, or a prefix with a star."""
    (route,) = config({"r": f"FROM {source} INTO $upstream"}).routes
    assert route.upstream
    assert route.matches(path) is matches


def test_route_to_an_input():
    """BrokeredEndpoint names a module and one of its inputs."""
    text = 'FROM /messages/modules/a/* INTO BrokeredEndpoint("/modules/b/inputs/in")'
    (route,) = config({"r": text}).routes
    assert (route.upstream, route.module, route.input) == (False, "b", "in")


def test_time_to_live_and_priority():
    """A route's own settings go before the hub's."""
    routes = config(
        {
            "a": {"route": "FROM /* INTO $upstream", "priority": 1, "timeToLiveSecs": 5},
            "b": "FROM /* INTO $upstream",
        },
        storeAndForwardConfiguration={"timeToLiveSecs": 60},
    ).routes
    assert [(route.priority, route.seconds) for route in routes] == [(1, 5.0), (9, 60.0)]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("FROM /* WHERE temperature > 3 INTO $upstream", 400),
        ("INTO $upstream", 400),
        ("FROM /* INTO somewhere", 400),
    ],
)
def test_bad_route_is_refused(text, code):
    """A condition cannot be judged, so it is not passed over either."""
    with pytest.raises(routing.RouteError) as caught:
        config({"r": text})
    assert caught.value.code == code


def test_removed_route_is_no_route():
    """A layer removes a route by null."""
    assert config({"r": None}).routes == ()
