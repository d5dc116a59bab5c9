"""The answers of classify and regress in JSON."""

import numpy as np

from serve.inference import Classes
from serve.json_answer import quoted
from serve.json_numbers import texts


def classes(found: Classes) -> bytes:
    """A list of [label, score] for each example; the label is empty without labels, the score 0 without scores."""
    given = found.scores if found.scores is not None else found.labels
    count, width = (0, 0) if given is None else given.shape
    scores = ["0.0"] * (count * width) if found.scores is None else texts(found.scores.reshape(-1))
    labels = ['""'] * (count * width) if found.labels is None else _labels(found.labels)
    pairs = [f"[{label}, {score}]" for label, score in zip(labels, scores, strict=True)]
    rows = [f"[{', '.join(pairs[at * width : (at + 1) * width])}]" for at in range(count)]
    return _results(rows)


def regressions(values: np.ndarray) -> bytes:
    """A number for each example."""
    return _results(texts(values))


def _labels(labels: np.ndarray) -> list[str]:
    return [quoted(label.decode("utf-8", "surrogateescape")) for label in labels.reshape(-1).tolist()]


def _results(texts: list[str]) -> bytes:
    return f'{{"results": [{", ".join(texts)}]}}'.encode("utf-8", "surrogateescape")
