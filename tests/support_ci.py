"""Reads .gitlab-ci.yml and .github/workflows/ as graphs, and says where they differ from the table of stages."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.stages import BY_NAME, ROLLBACK, STAGES

ROOT = Path(__file__).resolve().parent.parent
TABLE = {stage.name: stage for stage in (*STAGES, ROLLBACK)}
MERGE_REQUEST, PROTECTED = "merge request", "protected"
# What a schedule can ask for in place of the walk; one verb each.
UPKEEP = ("update", "gc", "recheck")
# What each event is to GitLab's rules; at its worst, as a merge request from a protected branch is one of both.
GITLAB_EVENTS = {
    MERGE_REQUEST: {"tag": False, "merge request": True, "protected": True, "walk": True},
    PROTECTED: {"tag": False, "merge request": False, "protected": True, "walk": True},
    "feature branch": {"tag": False, "merge request": False, "protected": False},
    "tag": {"tag": True, "merge request": False, "protected": True},
    **{name: {"protected": True, name: True} for name in UPKEEP},
}
GITLAB_CONDITIONS = {
    **{f'$CI_COMMIT_REF_PROTECTED == "true" && $TIDEGATE_UPKEEP == "{name}"': name for name in UPKEEP},
    '$CI_COMMIT_REF_PROTECTED == "true" && $TIDEGATE_UPKEEP == null': "walk",
    "$CI_COMMIT_TAG": "tag",
    '$CI_PIPELINE_SOURCE == "merge_request_event"': "merge request",
    '$CI_COMMIT_REF_PROTECTED == "true"': "protected",
}
BEFORE_GPU = ("nvidia-smi", 'cmp requirements.txt "$VENV/requirements.txt"')
NO_STAGE = "complete"
# What runs beside the stages: Trivy, before its findings are judged, GitHub's copy of them, a merge request's comment.
EXAMINE, CODE_SCANNING, COMMENT = "examine", "code-scanning", "comment"
EXAMINATION = "build/examination"
KEY = "${{ secrets.TIDEGATE_SIGNING_KEY }}"
PINNED_ACTION = re.compile(r"[\w-]+/[\w.-]+(/[\w.-]+)*@[0-9a-f]{40} # v\d+\.\d+\.\d+")
PINNED_IMAGE = re.compile(r"[\w./:-]+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Job:
    """What either vendor says of a job, in the table's words."""

    stage: str
    commands: tuple[str, ...]
    needs: tuple[str, ...]
    receives: frozenset[str]
    runner: str
    environment: str
    manual: bool
    queues: str
    has_timeout: bool


# --- GitLab ----------------------------------------------------------------------------------------------------------


def merged(below: dict, above: dict) -> dict:
    """GitLab's `extends`: maps are merged, anything else is replaced."""
    both = {**below, **above}
    for name in below.keys() & above.keys():
        if isinstance(below[name], dict) and isinstance(above[name], dict):
            both[name] = merged(below[name], above[name])
    return both


def resolved(file: dict, name: str) -> dict:
    """A job with all that it extends."""
    job, whole = file[name], {}
    below = job.get("extends", [])
    for each in [below] if isinstance(below, str) else below:
        whole = merged(whole, resolved(file, each))
    return merged(whole, job)


def admits(rules: list[dict] | None, event: str) -> dict | None:
    """The first rule that this event meets; None if it meets none or that one says never. Without rules any does."""
    if rules is None:
        return {}
    for rule in rules:
        if GITLAB_EVENTS[event].get(GITLAB_CONDITIONS[rule["if"]], False):
            return None if rule.get("when") == "never" else rule
    return None


def gitlab_jobs(file: dict, event: str) -> list[Job]:
    """The jobs that a pipeline of this event has, in the file's order."""
    if not admits(file["workflow"]["rules"], event):
        return []
    named = {name: resolved(file, name) for name, job in file.items() if "stage" in job and name[0] != "."}
    present = {name: job for name, job in named.items() if admits(job.get("rules"), event)}
    return [gitlab_job(file, job, present, admits(job.get("rules"), event)) for job in present.values()]


