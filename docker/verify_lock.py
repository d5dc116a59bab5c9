"""Fails unless what is installed here is what the lock names. The last word of an image's build."""

import importlib
import importlib.metadata
import re
import sys
from collections.abc import Mapping
from pathlib import Path

# The base image brings TensorFlow under another name than the lock's, built for its GPU.
FROM_BASE = "tensorflow-cpu"
IMPORTED = (
    "google.protobuf",
    "grpc",
    "keras",
    "numpy",
    "scipy",
    "sklearn",
    "tensorflow_serving.apis.predict_pb2",
)
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


def locked(text: str) -> dict[str, str]:
    """The version of each package that a lock (requirements.txt) names."""
    return dict(_PINNED.findall(text))


def differences(lock: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """Each package whose installed version is not the locked one; `installed` lacks those that are absent."""
    if not lock:
        return ["the lock names no package"]
    return [
        f"{name}: the lock says {version}, installed is {installed.get(name, 'none')}"
        for name, version in lock.items()
        if installed.get(name) != version
    ]


def look(lock: Mapping[str, str]) -> dict[str, str]:
    """What is installed of the lock's packages; TensorFlow's version is what it says of itself when imported."""
    found = {}
    for name in lock:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name in IMPORTED:
        importlib.import_module(name)
    found[FROM_BASE] = importlib.import_module("tensorflow").__version__
    return found


def main(path: str) -> int:
    lock = locked(Path(path).read_text())
    faults = differences(lock, look(lock))
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print(f"all {len(lock)} packages are what {path} locks, on Python {sys.version.split()[0]}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
