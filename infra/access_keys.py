"""Keys that an environment has: the seed of host keys, the user's pair, the connector's policy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from infra import guest
from kvedge import errors

if TYPE_CHECKING:
    from kvedge import spec

__all__ = [
    "authorized",
    "exec_key",
    "folder",
    "make_user_key",
    "seed",
    "service_connection_string",
    "trusted",
]

_FILE = "id_ed25519"


def seed(environment: spec.Environment) -> str:
    """Return what host keys are derived from.

    Raises:
        SpecError: the stack has none.
    """
    if environment.key_seed is None:
        problem = errors.Problem(
            path="keySeed", message="is missing: host keys are derived from it",
            hint="`kvedge up` makes one; by hand: pulumi config set --secret kvedge:keySeed "
            '"$(head -c 32 /dev/urandom | base64)"',
        )  # fmt: skip
        raise errors.SpecError(f"settings of environment {environment.name!r}", [problem])
    return environment.key_seed.reveal()


def authorized(environment: spec.Environment) -> tuple[str, ...]:
    """Return who may log in: keys of the settings, else the environment's own, and the connector's.

    Raises:
        SpecError: there are none.
    """
    return (*_people(environment), *_connector(environment))


def exec_key(environment: spec.Environment) -> str:
    """Return the private key by which the connector enters modules; empty if it may not."""
    return _exec_pair(environment)[0]


def _connector(environment: spec.Environment) -> tuple[str, ...]:
    public = _exec_pair(environment)[1]
    return (guest.exec_only(public),) if public else ()


def _exec_pair(environment: spec.Environment) -> tuple[str, str]:
    if environment.platform is None or not environment.platform.connector.exec:
        return "", ""
    return guest.exec_key(seed(environment))


def _people(environment: spec.Environment) -> tuple[str, ...]:
    if environment.ssh.authorized_keys:
        return environment.ssh.authorized_keys
    file = folder(environment) / f"{_FILE}.pub"
    try:
        return (file.read_text(encoding="utf-8").strip(),)
    except FileNotFoundError as cause:
        problem = errors.Problem(
            path="ssh.authorizedKeys", message="are missing, and there is no key pair of our own",
            hint=f"`kvedge up {environment.name}` makes one in {file.parent}",
        )  # fmt: skip
        raise errors.SpecError(
            f"settings of environment {environment.name!r}", [problem]
        ) from cause


def make_user_key(environment: spec.Environment) -> Path:
    """Make the environment's own key pair if it is not there; return the private key's path."""
    private = folder(environment) / _FILE
    public = private.with_suffix(".pub")
    if private.exists() and public.exists():
        return private
    private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    texts = guest.new_key_pair(f"edge@{environment.name}")
    for path, text, mode in ((private, texts[0], 0o600), (public, texts[1] + "\n", 0o644)):
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            file.write(text)
    return private


def folder(environment: spec.Environment) -> Path:
    """Return the folder of the environment's own key pair, `keys` in its state folder.

    The engine runs the program in a sub-folder of the project, so the state folder is looked for
    upwards.
    """
    if state := os.environ.get("KVEDGE_STATE"):
        return Path(state) / "keys"
    here = Path.cwd()
    top = next((one for one in (here, *here.parents) if (one / ".kvedge").is_dir()), here)
    return top / ".kvedge" / environment.name / "keys"


def service_connection_string(environment: spec.Environment) -> str:
    """Return the connector's connection string, with the name by which pods reach the hub."""
    hub = environment.hub
    own = environment.platform.connector.connection_string if environment.platform else None
    parts = [part for part in (own or hub.connection_string).reveal().split(";") if part]
    return ";".join(
        f"HostName={hub.device_host}" if part.startswith("HostName=") else part for part in parts
    )


def trusted(*files: Path | None) -> str:
    """Return the PEM texts of the files, each once."""
    texts = [file.read_text(encoding="utf-8").strip() for file in files if file]
    return "".join(f"{text}\n" for text in dict.fromkeys(texts))
