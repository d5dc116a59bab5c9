"""The canary's decisions: tables, and a story. No clock, no network."""

import json

import pytest

from deploy import rollout
from deploy.bounds import broken, nearest
from deploy.rollout import Move, Seen, decide, measure
from deploy.router import Counts
from deploy.targets.base import Release
from pipeline.errors import GateRefused, ProgramFailed
from pipeline.run import Process
from pipeline.settings import Bound, Canary
from pipeline.stages import Decided

PLAN = Canary(
    steps=(10, 50),
    step_s=2,
    step_timeout_s=60,
    load_rps=100,
    requests_at_least=50,
    error_rate=Bound(at_most=0.01),
    extra_error_rate=Bound(at_most=0.005),
    slow_ms=250,
    extra_slow_rate=Bound(at_most=0.05),
)


def counts(requests=1000, failed=0, refused=0, slow=0) -> Counts:
    return Counts(requests, failed, refused, requests, slow)


def seen(candidate: Counts, stable: Counts | None = counts(), elapsed_s=3.0, alive=True, last=False) -> Seen:  # noqa: B008
    return Seen(elapsed_s, candidate, stable, alive, last)


@pytest.mark.parametrize(
    ("moment", "move", "reason"),
    [
        (seen(counts()), Move.NEXT, "within"),
        (seen(counts(), last=True), Move.PASS, "within"),
        (seen(counts(), elapsed_s=1), Move.WAIT, "lasts 2 s"),
        (seen(counts(49)), Move.WAIT, "new version has answered 49 of 50"),
        (seen(counts(), counts(49)), Move.WAIT, "running version has answered 49 of 50"),
        (seen(counts(0)), Move.WAIT, "0 of 50"),
        (seen(counts(0), elapsed_s=60), Move.GIVE_UP, "0 of 50 requests after 60 s"),
        (seen(counts(49), elapsed_s=60), Move.GIVE_UP, "49 of 50"),
        (seen(counts(), counts(0), elapsed_s=60), Move.GIVE_UP, "running version"),
        (seen(counts(), alive=False), Move.BACK, "ended, or hangs"),
        (seen(counts(0), elapsed_s=0.1, alive=False), Move.BACK, "ended, or hangs"),
        (seen(counts(1000, failed=10)), Move.BACK, "extra error rate 0.01, allowed <= 0.005"),
        (seen(counts(1000, failed=11)), Move.BACK, "error rate 0.011, allowed <= 0.01"),
        (seen(counts(1000, failed=5)), Move.NEXT, "within"),
        (seen(counts(1000, failed=9), counts(1000, failed=9)), Move.NEXT, "within"),
        (seen(counts(1000, failed=20), counts(1000, failed=20)), Move.BACK, "error rate 0.02"),
        (seen(counts(1000, refused=300), counts(1000, refused=300)), Move.NEXT, "within"),
        (seen(counts(1000, refused=10)), Move.BACK, "extra error rate 0.01"),
        (seen(counts(1000, slow=51)), Move.BACK, "extra slow rate 0.051"),
        (seen(counts(1000, slow=100), counts(1000, slow=60)), Move.NEXT, "within"),
        # its own errors end a step early, once there are enough requests; comparisons wait for its end
        (seen(counts(50, failed=1), elapsed_s=0.2), Move.BACK, "error rate 0.02"),
        (seen(counts(49, failed=40), elapsed_s=0.2), Move.WAIT, "49 of 50"),
        (seen(counts(49, failed=40), elapsed_s=60), Move.BACK, "error rate"),
        (seen(counts(1000, slow=900), elapsed_s=1), Move.WAIT, "lasts 2 s"),
        # durations come a moment later than counts: no share of nothing is judged
        (seen(Counts(1000, 0, 0, 0, 0)), Move.WAIT, "new version"),
    ],
)
def test_decision(moment, move, reason):
    step = decide(moment, PLAN)
    assert step.move is move
    assert reason in step.reason


