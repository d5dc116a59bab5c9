"""A real registry on the loopback for tests: Debian's docker-registry."""

import base64
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

# bcrypt of "hunter2" for the user ci; written once, since hashing anew would need a package. LOGIN is the same login
# as Docker's configuration has it.
HTPASSWD = "ci:$2b$05$INhuQXAedo4p8.JDFtfE/eUJAvQcLeD1cglTrwiT4vChbCmu085TK"
LOGIN = base64.b64encode(b"ci:hunter2").decode()


def need_registry() -> None:
    """Skips the module where there is no docker-registry; where CI is set, that is a failure."""
    if shutil.which("docker-registry"):
        return
    if os.environ.get("CI"):
        pytest.fail(
            "docker-registry is not on PATH; apt-get install docker-registry (CI must run these tests)"
        )
    pytest.skip(
        "docker-registry is not on this machine; apt-get install docker-registry", allow_module_level=True
    )


def serve(folder: Path, port: int, auth: str = "") -> subprocess.Popen:
    """A registry on the loopback, ready."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "registry.yml"
    settings.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{auth}"
    )
    log = (folder / "log").open("w")
    child = subprocess.Popen(["docker-registry", "serve", str(settings)], stdout=log, stderr=log)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=1)
            return child
        except urllib.error.HTTPError:
            return child
        except OSError:
            assert child.poll() is None, (folder / "log").read_text()
            time.sleep(0.02)
    child.kill()
    raise AssertionError("docker-registry did not answer within 20 s")


def free_port() -> int:
    """A port of the loopback that nobody has."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def need_program(name: str) -> str:
    """The path of a program; without it the test is skipped, and fails where CI is set."""
    found = shutil.which(name)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"{name} is not on this machine; apt-get install it"
        )
    return found
