"""Whatever this repository takes from elsewhere is named so that it cannot move: digests, commits, hashes, versions.

Every rule gives faults as `file:line: what, what to write instead`. `make check` runs them over the whole tree.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from pipeline import yaml_text
from pipeline.errors import SettingsError

LOCK = "docker/images.lock"
_LATEST = re.compile(r"[\w.:/-]*[\w/-]:latest\b")
_DIGEST = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
_USES = re.compile(r"^\s*(?:- )?uses: *(?P<used>[^#\s]+)(?P<rest>.*)$")
_COMMIT = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")
_VERSION = re.compile(r"\s+# v\d+\.\d+\.\d+\s*")
_FROM = re.compile(
    r"^\s*FROM\s+(?:--platform=\S+\s+)?(?P<image>\S+)(?:\s+AS\s+(?P<stage>\S+))?\s*$", re.IGNORECASE
)
_COPIED = re.compile(r"(?:--from=|[,=]from=)(?P<image>[^\s,]+)")
_SYNTAX = re.compile(r"^#\s*syntax\s*=\s*(?P<image>\S+)", re.IGNORECASE)
_ARGUMENT = re.compile(r"^\s*ARG\s+(?P<name>\w+)(?:=(?P<default>\S*))?", re.IGNORECASE)
_PIP = re.compile(r"\bpip3?['\"]?\s+install\b")
_NPM = re.compile(r"\bnpm\s+(?:install|i|add|update)\b")
_APT = re.compile(r"\bapt(?:-get)?\s+install\b(?P<rest>.*)")
_IGNORED = re.compile(r"^\s*#\s*hadolint\s+ignore\s*=")
_REQUIREMENT = re.compile(r"^[A-Za-z0-9][\w.-]*")
_IMAGE_NAME = re.compile(r"^\w*IMAGE\w*$")
_ID = re.compile(r"sha256:[0-9a-f]{64}")  # of an image that an engine has
_IMAGE_OPTIONS = ("base", "server", "router", "proxy", "also")


def faults(texts: Mapping[str, str]) -> list[str]:
    """Everything in these files (text by path) that names something which could move."""
    found: list[str] = []
    for path, text in texts.items():
        found += _in_file(path, text)
    for path in texts:
        if Path(path).name == "package.json" and str(Path(path).with_name("package-lock.json")) not in texts:
            found.append(f"{path}:1: npm takes what is newest without package-lock.json beside it; write one")
    used = [(where, image) for path, text in texts.items() for where, image in _images(path, text)]
    found += _unlocked(used, texts[LOCK]) if LOCK in texts else []
    return found


def _in_file(path: str, text: str) -> Iterator[str]:
    if not path.startswith("tests/"):  # tests speak of what is refused
        yield from _latest(path, text)
    if re.fullmatch(r"(.*/)?[\w-]*requirements\.txt", path):
        yield from _unhashed(path, text)
    if _is_commands(path):
        yield from _installs(path, text)
    if _is_dockerfile(path):
        yield from _apt(path, text)
    if path.startswith(".github/"):
        yield from _actions(path, text)
    for where, image in _images(path, text):
        if not (_DIGEST.fullmatch(image) or _ID.fullmatch(image)):
            yield f"{where}: the image {image} is not named by digest; write NAME:TAG@sha256:DIGEST"


def _latest(path: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if found := _LATEST.search(line):
            yield f"{path}:{number}: {found[0]} is another image tomorrow; name a version, by digest"


def _actions(path: str, text: str) -> Iterator[str]:
    """GitHub's actions: by commit, the version beside it. Our own (./…) come with the checkout."""
    for number, line in enumerate(text.splitlines(), 1):
        match = _USES.match(line)
        if not match or match["used"].startswith(("./", "docker://")):
            continue
        if not (_COMMIT.fullmatch(match["used"]) and _VERSION.fullmatch(match["rest"])):
            yield (
                f"{path}:{number}: {match['used']} is not pinned; write OWNER/NAME@COMMIT # vX.Y.Z, "
                "the commit with all of its 40 digits"
            )


def _is_dockerfile(path: str) -> bool:
    name = Path(path).name
    return name.endswith("Dockerfile") or name.startswith("Dockerfile.")


def _is_ci(path: str) -> bool:
    return path == ".gitlab-ci.yml" or (path.startswith(".github/") and path.endswith((".yml", ".yaml")))


