"""What the lock names, and whether this Python's environment is that, and nothing else.

`python -m pipeline.locked OLD NEW ENVIRONMENT` prints the packages to take out of an environment that was made from
the lock OLD before NEW is installed over it; `--left OLD NEW` prints what of OLD still says what is there where that
could not be (scripts/make-venv). Standard library alone: it runs before there is an environment.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import ProgramFailed

LOCK = "requirements.txt"
# ensurepip's: what installs the others.
_INSTALLER = "pip"
_TOLD = 5


def versions(lock: str) -> dict[str, str]:
    """The version of each package of a lock."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock, re.MULTILINE))


def installed(site: Path) -> dict[str, str]:
    """The version of each package in a site-packages folder, by the names of its metadata folders: no file is read.

    What pip left of a removal that was cut off counts as a package; of two versions both are named.
    """
    found: dict[str, list[str]] = {}
    for path in site.glob("*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        found.setdefault(normalized(name), []).append(version)
    return {name: " and ".join(sorted(given)) for name, given in found.items() if name != _INSTALLER}


def normalized(name: str) -> str:
    """A package's name as packaging.python.org/specifications/name-normalization has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def differences(lock: str, site: Path, inherits: bool = False) -> list[str]:
    """What a site-packages folder has otherwise than the lock, a line each.

    One that inherits another's packages (a training image, whose base brings TensorFlow) may lack some itself.
    """
    wanted = {normalized(name): version for name, version in versions(lock).items()}
    found = installed(site)
    lines = [f"{name} {found[name]} is not in the lock" for name in sorted(found.keys() - wanted.keys())]
    for name, version in wanted.items():
        if found.get(name, version if inherits else "absent") != version:
            lines.append(f"{name} {found.get(name, 'absent')}, not {version}")
    return lines


def demand(lock: str) -> None:
    """Raises ProgramFailed where this Python's environment is not what the lock (a text) names.

    What a stage makes is recorded as made by the lock; one directory is listed to see that this is so.
    """
    different = differences(lock, site_packages(), inherits())
    if different:
        more = f" and {len(different) - _TOLD} more" if len(different) > _TOLD else ""
        raise ProgramFailed(
            f"The environment {sys.prefix} is not what {LOCK} names ({'; '.join(different[:_TOLD])}{more}), and what "
            "is made in it would be recorded as made by that lock. `make setup` mends it; where that finds nothing to "
            "do, somebody installed by hand: remove the environment first."
        )


def site_packages() -> Path:
    """Where this Python's environment has its packages."""
    import sysconfig

    return Path(sysconfig.get_path("purelib"))


def inherits() -> bool:
    """Whether this environment shows the packages of the Python that it was made from, too (PEP 405)."""
    settings = Path(sys.prefix) / "pyvenv.cfg"
    text = settings.read_text() if settings.is_file() else ""
    return bool(
        re.search(r"^include-system-site-packages\s*=\s*true\s*$", text, re.MULTILINE | re.IGNORECASE)
    )


def stale(old: str, new: str, found: Mapping[str, str]) -> list[str]:
    """The installed packages that go before the new lock is installed.

    Those that it does not name, and those whose entry is another one: the same version with other hashes is another
    file, and pip would keep the one that is there.
    """
    before, after = _entries(old), _entries(new)
    return sorted(name for name in found if name not in after or before.get(name) != after[name])


def left(old: str, new: str) -> str:
    """The entries of the old lock that the new one has, too, after a line that no lock has: it is equal to none."""
    after = _entries(new)
    kept = (entry for name, entry in _entries(old).items() if after.get(name) == entry)
    return "\n".join(["# Not all of a lock.", *kept, ""])


def _entries(lock: str) -> dict[str, str]:
    """Each package's part of a lock: its version and hashes."""
    parts = re.findall(r"^[A-Za-z0-9][^\n]*(?:\n[ \t]+[^\n]*)*", lock, re.MULTILINE)
    return {normalized(part.partition("==")[0]): part for part in parts}


def main(*arguments: str) -> int:
    """Answers scripts/make-venv (stdout)."""
    if arguments[0] == "--left":
        print(left(*(Path(path).read_text() for path in arguments[1:])), end="")
        return 0
    old, new, environment = map(Path, arguments)
    (site,) = environment.glob("lib/python3*/site-packages")
    print("\n".join(stale(old.read_text(), new.read_text(), installed(site))))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
