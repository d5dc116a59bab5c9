"""How containers are set up: plain values in, the Docker SDK's options out. Nothing is started here.

A version is asked for as TF Serving's official image understands it (and docker/serve.Dockerfile alike): the model's
name in MODEL_NAME, the folder above its versions at /models/NAME, gRPC on 8500 and REST on 8501, further flags of the
server as arguments. https://github.com/tensorflow/serving/blob/master/tensorflow_serving/g3doc/docker.md
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.targets.base import Release
from pipeline.settings import Settings

REST, GRPC = "8501/tcp", "8500/tcp"
MODEL, ENVIRONMENT, VERSION, DIGEST, STATE, ROLE = (
    f"dev.tidegate.{name}" for name in ("model", "environment", "version", "digest", "state", "role")
)
LASTING = {"Name": "unless-stopped"}
"""What a container gets once it was found good. One that is still judged must stay dead when it dies."""
ROUTER_FOLDER = "/etc/tidegate"
_NOBODY = 65_532  # who runs in the container where root runs the pipeline
# More threads than any of our servers starts: gRPC has one for each call that waits, at most 2,048, and TensorFlow
# pools of one per core.
_THREADS_AT_MOST = 4096
_ROUTER_MIB = 1024
_LOG = {"max-size": "10m", "max-file": "3"}
_CHECKED_EVERY_NS = 5 * 10**9
_SECOND_NS = 10**9


@dataclass(frozen=True)
class Place:
    """Whose containers these are: the state folder, by a digest of its path, and the environment."""

    state: str
    environment: str

    @staticmethod
    def of(state: Path, environment: str) -> "Place":
        """The place of a state folder."""
        return Place(hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:16], environment)

    def labels(self, **more: object) -> dict[str, str]:
        """Labels by which its containers are found; without an environment, those of all."""
        named = {STATE: self.state} | ({ENVIRONMENT: self.environment} if self.environment else {})
        return named | {f"dev.tidegate.{name}": str(value) for name, value in more.items()}


def version(settings: Settings, place: Place, release: Release, image: str, folder: Path) -> dict:
    """The options of a version's container but for name and ports. `folder` holds its number as the only version."""
    model = settings.model
    about = {"role": "version", "model": model, "version": release.number, "digest": release.digest}
    return {
        **_confined(settings.target.memory_mib),
        "image": image,
        "command": [
            "--max_num_load_retries=0"
        ],  # a model that cannot be loaded is told at once, not after minutes
        # Without oneDNN's own order of summation the answers equal those that evaluation saw.
        "environment": {"MODEL_NAME": model, "TF_ENABLE_ONEDNN_OPTS": "0"},
        "nano_cpus": int(min(settings.target.cpus, os.cpu_count() or 1) * 10**9),
        "labels": place.labels(**about),
        "volumes": {str(folder): {"bind": f"/models/{model}", "mode": "ro"}},
        "healthcheck": _health(8501, f"/v1/models/{model}", "AVAILABLE", settings.target.ready_timeout_s),
        "restart_policy": {"Name": "no"},
    }


def router(place: Place, image: str, folder: Path, admin_port: int) -> dict:
    """The options of a container for Envoy: on the host's network, where versions and clients are."""
    seen = f"{ROUTER_FOLDER}/{folder.name}"
    return {
        **_confined(_ROUTER_MIB),
        "image": image,
        "entrypoint": ["envoy"],
        "command": [
            *("-c", f"{seen}/envoy.json", "--concurrency", "2", "--log-level", "warning"),
            "--disable-hot-restart",
        ],
        "network_mode": "host",
        "labels": place.labels(role="router"),
        "volumes": {str(folder): {"bind": seen, "mode": "ro"}},
        "healthcheck": _health(admin_port, "/ready", "LIVE", 30),
        "restart_policy": LASTING,
    }


def version_setup(settings: Settings) -> str:
    """A short digest of what settings ask of a version's container: one that was made otherwise is replaced."""
    nobody, nothing = Place("", ""), Release("", "", 0)
    return _digest(version(settings, nobody, nothing, settings.target.server, Path()))


def router_setup(image: str) -> str:
    """The same of a router's container."""
    return _digest(router(Place("", ""), image, Path("folder"), 0))


def _digest(options: Mapping) -> str:
    plain = {name: value for name, value in options.items() if name != "healthcheck"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def user(uid: int, gid: int) -> str:
    """Who runs in a container: whoever runs the pipeline, but never root."""
    return f"{uid}:{gid}" if uid else f"{_NOBODY}:{_NOBODY}"


def _confined(memory_mib: int) -> dict:
    """What no container may do, and how much it may use."""
    return {
        "user": user(os.getuid(), os.getgid()),
        "read_only": True,
        "tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=64m"},  # noqa: S108  in the container
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "mem_limit": f"{memory_mib}m",
        "memswap_limit": f"{memory_mib}m",
        "pids_limit": _THREADS_AT_MOST,
        "log_config": {"Type": "json-file", "Config": _LOG},
    }


def _health(port: int, path: str, word: str, start_s: float) -> dict:
    """Healthy while `word` is in the answer to a GET. bash alone is needed: TF Serving's image has no other client."""
    ask = (
        f"exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET {path} HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3"
        f" && [[ $(cat <&3) == *{word}* ]]"
    )
    return {
        "test": ["CMD", "bash", "-c", ask],
        "interval": _CHECKED_EVERY_NS,
        "timeout": 3 * _SECOND_NS,
        "retries": 3,
        "start_period": int(start_s) * _SECOND_NS,
    }
