"""One container as one module: its settings and Docker create options.

Docker's names are those of the container create call
(https://docs.docker.com/reference/api/engine/version/v1.43/#tag/Container/operation/ContainerCreate).
"""

from __future__ import annotations

import json
import posixpath
import re
from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.quantity import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MODULE_NAME", "chunked", "create_options", "merged", "module_of", "refuse_volumes"]

MODULE_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_ENV_NAME = re.compile(r"[^+#$\s.]+")
_CHUNK = 512
_MAX_CHUNKS = 100
_MAX_VALUE = 4096
"""Bytes of one twin value (https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-device-twins)."""
_RESTART = {"Always": "always", "OnFailure": "on-failure", "Never": "never"}
_USUAL_GRACE = 30
_INJECTED = "kube-api-access-"
"""Prefix of the token volume that ServiceAccount admission adds to every pod."""


def module_of(
    container: Mapping[str, Any],
    options: Mapping[str, Any],
    env: Mapping[str, str],
    pod_restart: str,
    path: str,
    problems: list[errors.Problem],
) -> dict[str, Any]:
    """Return the module's entry of `$edgeAgent`'s desired properties."""
    settings: dict[str, Any] = {"image": container["image"]}
    settings.update(chunked(options, path, problems))
    policy = container.get("restartPolicy") or pod_restart
    module: dict[str, Any] = {
        "version": "1.0",
        "type": "docker",
        "status": "running",
        "restartPolicy": _RESTART.get(policy, "always"),
        "settings": settings,
    }
    if env:
        module["env"] = _env(env, path, problems)
    # imagePullPolicy came with schema 1.1; on-create is what an absent one means.
    if container.get("imagePullPolicy") == "Never":
        module["imagePullPolicy"] = "never"
    return module


def _env(
    env: Mapping[str, str], path: str, problems: list[errors.Problem]
) -> dict[str, dict[str, str]]:
    for name, value in env.items():
        where = f"{path}.env[{name}]"
        if not _ENV_NAME.fullmatch(name):
            message = "a module's variable has no '.', '+', '#', '$' or blank in its name"
            problems.append(errors.Problem(path=where, message=message))
        if len(value.encode()) > _MAX_VALUE:
            message = f"a twin takes values of {_MAX_VALUE} bytes, this has {len(value.encode())}"
            problems.append(errors.Problem(path=where, message=message))
    return {name: {"value": value} for name, value in env.items()}


def chunked(
    options: Mapping[str, Any], path: str, problems: list[errors.Problem]
) -> dict[str, str]:
    """Return create options as the text pieces that a twin can hold (512 characters each)."""
    text = json.dumps(options, separators=(",", ":"), ensure_ascii=False)
    pieces = [text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK)]
    if len(pieces) > _MAX_CHUNKS:
        message = f"create options of {len(text)} characters exceed {_CHUNK * _MAX_CHUNKS}"
        problems.append(errors.Problem(path=path, message=message))
    names = ["createOptions", *(f"createOptions{n:02d}" for n in range(1, len(pieces)))]
    return dict(zip(names, pieces, strict=True))


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return two JSON objects as one; the upper one wins, objects are merged deeply."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def create_options(
    spec: Mapping[str, Any],
    container: Mapping[str, Any],
    volume_prefix: str,
    path: str,
    problems: list[errors.Problem],
) -> dict[str, Any]:
    """Return Docker's create options for a container of a pod."""
    options: dict[str, Any] = {}
    host: dict[str, Any] = {}
    if container.get("command"):
        options["Entrypoint"] = list(container["command"])
    if container.get("args"):
        options["Cmd"] = list(container["args"])
    if container.get("workingDir"):
        options["WorkingDir"] = container["workingDir"]
    for field, docker in (("stdin", "OpenStdin"), ("stdinOnce", "StdinOnce"), ("tty", "Tty")):
        if container.get(field):
            options[docker] = True
    grace = spec.get("terminationGracePeriodSeconds")
    if grace is not None and grace != _USUAL_GRACE:
        options["StopTimeout"] = grace
    _ports(container, options, host)
    _pod_wide(spec, options, host)
    _resources(container, host, path, problems)
    _security(spec, container, options, host, path, problems)
    _mounts(spec, container, host, volume_prefix, path, problems)
    if host:
        options["HostConfig"] = host
    return options