def _is_compose(path: str) -> bool:
    return bool(re.fullmatch(r"(docker-)?compose[\w.-]*\.ya?ml", Path(path).name))


def _is_commands(path: str) -> bool:
    """Files that hold commands which CI, a build or a person runs."""
    place = Path(path)
    return (
        _is_dockerfile(path)
        or _is_ci(path)
        or place.suffix == ".sh"
        or place.name == "Makefile"
        or (place.parts[0] in ("scripts", ".ci") and not place.suffix)
    )


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a script or a Dockerfile, continued ones as one; comments left out."""
    start, parts = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        start = start or number
        parts.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            yield start, " ".join(parts)
            start, parts = 0, []
    if parts:
        yield start, " ".join(parts)


def _installs(path: str, text: str) -> Iterator[str]:
    for number, line in _joined(text):
        for command in re.split(r"&&|\|\||;", line):
            if _PIP.search(command) and "--require-hashes" not in command:
                yield f"{path}:{number}: pip installs what no hash was written down for; use --require-hashes"
            if _NPM.search(command):
                yield f"{path}:{number}: npm takes what is newest; keep package-lock.json, and use npm ci"


def _apt(path: str, text: str) -> Iterator[str]:
    """Debian packages in a Dockerfile: by version, or with the reason why not above `hadolint ignore=DL3008`."""
    lines = text.splitlines()
    for number, line in _joined(text):
        for command in re.split(r"&&|\|\||;", line):
            match = _APT.search(command)
            named = [word for word in match["rest"].split() if word[0] not in "-$\"'"] if match else []
            moving = [word for word in named if "=" not in word]
            if moving and not _excused(lines, number):
                yield (
                    f"{path}:{number}: {', '.join(moving)} could be any version; write NAME=VERSION, or say why not "
                    "in a comment above `# hadolint ignore=DL3008`"
                )


def _excused(lines: list[str], number: int) -> bool:
    """Whether the instruction at this line stands below an ignored DL3008 that a comment explains."""
    above = [line.strip() for line in lines[max(0, number - 3) : number - 1]]
    ignores = len(above) == 2 and _IGNORED.match(above[1]) and "DL3008" in above[1]
    return bool(ignores and above[0].startswith("#") and not _IGNORED.match(above[0]) and len(above[0]) > 10)


def _unhashed(path: str, text: str) -> Iterator[str]:
    for number, line in _joined(text):
        if not (match := _REQUIREMENT.match(line)):
            continue
        if "==" not in line.split(";")[0] or "--hash=sha256:" not in line:
            yield f"{path}:{number}: {match[0]} has no version and hash; `make lock` writes both"


def _images(path: str, text: str) -> Iterator[tuple[str, str]]:
    """Each image that a file names, with its place; not the ones that a variable will name."""
    if _is_dockerfile(path):
        found = _of_dockerfile(text)
    elif _is_ci(path) or _is_compose(path):
        found = _of_yaml(path, text)
    elif path == "pipeline.yaml":
        found = _of_settings(path, text)
    else:
        return
    for line, image in found:
        if image and image != "scratch" and "$" not in image:
            yield f"{path}:{line}", image


def _of_dockerfile(text: str) -> Iterator[tuple[int, str]]:
    """FROM, COPY --from, mounts from images, the syntax; stages and arguments are followed."""
    stages: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if match := _SYNTAX.match(line):
            yield number, match["image"]
        if line.lstrip().startswith("#"):
            continue
        argument = _ARGUMENT.match(line)
        if argument and argument["default"] and re.fullmatch(r"BASE|\w*IMAGE\w*", argument["name"]):
            yield number, argument["default"].strip("\"'")
        if match := _FROM.match(line):
            if match["image"] not in stages:
                yield number, match["image"]
            stages |= {match["stage"]} - {None}
        for copied in _COPIED.finditer(line):
            if copied["image"] not in stages and not copied["image"].isdigit():
                yield number, copied["image"]


def _of_yaml(path: str, text: str) -> Iterator[tuple[int, str]]:
    """What CI files and compose files call image, container or service; variables that hold an image by their name."""
    for trail, node in _leaves(yaml_text.compose(text, path), ()):
        if _is_image(trail) or (trail[-1:] == ("uses",) and node.value.startswith("docker://")):
            yield node.start_mark.line + 1, node.value.removeprefix("docker://")


def _is_image(trail: tuple[str | int, ...]) -> bool:
    """Whether the scalar at this place of a CI or compose file is an image's name."""
    above, last = trail[-3:-1], trail[-1] if trail else ""
    if isinstance(last, int):
        return above[-1:] == ("services",)
    if last == "name":
        return (above[-1:] == ("image",) and above[:1] != ("jobs",)) or above[:1] == ("services",)
    in_variables = "variables" in above or "env" in above
    return last in ("image", "container") or (in_variables and bool(_IMAGE_NAME.match(last)))


