"""A Docker engine of one's own, which may be stopped and started; and what becomes of production meanwhile.

`python -m tests.support_second_engine FOLDER`, in a network namespace of its own (`unshare --net`): the engine brings
its own bridge and firewall rules along, which would take the machine's own engine off the network. Prints JSON.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from deploy import rollout, standing, targets
from deploy.environment import read
from deploy.load import Load, bodies
from deploy.oci import Layout, load
from deploy.targets.images import Images
from deploy.targets.lend import lend
from pipeline.errors import ProgramFailed
from tests import support, support_docker
from tests import support_server as fake

PORT = fake.PORTS["production.rest_port"]


class Engine:
    """dockerd with all that it writes below one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        os.environ["DOCKER_HOST"] = f"unix://{folder}/socket"

    def start(self) -> None:
        own = ("--data-root", "data", "--exec-root", "exec", "--pidfile", "pid")
        named = [part if part.startswith("--") else str(self.folder / part) for part in own]
        with (self.folder / "log").open("ab") as log:
            argv = ["dockerd", "--host", os.environ["DOCKER_HOST"], *named]
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        fake.until(lambda: self.process.poll() is not None or self._answers(), 60)
        assert self.process.poll() is None, (self.folder / "log").read_text()[-3000:]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def _answers(self) -> bool:
        return subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0


@contextmanager
def running(folder: Path):
    """An engine, ended with all of its containers."""
    engine = Engine(folder)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


class World:
    """Production with two promoted versions, and a third at 50 % that waits for its promotion."""

    def __init__(self, folder: Path, image: str):
        self.folder = folder
        kind = {"target.kind": "docker", "target.server": image, "target.router": image}
        self.changes = {**fake.QUICK, **kind, "canary.slow_ms": 5000.0}
        self.rows = fake.rows(folder)

    def context(self, number: int, **more):
        inputs = {"publish/published": fake.publish(self.folder, number), "data/rows": self.rows, **more}
        return support.context(self.folder, inputs, self.changes)

    def begin(self) -> None:
        for number in (1, 2, 3):
            rollout.canary(self.context(number))
            if number < 3:
                rollout.promote(self.context(number, **{"canary/evidence": self.folder / "out/evidence"}))

    def look(self) -> list[dict]:
        return targets.look(support.settings(self.changes), self.folder / "state")

    def seen(self) -> list:
        return [[row["role"], row["name"], row["weight"], row["alive"]] for row in self.look()]

    def healthy(self) -> bool:
        now = read(self.folder / "state", "production")
        try:
            return all(now.router.healthy(one.version.key) for one in now.placed)
        except ProgramFailed:
            return False

    def ask(self, seconds: float) -> dict:
        requests = bodies(self.rows / "test_features.npy")
        with Load(f"127.0.0.1:{PORT}", "/v1/models/digits:predict", requests, 100) as client:
            time.sleep(seconds)
        return {"sent": client.told().sent, "failed": client.told().failed}


def story(folder: Path) -> dict:
    """What is seen before, while and after the engine is away."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    fake.use_fakes()
    layout = Layout(folder / "image")
    image = load(layout, support_docker.fake_and_envoy(layout.root))
    with running(folder / "engine") as engine, lend(layout, image, "fake") as reference:
        Images(support.settings(), "home").named("target.server", reference)
        world = World(folder, reference)
        world.begin()
        told = {"before": world.seen()}
        engine.stop()
        told["away"] = {"rows": world.look(), "why": standing.not_in_production(world.context(2))}
        engine.start()
        began = time.monotonic()
        fake.until(lambda: standing.answers("127.0.0.1", PORT, "digits"), 60)
        told["back_s"] = time.monotonic() - began
        fake.until(world.healthy, 60)
        told |= {"after": world.seen(), "clients": world.ask(1)}
        targets.down(support.settings(world.changes), folder / "state")
        told["left"] = support_docker.docker("ps", "--all", "--quiet")
    return told


if __name__ == "__main__":
    said = story(Path(sys.argv[1]))
    print(json.dumps(said))