def _ports(container: Mapping[str, Any], options: dict[str, Any], host: dict[str, Any]) -> None:
    for port in container.get("ports") or ():
        name = f"{port['containerPort']}/{port.get('protocol', 'TCP').lower()}"
        options.setdefault("ExposedPorts", {})[name] = {}
        if port.get("hostPort"):
            binding = {"HostPort": str(port["hostPort"])}
            if port.get("hostIP"):
                binding["HostIp"] = port["hostIP"]
            host.setdefault("PortBindings", {}).setdefault(name, []).append(binding)


def _pod_wide(spec: Mapping[str, Any], options: dict[str, Any], host: dict[str, Any]) -> None:
    if spec.get("hostname"):
        options["Hostname"] = spec["hostname"]
    if spec.get("hostNetwork"):
        host["NetworkMode"] = "host"
        options["NetworkingConfig"] = {"EndpointsConfig": {"host": {}}}
    for field, docker in (("hostPID", "PidMode"), ("hostIPC", "IpcMode")):
        if spec.get(field):
            host[docker] = "host"
    aliases = [
        f"{name}:{alias['ip']}"
        for alias in spec.get("hostAliases") or ()
        for name in alias.get("hostnames") or ()
    ]
    if aliases:
        host["ExtraHosts"] = aliases
    dns = spec.get("dnsConfig") or {}
    if dns.get("nameservers"):
        host["Dns"] = list(dns["nameservers"])
    if dns.get("searches"):
        host["DnsSearch"] = list(dns["searches"])
    if dns.get("options"):
        host["DnsOptions"] = [
            f"{option['name']}:{option['value']}" if option.get("value") else option["name"]
            for option in dns["options"]
        ]


def _resources(
    container: Mapping[str, Any], host: dict[str, Any], path: str, problems: list[errors.Problem]
) -> None:
    resources = container.get("resources") or {}
    for name, value in resources.items():
        if name not in ("limits", "requests") and value:
            message = "devices have no dynamic resources"
            problems.append(errors.Problem(path=f"{path}.resources.{name}", message=message))
    for part, cpu, memory in (
        ("limits", "NanoCpus", "Memory"),
        ("requests", "CpuShares", "MemoryReservation"),
    ):
        for name, text in (resources.get(part) or {}).items():
            where = f"{path}.resources.{part}[{name}]"
            try:
                number = parse_quantity(text)
            except ValueError as cause:
                problems.append(errors.Problem(path=where, message=str(cause)))
                continue
            if name == "memory":
                host[memory] = int(number)
            elif name == "cpu" and part == "limits":
                host[cpu] = int(number * 10**9)
            elif name == "cpu":
                # Docker weighs 1024 shares per CPU, as kubelet does; 2 is its least.
                host[cpu] = max(2, int(number * 1024))
            else:
                problems.append(
                    errors.Problem(
                        path=where, message="a module has limits for cpu and memory only",
                        hint="devices and the like go into the create-options annotation",
                    )
                )  # fmt: skip


_SECURITY = frozenset({
    "privileged", "capabilities", "readOnlyRootFilesystem", "allowPrivilegeEscalation",
    "runAsUser", "runAsGroup", "runAsNonRoot", "supplementalGroups", "sysctls", "seccompProfile",
})  # fmt: skip


