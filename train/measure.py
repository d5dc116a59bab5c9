"""What is measured on held-out rows, and how sure that is. numpy alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np

from pipeline.settings import METRICS

_BINS = 15
_SEED = 0
_RESAMPLES = 1000
_FEWEST_RESAMPLES = 200
_ROWS_TO_RESAMPLE = 200_000_000
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Interval:
    """A value and the interval that holds the true one with the confidence asked for."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Answers:
    """A model's answers on held-out rows: `labels` int [n], `probabilities` float [n, classes]."""

    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def classes(self) -> int:
        return self.probabilities.shape[1]

    @cached_property
    def cells(self) -> np.ndarray:
        """For each row its cell in the flattened confusion matrix."""
        return self.labels * self.classes + self.probabilities.argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        return self.probabilities.max(axis=1).astype(np.float64)

    @cached_property
    def right(self) -> np.ndarray:
        return (self.probabilities.argmax(axis=1) == self.labels).astype(np.float64)

    @cached_property
    def losses(self) -> np.ndarray:
        chosen = self.probabilities[np.arange(len(self.labels)), self.labels].astype(np.float64)
        return -np.log(np.maximum(chosen, _SMALLEST))

    @cached_property
    def bins(self) -> np.ndarray:
        return np.minimum((self.confidence * _BINS).astype(np.int64), _BINS - 1)

    @cached_property
    def usable(self) -> bool:
        """Whether there are rows, and every probability is a number."""
        return len(self.labels) > 0 and bool(np.isfinite(self.probabilities).all())

    def confusion(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Rows by class [truth, predicted]."""
        counts = np.bincount(self.cells, weights, minlength=self.classes**2)
        return counts.reshape(self.classes, self.classes)


def metrics(answers: Answers, weights: np.ndarray | None = None) -> dict[str, float]:
    """All of METRICS; NaN for what these rows cannot tell. `weights` [n] counts rows more than once."""
    if not answers.usable:
        return dict.fromkeys(METRICS, float("nan"))
    confusion = answers.confusion(weights).astype(np.float64)
    total, hits = confusion.sum(), confusion.diagonal()
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / truth
        precision = np.where(predicted > 0, hits / predicted, 0.0)
        f1 = 2 * hits / (truth + predicted)
    return {
        "accuracy": float(hits.sum() / total),
        "worst_recall": float(recall.min()),
        "worst_precision": float(precision.min()),
        "macro_f1": float(f1.mean()),
        "calibration_error": _calibration_error(answers, weights, total),
        "log_loss": float(np.average(answers.losses, weights=weights)),
    }


def _calibration_error(answers: Answers, weights: np.ndarray | None, total: float) -> float:
    """Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3."""
    gap = answers.right - answers.confidence
    sums = np.bincount(answers.bins, gap if weights is None else gap * weights, minlength=_BINS)
    return float(np.abs(sums).sum() / total)


def intervals(answers: Answers, confidence: float) -> dict[str, Interval]:
    """Each metric with its interval: Wilson's for accuracy, which is a proportion; the bootstrap's for the rest."""
    values = metrics(answers)
    if not answers.usable:
        return {name: Interval(value, value, value) for name, value in values.items()}
    drawn = [metrics(answers, weights) for weights in _resamples(len(answers.labels))]
    found = {
        name: _percentiles(value, [d[name] for d in drawn], confidence) for name, value in values.items()
    }
    found["accuracy"] = wilson(answers.right.sum(), len(answers.labels), confidence)
    return found


def differences(new: Answers, champion: Answers, confidence: float) -> dict[str, Interval]:
    """Each metric as new minus champion, on the same rows, with the interval of the paired bootstrap."""
    first, second = metrics(new), metrics(champion)
    if not (new.usable and champion.usable):
        return {name: Interval(*[float("nan")] * 3) for name in METRICS}
    drawn = [(metrics(new, w), metrics(champion, w)) for w in _resamples(len(new.labels))]
    return {
        name: _percentiles(first[name] - second[name], [a[name] - b[name] for a, b in drawn], confidence)
        for name in METRICS
    }


def by_class(answers: Answers, confidence: float) -> list[dict[str, int | Interval]]:
    """For each class: its rows, how often it was predicted, recall and precision with Wilson's intervals."""
    confusion = answers.confusion()
    hits, truth, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        {
            "class": c,
            "rows": int(truth[c]),
            "predicted": int(predicted[c]),
            "recall": wilson(hits[c], truth[c], confidence),
            "precision": wilson(hits[c], predicted[c], confidence),
        }
        for c in range(answers.classes)
    ]


def wilson(hits: float, trials: float, confidence: float) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927); NaN and [0, 1] where nothing was tried."""
    if trials == 0:
        return Interval(float("nan"), 0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / trials
    middle = share + z * z / (2 * trials)
    reach = z * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    scale = 1 + z * z / trials
    return Interval(
        float(share), max(float((middle - reach) / scale), 0.0), min(float((middle + reach) / scale), 1.0)
    )


def _resamples(rows: int) -> Iterator[np.ndarray]:
    """How often each row is drawn, resample by resample; always the same ones for a number of rows."""
    generator = np.random.default_rng(_SEED)
    for _ in range(max(min(_RESAMPLES, _ROWS_TO_RESAMPLE // rows), _FEWEST_RESAMPLES)):
        yield np.bincount(generator.integers(rows, size=rows), minlength=rows).astype(np.float64)


def _percentiles(value: float, drawn: list[float], confidence: float) -> Interval:
    """The bootstrap's percentile interval; resamples that could not tell are left out."""
    told = np.array(drawn)[~np.isnan(drawn)]
    if not len(told):
        return Interval(value, float("nan"), float("nan"))
    tail = (1 - confidence) / 2
    low, high = np.quantile(told, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