def gitlab_job(file: dict, job: dict, present: dict[str, dict], rule: dict) -> Job:
    needs = [need for need in job["needs"] if need["job"] in present or not need.get("optional")]
    missing = [need["job"] for need in needs if need["job"] not in present]
    assert not missing, f"{job['stage']} needs {missing}, which this pipeline has not"
    environment = job.get("environment", {})
    return Job(
        stage=job["stage"],
        commands=(*job.get("before_script", ()), *job["script"]),
        needs=tuple(present[need["job"]]["stage"] for need in needs),
        receives=frozenset(present[need["job"]]["stage"] for need in needs if need["artifacts"]),
        runner=job.get("tags", ["cpu"])[0],
        environment=environment.get("name", "").removeprefix("pipeline"),
        manual=rule.get("when") == "manual",
        queues=job.get("resource_group", ""),
        has_timeout="timeout" in job,
    )


def gitlab_faults(file: dict) -> Iterator[str]:
    """What is true of GitLab's file alone."""
    jobs = {n: resolved(file, n) for n, job in file.items() if "stage" in job and n[0] != "."}
    names = list(BY_NAME)
    names.insert(names.index("scan"), EXAMINE)
    if file["stages"] != [*names, NO_STAGE, ROLLBACK.name]:
        yield f"stages: {file['stages']}"
    for event in ("feature branch", "tag"):
        if gitlab_jobs(file, event):
            yield f"a {event} runs something"
    if not PINNED_IMAGE.fullmatch(file["variables"]["CPU_IMAGE"]) or "GPU_IMAGE" in file["variables"]:
        yield "an image is not given by digest"
    if [rule.get("auto_cancel") for rule in file["workflow"]["rules"]][1:] != [
        {"on_new_commit": "interruptible"}, {"on_new_commit": "none"}
    ]:  # fmt: skip
        yield "a newer commit must stop merge requests, and nothing else"
    for name, job in jobs.items():
        if job.get("image") not in (
            (None,) if job.get("tags") == ["deploy"] else ("$CPU_IMAGE", "$GPU_IMAGE")
        ):
            yield f"{name}: image {job.get('image')}"
        if job["artifacts"]["expire_in"] != "1 week":
            yield f"{name}: artifacts expire in {job['artifacts']['expire_in']}"
        if name != EXAMINE and not {".tidegate/store/", ".tidegate/registry/"} <= set(
            job["artifacts"]["paths"]
        ):
            yield f"{name}: does not hand its state on"
        if any(path in (".tidegate/", ".tidegate") or "keys" in path for path in job["artifacts"]["paths"]):
            yield f"{name}: would hand out keys"
        if name == COMMENT:
            yield from gitlab_comment_faults(job)
        elif "allow_failure" in job or (job["interruptible"] and not admits(job.get("rules"), MERGE_REQUEST)):
            yield f"{name}: may fail or be stopped in silence"
        if job["stage"] in BY_NAME and any(rule.get("allow_failure") for rule in job.get("rules", ())):
            yield f"{name}: may fail in silence"
        lost = ["runner_system_failure", *(["stuck_or_timeout_failure"] if name == "train" else [])]
        if job["retry"] and job["retry"]["when"] != lost:
            yield f"{name}: would be tried again after a refusal"
    yield from gitlab_trivy_faults(jobs)
    if jobs["rollback"]["retry"] != 0:
        yield "a second rollback goes back one version more"
    for event, jobs_of in ((e, gitlab_jobs(file, e)) for e in (MERGE_REQUEST, PROTECTED)):
        yield from graph_faults(
            f"gitlab, {event}", event, [j for j in jobs_of if j.stage in (*BY_NAME, EXAMINE)]
        )
    reports = jobs["check"]["artifacts"]["reports"], jobs["evaluate"]["artifacts"]["reports"]
    if [*reports[0], *reports[1]] != ["junit", "coverage_report", "metrics"]:
        yield "a report is missing"
    last = next(job for job in gitlab_jobs(file, PROTECTED) if job.stage == NO_STAGE)
    if last.needs != tuple(BY_NAME):
        yield "the last job does not need every stage"
    for name in UPKEEP:
        if [job.commands for job in gitlab_jobs(file, name)] != [(f"make {name}",)]:
            yield f"a schedule for {name} runs {[job.commands for job in gitlab_jobs(file, name)]}"
    yield from rollback_faults("gitlab", [j for j in gitlab_jobs(file, PROTECTED) if j.stage == "rollback"])


