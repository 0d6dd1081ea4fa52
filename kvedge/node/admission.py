"""What cannot fit is refused with the kubelet's own reasons, so that controllers understand it.

The scheduler has looked before; this is for pods that were bound past it.
Reasons and messages: k8s.io/kubernetes/pkg/kubelet/lifecycle/predicate.go.
"""

from __future__ import annotations

import collections
import functools
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from kvedge.quantity import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvedge.wire import KubeObject

__all__ = ["Admission", "Refusal", "requests_of"]

_quantity = functools.lru_cache(maxsize=4096)(parse_quantity)
_NONE = Decimal(0)
_NODE_KEY = "metadata.name"


class Refusal(NamedTuple):
    """Why a pod cannot run on the node."""

    reason: str
    message: str


def requests_of(pod: KubeObject) -> dict[str, Decimal]:
    """Return what a pod takes of each resource, itself as one of `pods`.

    Containers run side by side and init containers one after the other, except those that restart.
    """
    spec = pod["spec"]
    total: dict[str, Decimal] = collections.defaultdict(Decimal)
    for container in spec["containers"]:
        _add(total, _requested(container))
    side: dict[str, Decimal] = collections.defaultdict(Decimal)
    peak: dict[str, Decimal] = {}
    for container in spec.get("initContainers") or ():
        asked = _requested(container)
        if container.get("restartPolicy") == "Always":
            _add(side, asked)
            _add(total, asked)
            asked = {}
        for name, amount in {**side, **{n: side[n] + a for n, a in asked.items()}}.items():
            peak[name] = max(peak.get(name, _NONE), amount)
    for name, amount in peak.items():
        total[name] = max(total[name], amount)
    whole = (spec.get("resources") or {}).get("requests") or {}
    total |= {name: _quantity(amount) for name, amount in whole.items()}
    _add(total, {name: _quantity(a) for name, a in (spec.get("overhead") or {}).items()})
    total["pods"] = Decimal(1)
    return dict(total)


def _requested(container: Mapping[str, Any]) -> dict[str, Decimal]:
    given = (container.get("resources") or {}).get("requests") or {}
    return {name: _quantity(amount) for name, amount in given.items()}


def _add(total: dict[str, Decimal], more: Mapping[str, Decimal]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, _NONE) + amount


class Admission:
    """Counts what the pods of one node take and refuses what is too much."""

    def __init__(self, name: str, labels: Mapping[str, str], capacity: Mapping[str, str]) -> None:
        self._name, self._labels = name, labels
        self._capacity = {key: _quantity(value) for key, value in capacity.items()}
        self._used: dict[str, Decimal] = collections.defaultdict(Decimal)
        self._held: dict[str, dict[str, Decimal]] = {}

    def refusal(self, pod: KubeObject, *, room_is_known: bool) -> Refusal | None:
        """Return why a pod cannot run, or None and count it from now on.

        Args:
            pod: one that does not run yet.
            room_is_known: all other pods were counted; otherwise only its affinity is checked.
        """
        if not _matches(pod["spec"], self._name, self._labels):
            text = (
                "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
            )
            return Refusal("NodeAffinity", f"Pod was rejected: {text}")
        asked = requests_of(pod)
        for resource, amount in asked.items():
            if "/" in resource and resource not in self._capacity:
                # Resources of the whole cluster are on no node; the kubelet leaves them out too.
                continue
            used, capacity = self._used[resource], self._capacity.get(resource, _NONE)
            if room_is_known and amount and used + amount > capacity:
                unit = 1000 if resource == "cpu" else 1
                numbers = (int(number * unit) for number in (amount, used, capacity))
                text = "requested: {}, used: {}, capacity: {}".format(*numbers)
                return Refusal(
                    f"OutOf{resource}",
                    f"Pod was rejected: Node didn't have enough resource: {resource}, {text}",
                )
        self._hold(pod["metadata"]["uid"], asked)
        return None

    def count(self, pod: KubeObject) -> None:
        """Count a pod that runs already."""
        self._hold(pod["metadata"]["uid"], requests_of(pod))

    def _hold(self, uid: str, asked: dict[str, Decimal]) -> None:
        self.release(uid)
        self._held[uid] = asked
        for resource, amount in asked.items():
            self._used[resource] += amount

    def release(self, uid: str) -> None:
        """Count a pod no longer."""
        for resource, amount in self._held.pop(uid, {}).items():
            self._used[resource] -= amount


def _matches(spec: Mapping[str, Any], name: str, labels: Mapping[str, str]) -> bool:
    """Tell whether a pod's node selector and required node affinity allow the node."""
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    fields = {_NODE_KEY: name}
    return any(
        (term.get("matchExpressions") or term.get("matchFields"))
        and all(_holds(entry, labels) for entry in term.get("matchExpressions") or ())
        and all(_holds(entry, fields) for entry in term.get("matchFields") or ())
        for term in required.get("nodeSelectorTerms") or ()
    )


def _holds(entry: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    values: Sequence[str] = entry.get("values") or ()
    found, operator = labels.get(entry["key"]), entry["operator"]
    if operator == "In":
        return found in values
    if operator == "NotIn":
        return found not in values
    if operator == "Exists":
        return found is not None
    if operator == "DoesNotExist":
        return found is None
    try:
        number, bound = int(found or ""), int("".join(values))
    except ValueError:
        return False
    return number > bound if operator == "Gt" else number < bound
