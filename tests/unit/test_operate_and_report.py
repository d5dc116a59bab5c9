"""Approvals, going back, the closing table, and what each CI vendor says."""

import contextlib
import dataclasses
import io
import json
from types import SimpleNamespace

import pytest

from pipeline import approval, ci, operate, report
from pipeline.digest import Digests
from pipeline.errors import GateRefused, SettingsError
from pipeline.execution import Paths, Work
from pipeline.row import Row
from pipeline.runner import Runner, needed, refuse_unprotected
from pipeline.settings import Bound
from pipeline.stages import BY_NAME, ROLLBACK, Decided, Outcome
from pipeline.store import Entry, open_store
from tests.support import context, settings

A, B, C = ("sha256:" + letter * 64 for letter in "abc")


def entry(image, version, why="promote", at="2026-01-01T00:00:00Z", left="") -> Entry:
    return Entry(image, version, "m", "s", "p", "ann", at, why, "e" * 64, left)


@pytest.fixture
def production(tmp_path):
    """Makes a channel of these entries."""

    def make(*entries):
        store = open_store("file:store", tmp_path)
        for one in entries:
            store.append(store.channel("production"), one)
        return store.channel("production")

    return make


@pytest.mark.parametrize(
    ("history", "goal"),
    [
        ([entry(A, 1), entry(B, 2)], 1),
        ([entry(A, 1), entry(B, 2), entry(C, 3)], 2),
        ([entry(A, 1), entry(B, 2), entry(C, 3), entry(B, 2, "rollback")], 1),
        ([entry(A, 1), entry(B, 2), entry(A, 1)], 2),
        ([entry(A, 1), entry(A, 1), entry(B, 2), entry(B, 2)], 1),
    ],
)
def test_rollback_goes_to_what_served_before_the_live_version_was_let_in(production, history, goal):
    assert operate.earlier(production(*history), None).version == goal


@pytest.mark.parametrize("history", [[], [entry(A, 1)], [entry(A, 1), entry(B, 2), entry(A, 1, "rollback")]])
def test_rollback_never_returns_to_the_version_that_was_left(production, history):
    with pytest.raises(GateRefused, match=r"nothing to go back to|no version before"):
        operate.earlier(production(*history), None)


def test_rollback_to_a_named_version_takes_that_one_and_no_unknown_one(production):
    channel = production(entry(A, 1), entry(B, 2), entry(C, 3))
    assert operate.earlier(channel, 1).version == 1
    with pytest.raises(SettingsError, match=r"v7 never was in production"):
        operate.earlier(channel, 7)
    with pytest.raises(SettingsError, match="serves now"):
        operate.earlier(channel, 3)


def test_rollback_while_another_version_is_judged_goes_back_to_the_live_one(production):
    channel = production(entry(A, 1), entry(B, 2))
    assert operate.earlier(channel, None, judged=True).version == 2
    assert operate.earlier(channel, 2, judged=True).version == 2
    assert operate.earlier(channel, 1, judged=True).version == 1


# What was begun and not finished ----------------------------------------------------------------------------


def killed_change(tmp_path, channel, goal, outcome=None):
    """A change of production that is killed as it runs, or comes to an outcome; its runner's store."""
    paths = Paths(tmp_path, tmp_path / "pipeline.yaml", tmp_path / "build", tmp_path / "state")
    runner = Runner(settings(), paths, open_store("file:store", tmp_path), Digests(tmp_path / "digests.json"))

    def execute(work):
        if outcome is None:
            raise KeyboardInterrupt
        return SimpleNamespace(outcome=outcome, finished="2026-03-01T00:00:00.000Z", sha256="f" * 64)

    runner.__dict__["executor"] = SimpleNamespace(execute=execute)
    work = Work(ROLLBACK, "k" * 64, {}, {}, {})
    with contextlib.nullcontext() if outcome else pytest.raises(KeyboardInterrupt):
        runner.enter(channel, dataclasses.replace(goal, at="", evidence=""), work)
    return runner.store


def test_change_that_is_killed_stays_noted_until_something_enters_the_channel(tmp_path, production):
    channel = production(entry(A, 1), entry(B, 2))
    store = killed_change(tmp_path, channel, entry(A, 1, "rollback", left=B))
    begun = store.begun(channel)
    assert (begun.version, begun.why, begun.left, begun.at > "2026") == (1, "rollback", B, True)
    assert store.begun(store.append(channel, entry(C, 3))) is None


@pytest.mark.parametrize("outcome", [Outcome.PASSED, Outcome.FAILED])
def test_change_that_came_to_an_outcome_is_not_left_unfinished(tmp_path, production, outcome):
    channel = production(entry(A, 1), entry(B, 2))
    store = killed_change(tmp_path, channel, entry(A, 1, "rollback", left=B), outcome)
    assert store.begun(store.channel("production")) is None