def gitlab_trivy_faults(jobs: dict[str, dict]) -> Iterator[str]:
    """Whether the job that runs Trivy has what a key is given to, and hands on more than its findings."""
    job = jobs[EXAMINE]
    if "environment" in job or "secrets" in job or "id_tokens" in job:
        yield f"{EXAMINE}: has an environment or a secret, and so could be given a key"
    if job["artifacts"]["paths"] != [f"{EXAMINATION}/"] or job["cache"]["policy"] != "pull":
        yield f"{EXAMINE}: hands on more than its findings"
    for name, each in jobs.items():
        signs = each["stage"] in TABLE and name != "train-smoke"
        if signs != ("environment" in each):
            yield f"{name}: has a key and needs none, or the other way round"
        if (
            each.get("environment", {}).get("name") == "pipeline"
            and each["environment"].get("action") != "access"
        ):
            yield f"{name}: counts as a deployment"
    if (
        jobs["scan"]["artifacts"]["reports"].get("container_scanning")
        != "build/scan/report/gl-container-scanning.json"
    ):
        yield "scan: GitLab is not shown its report"


def gitlab_comment_faults(job: dict) -> Iterator[str]:
    """The job that comments is a merge request's alone, runs after all of its stages, and stops nothing."""
    rules = job.get("rules") or [{"if": ""}]
    if [rule["if"] for rule in rules] != ['$CI_PIPELINE_SOURCE == "merge_request_event"']:
        yield "comment: runs elsewhere than in merge requests"
    if (rules[0].get("when"), rules[0].get("allow_failure")) != ("always", True):
        yield "comment: must run always, and stop nothing"
    if job["script"] != ["make comment"]:
        yield f"comment: runs {job['script']}"


# --- GitHub ----------------------------------------------------------------------------------------------------------


def github_jobs(workflow: dict) -> list[Job]:
    """A workflow's jobs, in the file's order. YAML reads GitHub's `on` as True."""
    return [github_job(name, job) for name, job in workflow["jobs"].items()]


def github_job(name: str, job: dict) -> Job:
    runs_on = job["runs-on"]
    environment, _, approval = job.get("environment", {}).get("name", "").partition("-")
    received = [s["with"]["from"] for s in job["steps"] if s.get("uses", "").endswith("/receive")]
    return Job(
        stage=name,
        commands=tuple(step["run"] for step in job["steps"] if "run" in step),
        needs=tuple(job.get("needs", ())),
        receives=frozenset(",".join(received).strip("{}").split(",")) - {""},
        runner=runs_on[1] if isinstance(runs_on, list) else "cpu",
        environment="" if environment == "pipeline" else environment,
        manual=approval == "approval",
        queues=job.get("concurrency", {}).get("group", ""),
        has_timeout="timeout-minutes" in job,
    )


def github_faults(files: dict[str, dict]) -> Iterator[str]:
    """What is true of GitHub's files alone."""
    yield from github_upkeep_faults(files["upkeep"])
    files = {name: file for name, file in files.items() if name != "upkeep"}
    request, main, back = (files[name] for name in ("pull-request", "pipeline", "rollback"))
    yield from github_comment_faults(files["comment"])
    files = {name: file for name, file in files.items() if name != COMMENT}
    if set(files) != {"pull-request", "pipeline", "rollback"}:
        yield f"workflows: {sorted(files)}"
    if set(request[True]) != {"pull_request"} or set(back[True]) != {"workflow_dispatch"}:
        yield "pull-request or rollback has another trigger"
    if set(main[True]) != {"push", "schedule", "workflow_dispatch"} or main[True]["push"]["branches"] != [
        "main"
    ]:
        yield "the pipeline has another trigger"
    if "secrets." in str(request) or request["concurrency"]["cancel-in-progress"] is not True:
        yield "a pull request sees a secret, or is not stopped by its next commit"
    if "concurrency" in main or "concurrency" in back:
        yield "one run of the pipeline could stop another"
    for name, file in files.items():
        yield from github_rights_faults(name, file)
    for name, event in (("pull-request", MERGE_REQUEST), ("pipeline", PROTECTED)):
        *stages, last = [job for job in github_jobs(files[name]) if job.stage != CODE_SCANNING]
        yield from graph_faults(f"github, {name}", event, stages)
        if (last.stage, last.needs) != (NO_STAGE, tuple(job.stage for job in stages if job.stage != EXAMINE)):
            yield f"{name}: the last job does not need every stage"
        said = files[name]["jobs"][last.stage]
        if said["if"] != "${{ always() }}" or said["steps"][-1]["uses"] != "./.github/actions/all-passed":
            yield f"{name}: the last job does not look at what became of the others"
    yield from rollback_faults("github", github_jobs(back))


