"""Every option of pipeline.yaml, frozen, with its bounds. The comments for people stand in pipeline.yaml."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SEVERITIES = ("UNKNOWN", "LOW", "MEDIUM", "HIGH", "CRITICAL")
METRICS: Mapping[str, str] = {
    "accuracy": "share of rows whose most probable class is the right one",
    "worst_recall": "the lowest recall of any class",
    "worst_precision": "the lowest precision of any class; 0 for a class that is never predicted",
    "macro_f1": "mean over the classes of the harmonic mean of precision and recall",
    "calibration_error": "expected calibration error: how far confidence is from accuracy, 15 equal bins",
    "log_loss": "mean of -log(probability of the right class), in nats",
}
"""What evaluation measures (train/measure.py), and so what a gate may name."""
ROLES = ("ci", "approver", "break-glass")
STAGE_NAMES = (
    "check", "data", "train", "evaluate", "export", "image", "scan", "publish", "staging", "approve", "canary",
)  # fmt: skip
"""What a channel may demand a record of (pipeline/stages.py, without what feeds production itself)."""
_NAME = r"[a-z0-9]+([._-][a-z0-9]+)*"


def option(**limits: Any) -> Any:
    """A setting and its limits: `low`, `high` (inclusive), `choices`, `pattern` (of the whole) and what it `says`.

    For a bound: `only` this one of the two. For a mapping: the `names` that it may have, each `called` so.
    `keyed=False` is for what changes no result, and so is in no stage's key.
    """
    return field(metadata=limits)


@dataclass(frozen=True)
class Bound:
    """What a gate asks of one number: at least this, or at most that. Exactly one of the two is set."""

    at_least: float | None = None
    at_most: float | None = None

    def holds(self, number: float) -> bool:
        """Whether `number` is within the bound. NaN is within no bound."""
        if self.at_least is not None:
            return number >= self.at_least
        return self.at_most is not None and number <= self.at_most

    @property
    def limit(self) -> float:
        """The one of the two that is set; NaN if neither is, which nothing keeps."""
        return next((limit for limit in (self.at_least, self.at_most) if limit is not None), math.nan)

    def __str__(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


@dataclass(frozen=True)
class Check:
    """What the code itself must reach."""

    coverage: Bound = option(only="at_least")
    timeout_s: float = option(low=1, high=86_400)


@dataclass(frozen=True)
class Data:
    """Where the rows come from and what they must look like."""

    source: str = option(pattern=r"\S+", says="sklearn:digits, a path, https://… or s3://bucket/key")
    sha256: str = option(pattern=r"[0-9a-f]{64}", says="64 hexadecimal digits, as sha256sum prints them")
    row_shape: tuple[int, ...] = option(low=1, high=100_000)
    value_range: tuple[float, ...] = option()
    classes: int = option(low=2, high=100_000)
    smallest_class: float = option(low=0.0, high=1.0)
    test_fraction: float = option(low=0.01, high=0.9)
    seed: int = option(low=0, high=2**31 - 1)


@dataclass(frozen=True)
class Cost:
    """What a training may cost, in any currency."""

    per_hour: float = option(low=0.0, high=1e6)
    at_most: float = option(low=0.0, high=1e9)

    @property
    def seconds(self) -> float:
        """How long a training may take for that; inf where it costs nothing."""
        return self.at_most / self.per_hour * 3600 if self.per_hour else float("inf")


@dataclass(frozen=True)
class Train:
    """How the model is fitted."""

    accelerator: str = option(choices=("auto", "cpu", "gpu"))
    replicas: int = option(low=1, high=64)
    global_batch: int = option(low=1, high=1_000_000)
    epochs: int = option(low=1, high=100_000)
    smoke_epochs: int = option(low=1, high=1_000)
    learning_rate: float = option(low=1e-9, high=10.0)
    seed: int = option(low=0, high=2**31 - 1)
    executions: int = option(choices=(1, 2))
    tolerance: float = option(low=0.0, high=1.0)
    gpus_at_least: int = option(low=1, high=64)
    gpu_memory_mib_at_least: int = option(low=0, high=10_000_000)
    checkpoint_every_s: float = option(low=1, high=86_400, keyed=False)
    cost: Cost = option(keyed=False)
    timeout_s: float = option(low=1, high=30 * 86_400, keyed=False)


@dataclass(frozen=True)
class Evaluate:
    """What the model must reach on held-out rows, alone and against the champion."""

    confidence: float = option(low=0.5, high=0.9999)
    gates: Mapping[str, Bound] = option(names=METRICS, called="a metric")
    smoke_gates: Mapping[str, Bound] = option(names=METRICS, called="a metric")
    champion: Mapping[str, Bound] = option(names=METRICS, called="a metric")


@dataclass(frozen=True)
class Export:
    """What the SavedModel carries beside the graph."""

    warmup_requests: int = option(low=0, high=1000)
    signature_may_change: bool = option()


@dataclass(frozen=True)
class Image:
    """What the model's layers are added to."""

    base: str = option(
        pattern=r"scratch|oci:\S+@sha256:[0-9a-f]{64}", says="scratch or oci:PATH@sha256:DIGEST"
    )


