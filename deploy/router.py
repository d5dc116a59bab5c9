"""A running Envoy: starting and stopping it, the weights of the versions, their counts and latencies.

Envoy reads clusters and routes from files that are replaced by rename, and says which of them it
took: a change counts as made when Envoy names it.
"""

import json
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy import envoy, ports, strays, web
from deploy.envoy import PROTOCOLS, Backend
from deploy.handles import Handle
from pipeline import run
from pipeline.errors import ProgramFailed

_START_S = 20.0
_CHANGE_S = 20.0
_POLL_S = 0.01
_ASK_S = 5.0


@dataclass(frozen=True)
class Counts:
    """What the router saw of one version.

    `requests` are answered or failed attempts; `failed` ended in a 5xx or without an answer, also
    where another version rescued the request; `refused` are 4xx answers; `slow` of the `timed` ones
    took at least the limit that was asked for.
    """

    requests: int = 0
    failed: int = 0
    refused: int = 0
    timed: int = 0
    slow: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))

    def __sub__(self, before: "Counts") -> "Counts":
        """What was added since `before`. A count that began anew stands for itself."""
        pairs = zip(_values(self), _values(before), strict=True)
        return Counts(*(a - b if a >= b else a for a, b in pairs))


def _values(counts: Counts) -> tuple[int, ...]:
    return (counts.requests, counts.failed, counts.refused, counts.timed, counts.slow)