def github_comment_faults(file: dict) -> Iterator[str]:
    """What comments has the right to, so it runs main's code, and of the pull request it has files alone."""
    job = file["jobs"][COMMENT]
    if file[True] != {"workflow_run": {"workflows": ["pull request"], "types": ["completed"]}}:
        yield "comment: another trigger"
    if file["permissions"] != {} or list(file["jobs"]) != [COMMENT]:
        yield "comment: rights at the top, or another job"
    if job["permissions"] != {"contents": "read", "actions": "read", "pull-requests": "write"}:
        yield f"comment: rights {job['permissions']}"
    checkout = job["steps"][0]["with"]
    if checkout != {"ref": "${{ github.event.repository.default_branch }}", "persist-credentials": False}:
        yield f"comment: checks out {checkout}"
    if [step["run"] for step in job["steps"] if "run" in step] != ["make comment"] or "secrets." in str(file):
        yield "comment: runs something else, or sees a secret"
    if "timeout-minutes" not in job:
        yield "comment: no timeout"


def github_upkeep_faults(file: dict) -> Iterator[str]:
    """Jobs of a schedule: one verb each; the one that writes to the repository has no environment and no secret."""
    if set(file[True]) != {"schedule", "workflow_dispatch"} or file["permissions"] != {}:
        yield "upkeep: another trigger, or rights at the top"
    if "secrets." in str(file):
        yield "upkeep: sees a secret"
    jobs = {job.stage: job for job in github_jobs(file)}
    if {name: job.commands for name, job in jobs.items()} != {name: (f"make {name}",) for name in UPKEEP}:
        yield f"upkeep: runs {[job.commands for job in jobs.values()]}"
    for name, job in file["jobs"].items():
        writes = {"contents": "write", "pull-requests": "write"} if name == "update" else {"contents": "read"}
        if job["permissions"] != writes or (name == "update" and "environment" in job):
            yield f"upkeep, {name}: rights {job['permissions']}, or an environment"
        if "timeout-minutes" not in job or "continue-on-error" in str(job):
            yield f"upkeep, {name}: no timeout, or may fail in silence"


def github_rights_faults(name: str, file: dict) -> Iterator[str]:
    if file["permissions"] != {}:
        yield f"{name}: rights at the top"
    for job_name, job in file["jobs"].items():
        where, stage = f"{name}, {job_name}", TABLE.get(job_name)
        wanted = {"contents": "read"}
        if job_name == CODE_SCANNING:
            wanted |= {"actions": "read", "security-events": "write"}
            if any("run" in step for step in job["steps"]) or "env" in job or "environment" in job:
                yield f"{where}: may write, and runs something"
        if job_name == EXAMINE:
            yield from (f"{where}: {fault}" for fault in github_trivy_faults(job))
        if job.get("permissions") != wanted:
            yield f"{where}: rights {job.get('permissions')}"
        if "continue-on-error" in str(job) or (stage and "if" in job):
            yield f"{where}: may fail or be skipped in silence"
        if any(step["if"] != "${{ !cancelled() }}" for step in job["steps"] if "if" in step):
            yield f"{where}: a step with a condition"
        if stage and name != "pull-request":
            if job.get("env", {}).get("TIDEGATE_SIGNING_KEY") != KEY or "environment" not in job:
                yield f"{where}: its record would not be signed with CI's key"
            queue = job.get("concurrency", {"cancel-in-progress": False, "queue": "max"})
            if queue["cancel-in-progress"] is not False or queue["queue"] != "max":
                yield f"{where}: a deployment could be stopped or dropped by another"
            if stage.environment and job["env"]["RUNNER_TRACKING_ID"] != "":
                yield f"{where}: the runner would end the servers with the job"


def github_trivy_faults(job: dict) -> Iterator[str]:
    """Whether the job that runs Trivy has a secret, a credential, or a way to change what others run."""
    if "environment" in job or "env" in job or "secrets." in str(job) or "github.token" in str(job):
        yield "has an environment or a secret"
    used = {step["uses"].partition("@")[0]: step.get("with", {}) for step in job["steps"] if "uses" in step}
    if used["actions/checkout"].get("persist-credentials") is not False:
        yield "leaves a credential in the checkout"
    if used["./.github/actions/python"].get("cache") != "read":
        yield "could change the environment that other jobs take from the cache"
    if used["actions/upload-artifact"]["path"] != EXAMINATION or "./.github/actions/receive" in used:
        yield "hands on more than its findings, or is given more than the image"


