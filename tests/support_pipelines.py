"""What the tests of both CI definitions share: a team's commit, the images its jobs run in, a mirror, and two drivers.

`GitLab` drives .gitlab-ci.yml with gitlab-ci-local, `GitHub` drives .github/workflows with act. Neither has protected
branches, environments or reviewers. What those give is modelled: a ref is protected if the test says so, and only then
are there secrets. That they hold is the platform's to keep; `doctor --ci` asks it.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from deploy.oci import MANIFEST, Layout, encode, load
from deploy.publish import RemoteRegistry
from deploy.registry import Client
from pipeline import record
from pipeline.stages import BY_NAME
from pipeline.store import open_store
from tests import support_engine, support_trivy

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".ci-tools"
_PLACES = {
    "gitlab-ci-local": TOOLS / "gitlab/node_modules/.bin",
    "act": TOOLS / "act/bin",
}
TIMEOUT_S = 900
FIRST_PORT = 20600
REMOTE = "https://git.example.com/team/digits.git"
# A smaller training: these tests are about the way, not the model.
QUICK = {
    "  epochs: 30": "  epochs: 12",
    "accuracy: {at_least: 0.95}": "accuracy: {at_least: 0.9}",
    "worst_recall: {at_least: 0.85}": "worst_recall: {at_least: 0.7}",
    "worst_precision: {at_least: 0.85}": "worst_precision: {at_least: 0.7}",
    "calibration_error: {at_most: 0.05}": "calibration_error: {at_most: 0.2}",
}
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# The training image as a job's image, run as root: both drivers own the checkout that way. gitlab-ci-local moves
# artifacts with rsync. nvidia-smi is there because the train job calls it, and says what is true: there is no GPU.
_JOB_IMAGE = """FROM {training}
USER root
RUN apt-get update && apt-get install --yes --no-install-recommends rsync && rm -rf /var/lib/apt/lists/*
RUN printf '#!/bin/sh\\necho "no GPU: this image is for tests of the CI definitions"\\n' > /usr/local/bin/nvidia-smi \\
 && chmod +x /usr/local/bin/nvidia-smi
"""
# gitlab-ci-local gives every job with the tag gpu all GPUs; this engine's host has none.
_ENGINE = """#!/bin/bash
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --gpus | --ulimit) shift 2 ;;
    *) arguments+=("$1"); shift ;;
  esac
done
exec docker "${arguments[@]}"
"""


def need(program: str) -> str:
    """The path of a program that drives a CI definition. Skips where it is missing; where CI is set, that fails."""
    found = shutil.which(program, path=os.pathsep.join([str(_PLACES[program]), os.environ["PATH"]]))
    lacks = f"{program} is not on PATH, nor below .ci-tools; scripts/ci-tools installs it"
    if found is None and os.environ.get("CI"):
        raise AssertionError(f"{lacks} (CI must run these tests)")
    return found or pytest.skip(lacks)


def job_image() -> str:
    """The image that jobs run in: the training image of this tree, with what a driver needs inside."""
    training = support_engine.training_image()
    name = f"tidegate-jobs:{training.rpartition(':')[2]}"
    folder = support_engine.cache() / "jobs"
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(_JOB_IMAGE.format(training=training))
    done = support_engine.build("--tag", name, context=folder)
    assert done.returncode == 0, f"the jobs' image cannot be built:\n{done.stderr[-4000:]}"
    return name


def digests(store: Path) -> dict[str, str]:
    """The digests of the newest model and image of a store, as far as they were made."""
    opened = open_store(f"file:{store}", store)
    newest = {stage: opened.newest_record(stage) for stage in ("train", "export", "image")}
    made = {stage: record.read(opened.fetch_bytes(sha256)) for stage, sha256 in newest.items() if sha256}
    outputs = {name: tree for one in made.values() for name, tree in one.outputs.items()}
    named = {"model": "train/model", "savedmodel": "export/savedmodel"}
    found = {what: outputs[name] for what, name in named.items() if name in outputs}
    return found | ({"image": made["image"].digest} if "image" in made else {})


def outcomes(store: Path) -> dict[str, str]:
    """How each stage ended last, as its newest record says."""
    opened = open_store(f"file:{store}", store)
    newest = {stage: opened.newest_record(stage) for stage in BY_NAME}
    return {
        stage: record.read(opened.fetch_bytes(sha256)).outcome for stage, sha256 in newest.items() if sha256
    }


def offer_database(folder: Path, repository: str) -> str:
    """Puts a vulnerability database of ours into a registry, as an artifact of the shape that Trivy's own has."""
    support_trivy.write_database(folder / "made")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("trivy.db", "metadata.json"):
            archive.add(folder / "made/db" / name, arcname=name)
    layout = Layout(folder / "artifact").create()
    layer = layout.add(packed.getvalue(), "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip").document()
    layer["annotations"] = {"org.opencontainers.image.title": "db.tar.gz"}
    config = layout.add(b"{}", "application/vnd.aquasec.trivy.config.v1+json").document()
    body = encode({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]})
    image = load(layout, layout.add(body, MANIFEST).digest)
    registry = RemoteRegistry(Client(repository))
    registry.push(image, layout, print)
    registry.tag("2", image)
    return f"{repository}:2"


def environment(home: Path) -> dict[str, str]:
    """A driver's environment: nothing of the CI that runs these tests, and a home of its own."""
    kept = {
        name: value for name, value in os.environ.items() if not re.match("CI|GITLAB|GITHUB|TIDEGATE", name)
    }
    home.mkdir(parents=True, exist_ok=True)
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "NO_COLOR": "1"}


@dataclass(frozen=True)
class Event:
    """Why a pipeline runs. Only a protected ref's has secrets."""

    name: str
    ref: str
    protected: bool = False
    gitlab: Mapping[str, str] = field(default_factory=dict)
    github: Mapping[str, object] = field(default_factory=dict)
    github_name: str = "push"

    @property
    def on_branch(self) -> bool:
        return self.ref.startswith("refs/heads/")


def _merge_request(name: str, project: str) -> Event:
    return Event(
        name,
        "refs/pull/7/merge",
        gitlab={
            "CI_PIPELINE_SOURCE": "merge_request_event",
            "CI_MERGE_REQUEST_IID": "7",
            "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main",
            "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME": "feature",
            "CI_MERGE_REQUEST_SOURCE_PROJECT_PATH": project,
        },
        github={
            "number": 7,
            "action": "opened",
            "pull_request": {
                "number": 7,
                "base": {"ref": "main", "repo": {"full_name": "team/digits"}},
                "head": {"ref": "feature", "repo": {"full_name": project, "fork": project != "team/digits"}},
            },
        },
        github_name="pull_request",
    )


MAIN = Event("push to main", "refs/heads/main", protected=True)
FEATURE = Event("push to a feature branch", "refs/heads/feature", gitlab={"CI_COMMIT_BRANCH": "feature"})
SCHEDULE = Event(
    "schedule",
    "refs/heads/main",
    protected=True,
    gitlab={"CI_PIPELINE_SOURCE": "schedule"},
    github_name="schedule",
)
TAG = Event("tag", "refs/tags/v1", gitlab={"CI_COMMIT_TAG": "v1"})
BRANCH_REQUEST = _merge_request("merge request from a branch", "team/digits")
FORK_REQUEST = _merge_request("merge request from a fork", "stranger/digits")
UPKEEP = Event(
    "scheduled upkeep",
    "refs/heads/main",
    protected=True,
    gitlab={"CI_PIPELINE_SOURCE": "schedule", "TIDEGATE_UPKEEP": "gc"},
)
DISPATCH = Event("started by hand", "refs/heads/main", protected=True, github_name="workflow_dispatch")


@dataclass(frozen=True)
class Ran:
    """What a driver ran: the jobs in the order of their starts, what became of each, and all that was printed."""

    status: int
    started: tuple[str, ...]
    passed: frozenset[str]
    failed: frozenset[str]
    output: str

    def said(self, job: str) -> str:
        """What one job printed."""
        lines = [line for line in self.output.splitlines() if re.match(rf"\[[^]]*/{job}\s*\]|{job}\s", line)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Team:
    """A team's commit in `folder`, with all that lies outside of it: keys by name, the jobs' image, Trivy's mirror.

    `digests` are those of the model and the image that a laptop makes of this commit.
    """

    folder: Path
    keys: Mapping[str, Path]
    image: str
    database: str
    digests: Mapping[str, str]
    ports: Mapping[str, int]


