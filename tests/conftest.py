"""What all tests share: unit tests can touch neither programs nor the network."""

import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UNIT = Path(__file__).resolve().parent / "unit"


def _refuse(*args, **kwargs):
    raise AssertionError(
        "a unit test may not start programs or open connections; move it to tests/integration"
    )


@pytest.fixture(autouse=True)
def _hermetic(request, monkeypatch):
    """Makes programs and connections fail inside tests/unit."""
    if UNIT in request.path.parents:
        monkeypatch.setattr(subprocess.Popen, "__init__", _refuse)
        monkeypatch.setattr(socket.socket, "connect", _refuse)
        monkeypatch.setattr(socket.socket, "connect_ex", _refuse)


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def settings_text() -> str:
    """A settings file for tests: it stays the same when the repository's own is edited."""
    return (ROOT / "tests" / "settings.yaml").read_text()