def _security(
    spec: Mapping[str, Any],
    container: Mapping[str, Any],
    options: dict[str, Any],
    host: dict[str, Any],
    path: str,
    problems: list[errors.Problem],
) -> None:
    pod_wide = spec.get("securityContext") or {}
    own = container.get("securityContext") or {}
    for where, context in (("spec", pod_wide), (path, own)):
        for field, value in context.items():
            if field not in _SECURITY and value not in (None, False, {}, []):
                problem = errors.Problem(
                    path=f"{where}.securityContext.{field}",
                    message="has no counterpart on IoT Edge",
                )
                if problem not in problems:
                    problems.append(problem)
    both = {**pod_wide, **own}
    user, group = both.get("runAsUser"), both.get("runAsGroup")
    if user is not None or group is not None:
        options["User"] = f"{user or 0}" + (f":{group}" if group is not None else "")
    if both.get("runAsNonRoot") and not user:
        message = "the engine cannot check who the image runs as"
        problems.append(
            errors.Problem(
                path=f"{path}.securityContext.runAsNonRoot", message=message, hint="set runAsUser"
            )
        )
    if both.get("supplementalGroups"):
        host["GroupAdd"] = [str(group) for group in both["supplementalGroups"]]
    if both.get("sysctls"):
        host["Sysctls"] = {entry["name"]: entry["value"] for entry in both["sysctls"]}
    if both.get("privileged"):
        host["Privileged"] = True
    if both.get("readOnlyRootFilesystem"):
        host["ReadonlyRootfs"] = True
    capabilities = both.get("capabilities") or {}
    if capabilities.get("add"):
        host["CapAdd"] = list(capabilities["add"])
    if capabilities.get("drop"):
        host["CapDrop"] = list(capabilities["drop"])
    rules = ["no-new-privileges:true"] if both.get("allowPrivilegeEscalation") is False else []
    profile = (both.get("seccompProfile") or {}).get("type", "RuntimeDefault")
    if profile == "Unconfined":
        rules.append("seccomp=unconfined")
    elif profile != "RuntimeDefault":
        message = "profiles are files of the node, which a device does not have"
        problems.append(
            errors.Problem(path=f"{path}.securityContext.seccompProfile", message=message)
        )
    if rules:
        host["SecurityOpt"] = rules


def _mounts(
    spec: Mapping[str, Any],
    container: Mapping[str, Any],
    host: dict[str, Any],
    prefix: str,
    path: str,
    problems: list[errors.Problem],
) -> None:
    volumes = {volume["name"]: volume for volume in spec.get("volumes") or ()}
    binds: list[str] = []
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        where = f"{path}.volumeMounts[{index}]"
        if mount["name"].startswith(_INJECTED):
            continue
        for field in ("subPathExpr", "mountPropagation", "recursiveReadOnly"):
            if mount.get(field) not in (None, "", "None", "Disabled"):
                message = "has no counterpart on IoT Edge"
                problems.append(errors.Problem(path=f"{where}.{field}", message=message))
        volume = volumes.get(mount["name"])
        if volume is None:
            message = f"the pod has no volume {mount['name']!r}"
            problems.append(errors.Problem(path=where, message=message))
            continue
        mode = ":ro" if mount.get("readOnly") else ""
        target, sub = mount["mountPath"], mount.get("subPath", "")
        if volume.get("hostPath"):
            source = posixpath.join(volume["hostPath"]["path"], sub)
            binds.append(f"{source}:{target}{mode}")
        elif "emptyDir" in volume:
            empty = volume["emptyDir"] or {}
            if sub:
                message = "a part of a named volume cannot be mounted"
                problems.append(errors.Problem(path=f"{where}.subPath", message=message))
            if empty.get("medium") == "Memory":
                host.setdefault("Tmpfs", {})[target] = _tmpfs(empty)
            else:
                binds.append(f"{prefix}-{mount['name']}:{target}{mode}")
    if binds:
        host["Binds"] = binds


def _tmpfs(empty: Mapping[str, Any]) -> str:
    limit = empty.get("sizeLimit")
    return f"size={int(parse_quantity(limit))}" if limit else ""


def refuse_volumes(spec: Mapping[str, Any], problems: list[errors.Problem]) -> None:
    """Append a problem for each volume that a device cannot have."""
    volumes: list[dict[str, Any]] = spec.get("volumes") or []
    for index, volume in enumerate(volumes):
        if volume["name"].startswith(_INJECTED):
            continue
        problems.extend(
            errors.Problem(
                path=f"spec.volumes[{index}].{kind}",
                message="a device has host paths and named volumes only",
                hint="pass settings as env, or put files on the device",
            )
            for kind in volume
            if kind not in ("name", "hostPath", "emptyDir")
        )