class Host:
    """A clone that is pushed, and the host that serves: its lasting state lies beside the clone."""

    def __init__(self, folder: Path, team: Team):
        self.folder, self.team = clone(team.folder, folder), team
        self.beside = folder.parent / f"{folder.name}-beside"
        self.state = self.beside / "state"
        self.state.mkdir(parents=True)
        locked = Path(sys.prefix) / ".locked"
        assert locked.read_bytes() == (ROOT / "requirements.txt").read_bytes(), "make setup, then test again"
        (self.state / "venv").symlink_to(sys.prefix)

    def change(self, message: str, edits: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        """Commits edits: for each file, pairs of what is replaced and by what. Each must be there."""
        for name, pairs in edits.items():
            path = self.folder / name
            text = path.read_text() if path.exists() else ""
            for old, new in pairs:
                assert old in text, f"{old!r} is not in {name}"
                text = text.replace(old, new) if old else new
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        git(self.folder, "add", "-A")
        git(self.folder, "commit", "-qm", message)

    def back(self) -> None:
        """Takes all changes back."""
        git(self.folder, "reset", "-q", "--hard", "origin/main")

    def pipeline(self, *arguments: str, expect: int = 0, **environ: str) -> str:
        """`python -m pipeline` in the clone, by a person at this host; returns what it printed."""
        given = {
            "TIDEGATE_ACCELERATOR": "cpu",
            "TIDEGATE_STATE": str(self.state),
            "TRIVY_DB_REPOSITORY": self.team.database,
            **environ,
        }
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=self.folder,
            env={**environment(self.beside / "home"), **given},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    def predict(self) -> dict:
        """What production answers to one row, over REST."""
        row = json.loads((ROOT / "docs/examples/seven.json").read_text())
        url = f"http://127.0.0.1:{self.team.ports['production_rest']}/v1/models/digits:predict"
        with urllib.request.urlopen(
            urllib.request.Request(url, json.dumps(row).encode()), timeout=10
        ) as answer:
            return json.load(answer)

    def serves(self) -> bool:
        """Whether anything answers where production does."""
        try:
            return bool(self.predict())
        except OSError:
            return False


def git(folder: Path, *arguments: str) -> str:
    names = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org")
    done = subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


# --- GitLab ---------------------------------------------------------------------------------------------------------


class GitLab(Host):
    """.gitlab-ci.yml as gitlab-ci-local runs it: jobs with an image in containers, the tag deploy's in a shell."""

    def __init__(self, folder: Path, team: Team):
        super().__init__(folder, team)
        self.program = need("gitlab-ci-local")
        engine = self.beside / "engine"
        engine.write_text(_ENGINE)
        engine.chmod(0o755)
        for who, variables in (("protected", self._secrets()), ("stranger", {})):
            place = self.beside / who / ".gitlab-ci-local"
            place.mkdir(parents=True)
            (place / "variables.yml").write_text(yaml.safe_dump({"global": variables}))
            place.chmod(0o700)

    def _secrets(self) -> dict:
        """The project's variables: CI's key for the jobs that sign, the approver's for the environment production."""
        signing = {scope: self.team.keys["ci"].read_text() for scope in ("pipeline", "staging", "production")}
        return {
            "TIDEGATE_SIGNING_KEY": {"type": "file", "values": signing},
            "TIDEGATE_APPROVAL_KEY": {
                "type": "file",
                "values": {"production": self.team.keys["alice"].read_text()},
            },
        }

    def jobs(self, event: Event) -> dict[str, dict]:
        """The jobs that this event's pipeline has, by name, in the order of the stages. `when` is manual for some."""
        done = self._start(["--list-json", "--no-json-schema-validation"], event)
        assert done.returncode == 0, done.stderr
        listed = json.loads(done.stdout[done.stdout.index("[\n") :])
        return {job["name"]: job for job in listed if job["when"] != "never"}

    def run(self, *arguments: str, event: Event = MAIN, **variables: str) -> Ran:
        """Runs the pipeline, or the jobs named in `arguments`, to the end."""
        done = self._start(list(arguments), event, **variables)
        output = _ESCAPES.sub("", done.stdout + done.stderr)
        ended = {
            word: frozenset(re.findall(rf"^ {word} +(\S+)", output, re.MULTILINE))
            for word in ("PASS", "FAIL")
        }
        started = tuple(re.findall(r"^(\S+) +starting ", output, re.MULTILINE))
        return Ran(done.returncode, started, ended["PASS"], ended["FAIL"], output)

    def _start(self, arguments: list[str], event: Event, **more: str) -> subprocess.CompletedProcess:
        variables = {
            "GITLAB_CI": "true",
            "CI_COMMIT_REF_PROTECTED": str(event.protected).lower(),
            "CPU_IMAGE": self.team.image,
            "GPU_IMAGE": self.team.image,
            "TIDEGATE_ACCELERATOR": "cpu",
            "DEPLOY_STATE": str(self.state),
            "TRIVY_DB_REPOSITORY": self.team.database,
            **event.gitlab,
            **more,
        }
        argv = [self.program, *arguments]
        argv += [part for name, value in variables.items() for part in ("--variable", f"{name}={value}")]
        argv += [] if event.on_branch else ["--unset-variable", "CI_COMMIT_BRANCH"]
        argv += ["--home", str(self.beside / ("protected" if event.protected else "stranger"))]
        argv += ["--helper-image", self.team.image, "--pull-policy", "if-not-present", "--network", "host"]
        argv += ["--container-executable", str(self.beside / "engine"), "--shell-isolation"]
        argv += ["--ignore-predefined-vars", ",".join(variables)]
        return subprocess.run(
            argv,
            cwd=self.folder,
            env=environment(self.beside / "home"),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )


# --- GitHub ---------------------------------------------------------------------------------------------------------

# What GitHub understands and act 0.2.89 does not; it applies neither environments nor concurrency at all.
_UNKNOWN_TO_ACT = (", deployment: false}", ", queue: max}")
_ACTIONS = ROOT / "tests/e2e/act"


class GitHub(Host):
    """.github/workflows as act runs them: jobs in containers of the jobs' image, the label deploy's on this host.

    Third-party actions are stand-ins (tests/e2e/act), found by the very commits that the workflows pin. act is told
    nothing of `environment.deployment` and `concurrency.queue`, which it does not know.
    """

    def __init__(self, folder: Path, team: Team):
        super().__init__(folder, team)
        self.program = need("act")
        self.artifacts, self.lasting = self.beside / "artifacts", self.beside / "lasting"
        self.workflows = self.beside / "workflows"
        for made in (self.artifacts, self.lasting):
            made.mkdir()
            made.chmod(0o777)
        self.number = 0
        # A link, where .gitignore knows a folder.
        (self.folder / ".git/info/exclude").write_text(".venv\n")

    @property
    def store(self) -> Path:
        return self.lasting / "store"

    @property
    def lasts(self) -> dict[str, str]:
        """The variables that name a store and a registry which outlive a run."""
        return {"TIDEGATE_STORE": f"file:{self.store}", "TIDEGATE_REGISTRY": f"oci:{self.lasting}/registry"}

    def triggered(self, event: Event) -> list[str]:
        """The workflows that GitHub starts for this event: by its name and, for a push, by the branch filter."""
        found = []
        for path in sorted((self.folder / ".github/workflows").glob("*.yml")):
            on = yaml.safe_load(path.read_text())[True]
            if event.github_name not in on:
                continue
            if (
                event.github_name == "push"
                and event.ref.removeprefix("refs/heads/") not in on["push"]["branches"]
            ):
                continue
            found.append(path.stem)
        return found

    def jobs(self, event: Event) -> list[list[str]]:
        """The jobs of this event, those that may run side by side in one list, as act plans them."""
        steps: dict[int, list[str]] = {}
        for workflow in self.triggered(event):
            done = self._start(workflow, event, ["--list"])
            assert done.returncode == 0, done.stdout + done.stderr
            for line in done.stdout.splitlines()[1:]:
                step, job = line.split()[:2]
                steps.setdefault(int(step), []).append(job)
        return [steps[step] for step in sorted(steps)]

    def run(
        self,
        workflow: str,
        event: Event,
        *arguments: str,
        on_host: bool = False,
        again: bool = False,
        **variables: str,
    ) -> Ran:
        """Runs a workflow to its end. Without `again` it is a run of its own, with artifacts of its own."""
        self.number += not again
        done = self._start(workflow, event, list(arguments), on_host, **variables)
        return self._ran(done.returncode, done.stdout + done.stderr)

    def kill_job(self, job: str, when: str, workflow: str, event: Event, **variables: str) -> Ran:
        """Runs a workflow, and kills the container of one of its jobs once `when` was printed."""
        self.number += 1
        argv, environ = self._call(workflow, event, [], True, **variables)
        child = subprocess.Popen(
            argv, cwd=self.folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        lines = []
        for line in child.stdout:
            lines.append(line)
            if when in line:
                named = ["--filter", f"name=act-{workflow}-{job}", "--filter", f"volume={self.beside}"]
                found = subprocess.run(
                    ["docker", "ps", "-q", *named], capture_output=True, text=True, timeout=60
                )
                assert found.stdout.split(), f"no container of {job} runs"
                subprocess.run(["docker", "kill", *found.stdout.split()], capture_output=True, timeout=60)
                when = "\0"
        return self._ran(child.wait(timeout=TIMEOUT_S), "".join(lines))

    def _ran(self, status: int, printed: str) -> Ran:
        output = _ESCAPES.sub("", printed)
        started = re.findall(r"^\[[^]/]*/([\w-]+)\s*\] ⭐ Run Set up job", output, re.MULTILINE)
        ended = {
            word: frozenset(re.findall(rf"^\[[^]/]*/([\w-]+)\s*\] 🏁  Job {word}", output, re.MULTILINE))
            for word in ("succeeded", "failed")
        }
        return Ran(status, tuple(started), ended["succeeded"], ended["failed"], output)

    def _start(self, *call: object, **variables: str) -> subprocess.CompletedProcess:
        argv, environ = self._call(*call, **variables)
        return subprocess.run(
            argv, cwd=self.folder, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S
        )

    def _call(
        self, workflow: str, event: Event, arguments: list[str], on_host: bool = False, **variables: str
    ) -> tuple[list[str], dict[str, str]]:
        """act's arguments and environment."""
        mounts = f"--user root --volume {self.beside}:{self.beside} --volume {_ACTIONS}:{_ACTIONS}:ro"
        given = {
            "GPU_IMAGE": self.team.image,
            "GPU_OPTIONS": mounts,
            "TIDEGATE_ACCELERATOR": "cpu",
            "DEPLOY_STATE": str(self.state),
            **variables,
        }
        environ = {
            "GITHUB_REF_PROTECTED": str(event.protected).lower(),
            "ARTIFACTS": f"{self.artifacts}/{self.number}",
            "TRIVY_DB_REPOSITORY": self.team.database,
            "LOCKED_ENVIRONMENT": sys.prefix if on_host else "",
        }
        runner = "-self-hosted" if on_host else self.team.image
        argv = [self.program, event.github_name, "--workflows", str(self._readable(workflow))]
        argv += ["--eventpath", str(self._event(event)), "--pull=false", *arguments]
        argv += ["--platform", f"ubuntu-24.04={runner}", "--platform", "deploy=-self-hosted"]
        argv += ["--platform", f"gpu={self.team.image}", "--container-options", mounts]
        argv += [
            part for uses, place in self._actions() for part in ("--local-repository", f"{uses}={place}")
        ]
        argv += [part for name, value in given.items() for part in ("--var", f"{name}={value}")]
        argv += [part for name, value in environ.items() for part in ("--env", f"{name}={value}")]
        secrets = {"TIDEGATE_SIGNING_KEY": self.team.keys["ci"].read_text()} if event.protected else {}
        argv += [part for name in secrets for part in ("--secret", name)]
        return argv, {**environment(self.beside / "home"), **secrets}

    def _readable(self, workflow: str) -> Path:
        self.workflows.mkdir(exist_ok=True)
        text = (self.folder / f".github/workflows/{workflow}.yml").read_text()
        for unknown in _UNKNOWN_TO_ACT:
            text = text.replace(unknown, "}")
        made = self.workflows / f"{workflow}.yml"
        made.write_text(text)
        return made

    def _event(self, event: Event) -> Path:
        """The event's document. It always names the ref: act guesses, and may take a branch for main."""
        repository = {"full_name": "team/digits", "default_branch": "main"}
        file = self.beside / "event.json"
        file.write_text(json.dumps({"ref": event.ref, "repository": repository, **event.github}))
        return file

    def _actions(self) -> list[tuple[str, Path]]:
        """Each third-party action that the repository uses, as OWNER/NAME@COMMIT, and its stand-in."""
        texts = [path.read_text() for path in (self.folder / ".github").rglob("*.yml")]
        used = {
            found
            for text in texts
            for found in re.findall(r"uses: *([\w-]+/[\w.-]+)(?:/[\w/.-]+)?(@[0-9a-f]{40})", text)
        }
        places = [(name + commit, _ACTIONS / name.partition("/")[2]) for name, commit in sorted(used)]
        return [(uses, place) for uses, place in places if place.is_dir()]


def clone(pushed: Path, folder: Path) -> Path:
    """A clone of the team's commit, as a developer has it."""
    subprocess.run(["git", "clone", "-q", str(pushed), str(folder)], check=True, capture_output=True)
    git(folder, "remote", "set-url", "origin", REMOTE)
    git(folder, "symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/main")
    return folder
