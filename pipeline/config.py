"""pipeline.yaml -> frozen settings; every error at once, each with its line."""

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline import yaml_text
from pipeline.errors import SettingsError
from pipeline.settings import Bound, Settings

_REFERENCE = re.compile(r"\$(?:\$|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<or>:?-)?(?P<default>[^}]*)\})")
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads and checks a settings file. See `read`; also checks what options ask of one another."""
    return read(Settings, path, environ)


def read(kind: type, path: Path, environ: Mapping[str, str] = os.environ, called: str = "") -> Any:
    """Reads a YAML file into a frozen dataclass of `kind`, whose fields carry their limits (`settings.option`).

    `${NAME}`, `${NAME-default}` and `${NAME:-default}` are filled from `environ` as
    Compose does; `$$` is a dollar. Raises SettingsError with one line per fault, each
    as `pipeline.yaml:LINE: path: what, what is allowed`; `called` is the name of a file that is being made.
    """
    called = called or path.name
    reader = _Reader(called, environ)
    try:
        root = yaml_text.compose(path.read_text(encoding="utf-8"), called)
    except FileNotFoundError:
        raise SettingsError(
            f"{path} does not exist. Run this in the repository's root, or name a file with --settings."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    found = reader.section(kind, root, "")
    if isinstance(found, Settings) and not reader.faults:
        reader.check_relations(found)
    if reader.faults:
        raise SettingsError("\n".join(text for _, text in sorted(reader.faults)))
    return found


class _Reader:
    """Turns YAML nodes into settings, and collects the faults it meets on the way."""

    def __init__(self, name: str, environ: Mapping[str, str]):
        self.name = name
        self.environ = environ
        self.faults: list[tuple[int, str]] = []
        self.lines: dict[str, int] = {}

    def fault(self, line: int, path: str, text: str) -> None:
        self.faults.append(
            (line, f"{self.name}:{line}: {path}: {text}" if path else f"{self.name}:{line}: {text}")
        )

    def section(self, kind: type, node: yaml.Node | None, path: str) -> Any:
        """A dataclass from a mapping; None if it has faults."""
        fields = {f.name: f for f in dataclasses.fields(kind)}
        types_of = typing.get_type_hints(kind)
        entries = self.entries(node, path)
        if entries is None:
            return None
        values = {}
        for key, child in entries.items():
            where = f"{path}.{key}" if path else key
            if key not in fields:
                self.fault(self.lines[where], "", _unknown(where, path, key, fields))
                continue
            values[key] = self.value(types_of[key], child, where, fields[key].metadata)
        line = node.start_mark.line + 1 if node else 1
        for missing in [
            n for n, f in fields.items() if n not in entries and f.default is dataclasses.MISSING
        ]:
            self.fault(
                line,
                f"{path}.{missing}" if path else missing,
                "is missing; the pipeline.yaml in the repository shows its default",
            )
        return None if self.faults else kind(**values)

    def entries(self, node: yaml.Node | None, path: str) -> dict[str, yaml.Node] | None:
        """The members of a mapping by name, each with its line remembered."""
        if not isinstance(node, yaml.MappingNode):
            self.fault(node.start_mark.line + 1 if node else 1, path, "must be a mapping of names to values")
            return None
        found: dict[str, yaml.Node] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            key = str(key_node.value)
            where = f"{path}.{key}" if path else key
            if key in found:
                self.fault(line, where, f"is set twice, first on line {self.lines[where]}; keep one")
            found[key] = child
            self.lines[where] = line
        return found

    def value(self, kind: Any, node: yaml.Node, path: str, limits: Mapping) -> Any:
        if kind is Bound:
            return self.bound(node, path, limits.get("only"))
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return self.section(kind, node, path)
        origin = typing.get_origin(kind)
        if origin in (dict, Mapping):
            entries = self.entries(node, path) or {}
            self.check_names(entries, path, limits)
            of = typing.get_args(kind)[1]
            return types.MappingProxyType(
                {name: self.value(of, child, f"{path}.{name}", {}) for name, child in entries.items()}
            )
        if origin is tuple:
            return self.sequence(typing.get_args(kind)[0], node, path, limits)
        return self.scalar(kind, node, path, limits)

    def check_names(self, entries: Mapping, path: str, limits: Mapping) -> None:
        known = limits["names"]
        for name in entries:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(known)}"
                self.fault(
                    self.lines[f"{path}.{name}"], f"{path}.{name}", f"is not {limits['called']}; {hint}"
                )

    def bound(self, node: yaml.Node, path: str, only: str | None = None) -> Bound | None:
        entries = self.entries(node, path)
        if entries is None:
            return None
        if only and only not in entries:
            self.fault(
                node.start_mark.line + 1, path, f"has {', '.join(entries) or 'nothing'}, must say {only}"
            )
            return None
        if len(entries) != 1 or not set(entries) <= {"at_least", "at_most"}:
            self.fault(
                node.start_mark.line + 1,
                path,
                f"has {', '.join(entries) or 'nothing'}, must have exactly one of at_least, at_most",
            )
            return None
        ((word, child),) = entries.items()
        return Bound(**{word: self.scalar(float, child, f"{path}.{word}", {})})

    def sequence(self, kind: type, node: yaml.Node, path: str, limits: Mapping) -> tuple:
        if not isinstance(node, yaml.SequenceNode):
            self.fault(node.start_mark.line + 1, path, "must be a list, as [a, b]")
            return ()
        return tuple(self.value(kind, item, f"{path}[{i}]", limits) for i, item in enumerate(node.value))

    def scalar(self, kind: type, node: yaml.Node, path: str, limits: Mapping) -> Any:
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.ScalarNode):
            self.fault(line, path, f"must be {_WORDS[kind]}, not a list or mapping")
            return None
        text = self.filled(node.value, line, path)
        if text is None:
            return None
        value = _convert(kind, text)
        if value is None:
            self.fault(line, path, f"is {text!r}, must be {_WORDS[kind]}")
            return None
        complaint = _complaint(value, limits)
        if complaint:
            self.fault(line, path, f"is {value!r}, {complaint}")
        return value

    def filled(self, text: str, line: int, path: str) -> str | None:
        """The text with ${...} filled from the environment; None, and a fault, if a variable is not set."""
        missing = []

        def fill(match: re.Match) -> str:
            if match["name"] is None:
                return "$"
            value = self.environ.get(match["name"])
            if value is None or (match["or"] == ":-" and not value):
                if match["or"] is None:
                    missing.append(match["name"])
                return match["default"]
            return value

        result = _REFERENCE.sub(fill, text)
        for name in missing:
            self.fault(
                line,
                path,
                f"needs the environment variable {name}, which is not set; set it or write ${{{name}:-default}}",
            )
        return None if missing else result

    def check_relations(self, s: Settings) -> None:
        """Faults between options, once each by itself is fine."""
        if len(s.data.value_range) != 2 or s.data.value_range[0] >= s.data.value_range[1]:
            self.relation("data.value_range", f"is {list(s.data.value_range)}, must be [lowest, highest]")
        if not s.data.row_shape:
            self.relation("data.row_shape", "is empty, must name at least one dimension")
        if s.train.global_batch % s.train.replicas:
            self.relation(
                "train.global_batch",
                f"is {s.train.global_batch}, must be a multiple of train.replicas ({s.train.replicas})",
            )
        if s.train.cost.per_hour and not s.train.cost.at_most:
            self.relation(
                "train.cost.at_most", f"is 0 at {s.train.cost.per_hour:g} an hour, must be more than 0"
            )
        if not s.canary.steps or list(s.canary.steps) != sorted(set(s.canary.steps)):
            self.relation(
                "canary.steps", f"is {list(s.canary.steps)}, must rise from step to step, as [10, 50]"
            )
        if s.target.kind == "docker" and s.image.base == "scratch" and not s.target.server:
            self.relation(
                "target.server",
                "is empty, and image.base is scratch: with target.kind docker name an image that serves the model, "
                "NAME@sha256:DIGEST (docs/operate.md), as TIDEGATE_SERVER or here",
            )
        ports: dict[int, str] = {}
        for path, port in (
            ("staging.rest_port", s.staging.rest_port),
            ("staging.grpc_port", s.staging.grpc_port),
            ("production.rest_port", s.production.rest_port),
            ("production.grpc_port", s.production.grpc_port),
        ):
            if port in ports:
                self.relation(path, f"is {port}, which {ports[port]} has already; give each its own")
            ports[port] = path

    def relation(self, path: str, text: str) -> None:
        self.fault(self.lines.get(path, 1), path, text)


def _convert(kind: type, text: str) -> Any:
    """The text as `kind`, or None."""
    if kind is str:
        return text
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    try:
        number = int(text) if kind is int else float(text)
    except ValueError:
        return None
    return None if number != number or number in (float("inf"), float("-inf")) else number


def _complaint(value: Any, limits: Mapping) -> str | None:
    low, high, choices = limits.get("low"), limits.get("high"), limits.get("choices")
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
        return f"must be one of {', '.join(map(str, choices))}" + (
            f"; did you mean {near[0]}?" if near else ""
        )
    if (low is not None and value < low) or (high is not None and value > high):
        return f"must be from {low:g} to {high:g}"
    if "pattern" in limits and not re.fullmatch(limits["pattern"], value):
        return f"must be {limits['says']}"
    return None


def _unknown(where: str, path: str, key: str, fields: Mapping) -> str:
    near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
    if near:
        return f"{where} is not an option. Did you mean {f'{path}.{near[0]}' if path else near[0]}?"
    return f"{where} is not an option. Allowed here: {', '.join(fields)}."


def smoke(settings: Settings) -> Settings:
    """The settings of a merge request: a small model, trained on the CPU, held to gates of its own."""
    train = dataclasses.replace(settings.train, epochs=settings.train.smoke_epochs, accelerator="cpu")
    gates = settings.evaluate.smoke_gates
    evaluate = dataclasses.replace(settings.evaluate, gates=gates, champion=types.MappingProxyType({}))
    return dataclasses.replace(settings, train=train, evaluate=evaluate)
