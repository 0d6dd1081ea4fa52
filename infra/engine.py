"""Driving the pulumi CLI: preparing a stack, running it with events, clearing a dead run's lock.

Committed stack files stay free of keys: when `PULUMI_OPTION_CONFIG_FILE` names another file, which
the env file of a local site does, the settings are copied there and the passphrase's salt and the
key seed are written to the copy (docs/decisions/0007-stack-files.md).
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import socket
import sys
import threading
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kvedge import errors, keeping, processes, redact, settings, tools
from kvedge.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Engine", "Event", "Project", "find_project", "make_project", "write_private"]

_CONFIG_VARIABLE = "PULUMI_OPTION_CONFIG_FILE"
_LOCKED = "the stack is currently locked"
_NOISE = ("an unhandled error occurred: program exited", "update failed", "preview failed")
_OURS = f"name: {settings.NAMESPACE}\n"
_SHIPPED = Path(__file__).parent / "stacks"
_SEED = f"{settings.NAMESPACE}:keySeed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A step of a run."""

    kind: str
    """`plan` (count is how many resources will change), `begin`, `done`, or `stage` of a VM."""
    name: str = ""
    """The resource's logical name, or the VM's."""
    operation: str = ""
    """`create`, `update`, `delete`, `replace` or `same`."""
    count: int = 0
    note: str = ""
    """A VM's stage in a word."""
    share: float = 0.0
    """How far the VM is, from 0 to 1."""


@dataclasses.dataclass(slots=True)
class _Run:
    """What one run of the CLI said."""

    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    plan: list[str] = dataclasses.field(default_factory=list)
    other: list[str] = dataclasses.field(default_factory=list)
    in_plan: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """Where pulumi finds the program, and where people write stack files."""

    folder: Path
    stacks: Path


def find_project(stack: str, start: Path | None = None) -> Project:
    """Return the checkout at or above a folder, the one that we run from, or one made for us.

    An installed kvedge has no checkout: its project is made in the state folder, and stack files
    are in the current folder, or the shipped ones.
    """
    here = (start or Path.cwd()).absolute()
    for folder in (here, *here.parents, Path(__file__).parents[1]):
        file = folder / "Pulumi.yaml"
        if file.is_file() and _OURS in file.read_text(encoding="utf-8"):
            return Project(folder=folder, stacks=folder / "infra" / "stacks")
    written = (here / f"Pulumi.{stack}.yaml").exists()
    state = Path(os.environ.get("KVEDGE_STATE") or here / ".kvedge" / stack)
    return make_project(state / "project", stacks=here if written else _SHIPPED)


