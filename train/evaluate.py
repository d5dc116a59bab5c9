"""The evaluate stage: measure on held-out rows, hold it against the gates and against the champion."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.settings import Bound
from pipeline.stages import Context, Outcome, Result
from train import answers, data, evidence, gates, measure, runtime, weights
from train.gates import Verdict
from train.measure import Answers, Interval


def evaluate(context: Context) -> Result:
    """Measures the candidate on held-out rows, and judges it.

    Writes `metrics/` (metrics.json, metrics.txt, confusion.csv, confusion.svg) and `predictions/`
    (probabilities.npy, float32 [n_test, classes]), whatever the verdict. Passes only if every gate,
    and where there is a champion every bound on new minus champion, was measured and holds.
    """
    settings = context.settings.evaluate
    features, labels = data.load(context.inputs["data/rows"], "test")
    runtime.use_cpu()
    probabilities = answers.of_keras(weights.load(context.inputs["train/model"]), features)
    new = Answers(np.asarray(labels), probabilities)
    champion = _champion(context, features, new)
    found = measure.intervals(new, settings.confidence)
    verdicts = {
        "model": gates.judge({name: interval.value for name, interval in found.items()}, settings.gates),
        "champion": _against(champion, settings.champion),
    }
    _write(context, new, found, champion, verdicts)
    return _result(found, champion, verdicts)


def _champion(context: Context, features: np.ndarray, new: Answers) -> dict | None:
    """New minus champion on the same rows; `problem` if the champion cannot be asked; None if there is none."""
    folder = context.inputs.get("champion/savedmodel")
    if folder is None:
        context.say("nothing is in production yet: there is no champion to compare with")
        return None
    try:
        old = _ask(folder, features, new)
    except answers.Unanswered as error:
        context.say(f"the champion cannot be compared: {error}")
        return {"problem": str(error)}
    confidence = context.settings.evaluate.confidence
    return {
        "metrics": measure.metrics(old),
        "differences": measure.differences(new, old, confidence),
        "disagreements": int((old.probabilities.argmax(1) != new.probabilities.argmax(1)).sum()),
    }


def _ask(folder: Path, features: np.ndarray, new: Answers) -> Answers:
    probabilities = answers.of_saved_model(folder, features)["probabilities"]
    if probabilities.ndim != 2 or len(probabilities) != len(new.labels):
        raise answers.Unanswered(f"it answers {list(probabilities.shape)} to {len(new.labels)} rows")
    if probabilities.shape[1] != new.classes:
        raise answers.Unanswered(f"it knows {probabilities.shape[1]} classes, the new model {new.classes}")
    return Answers(new.labels, probabilities)


def _against(champion: dict | None, bounds: Mapping[str, Bound]) -> tuple[Verdict, ...]:
    """The verdicts on new minus champion; without a champion there is nothing to judge."""
    if champion is None:
        return ()
    differences = {name: interval.value for name, interval in champion.get("differences", {}).items()}
    named = {f"{name} minus champion": value for name, value in differences.items()}
    return gates.judge(named, {f"{name} minus champion": bound for name, bound in bounds.items()})


def _write(
    context: Context, new: Answers, found: dict[str, Interval], champion: dict | None, verdicts: Any
) -> None:
    confidence = context.settings.evaluate.confidence
    if champion and "differences" in champion:
        champion = {
            **champion,
            "differences": {name: asdict(i) for name, i in champion["differences"].items()},
        }
    classes = measure.by_class(new, confidence)
    document = evidence.document(len(new.labels), confidence, found, classes, champion, verdicts)
    evidence.write(context.out / "metrics", document, new.confusion())
    (context.out / "predictions").mkdir()
    np.save(context.out / "predictions" / "probabilities.npy", new.probabilities, allow_pickle=False)


def _result(
    found: dict[str, Interval], champion: dict | None, verdicts: dict[str, tuple[Verdict, ...]]
) -> Result:
    judged = (*verdicts["model"], *verdicts["champion"])
    outcome = gates.overall(judged) if verdicts["model"] else Outcome.NO_DATA
    decided = gates.deciding(judged)
    return Result(
        outcome,
        _sentence(outcome, judged, champion),
        numbers=_numbers(found, champion),
        decided=decided.decided if decided else None,
    )


def _sentence(outcome: Outcome, judged: tuple[Verdict, ...], champion: dict | None) -> str:
    if outcome is Outcome.NO_DATA and not judged:
        return "evaluate.gates names no metric: nothing was asked of the model, so nothing lets it pass."
    if outcome is Outcome.PASSED:
        return f"{gates.deciding(judged)}."
    text = "; ".join(str(verdict) for verdict in judged if verdict.outcome is not Outcome.PASSED)
    if outcome is Outcome.NO_DATA and champion and "problem" in champion:
        return (
            f"the champion cannot be compared: {champion['problem']}. {text}. If this model is meant to be of another "
            "kind, take the bounds out of evaluate.champion, with a reason."
        )
    return (
        f"{text}. What production serves stays. build/evaluate/metrics shows all numbers; train longer "
        "(train.epochs), look at the data, or change the gate under evaluate with a reason."
    )


def _numbers(found: dict[str, Interval], champion: dict | None) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, interval in found.items():
        numbers |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    for name, interval in (champion or {}).get("differences", {}).items():
        numbers[f"{name}_minus_champion"] = interval.value
    return {name: number for name, number in numbers.items() if np.isfinite(number)}
