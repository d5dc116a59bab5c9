"""Whether a version that was started can be asked: its own status over REST says so."""

import time

from deploy import web
from deploy.targets.base import Target, Version
from pipeline.settings import Settings

_POLL_S = 0.05


def trouble(target: Target, version: Version, settings: Settings) -> str:
    """Waits until a version is ready (nothing is returned); otherwise says what happened. The caller stops it."""
    limit_s = settings.target.ready_timeout_s
    deadline = time.monotonic() + limit_s
    while target.alive(version):
        if available(version, settings.model):
            return ""
        if time.monotonic() > deadline:
            return f"was not ready within target.ready_timeout_s ({limit_s:g} s) and was stopped"
        time.sleep(_POLL_S)
    return "ended before it was ready"


def available(version: Version, model: str) -> bool:
    """Whether its status says that this very version can be asked."""
    try:
        said = web.get_json(f"127.0.0.1:{version.rest}", f"/v1/models/{model}", timeout_s=2)
    except OSError:
        return False
    states = said.get("model_version_status", ())
    return any(s.get("state") == "AVAILABLE" and s.get("version") == str(version.number) for s in states)
