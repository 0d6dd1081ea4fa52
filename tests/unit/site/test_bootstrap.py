"""Rights that the site gives to its own identities."""

from __future__ import annotations

from kvedge.site import bootstrap, pki


def test_the_volume_half_may_not_do_what_it_does_not_need() -> None:
    """Secrets are read only, and there are no wildcards."""
    roles = [item for item in bootstrap.own_roles() if item["kind"] == "ClusterRole"]
    for rule in roles[0]["rules"]:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        if "secrets" in rule["resources"]:
            assert rule["verbs"] == ["get", "list", "watch"]


def test_bindings_name_users_that_have_certificates() -> None:
    """Each bound user is an identity or the API server's kubelet client."""
    users = {item.user for item in pki.IDENTITIES} | {leaf.common_name for leaf in pki.LEAVES}
    for item in bootstrap.own_roles():
        for subject in item.get("subjects", ()):
            assert subject["name"] in users