# --- Both ------------------------------------------------------------------------------------------------------------


def graph_faults(where: str, event: str, jobs: list[Job]) -> Iterator[str]:
    """Where the stages of one event differ from the table."""
    wanted = [s.name for s in STAGES if event == PROTECTED or not s.protected or s.name == "train"]
    if "scan" in wanted:
        wanted.insert(wanted.index("scan"), EXAMINE)
        yield from examine_faults(where, [job for job in jobs if job.stage == EXAMINE])
    if [job.stage for job in jobs] != wanted:
        yield f"{where}: stages {[job.stage for job in jobs]}"
        return
    state: dict[str, set[str]] = {}
    for job in (job for job in jobs if job.stage != EXAMINE):
        yield from (f"{where}, {job.stage}: {fault}" for fault in job_faults(job, event))
        state[job.stage] = {job.stage}.union(*(state[name] for name in job.receives if name in state))
        if not set(job.needs) - {EXAMINE} < state[job.stage]:
            yield f"{where}, {job.stage}: receives the state of {sorted(state[job.stage])} alone"


def examine_faults(where: str, jobs: list[Job]) -> Iterator[str]:
    """Whether the job that runs Trivy comes after the image, on no runner that others trust."""
    if len(jobs) != 1 or jobs[0].commands != ("make examine",) or jobs[0].needs != ("image",):
        yield f"{where}: nothing examines the image, or something else does"
    elif jobs[0].runner != "cpu" or jobs[0].environment or not jobs[0].has_timeout:
        yield f"{where}, {EXAMINE}: on a runner of others, in an environment, or without a timeout"


def job_faults(job: Job, event: str) -> Iterator[str]:
    stage = TABLE[job.stage]
    on_gpu = stage.runner == "gpu" and event == PROTECTED
    if job.commands != (*(BEFORE_GPU if on_gpu else ()), f"make {stage.name}"):
        yield f"runs {job.commands}"
    needs = (*stage.needs, EXAMINE) if stage.name == "scan" else stage.needs
    if job.needs != needs:
        yield f"needs {job.needs}, the table says {needs}"
    if not job.receives <= set(job.needs):
        yield f"receives from {sorted(job.receives)}, which it does not need"
    if job.runner != ("gpu" if on_gpu else "deploy" if stage.environment else "cpu"):
        yield f"runner {job.runner}"
    if job.environment != (stage.environment if event == PROTECTED else ""):
        yield f"environment {job.environment!r}"
    if job.manual != stage.manual:
        yield f"manual: {job.manual}"
    if stage.deploys and job.queues != stage.environment:
        yield f"deploys, and queues in {job.queues!r}"
    if not job.has_timeout:
        yield "no timeout"


def rollback_faults(where: str, jobs: list[Job]) -> Iterator[str]:
    if len(jobs) != 1 or jobs[0].needs:
        yield f"{where}: rollback has to wait for something"
        return
    yield from (f"{where}, rollback: {fault}" for fault in job_faults(jobs[0], PROTECTED))


def ci_texts() -> dict[str, str]:
    """The text of every file that this test speaks for, by its path."""
    found = [
        ROOT / ".gitlab-ci.yml",
        *(ROOT / "docker").glob("*ockerfile"),
        *(ROOT / ".github").rglob("*.y*ml"),
    ]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in found}


def pin_faults(texts: dict[str, str]) -> Iterator[str]:
    """Anything that names a version that could move."""
    pins: dict[str, set[str]] = {}
    for path, text in texts.items():
        if re.search(r"\blatest\b", text):
            yield f"{path}: latest"
        if "pull_request_target" in text:
            yield f"{path}: pull_request_target gives a stranger's code our rights"
        for used in re.findall(r"^\s*(?:- )?uses: *(.*)$", text, re.MULTILINE):
            if used.startswith("./"):
                if not (ROOT / used / "action.yml").is_file():
                    yield f"{path}: {used} is not there"
            elif not PINNED_ACTION.fullmatch(used):
                yield f"{path}: {used} is not pinned by a commit, with its version in a comment"
            pins.setdefault(used.partition("@")[0], set()).add(used)
    yield from (f"{name} is pinned in two ways" for name, used in pins.items() if len(used) > 1)