def make_project(
    folder: Path, *, stacks: Path, name: str = settings.NAMESPACE, program: str = "infra.program"
) -> Project:
    """Make a project that runs an installed program."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(folder / "Pulumi.yaml", f"name: {name}\nruntime: python\n")
    write_private(folder / "__main__.py", f"from {program} import main\n\nmain()\n")
    return Project(folder=folder, stacks=stacks)


class Engine:
    """One stack and the CLI that runs it."""

    def __init__(self, stack: str, *, project: Project, progress: Progress = silent) -> None:
        self.stack = stack
        self.project = project.folder
        self.source = project.stacks / f"Pulumi.{stack}.yaml"
        """The stack file that people write."""
        self._progress = progress
        self._tools = ""
        self._resources: int | None = None
        """How many the state has; None when that is not known."""

    @property
    def file(self) -> Path:
        """The stack file that the engine reads and writes."""
        named = os.environ.get(_CONFIG_VARIABLE, "")
        if not named:
            return self.source
        return Path(named).with_name(f"Pulumi.{self.stack}.yaml")

    def settings(self, *, seed: bool = False) -> dict[str, Any]:
        """Return the stack's settings as people wrote them, with what only the engine's file has.

        Encrypted settings are decrypted by the engine; the key seed, which is of no use to most
        callers, only if it is asked for.

        Raises:
            SpecError: there is no stack file, or it cannot be read.
            KvedgeError: the engine cannot decrypt a setting.
        """
        found = settings.read_stack(self.source if self.source.exists() else self.file)
        if self.file.exists():
            found = {**_encrypted(settings.read_stack(self.file)), **found}
        hidden = [k for k, v in found.items() if _hides(v) and (seed or k != "keySeed")]
        if hidden:
            shown = json.loads(
                self._text(
                    "config", "--show-secrets", "--json", "--stack", self.stack,
                    what=f"decrypt the settings of stack {self.stack!r}",
                )
            )  # fmt: skip
            for key in hidden:
                entry = shown[f"{settings.NAMESPACE}:{key}"]
                found[key] = entry.get("objectValue", entry["value"])
        return found

    def has_seed(self) -> bool:
        """Tell whether the stack has a key seed already."""
        return _SEED in _config(self.file)

    def prepare(self) -> None:
        """Obtain the programs, make the stack and its key seed if they are missing.

        Raises:
            ToolMissing, BuildFailed: a program cannot be had.
            KvedgeError: the backend refused.
        """
        self._programs()
        self._backend()
        self._copy()
        if not self._listed():
            self._text("stack", "init", self.stack, what=f"make stack {self.stack!r}", aside=True)
        self._text("stack", "select", self.stack, what=f"select stack {self.stack!r}")
        if not self.has_seed():
            seed = base64.b64encode(secrets.token_bytes(32)).decode()
            self._text(
                "config", "set", "--secret", _SEED, "--stack", self.stack,
                what="keep the key seed", stdin=seed.encode(),
            )  # fmt: skip

    def exists(self) -> bool:
        """Tell whether the backend knows the stack, after the programs are there."""
        self._programs()
        self._backend()
        return self._listed()

    @property
    def empty(self) -> bool:
        """Tell whether the state is known to hold no resource."""
        return self._resources == 0

    def up(self, *, on_event: Callable[[Event], None], admitted: bool = False) -> dict[str, int]:
        """Run `pulumi up` and return how many resources were created, updated and so on.

        Where there are resources already, a preview goes first by itself: when nothing changes,
        that is all, in half the time.

        Args:
            admitted: the objects of an empty state are known to be good, so that a first run
                needs no preview to refuse bad ones before it makes any.

        Raises:
            KvedgeError: with what the engine and its providers said.
        """
        self._programs()
        if self._resources is None:
            self._listed()
        words = ["up", "--yes"]
        if self._resources and self._lock_holders():
            # A run that was killed wrote no state, so what it changed has to be read: else settings
            # that are put back would differ from nothing. Its lock is cleared by a run alone.
            words.append("--refresh")
        elif self._resources:
            changes = self._run(["preview"], f"pulumi preview {self.stack}", on_event)
            if set(changes) == {"same"}:
                return changes
            words.append("--skip-preview")
        elif admitted and self.empty:
            words.append("--skip-preview")
        return self._run(words, f"pulumi up {self.stack}", on_event)

    def destroy(self, *, on_event: Callable[[Event], None]) -> dict[str, int]:
        """Run `pulumi destroy`; errors as `up`."""
        return self._run(["destroy", "--yes"], f"pulumi destroy {self.stack}", on_event)

    def forget(self) -> None:
        """Drop the stack's state, whatever is in it."""
        self._text(
            "stack", "rm", "--force", "--yes", "--preserve-config", "--stack", self.stack,
            what=f"forget stack {self.stack!r}",
        )  # fmt: skip

    def fingerprint(self) -> str:
        """Return a hash of the stack's state as the backend keeps it, secrets encrypted.

        A file backend's is read as it lies there, which spares a start of the CLI.
        """
        state = b""
        if folder := _file_backend():
            with contextlib.suppress(OSError):
                file = folder / "stacks" / settings.NAMESPACE / f"{self.stack}.json"
                state = file.read_bytes()
        what = f"export stack {self.stack!r}"
        state = state or self._text("stack", "export", "--stack", self.stack, what=what).encode()
        return hashlib.sha256(state).hexdigest()

    def outputs(self) -> dict[str, Any]:
        """Return what the stack's program exported, secrets in the clear."""
        shown = self._text(
            "stack", "output", "--json", "--show-secrets", "--stack", self.stack,
            what=f"read the outputs of stack {self.stack!r}",
        )  # fmt: skip
        return json.loads(shown or "{}")

    # How

    def _listed(self) -> bool:
        """Tell whether the backend lists the stack; find out how much is in it."""
        listed = self._text("stack", "ls", "--json", what="list stacks")
        for entry in json.loads(listed or "[]"):
            if entry["name"].rpartition("/")[2] == self.stack:
                self._resources = entry.get("resourceCount") or 0
                return True
        self._resources = 0
        return False

    def _run(
        self, words: list[str], what: str, on_event: Callable[[Event], None]
    ) -> dict[str, int]:
        self._programs()
        self._resources = None
        run = self._once(words, on_event)
        if run is not None and self._break_dead_lock(run):
            run = self._once(words, on_event)
        if run is not None:
            raise errors.KvedgeError(
                f"{what} failed\n{_reasons(run)}", hint="mend the cause and run the same again"
            )
        return self._changes

    def _once(self, words: list[str], on_event: Callable[[Event], None]) -> _Run | None:
        """Run the CLI; None is success."""
        run = _Run()
        self._changes: dict[str, int] = {}

        def on_line(line: str) -> None:
            _sort(line, run)
            if run.events:
                event = run.events[-1]
                if not event.get("told"):
                    event["told"] = True
                    _tell(event, on_event)
                    self._changes = event.get("summaryEvent", {}).get(
                        "resourceChanges", self._changes
                    )
            elif line.rstrip() == "}" and run.plan:
                plan = _plan(run)
                self._changes = plan.get("changeSummary") or {}
                steps = plan.get("steps") or ()
                count = sum(1 for step in steps if step.get("op") not in ("same", "read"))
                on_event(Event(kind="plan", count=count))

        with _stages(on_event) as name:
            done = processes.run(
                ["pulumi", *words, "--json", "--stack", self.stack, "--non-interactive"],
                what=" ".join(["pulumi", *words]),
                env={**self._environment(), "KVEDGE_FLEET_STAGES": name},
                cwd=self.project,
                on_line=on_line,
                check=False,
                kept=True,
            )
        return run if done.returncode else None

    def _break_dead_lock(self, run: _Run) -> bool:
        """Clear the lock of a run that is no more; return whether there was one."""
        said = "\n".join([*run.other, *run.plan, *(_message(e) for e in run.events)])
        if _LOCKED not in said:
            return False
        holders = self._lock_holders()
        # A run whose caller was killed just now is being ended by its keeper.
        deadline = time.monotonic() + keeping.GRACE_SECONDS + 5
        while alive := [pid for pid in holders if processes.start_time(pid) is not None]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        if alive or not holders:
            raise errors.KvedgeError(
                f"stack {self.stack!r} is locked by another run"
                + (f" (process {alive[0]})" if alive else ""),
                hint=f"wait for it; if it is dead: pulumi cancel {self.stack}",
            )
        self._text("cancel", "--yes", self.stack, what=f"clear the lock of stack {self.stack!r}")
        return True

    def _lock_holders(self) -> list[int]:
        """Return process ids in the lock files of a file backend; empty for other backends."""
        folder = _file_backend()
        found = []
        for file in folder.glob(f"locks/**/{self.stack}/*.json") if folder else ():
            try:
                found.append(int(json.loads(file.read_text(encoding="utf-8"))["pid"]))
            except (OSError, ValueError, KeyError):
                continue
        return found

    def _programs(self) -> None:
        if self._tools:
            return
        found = tools.ensure(tools.PULUMI, progress=self._progress)
        home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
        _without_log(home)
        tools.install_pulumi_plugin(home, progress=self._progress)
        # The language host starts `python`; it must be this environment's.
        folders = [str(found["pulumi"].parent), str(Path(sys.prefix) / "bin")]
        self._tools = os.pathsep.join(dict.fromkeys(folders))

    def _backend(self) -> None:
        if folder := _file_backend():
            folder.parent.mkdir(parents=True, exist_ok=True)
        file = os.environ.get("PULUMI_CONFIG_PASSPHRASE_FILE")
        if file and not Path(file).exists():
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                out.write(secrets.token_hex(16))

    def _copy(self) -> None:
        """Bring the engine's stack file to what people wrote; secrets made here stay in it."""
        if self.file == self.source or not self.source.exists():
            return
        written = yaml.safe_load(self.source.read_text(encoding="utf-8")) or {}
        old = yaml.safe_load(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        kept = _encrypted((old or {}).get("config") or {})
        merged = {**(old or {}), **written, "config": {**kept, **(written.get("config") or {})}}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        project = {"name": settings.NAMESPACE, "runtime": "python"}
        # A project of its own beside the copy: `stack init` takes no --config-file.
        write_private(self.file.with_name("Pulumi.yaml"), yaml.safe_dump(project))
        text = f"# Made by kvedge from {self.source.name}; edit that one.\n"
        write_private(self.file, text + yaml.safe_dump(merged, sort_keys=False))

    def _environment(self) -> dict[str, str]:
        more = {
            "PATH": os.pathsep.join([self._tools, os.environ.get("PATH", "")]),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            # Another version of the provider on PATH would win otherwise, with a warning.
            "PULUMI_IGNORE_AMBIENT_PLUGINS": "true",
            "KVEDGE_FLEET_WAIT": "no",
            "KVEDGE_SDK_DEBUG": "no",
            # The language host lists packages by pip, which would look for a newer pip as well.
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            # The state is written at the end only; after a kill, creates adopt what is there.
            "PULUMI_SKIP_CHECKPOINTS": "true",
        }
        if self.file != self.source:
            more[_CONFIG_VARIABLE] = str(self.file)
        return more

    def _text(
        self, *words: str, what: str, stdin: bytes | None = None, aside: bool = False
    ) -> str:  # fmt: skip
        """Run a short command and return its output; `aside` runs it beside the copied file."""
        self._programs()
        folder = self.file.parent if aside and self.file != self.source else self.project
        done = processes.run(
            ["pulumi", *words, "--non-interactive"],
            what=what,
            env=self._environment(),
            cwd=folder,
            stdin=stdin,
            check=False,
        )
        if done.returncode:
            said = redact.redacted((done.stderr or done.stdout).strip())
            raise errors.KvedgeError(f"cannot {what}: {said.removeprefix('error: ')}")
        return done.stdout


def _file_backend() -> Path | None:
    """Return the folder in which a file backend keeps stacks and locks; None for other backends."""
    url = urllib.parse.urlparse(os.environ.get("PULUMI_BACKEND_URL", ""))
    return Path(url.path) / ".pulumi" if url.scheme == "file" else None


@contextlib.contextmanager
def _stages(on_event: Callable[[Event], None]) -> Iterator[str]:
    """Hear of VMs' stages from the roll-out, which runs in a process of the engine's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        name = f"kvedge-stages-{secrets.token_hex(8)}"
        heard.bind(f"\0{name}")

        def listen() -> None:
            while data := heard.recv(65536):
                on_event(Event(kind="stage", **json.loads(data)))

        listener = threading.Thread(target=listen, name="stages", daemon=True)
        listener.start()
        try:
            yield name
        finally:
            heard.connect(f"\0{name}")
            heard.send(b"")
            listener.join()


def _without_log(home: Path) -> None:
    """Keep the CLI from logging each run at its finest level, if the home is one of kvedge's own.

    It has no switch for that, writes every property of every resource, which is a fifth of its
    work, and does without where it cannot have the folder (docs/decisions).
    """
    state = os.environ.get("KVEDGE_STATE")
    logs = home / "logs"
    if state and home.is_relative_to(state) and not logs.exists():
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        logs.touch(mode=0o600)


def _sort(line: str, run: _Run) -> None:
    """Put a line of `--json` where it belongs: one big plan first, then an event a line."""
    if line.startswith("{") and line.rstrip() == "{":
        run.in_plan = True
    if run.in_plan:
        run.plan.append(line)
        if line.rstrip() == "}":
            run.in_plan = False
        return
    if line.startswith("{"):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and "sequence" in event:
            run.events.append(event)
            return
    run.other.append(line)


def _tell(event: Mapping[str, Any], on_event: Callable[[Event], None]) -> None:
    for field, kind in (("resourcePreEvent", "begin"), ("resOutputsEvent", "done")):
        if field in event:
            metadata = event[field]["metadata"]
            on_event(Event(kind=kind, name=_name(metadata["urn"]), operation=metadata["op"]))


def _plan(run: _Run) -> dict[str, Any]:
    try:
        return json.loads("\n".join(run.plan))
    except ValueError:
        return {}


def _reasons(run: _Run) -> str:
    """Return what went wrong, each object by its name, without the engine's own noise."""
    found: list[str] = []
    diagnostics = [*(_plan(run).get("diagnostics") or ())]
    diagnostics += [event["diagnosticEvent"] for event in run.events if "diagnosticEvent" in event]
    for one in diagnostics:
        text = str(one.get("message", "")).strip().removeprefix("error: ")
        if one.get("severity") != "error" or any(noise in text for noise in _NOISE):
            continue
        for wrapper in ("Exception calling application: ", "unhandled error: "):
            text = text.rpartition(wrapper)[2]
        name = _name(one["urn"]) if one.get("urn") else ""
        line = f"{name}: {text}" if name and not name.startswith("kvedge-") else text
        if line not in found:
            found.append(line)
    if not found:
        found = [line.strip() for line in run.other if line.strip()][-10:]
    return redact.redacted("\n".join(f"  {line}" for line in found))


def _message(event: Mapping[str, Any]) -> str:
    return str(event.get("diagnosticEvent", {}).get("message", ""))


def _name(urn: str) -> str:
    return urn.rpartition("::")[2]


def _config(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("config") or {}


def _encrypted(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are encrypted themselves."""
    return {k: v for k, v in config.items() if isinstance(v, dict) and set(v) == {"secure"}}


def _hides(value: Any) -> bool:
    """Tell whether a setting is encrypted, or holds one that is."""
    if isinstance(value, dict):
        return set(value) == {"secure"} or any(_hides(inner) for inner in value.values())
    return isinstance(value, list) and any(_hides(inner) for inner in value)


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 in one step, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)