def test_note_that_cannot_be_read_notes_nothing(tmp_path, production):
    channel = production(entry(A, 1))
    store = open_store("file:store", tmp_path)
    store.bucket.write("begun/production.json", b"{")
    assert store.begun(channel) is None


def row(role="stable", weight=100, **more) -> dict:
    return {
        "environment": "production", "version": 2, "role": role, "weight": weight, "alive": True, "answers": True,
        "router_alive": True, "rest": "127.0.0.1:8501", "changing": False, "pid": 7, **more,
    }  # fmt: skip


def shown(capsys, rows, begun=None, deploying="") -> str:
    """What `make status` prints of production, v2 being live."""
    channels = {"staging": None, "production": dataclasses.asdict(entry(B, 2))}
    operate.print_status(
        {
            "break_glass": None,
            "channels": channels,
            "begun": {"staging": None, "production": begun and dataclasses.asdict(begun)},
            "deploying": deploying,
            "running": rows,
        },
        None,
    )
    return capsys.readouterr().out


def test_status_says_what_was_left_unfinished_and_what_to_do(capsys):
    begun = entry(A, 1, "rollback", "2026-03-01T00:00:00.000Z")
    said = shown(capsys, [row(changing=True)], begun)
    assert "rollback of v1 was begun by ann at 2026-03-01T00:00:00.000Z and is not finished" in said
    assert "`python -m pipeline rollback v1` finishes it" in said
    assert "in the middle of a change; `make ci-local` puts it right" in said


def test_status_says_that_no_canary_is_at_work_on_a_version_that_has_traffic(capsys):
    rows = [row(weight=70), row("candidate", 30, version=3)]
    assert "v3 is being judged, and no canary is at work" in shown(capsys, rows)
    said = shown(capsys, rows, deploying="process 12")
    assert "a deployment is going on here (process 12)" in said
    assert "no canary" not in said


@pytest.mark.parametrize(("answers", "served"), [(True, "are answered"), (False, "are NOT answered")])
def test_status_calls_nothing_dead_that_the_engine_does_not_speak_of(capsys, answers, served):
    unseen = {"alive": None, "router_alive": None, "container": "f00", "name": "digits-v2"}
    silent = "the Docker engine does not answer at unix:///none. Start it."
    said = shown(capsys, [row(**unseen, answers=answers, trouble=silent)]).splitlines()[2:]
    assert said == [
        f"  {silent} Clients {served} at 127.0.0.1:8501.",
        "  v2 stable    100 % of traffic  127.0.0.1:8501  container digits-v2 (the engine does not say)",
    ]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"alive": False}, "NOT RUNNING; `make ci-local` starts it"),
        ({"router_alive": False}, "its router is DEAD, so clients reach nothing; `make ci-local` starts it"),
        ({"answers": False}, "DOES NOT ANSWER at 127.0.0.1:8501; `make ci-local` starts it"),
    ],
)
def test_status_says_what_does_not_serve_and_what_starts_it(capsys, seen, said):
    assert shown(capsys, [row(**seen)]).splitlines()[2] == f"  {said}"


def test_status_of_what_is_whole_says_nothing_more(capsys):
    assert shown(capsys, [row()]).splitlines()[2:] == [
        "  v2 stable    100 % of traffic  127.0.0.1:8501  pid 7"
    ]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-15", "2026-01-15T00:00:00.000Z"),
        ("2026-02-15T12:00:00Z", "2026-02-15T12:00:00.000Z"),
        ("2026-02-01T01:00:00+02:00", "2026-01-31T23:00:00.000Z"),
    ],
)
def test_a_time_is_read_in_its_zone(text, moment):
    assert operate.moment(text) == moment


def test_a_time_that_is_none_is_refused():
    with pytest.raises(SettingsError, match="yesterday"):
        operate.moment("yesterday")


# Approval --------------------------------------------------------------------------------------------------