@dataclass(frozen=True)
class Router:
    """A running Envoy, and where it listens: HOST:PORT for clients and for its administration."""

    folder: Path
    process: Handle
    admin: str
    rest: str
    grpc: str

    def listens(self, address: str, rest_port: int, grpc_port: int) -> bool:
        """Whether these are the public ports that it was started on."""
        ip = ports.resolve(address)
        return (self.rest, self.grpc) == (ports.reachable(ip, rest_port), ports.reachable(ip, grpc_port))

    def serving(self) -> bool:
        """Whether it runs, answers, and takes clients: one that was told to refuse them still calls itself ready."""
        try:
            if not self.process.alive():
                return False
            ready = web.ask(self.admin, "GET", "/ready", timeout_s=_ASK_S)[0] == 200
            return ready and all(_connects(public) for public in (self.rest, self.grpc))
        except OSError:
            return False

    def set_versions(
        self, backends: Sequence[Backend], model: str, failover: bool, wait_for: Collection[str] = ()
    ) -> None:
        """Tells the router which versions there are; returns when it found those of `wait_for` (keys) healthy."""
        self._change("clusters", "cluster_manager.cds", envoy.clusters(backends, model, failover))
        names = [f"cluster.{protocol}_{key}.membership_healthy" for protocol in PROTOCOLS for key in wait_for]

        def healthy() -> bool:
            seen = self._stats(r"^cluster\.(rest|grpc)_.*membership_healthy$")
            return all(seen.get(name) for name in names)

        _await(healthy, _CHANGE_S, f"The router found {', '.join(wait_for)} unhealthy for {_CHANGE_S:g} s")

    def set_weights(self, weights: Mapping[str, int]) -> None:
        """Shares the traffic, in percent by version; returns when it flows that way."""
        for protocol in PROTOCOLS:
            name = f"http.{protocol}.rds.{protocol}"
            self._change(f"routes-{protocol}", name, [envoy.routes(protocol, weights)])

    def counts(self, keys: Sequence[str], slow_ms: float) -> dict[str, Counts]:
        """What it saw of each version since the version was added."""
        hosts, codes = self._hosts(), self._stats(r"^cluster\.to_(rest|grpc)_[^.]*\.upstream_rq_4xx$")
        times = self._times()
        found = {}
        for key in keys:
            total = Counts()
            for protocol in PROTOCOLS:
                host = hosts.get(f"{protocol}_{key}", {})
                to = f"cluster.to_{protocol}_{key}"
                timed, slow = times.get(f"{to}.upstream_rq_time", Times()).at_least(slow_ms)
                failed = host.get("rq_error", 0)
                refused = codes.get(f"{to}.upstream_rq_4xx", 0)
                total += Counts(host.get("rq_success", 0) + failed, failed, refused, timed, slow)
            found[key] = total
        return found

    def healthy(self, key: str) -> bool:
        """Whether a version answers the router's health checks; one that hangs fails them after about 7 s."""
        return bool(
            self._stats(rf"^cluster\.rest_{key}\.membership_healthy$").get(
                f"cluster.rest_{key}.membership_healthy"
            )
        )

    def active(self, key: str) -> int:
        """How many requests a version is answering now."""
        hosts = self._hosts()
        return sum(hosts.get(f"{protocol}_{key}", {}).get("rq_active", 0) for protocol in PROTOCOLS)

    def refuse_clients(self) -> None:
        """Closes the public ports; requests that are being answered go on."""
        web.ask(self.admin, "POST", "/drain_listeners", timeout_s=_ASK_S)

    def stop(self) -> None:
        """Ends Envoy, and with it every connection."""
        self.process.stop(5)

    def _change(self, file: str, subject: str, resources: list[dict]) -> None:
        """Replaces a file, and waits until Envoy names it as the one in force."""
        stamp = str(time.time_ns())
        refusals = rf"^{subject}\.update_(rejected|failure)$"
        before = self._stats(refusals)
        _replace(self.folder / f"{file}.json", {"version_info": stamp, "resources": resources})

        def taken() -> bool:
            if self._stats(refusals) != before:
                raise ProgramFailed(
                    f"The router refused {file}.json; traffic stays as it was. Its log says why."
                )
            return self._stats(rf"^{subject}\.version_text$").get(f"{subject}.version_text") == stamp

        _await(taken, _CHANGE_S, f"The router did not take {file}.json within {_CHANGE_S:g} s")

    def _ask(self, path: str) -> dict:
        try:
            return web.get_json(self.admin, path, timeout_s=_ASK_S)
        except OSError as error:
            raise ProgramFailed(
                f"The router (Envoy, {self.process}) does not answer: {error}. "
                "Run the stage again: it starts another router in front of the same versions."
            ) from error

    def _stats(self, pattern: str) -> dict:
        rows = self._ask(f"/stats?format=json&filter={_quote(pattern)}")
        return {row["name"]: row["value"] for row in rows["stats"] if "name" in row}

    def _hosts(self) -> dict[str, dict[str, int]]:
        """The counts of each cluster's only host."""
        clusters = self._ask("/clusters?format=json").get("cluster_statuses", ())
        return {
            cluster["name"]: {stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]}
            for cluster in clusters
            for host in cluster.get("host_statuses", ())
        }

    def _times(self) -> dict[str, "Times"]:
        pattern = _quote(r"^cluster\.to_(rest|grpc)_[^.]*\.upstream_rq_time$")
        rows = self._ask(f"/stats?format=json&histogram_buckets=detailed&filter={pattern}")["stats"]
        details = [d for row in rows for d in row.get("histograms", {}).get("details", ())]
        return {d["name"]: Times(tuple((b["lower_bound"], b["count"]) for b in d["totals"])) for d in details}


@dataclass(frozen=True)
class Times:
    """Durations in ms as Envoy keeps them: pairs of a bin's lower end and how many fell into it.

    The bins have two significant digits; a limit between two of their ends counts from the next one.
    """

    bins: tuple[tuple[float, int], ...] = ()

    def at_least(self, limit_ms: float) -> tuple[int, int]:
        """How many there are, and how many of them took `limit_ms` or longer."""
        return sum(n for _, n in self.bins), sum(n for low, n in self.bins if low >= limit_ms)


@dataclass(frozen=True)
class RouterPlan:
    """What a router is to be: the folder of its files, where it listens, its log.

    `setting` is the part of pipeline.yaml that names the ports. `admin_port` 0 lets Envoy take a free one.
    """

    folder: Path
    address: str
    rest_port: int
    grpc_port: int
    log: Path
    setting: str
    admin_port: int = 0


