"""Which fields of a pod IoT Edge cannot do, each with the reason and what to do instead.

Three kinds of fields exist: translated (kvedge.edge.module), meaningless on a device because they
only steer Kubernetes itself (scheduling, service accounts), and refused. A field that is in none of
the lists is refused too, so that a new Kubernetes version cannot add something that is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = [
    "REFUSED_CONTAINER",
    "REFUSED_POD",
    "STEERING_POD",
    "TRANSLATED_CONTAINER",
    "TRANSLATED_POD",
    "refuse",
]

TRANSLATED_POD: Mapping[str, str] = {
    "containers": "modules",
    "initContainers": "with `restartPolicy: Always`: modules that are started first "
    "(`startupOrder`); others are refused, for a module cannot wait for another one to end",
    "restartPolicy": "`always`, `on-failure`, `never`",
    "volumes": "`hostPath`: a bind mount; `emptyDir`: a named Docker volume `<workload>-<volume>`, "
    "which is root's unless the image has a folder of another owner there, "
    "or tmpfs with `medium: Memory`; other kinds are refused",
    "imagePullSecrets": "registry credentials of the deployment",
    "securityContext": "user, groups, sysctls, seccomp `Unconfined`; the rest is refused",
    "hostNetwork": "the host's network",
    "hostPID": "the host's processes",
    "hostIPC": "the host's shared memory",
    "hostname": "the container's host name",
    "hostAliases": "extra hosts",
    "dnsConfig": "name servers, searches and options",
    "terminationGracePeriodSeconds": "stop timeout, if it is not 30",
}
"""What each field becomes; the page on pods is written from these."""
STEERING_POD = (
    "nodeName", "nodeSelector", "affinity", "tolerations", "schedulerName", "priority",
    "priorityClassName", "preemptionPolicy", "topologySpreadConstraints", "serviceAccount",
    "serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "dnsPolicy",
    "schedulingGates", "overhead",
)  # fmt: skip
"""Steer Kubernetes itself and say nothing to a device."""
REFUSED_POD: Mapping[str, tuple[str, str]] = {
    "ephemeralContainers": ("debugging containers cannot join a module", "use kvedge ssh"),
    "activeDeadlineSeconds": ("modules run until they are removed", "delete the pod instead"),
    "shareProcessNamespace": ("modules have process namespaces of their own", ""),
    "subdomain": ("devices have no cluster DNS", ""),
    "setHostnameAsFQDN": ("devices have no cluster DNS", ""),
    "readinessGates": ("a module is ready when its device reports it running", ""),
    "runtimeClassName": ("a device has one container engine", ""),
    "hostUsers": ("user namespaces are set for the whole engine", ""),
    "resourceClaims": ("devices have no dynamic resources", ""),
    "resources": ("limits are kept per module", "set resources on the containers"),
    "os": ("modules run on Linux devices", "linux is fine"),
}
TRANSLATED_CONTAINER: Mapping[str, str] = {
    "name": "the module's name: `<workload>-<container>`",
    "image": "the module's image",
    "command": "`Entrypoint`",
    "args": "`Cmd`",
    "workingDir": "`WorkingDir`",
    "env": "the module's variables, resolved: values, ConfigMaps, Secrets, fields of the pod, "
    "resources",
    "envFrom": "the same",
    "ports": "`ExposedPorts`; with `hostPort` also `PortBindings`",
    "resources": "limits: `NanoCpus`, `Memory`; requests: `CpuShares`, `MemoryReservation`; others "
    "are refused",
    "volumeMounts": "`Binds`, with `readOnly` and, for host paths, `subPath`",
    "imagePullPolicy": "`Never` is `never`, all else `on-create`",
    "securityContext": "user, `Privileged`, capabilities, read-only root, no new privileges",
    "stdin": "`OpenStdin`",
    "stdinOnce": "`StdinOnce`",
    "tty": "`Tty`",
    "restartPolicy": "of restartable init containers",
    "terminationMessagePath": "nothing; only the default is taken",
    "terminationMessagePolicy": "nothing; only the default is taken",
}
REFUSED_CONTAINER: Mapping[str, tuple[str, str]] = {
    "livenessProbe": ("the edge agent runs no probes", "let the program exit when it is ill"),
    "readinessProbe": ("the edge agent runs no probes", "readiness is the module's run state"),
    "startupProbe": ("the edge agent runs no probes", ""),
    "lifecycle": ("the edge agent runs no hooks", "move the work into the program"),
    "volumeDevices": ("there are no block volumes", "use the create-options annotation"),
    "resizePolicy": ("limits change with a new module", ""),
    "restartPolicyRules": ("the edge agent knows one policy per module", ""),
}
_DEFAULTS: Mapping[str, Any] = {
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
}
_EMPTY: tuple[Any, ...] = (None, False, "", [], {})


def refuse(spec: Mapping[str, Any], problems: list[errors.Problem]) -> None:
    """Append a problem for each field of a pod's spec that has no counterpart."""
    _check("spec", spec, {*TRANSLATED_POD, *STEERING_POD}, REFUSED_POD, problems)
    if spec.get("os", {}).get("name") == "linux":
        problems[:] = [problem for problem in problems if problem.path != "spec.os"]
    for kind in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(kind) or ()):
            path = f"spec.{kind}[{index}]"
            _check(path, container, TRANSLATED_CONTAINER, REFUSED_CONTAINER, problems)
            for field, usual in _DEFAULTS.items():
                if container.get(field, usual) != usual:
                    message = "the edge agent reads no termination message"
                    problems.append(errors.Problem(path=f"{path}.{field}", message=message))
            if kind == "initContainers" and container.get("restartPolicy") != "Always":
                problems.append(
                    errors.Problem(
                        path=path,
                        message="a module cannot wait for another one to end",
                        hint="move the work into the entry point, or set restartPolicy: Always "
                        "to have it started first",
                    )
                )


def _check(
    path: str,
    found: Mapping[str, Any],
    fine: Collection[str],
    refused: Mapping[str, tuple[str, str]],
    problems: list[errors.Problem],
) -> None:
    for field, value in found.items():
        if field in fine or value in _EMPTY:
            continue
        why, hint = refused.get(field, ("has no counterpart on IoT Edge", ""))
        problems.append(errors.Problem(path=f"{path}.{field}", message=why, hint=hint))