@pytest.fixture
def approving(tmp_path):
    """A context for the approval of image A, with a store of its own, and that store."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "published.json").write_text(json.dumps({"digest": A, "version": 1}))
    made = context(tmp_path, {"publish/published": folder}, {"store": f"file:{tmp_path}/store"})
    made = dataclasses.replace(made, root=tmp_path)
    return made, open_store(made.settings.store, tmp_path)


def test_a_laptop_approves_for_its_local_target_and_says_so(approving):
    made, _ = approving
    result = approval.approve(made)
    assert result.outcome is Outcome.PASSED
    assert "automatically" in result.sentence
    kept = json.loads((made.out / "approval" / "approval.json").read_text())
    assert (kept["digest"], kept["automatic"], kept["by"]) == (A, True, made.facts.actor)


@pytest.mark.parametrize("vendor", ["gitlab", "github"])
def test_ci_never_approves_by_itself(approving, vendor):
    made, _ = approving
    made = dataclasses.replace(made, facts=dataclasses.replace(made.facts, vendor=vendor, protected=True))
    result = approval.approve(made)
    assert result.outcome is Outcome.FAILED
    assert f"nobody has approved v1, {A}" in result.sentence
    assert not (made.out / "approval").exists()


def test_a_version_that_a_person_rolled_back_waits_for_a_person(approving):
    made, store = approving
    channel = store.append(store.channel("production"), entry(A, 1))
    store.append(channel, entry(B, 2, "rollback", "2026-03-01T00:00:00.000Z", left=A))
    result = approval.approve(made)
    assert result.outcome is Outcome.FAILED
    assert "was rolled back by ann" in result.sentence
    assert not (made.out / "approval").exists()
    by_name = dataclasses.replace(made, facts=dataclasses.replace(made.facts, approving=True))
    assert approval.approve(by_name).outcome is Outcome.PASSED


def test_a_version_that_a_person_began_to_roll_back_waits_for_a_person(approving):
    made, store = approving
    folder = made.out / "given"
    folder.mkdir()
    (folder / "approval.json").write_text(json.dumps({"digest": A, "at": "2026-02-01T00:00:00.000Z"}))
    given = dataclasses.replace(made, inputs={"approve/approval": folder})
    channel = store.append(store.channel("production"), entry(A, 1))
    assert approval.withdrawn(given) is None
    store.begin(channel, entry(B, 2, "rollback", "2026-03-01T00:00:00.000Z", left=A))
    assert "ann began to roll back to v2" in approval.withdrawn(given)
    result = approval.approve(made)
    assert result.outcome is Outcome.FAILED
    assert (
        "ann began at 2026-03-01T00:00:00.000Z to roll v1 back to v2, and that was not finished"
        in result.sentence
    )
    by_name = dataclasses.replace(made, facts=dataclasses.replace(made.facts, approving=True))
    assert approval.approve(by_name).outcome is Outcome.PASSED


def test_a_version_that_was_taken_back_in_its_canary_waits_for_a_person(approving):
    made, store = approving
    channel = store.append(store.channel("production"), entry(B, 0))
    taken = dataclasses.replace(entry(B, 0, "rollback", left=A), highest=1)
    store.append(channel, taken)
    assert "v1 was rolled back by ann" in approval.approve(made).sentence


def test_an_approval_is_used_up_once_production_has_moved_on(approving):
    made, store = approving
    folder = made.out / "approval"
    folder.mkdir()
    made = dataclasses.replace(made, inputs={"approve/approval": folder})
    (folder / "approval.json").write_text(json.dumps({"digest": A, "at": "2026-02-01T00:00:00.000Z"}))
    channel = store.append(store.channel("production"), entry(A, 1, at="2026-02-01T00:00:09.000Z"))
    assert approval.withdrawn(made) is None
    channel = store.append(channel, entry(B, 2, at="2026-02-02T00:00:00.000Z"))
    assert "ann promoted v2 after it was given" in approval.withdrawn(made)
    store.append(channel, entry(A, 1, at="2026-02-03T00:00:00.000Z"))
    assert approval.withdrawn(made) is not None


def test_a_version_that_was_let_in_again_after_its_rollback_needs_no_person_twice(approving):
    made, store = approving
    channel = store.append(store.channel("production"), entry(B, 2, "rollback", left=A))
    channel = store.append(channel, entry(A, 1, "promote"))
    store.append(channel, entry(B, 2, "promote"))
    assert approval.approve(made).outcome is Outcome.PASSED


def test_a_rollback_withdraws_the_approvals_before_it_and_none_after(approving):
    made, store = approving
    folder = made.out / "approval"
    folder.mkdir()
    made = dataclasses.replace(made, inputs={"approve/approval": folder})
    (folder / "approval.json").write_text(json.dumps({"digest": A, "at": "2026-02-01T00:00:00.000Z"}))
    assert approval.withdrawn(made) is None
    channel = store.append(store.channel("production"), entry(A, 1))
    store.append(channel, entry(B, 2, "rollback", "2026-03-01T00:00:00.000Z", left=A))
    assert "ann rolled back to v2" in approval.withdrawn(made)
    (folder / "approval.json").write_text(json.dumps({"digest": A, "at": "2026-04-01T00:00:00.000Z"}))
    assert approval.withdrawn(made) is None


# The table -------------------------------------------------------------------------------------------------

ROWS = [
    Row("check", "passed", True, 9.0, "fine", None, "f" * 64),
    Row(
        "evaluate",
        "failed",
        False,
        1.23,
        "accuracy <low>",
        Decided("accuracy", 0.9, Bound(at_least=0.95)),
        exit_code=3,
    ),
    Row("scan", "passed", False, 0.5, "ok", warnings=("vulnerabilities not scanned",)),
]


def test_the_table_shows_the_number_its_bound_the_seconds_and_the_digest():
    stream = io.StringIO()
    report.table([*ROWS, *report.skipped(ROWS, ["check", "promote"])], stream)
    lines = stream.getvalue().splitlines()
    assert lines[1].split() == ["check", "unchanged", "sha256:ffffffffffff"]
    assert lines[2].split() == ["✗", "evaluate", "failed", "accuracy", "0.9", ">=", "0.95", "1.2"]
    assert lines[4].split() == ["promote", "not", "reached"]
    assert "! scan: vulnerabilities not scanned" in lines[5]
    assert "\x1b" not in stream.getvalue()


def test_the_page_escapes_what_stages_say_and_holds_every_row():
    text = report.page(ROWS, "digits & co")
    assert "accuracy &lt;low&gt;" in text
    assert "digits &amp; co" in text
    assert text.count('class="says"') == len(ROWS)


def test_the_report_is_written_for_programs_too(tmp_path):
    report.write(tmp_path / "report", ROWS, "digits")
    stages = json.loads((tmp_path / "report" / "report.json").read_text())["stages"]
    assert [(row["stage"], row["outcome"]) for row in stages] == [
        ("check", "passed"),
        ("evaluate", "failed"),
        ("scan", "passed"),
    ]


def test_the_job_summary_is_a_markdown_table(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    report.write(tmp_path / "report", ROWS, "digits")
    assert "| evaluate | failed | accuracy 0.9 | >= 0.95 | 1.2 |" in (tmp_path / "summary").read_text()


# CI --------------------------------------------------------------------------------------------------------

GITLAB_MAIN = {"GITLAB_CI": "true", "CI_COMMIT_REF_PROTECTED": "true"}
GITLAB_MR = {
    "GITLAB_CI": "true",
    "CI_COMMIT_REF_PROTECTED": "false",
    "CI_PIPELINE_SOURCE": "merge_request_event",
}
GITHUB_MAIN = {"GITHUB_ACTIONS": "true", "GITHUB_REF_PROTECTED": "true", "GITHUB_EVENT_NAME": "push"}
GITHUB_PR = {"GITHUB_ACTIONS": "true", "GITHUB_REF_PROTECTED": "false", "GITHUB_EVENT_NAME": "pull_request"}


@pytest.mark.parametrize(
    ("environ", "vendor", "protected", "merge_request"),
    [
        ({}, "laptop", False, False),
        ({"CI_COMMIT_REF_PROTECTED": "true"}, "laptop", False, False),
        (GITLAB_MAIN, "gitlab", True, False),
        (GITLAB_MR, "gitlab", False, True),
        (GITHUB_MAIN, "github", True, False),
        (GITHUB_PR, "github", False, True),
    ],
)
def test_each_vendor_is_known_by_its_own_variables(environ, vendor, protected, merge_request):
    assert ci.vendor(environ) == vendor
    assert ci.is_protected(environ) is protected
    assert ci.is_merge_request(environ) is merge_request


@pytest.mark.parametrize(
    ("environ", "stages", "refused"),
    [
        ({}, set(BY_NAME), None),
        (GITLAB_MAIN, set(BY_NAME), None),
        (GITHUB_MAIN, set(BY_NAME), None),
        (GITLAB_MR, {"check", "data", "train", "evaluate", "export"}, None),
        (GITHUB_PR, {"publish"}, "publish"),
        (GITLAB_MR, {"train", "promote"}, "promote"),
        ({"GITLAB_CI": "true"}, {"train"}, "train"),
        ({"GITHUB_ACTIONS": "true"}, {"check", "data", "evaluate"}, None),
    ],
)
def test_only_protected_refs_train_publish_or_deploy(monkeypatch, environ, stages, refused):
    for name in {**GITLAB_MR, **GITHUB_PR}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    if refused is None:
        refuse_unprotected(stages)
        return
    with pytest.raises(GateRefused, match=f"^{refused}: only a protected ref") as caught:
        refuse_unprotected(stages)
    assert caught.value.exit_code == 3


def test_a_stage_brings_what_it_needs_in_the_tables_order():
    assert needed(["evaluate"]) == ["check", "data", "train", "evaluate"]
    assert needed(["promote"]) == list(BY_NAME)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:token@git.example/a/b.git", "https://git.example/a/b.git"),
        ("git@git.example:a/b.git", "git@git.example:a/b.git"),
        ("", ""),
    ],
)
def test_a_remote_is_recorded_without_its_password(url, shown):
    assert ci._without_password(url) == shown