def start(plan: RouterPlan) -> Router:
    """Starts an Envoy that answers 503 on both public ports until it is told of versions.

    Raises ProgramFailed, naming who holds it, where a port is taken.
    """
    prepare(plan, plan.folder)
    said = plan.folder / "admin"
    said.unlink(missing_ok=True)
    process = run.start(_command(plan.folder, said), log=plan.log)
    return ready(plan, process, lambda: said.read_text().strip() if said.exists() else "")


def prepare(plan: RouterPlan, seen_as: Path) -> None:
    """Writes what Envoy starts with; it finds the folder under the name `seen_as`.

    Raises ProgramFailed, naming who holds it, where a public port is taken.
    """
    ip, folder = ports.resolve(plan.address), plan.folder
    for protocol, port in (("rest", plan.rest_port), ("grpc", plan.grpc_port)):
        _refuse_taken(ip, port, f"{plan.setting}.{protocol}_port")
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "clusters.json", {"version_info": "0", "resources": []})
    for protocol in PROTOCOLS:
        _replace(
            folder / f"routes-{protocol}.json",
            {"version_info": "0", "resources": [envoy.routes(protocol, {})]},
        )
    started = envoy.bootstrap(seen_as, ip, plan.rest_port, plan.grpc_port, plan.admin_port)
    _replace(folder / "envoy.json", started)


def sweep(folder: Path) -> list[str]:
    """Ends every Envoy that was started from `folder`; returns what it ended."""
    marker = str(folder / "envoy.json")
    found = strays.find(marker)
    for pid in found:
        strays.end(pid, marker)
    return [f"a router that nobody noted (process {pid})" for pid in found]


def _command(folder: Path, said: Path) -> list[str]:
    return [
        "envoy",
        *("-c", str(folder / "envoy.json")),
        *("--admin-address-path", str(said)),
        *("--concurrency", "2"),
        *("--log-level", "warning"),
        "--disable-hot-restart",
    ]


def ready(
    plan: RouterPlan,
    process: Handle,
    admin: Callable[[], str],
    words: Callable[[Path], str] | None = None,
) -> Router:
    """The router once it answers; it is stopped where it does not.

    `admin` says where its administration listens, or nothing yet; `words` the last line of its log.
    """
    ip = ports.resolve(plan.address)
    public = (ports.reachable(ip, plan.rest_port), ports.reachable(ip, plan.grpc_port))

    def look() -> Router | None:
        if not process.alive():
            raise ProgramFailed(f"Envoy ended as it started: {(words or _last_line)(plan.log)}")
        where = admin()
        router = Router(plan.folder, process, where, *public)
        return router if where and router.serving() else None

    try:
        return _await(
            look, _START_S, f"Envoy ({process}) did not answer within {_START_S:g} s; {plan.log} says more"
        )
    except BaseException:
        process.stop(1)
        raise


def _connects(where: str) -> bool:
    """Whether a connection to HOST:PORT is taken."""
    host, _, port = where.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ASK_S):
            return True
    except OSError:
        return False


def _refuse_taken(ip: str, port: int, setting: str) -> None:
    if ports.taken(ip, port):
        raise ProgramFailed(
            f"Port {port} on {ip} is taken by {ports.holder(port)}, so the router cannot listen there. "
            f"Stop it, or set {setting} in pipeline.yaml to a free port."
        )


def _await(condition: Callable, patience_s: float, complaint: str) -> Any:
    """The first true value of `condition`; ProgramFailed with `complaint` if none comes in time."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise ProgramFailed(complaint + ".")
        time.sleep(_POLL_S)
    return value


def _replace(path: Path, document: dict) -> None:
    """Envoy sees a file only when another is moved onto it."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(document))
    fresh.chmod(0o644)  # an Envoy in a container reads it as another user
    fresh.replace(path)


def _quote(pattern: str) -> str:
    import urllib.parse

    return urllib.parse.quote(pattern)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return f"{lines[-1] if lines else 'it said nothing'} ({log})"