@dataclass(frozen=True)
class Scan:
    """Which findings stop an image."""

    fail_on: tuple[str, ...] = option(choices=SEVERITIES)
    fail_on_licenses: tuple[str, ...] = option(choices=SEVERITIES)
    ignore_file: str = option()
    database: str = option()
    database_age_days: Bound = option(only="at_most")
    timeout_s: float = option(low=1, high=86_400)


@dataclass(frozen=True)
class Publish:
    """Where images go."""

    registry: str = option(
        pattern=r"oci:\S+|[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+", says="oci:PATH or HOST[:PORT]/NAME"
    )


@dataclass(frozen=True)
class Target:
    """Where versions run."""

    kind: str = option(choices=("local",))
    address: str = option(pattern=r"[0-9a-zA-Z.:-]+", says="an address of this machine")
    ready_timeout_s: float = option(low=1, high=3600)
    drain_s: float = option(low=0, high=3600)


@dataclass(frozen=True)
class Staging:
    """What a published image must show before anyone is asked to approve it."""

    rest_port: int = option(low=1, high=65_535)
    grpc_port: int = option(low=1, high=65_535)
    golden_requests: int = option(low=1, high=100_000)
    skew: Bound = option(only="at_most")
    latency_ms: Bound = option(only="at_most")


@dataclass(frozen=True)
class Canary:
    """How traffic moves to a new version, and what makes it go back."""

    steps: tuple[int, ...] = option(low=1, high=99)
    step_s: float = option(low=0.1, high=86_400)
    step_timeout_s: float = option(low=1, high=86_400)
    load_rps: float = option(low=0, high=10_000)
    requests_at_least: int = option(low=1, high=10_000_000)
    error_rate: Bound = option(only="at_most")
    extra_error_rate: Bound = option(only="at_most")
    slow_ms: float = option(low=0.1, high=3_600_000)
    extra_slow_rate: Bound = option(only="at_most")


@dataclass(frozen=True)
class Production:
    """Where clients reach the model."""

    rest_port: int = option(low=1, high=65_535)
    grpc_port: int = option(low=1, high=65_535)


@dataclass(frozen=True)
class Demand:
    """What a channel asks of a stage's record: a signature by a key of this role, and that it is not too old."""

    signed_by: str = option(choices=ROLES)
    max_age_days: float = option(low=1e-6, high=36_500)


@dataclass(frozen=True)
class Policy:
    """What lets a version into each channel."""

    staging: Mapping[str, Demand] = option(names=STAGE_NAMES, called="a stage")
    production: Mapping[str, Demand] = option(names=STAGE_NAMES, called="a stage")
    author_may_approve: bool = option()


@dataclass(frozen=True)
class Retention:
    """What garbage collection keeps, beside what a channel serves, goes back to and compares with."""

    versions: int = option(low=1, high=100_000)
    days: float = option(low=1, high=36_500)
    checkpoint_days: float = option(low=1, high=36_500)


@dataclass(frozen=True)
class TrustedKey:
    """A public key and what it may sign (trust/roles.yaml)."""

    name: str = option(pattern=r"[A-Za-z0-9][A-Za-z0-9@._-]*", says="letters, digits and @ . _ -")
    file: str = option(pattern=r"[A-Za-z0-9][A-Za-z0-9@._-]*", says="a file's name in trust/")
    roles: tuple[str, ...] = option(choices=ROLES)
    identities: tuple[str, ...] = field(default=(), metadata={})
    until: str = field(
        default="", metadata={"pattern": r"(\d{4}-\d{2}-\d{2})?", "says": "a date, as 2027-12-31"}
    )
    revoked: bool = field(default=False, metadata={})


@dataclass(frozen=True)
class TrustFile:
    """trust/roles.yaml, checked."""

    keys: tuple[TrustedKey, ...] = option()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """pipeline.yaml, checked."""

    model: str = option(pattern=_NAME, says="lower-case letters and digits, joined by . _ or -")
    store: str = option(
        pattern=r"file:\S+|s3://[a-z0-9][a-z0-9.-]+(/\S*)?", says="file:PATH or s3://BUCKET/PREFIX"
    )
    check: Check
    data: Data
    train: Train
    evaluate: Evaluate
    export: Export
    image: Image
    scan: Scan
    publish: Publish
    target: Target
    staging: Staging
    canary: Canary
    production: Production
    policy: Policy
    retention: Retention