@pytest.mark.parametrize(
    ("candidate", "move"),
    [
        (counts(), Move.PASS),
        (counts(1000, failed=11), Move.BACK),
        (counts(1000, refused=11), Move.BACK),
        (counts(1000, slow=51), Move.BACK),
        (counts(0), Move.WAIT),
    ],
)
def test_version_without_another_is_judged_by_absolute_bounds(candidate, move):
    assert decide(seen(candidate, None, last=True), PLAN).move is move


def test_canary_as_a_story():
    assert decide(seen(counts(12), counts(110), elapsed_s=1), PLAN).move is Move.WAIT
    assert decide(seen(counts(48), counts(430), elapsed_s=4), PLAN).move is Move.WAIT
    assert decide(seen(counts(50), counts(452), elapsed_s=4.5), PLAN).move is Move.NEXT
    assert decide(seen(counts(60, slow=2), counts(58), elapsed_s=1, last=True), PLAN).move is Move.WAIT
    assert decide(seen(counts(120, slow=30), counts(115), elapsed_s=2.1, last=True), PLAN).move is Move.BACK


def test_nothing_counted_is_within_no_bound():
    assert len(broken(measure(seen(counts(0), counts(0)), PLAN))) == 3


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ([("a", 0.9, Bound(at_most=1.0)), ("b", 0.1, Bound(at_most=1.0))], "a"),
        ([("a", 0.9, Bound(at_most=1.0)), ("b", 2.0, Bound(at_most=1.0))], "b"),
        ([("a", 0.99, Bound(at_most=1.0)), ("b", 0.5, Bound(at_least=0.6))], "b"),
        ([("a", 0.0, Bound(at_most=0.0)), ("b", 0.5, Bound(at_most=1.0))], "a"),
        ([("a", 9.0, Bound(at_most=1.0)), ("b", float("nan"), Bound(at_most=1.0))], "b"),
    ],
)
def test_number_that_decided_is_the_one_nearest_to_its_bound_or_furthest_beyond(numbers, name):
    assert nearest([Decided(*one) for one in numbers]).name == name


def test_counts_since_a_moment_start_anew_where_the_router_did():
    assert Counts(10, 2, 1, 9, 3) - Counts(4, 1, 0, 4, 1) == Counts(6, 1, 1, 5, 2)
    assert Counts(3, 0, 0, 3, 0) - Counts(100, 5, 0, 100, 9) == Counts(3, 0, 0, 3, 0)


RELEASE = Release("oci:x", "sha256:" + "a" * 64, 2)


def _canary_said(tmp_path, **said):
    (tmp_path / "canary.json").write_text(
        json.dumps({"candidate": {"digest": RELEASE.digest, "pid": 7, "born": 9} | said})
    )
    return tmp_path


def test_judged_process_is_read_from_the_canarys_evidence(tmp_path):
    assert rollout._judged(_canary_said(tmp_path), RELEASE) == Process(7, 9)


def test_promotion_of_another_digest_than_was_judged_is_refused(tmp_path):
    with pytest.raises(GateRefused, match="Run canary again"):
        rollout._judged(_canary_said(tmp_path, digest="sha256:" + "b" * 64), RELEASE)


@pytest.mark.parametrize("text", ["", "{}", '{"candidate": 1}'])
def test_evidence_that_cannot_be_read_is_an_error(tmp_path, text):
    (tmp_path / "canary.json").write_text(text)
    with pytest.raises(ProgramFailed, match="cannot be read"):
        rollout._judged(tmp_path, RELEASE)


@pytest.mark.parametrize("text", ["", "{}", '{"registry": "a", "digest": "b", "version": "x"}'])
def test_release_that_names_nothing_is_an_error(tmp_path, text):
    (tmp_path / "published.json").write_text(text)
    with pytest.raises(ProgramFailed, match="Run publish again"):
        Release.read(tmp_path)
