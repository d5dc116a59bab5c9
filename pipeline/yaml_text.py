"""YAML that people write, read with bounds; every fault is told with its line."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.errors import SettingsError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Far more than a person writes; the loader's own recursion ends the process at some thousands.
_CHARACTERS_AT_MOST = 1 << 20
_DEPTH_AT_MOST = 50


def compose(text: str, where: str, aliases: bool = True) -> yaml.Node | None:
    """The document as nodes, which know their lines; None for an empty one.

    Raises SettingsError, beginning with `where:LINE:`, for what is not YAML, too long or nested too deep, and, without
    `aliases`, for a value that is written elsewhere (*name).
    """
    try:
        _bound(text, where, aliases)
        return yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise _not_yaml(error, text, where) from error


def load(text: str, where: str) -> Any:
    """The document as plain values; a name given twice and a value that cannot be (2027-02-30) are refused, too.

    Raises SettingsError as `compose` does.
    """
    try:
        _bound(text, where)
        return yaml.load(text, Loader=_Values)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise _not_yaml(error, text, where) from error


class _Values(yaml.SafeLoader):
    """A SafeLoader whose every fault knows its line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            text = f"{str(node.value)[:40]} is no value that can be: {error}"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for name in (name for name, _ in node.value if isinstance(name, yaml.ScalarNode)):
            if name.value in seen:
                text = f"{name.value} is given twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, text, name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


def _bound(text: str, where: str, aliases: bool = True) -> None:
    """Looks at the events alone, which needs no recursion."""
    if len(text) > _CHARACTERS_AT_MOST:
        raise SettingsError(
            f"{where} has {len(text):,} characters; {_CHARACTERS_AT_MOST:,} are read at most."
        )
    within: list[str | None] = []
    for event in yaml.parse(text, Loader=_LOADER):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.CollectionStartEvent):
            within.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            within.pop()
        elif isinstance(event, yaml.AliasEvent) and event.anchor in within:
            raise SettingsError(f"{where}:{line}: *{event.anchor} stands within what it names")
        elif isinstance(event, yaml.AliasEvent) and not aliases:
            raise SettingsError(
                f"{where}:{line}: *{event.anchor} names a value that stands elsewhere; write it out"
            )
        if len(within) > _DEPTH_AT_MOST:
            raise SettingsError(f"{where}:{line}: is nested more than {_DEPTH_AT_MOST} deep")


def _not_yaml(error: yaml.YAMLError, text: str, where: str) -> SettingsError:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return SettingsError(
            f"{where}:{line}: is not YAML: a character that it does not allow, {error.reason}"
        )
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return SettingsError(f"{where}:{mark.line + 1 if mark else 1}: is not YAML: {problem or error}")
