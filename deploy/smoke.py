"""Staging: the published digest is started there and questioned, as clients will question it."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.bounds import broken, nearest
from deploy.environment import PREVIOUS, STABLE, Environment, open_environment
from deploy.load import bodies, percentile
from deploy.standing import not_in_staging  # noqa: F401  the table of stages finds it here, too
from deploy.targets.base import Release, Version
from deploy.web import Session
from pipeline import run
from pipeline.errors import ProgramFailed
from pipeline.settings import Staging
from pipeline.stages import Context, Decided, Outcome, Result

GRPC_CLIENT = (sys.executable, "-m", "serve.client")
_ANSWER_S = 30.0
_CLIENT_S = 120.0
_NOT_ANSWERED = 5  # the client's exit status when the server did not answer

Answers = list[list[float]]


class Wrong(Exception):
    """The version gave an answer that is none; the text says which."""


def staging(context: Context) -> Result:
    """Starts the published digest in staging, and compares its answers with evaluation's predictions.

    All of staging's traffic goes to it meanwhile. A version that is refused is stopped, and the one
    before has the traffic again; one that passes replaces it.
    """
    release = Release.read(context.inputs["publish/published"])
    here = open_environment(context, "staging")
    here.back()  # what a killed run left
    running = here.placed(STABLE)
    again = running is not None and running.digest == release.digest
    try:
        version = running if running and again else here.start(release)
        if not again:
            here.share(100)
        result, evidence = _question(context, here, version)
        if result.outcome is Outcome.PASSED:
            _replace(here, version)
        else:
            here.back(drain_s=1)
    except BaseException:
        here.abandon()
        raise
    folder = context.out / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "staging.json").write_text(json.dumps(evidence, indent=1) + "\n")
    return result


def judge(skews: Mapping[str, float], latencies_ms: Sequence[float], bounds: Staging) -> tuple[Decided, ...]:
    """The numbers that are judged: the skew of each protocol, and the 99th percentile of the latencies."""
    p99 = percentile(sorted(latencies_ms), 0.99)
    return (
        *(Decided(f"skew over {protocol}", skew, bounds.skew) for protocol, skew in skews.items()),
        Decided("p99 latency in ms", math.nan if p99 is None else p99, bounds.latency_ms),
    )


def skew(answers: Answers, predictions: Path) -> float:
    """The largest difference between answers and predictions, row by row; NaN where they cannot be compared."""
    import numpy

    expected = numpy.load(predictions, mmap_mode="r")[: len(answers)]
    given = numpy.asarray(answers, dtype="float64")
    return float(abs(given - expected).max()) if given.shape == expected.shape and given.size else math.nan


def _question(context: Context, here: Environment, version: Version) -> tuple[Result, dict]:
    """Asks the golden requests over both protocols, and judges what comes back."""
    bounds, predictions = (
        context.settings.staging,
        context.inputs["evaluate/predictions"] / "probabilities.npy",
    )
    requests = bodies(context.inputs["data/rows"] / "test_features.npy", bounds.golden_requests)
    named = {"version": version.number, "digest": version.digest, "pid": version.process.pid}
    if not requests:
        return Result(Outcome.NO_DATA, "there are no held-out rows to ask"), named
    try:
        latencies_ms, over_rest = _over_rest(here.router.rest, context.settings.model, requests)
        over_grpc = _over_grpc(context, here.router.grpc, len(requests))
    except Wrong as wrong:
        sentence = f"version {version.number} does not answer as it should: {wrong}"
        return Result(Outcome.FAILED, sentence, digest=version.digest), named | {"wrong": str(wrong)}
    skews = {"REST": skew(over_rest, predictions), "gRPC": skew(over_grpc, predictions)}
    measured = judge(skews, latencies_ms, bounds)
    ordered = sorted(latencies_ms)
    numbers: dict[str, float] = {
        "golden_requests": len(requests),
        "skew_rest": skews["REST"],
        "skew_grpc": skews["gRPC"],
    }
    for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
        found = percentile(ordered, share)
        numbers[name] = math.nan if found is None else found
    known = {name: None if math.isnan(number) else number for name, number in numbers.items()}
    bounds_said = {one.name: str(one.bound) for one in measured}
    evidence = (
        named | known | {"latencies_ms": [round(one, 3) for one in latencies_ms], "bounds": bounds_said}
    )
    return _verdict(version, measured, numbers), evidence


def _verdict(version: Version, measured: Sequence[Decided], numbers: Mapping[str, float]) -> Result:
    worse = broken(measured)
    if worse:
        said = "; ".join(f"{one}, allowed {one.bound}" for one in worse)
        sentence = f"version {version.number} is refused: {said}"
    else:
        sentence = (
            f"{numbers['golden_requests']} golden requests over REST and gRPC answered as evaluation did"
        )
    outcome = Outcome.FAILED if worse else Outcome.PASSED
    return Result(outcome, sentence, numbers, nearest(measured), version.digest)


def _over_rest(address: str, model: str, requests: Sequence[bytes]) -> tuple[list[float], Answers]:
    """One row per request, one after another: durations in ms, and the probabilities."""
    latencies_ms, answers = [], []
    with Session(address, _ANSWER_S) as session:
        for number, body in enumerate(requests):
            began = time.monotonic()
            try:
                status, said = session.ask("POST", f"/v1/models/{model}:predict", body)
            except OSError as error:
                raise Wrong(f"golden request {number} over REST: {error}") from error
            latencies_ms.append(1000 * (time.monotonic() - began))
            if status != 200:
                raise Wrong(
                    f"golden request {number} over REST: {status} {said[:200].decode(errors='replace')}"
                )
            answers += _probabilities(said)
    return latencies_ms, answers


def _over_grpc(context: Context, address: str, count: int) -> Answers:
    """The same rows in one request, by the command-line client of `serve`: the probabilities."""
    import numpy

    rows, answered = context.work / "golden.npy", context.work / "answers.npz"
    numpy.save(rows, numpy.load(context.inputs["data/rows"] / "test_features.npy", mmap_mode="r")[:count])
    answered.unlink(missing_ok=True)
    argv = [*GRPC_CLIENT, "--address", address, "--model", context.settings.model, str(rows), str(answered)]
    done = run.run(argv, timeout_s=_CLIENT_S, check=False)
    if done.returncode not in (0, _NOT_ANSWERED):
        raise ProgramFailed(
            f"the gRPC client failed with exit status {done.returncode}: {done.stderr[-500:].strip()}"
        )
    if done.returncode == _NOT_ANSWERED:
        raise Wrong(f"the golden requests over gRPC: {done.stderr.strip().splitlines()[-1:]}")
    with numpy.load(answered) as outputs:
        if "probabilities" not in outputs:
            raise Wrong(f"an answer over gRPC has no probabilities, it has {', '.join(outputs)}")
        return outputs["probabilities"].tolist()


def _probabilities(answer: bytes) -> Answers:
    try:
        return [row["probabilities"] for row in json.loads(answer)["predictions"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Wrong(f"an answer has no predictions with probabilities: {answer[:200]!r}") from error


def _replace(here: Environment, version: Version) -> None:
    """Makes a version staging's only one; what was there before drains and ends."""
    if not here.target.alive(version):
        raise ProgramFailed(
            f"{version.name} ended while it was questioned. Its log in logs/ says why; run staging again."
        )
    here.settle(version)
    former = here.placed(PREVIOUS)
    if former:
        here.retire(former)
    here.tidy()