def _of_settings(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Defaults of options that name an image."""
    for trail, node in _leaves(yaml_text.compose(text, path), ()):
        value = re.sub(r"\$\{\w+:?-?([^}]*)\}", r"\1", node.value)
        if _names_image([str(name) for name in trail if isinstance(name, str)], value):
            yield node.start_mark.line + 1, value


def _names_image(path: Sequence[str], value: str) -> bool:
    """Whether an option of pipeline.yaml, at this path, has a value that names an image."""
    name = path[-1] if path else ""
    return (name in _IMAGE_OPTIONS or name.endswith("image")) and value not in (
        "",
        "scratch",
        "true",
        "false",
    )


def refuse_moving(settings: object) -> None:
    """Raises SettingsError for every option that names an image by a tag alone: what runs tomorrow must be known today.

    For protected refs; elsewhere a person may try what they like.
    """
    moving = [
        f"{path} is {value}, which is another image tomorrow; on a protected ref write NAME@sha256:DIGEST"
        for path, value in _options(settings, ())
        if _names_image(path.split("."), value) and not (_DIGEST.fullmatch(value) or _ID.fullmatch(value))
    ]
    if moving:
        raise SettingsError("\n".join(moving))


def _options(settings: object, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each text of the settings with its path; those of a list have the list's."""
    if isinstance(settings, str):
        yield ".".join(path), settings
    elif isinstance(settings, tuple):
        for item in settings:
            yield from _options(item, path)
    elif dataclasses.is_dataclass(settings):
        for field in dataclasses.fields(settings):
            yield from _options(getattr(settings, field.name), (*path, field.name))


def _leaves(
    node: yaml.Node | None, trail: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], yaml.ScalarNode]]:
    """Each scalar of a document, with the names and the places in lists that lead to it."""
    if isinstance(node, yaml.ScalarNode):
        yield trail, node
    elif isinstance(node, yaml.MappingNode):
        for name, child in node.value:
            yield from _leaves(child, (*trail, name.value))
    elif isinstance(node, yaml.SequenceNode):
        for place, child in enumerate(node.value):
            yield from _leaves(child, (*trail, place))


def _unlocked(used: list[tuple[str, str]], lock: str) -> Iterator[str]:
    """Images whose digest is not the one that docker/images.lock has for their name and, if they have one, tag."""
    entries = ((yaml_text.load(lock, LOCK) or {}).get("images") or {}).values()
    locked = {(_full(entry["image"]), str(entry["tag"])): entry["digest"] for entry in entries}
    for where, image in used:
        named, _, digest = image.partition("@")
        name, tag = _split(named)
        if not digest or image.startswith("oci:"):
            continue  # the one has its own fault, and the other is a folder, in no registry
        wanted = {known for (of, under), known in locked.items() if of == _full(name) and tag in ("", under)}
        if not wanted:
            yield f"{where}: {named} is not in {LOCK}; add it there, and run make lock-images"
        elif digest not in wanted:
            says = ", ".join(f"{known[:19]}…" if known else "no digest" for known in sorted(wanted))
            yield f"{where}: {named} is {digest[:19]}…, and {LOCK} says {says}; give both the same"


def _split(named: str) -> tuple[str, str]:
    """An image's name and tag; a port is no tag."""
    name, found, tag = named.rpartition(":")
    return (name, tag) if found and "/" not in tag else (named, "")


def _full(name: str) -> str:
    """The name with Docker Hub's prefixes, which may be left out."""
    first, _, rest = name.partition("/")
    if rest and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"docker.io/{name}" if rest else f"docker.io/library/{name}"


def look(root: Path, paths: list[str]) -> list[str]:
    """The faults of these files of the repository; what is not text is left out."""
    texts = {}
    for path in paths:
        try:
            texts[path] = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    if (root / LOCK).is_file():
        texts[LOCK] = (root / LOCK).read_text(encoding="utf-8")
    return faults(texts)
