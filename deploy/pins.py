"""Resolves the tags in docker/images.lock to digests through their registries, and says which ones moved.

`python -m deploy.pins` writes the file anew; with `--check` it changes nothing, and leaves with 3 if a tag moved; with
`--reference NAME` it prints an image of the lock by its digest.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.oci import of_bytes
from pipeline import yaml_text
from pipeline.errors import GateRefused, IntegrityError, ProgramFailed, SettingsError, TidegateError

LOCK = Path("docker/images.lock")
_FIELDS = {
    "image": r"[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+",
    "tag": r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}",
    "digest": r"(sha256:[0-9a-f]{64})?",
}
# What `rewritten` can replace, and what is then still YAML.
_STYLES = (None, "", "'", '"')


@dataclass(frozen=True)
class Pin:
    """An image that is named in the repository: `HOST/NAME`, a tag that says what it is, and the digest that counts.

    `span` is where the digest stands in the file's text, quotes included.
    """

    name: str
    image: str
    tag: str
    digest: str
    span: tuple[int, int]


def parse(text: str, where: str = str(LOCK)) -> dict[str, Pin]:
    """The pins by their names. Raises SettingsError with the line of what is wrong."""
    root = yaml_text.compose(text, where, aliases=False)
    images = _members(root, where).get("images")
    pins = {name: _pin(name, node, where) for name, node in _members(images, where).items()}
    if not pins:
        raise SettingsError(f"{where}: names no image")
    return pins


def _members(node: Any, where: str) -> dict[str, Any]:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1 if node else 1
        raise SettingsError(f"{where}:{line}: must be a mapping, images: {{NAME: {{image, tag, digest}}}}")
    found: dict[str, Any] = {}
    for key, value in node.value:
        if str(key.value) in found:
            raise SettingsError(f"{where}:{key.start_mark.line + 1}: {key.value} is named twice; keep one")
        found[str(key.value)] = value
    return found


def _pin(name: str, node: Any, where: str) -> Pin:
    fields = _members(node, where)
    line = node.start_mark.line + 1
    if fields.keys() != _FIELDS.keys():
        raise SettingsError(
            f"{where}:{line}: {name} has {', '.join(fields) or 'nothing'}, must have image, tag, digest"
        )
    for field, value in fields.items():
        if getattr(value, "style", "none") not in _STYLES or value.start_mark.index == value.end_mark.index:
            at = value.start_mark.line + 1
            raise SettingsError(
                f'{where}:{at}: {name}.{field} must be a text on one line, plain or quoted ("" for none)'
            )
    values = {field: str(fields[field].value) for field in _FIELDS}
    for field, pattern in _FIELDS.items():
        if not re.fullmatch(pattern, values[field]):
            raise SettingsError(f"{where}:{line}: {name}.{field} is {values[field]!r}, which cannot be one")
    if values["tag"] == "latest":
        raise SettingsError(f"{where}:{line}: {name}.tag is latest, which says nothing; name a version")
    digest = fields["digest"]
    return Pin(name, **values, span=(digest.start_mark.index, digest.end_mark.index))


def pinned(name: str, path: Path = LOCK) -> str:
    """An image of the lock as `NAME@sha256:DIGEST`, which every program takes.

    Raises SettingsError if the lock does not name it; GateRefused if it has no digest.
    """
    pins = parse(_text(path), str(path))
    if name not in pins:
        raise SettingsError(f"{path} names no image {name}; it has {', '.join(pins)}.")
    pin = pins[name]
    if not pin.digest:
        raise GateRefused(
            f"{path}: {name} ({pin.image}:{pin.tag}) has no digest, and a tag can name another image tomorrow. Run"
            " make lock-images where its registry can be reached, and commit the file."
        )
    return f"{pin.image}@{pin.digest}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error


def resolve(pin: Pin) -> str:
    """The digest that a pin's tag has now, whose manifest was read and is what the digest says.

    Raises ProgramFailed if the registry cannot be reached or knows no such tag.
    """
    from deploy.registry import Client

    client = Client(pin.image)
    digest = client.resolve(pin.tag)
    if digest is None:
        raise ProgramFailed(
            f"{pin.name}: {pin.image} has no tag {pin.tag} (any more); name another in {LOCK}."
        )
    if digest != pin.digest and of_bytes(client.manifest(digest)) != digest:
        raise IntegrityError(f"{pin.name}: {pin.image} answered other bytes for {digest}")
    return digest


def moved(pins: Mapping[str, Pin], resolver: Callable[[Pin], str] = resolve) -> dict[Pin, str]:
    """The pins whose tag names another digest now, each with that digest. All are asked before anything is said."""
    found = {pin: resolver(pin) for pin in pins.values()}
    return {pin: digest for pin, digest in found.items() if digest != pin.digest}


def rewritten(text: str, changes: Mapping[Pin, str]) -> str:
    """The lock's text with other digests; every other character stays as it is."""
    for pin, digest in sorted(changes.items(), key=lambda change: -change[0].span[0]):
        start, end = pin.span
        text = f'{text[:start]}"{digest}"{text[end:]}'
    return text


def _update(path: Path, *, check: bool) -> None:
    text = _text(path)
    pins = parse(text, str(path))
    changes = moved(pins)
    for pin, digest in changes.items():
        print(f"{pin.name}: {pin.image}:{pin.tag} was {pin.digest or 'not pinned'}, is {digest}")
    if changes and check:
        raise GateRefused(
            f"{len(changes)} of {len(pins)} images are not what {path} says. make lock-images writes it anew; look"
            " at what changed before you commit it."
        )
    if changes:
        written = rewritten(text, changes)
        _expect(pins, changes, parse(written, f"{path}, as it would be written"))
        partial = path.with_name(f".{path.name}.part")
        partial.write_text(written, encoding="utf-8")
        partial.replace(path)
    print(
        f"{path}: {len(changes)} of {len(pins)} digests {'changed' if changes else 'moved'}", file=sys.stderr
    )


def _expect(before: Mapping[str, Pin], changes: Mapping[Pin, str], after: Mapping[str, Pin]) -> None:
    """Raises IntegrityError unless the lock, written anew, differs in the changed digests alone."""
    wanted = {name: (pin.image, pin.tag, changes.get(pin, pin.digest)) for name, pin in before.items()}
    if wanted != {name: (pin.image, pin.tag, pin.digest) for name, pin in after.items()}:
        raise IntegrityError("the lock, written anew, would not say what the registries answered.")


def _print_reference(name: str, path: Path) -> int:
    try:
        print(pinned(name, path))
    except TidegateError as error:
        print(f"{error}", file=sys.stderr)
        return error.exit_code
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """0: done, or nothing moved; 3: with --check, something moved; 5: a registry could not be asked."""
    parser = argparse.ArgumentParser(prog="python -m deploy.pins", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; leave with 3 if a tag moved")
    parser.add_argument("--lock", type=Path, default=LOCK, help=f"the file ({LOCK})")
    parser.add_argument(
        "--reference", metavar="NAME", help="print this image by its digest, and do nothing else"
    )
    options = parser.parse_args(argv)
    if options.reference:
        return _print_reference(options.reference, options.lock)
    try:
        _update(options.lock, check=options.check)
    except TidegateError as error:
        print(f"{error}", file=sys.stderr)
        if not isinstance(error, GateRefused):
            print(f"{options.lock} was not changed.", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
