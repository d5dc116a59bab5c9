"""A real Envoy in front of fake model servers: weights, counts, durations, rescue of requests, taken ports."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from deploy import ports, router, web
from deploy.envoy import Backend
from deploy.load import Load
from pipeline.errors import ProgramFailed
from tests import support_server as fake
from tests.support_ports import port

REST, GRPC = port(20321), port(20320)
PREDICT = "/v1/models/digits:predict"
BODY = json.dumps({"instances": [[[1] * 8] * 8]}).encode()


@pytest.fixture
def backends(tmp_path):
    """Starts fake servers: `backends(knobs, knobs)` gives each as a Backend with its process."""
    running = []

    def start(*knobs):
        for number, each in enumerate(knobs, start=1):
            folder = tmp_path / f"model-{number}" / str(number)
            folder.mkdir(parents=True)
            (folder / "knobs.json").write_text(json.dumps(each))
            rest, grpc = ports.free(2)
            options = {"port": grpc, "rest_api_port": rest, "model_name": "digits", "address": "127.0.0.1"}
            options["model_base_path"] = folder.parent
            argv = [sys.executable, fake.__file__, *(f"--{name}={value}" for name, value in options.items())]
            process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
            running.append(
                SimpleNamespace(backend=Backend(f"v{number}_{process.pid}", rest, grpc), process=process)
            )
        for one in running:
            _wait_for(one.backend.rest)
        return running

    yield start
    for one in running:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def envoy(tmp_path):
    """A router without versions."""
    made = router.start(
        router.RouterPlan(tmp_path / "envoy", "127.0.0.1", REST, GRPC, tmp_path / "envoy.log", "production")
    )
    yield made
    made.stop()
    assert not made.process.alive()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _route(envoy, servers, *weights, failover=True):
    keys = [one.backend.key for one in servers]
    envoy.set_versions([one.backend for one in servers], "digits", failover, wait_for=keys)
    envoy.set_weights(dict(zip(keys, weights, strict=True)))
    return keys


def _ask(count: int) -> Counter:
    """Which versions answered `count` requests over REST."""
    seen = Counter()
    with web.Session(envoy_address(), 10) as session:
        for _ in range(count):
            status, said = session.ask("POST", PREDICT, BODY)
            seen[json.loads(said)["predictions"][0]["version"] if status == 200 else status] += 1
    return seen


def envoy_address() -> str:
    return f"127.0.0.1:{REST}"


def _ask_grpc(count: int) -> Counter:
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{GRPC}") as channel:
        said = (fake.grpc_predict("", BODY, channel) for _ in range(count))
        return Counter(one["predictions"][0]["version"] for one in said)


def test_router_without_versions_says_that_none_runs(envoy):
    assert web.ask(envoy.rest, "GET", "/v1/models/digits", timeout_s=5) == (
        503,
        b'{"error": "no version is running"}',
    )


def test_weights_are_seen_by_both_protocols_as_soon_as_they_are_set(envoy, backends):
    servers = backends({}, {})
    old, new = _route(envoy, servers, 100, 0)
    assert _ask(50) == {1: 50}
    for percent, low, high in ((10, 0.05, 0.15), (50, 0.42, 0.58)):
        envoy.set_weights({old: 100 - percent, new: percent})
        assert low < _ask(1000)[2] / 1000 < high
    assert 0.4 < _ask_grpc(400)[2] / 400 < 0.6
    took_ms = []
    for weights, version in (({old: 0, new: 100}, 2), ({old: 100, new: 0}, 1)) * 5:
        began = time.monotonic()
        envoy.set_weights(weights)
        took_ms.append(1000 * (time.monotonic() - began))
        assert _ask(20) == {version: 20}, "a weight that was set did not hold yet"
    print(f"a change of weights took {min(took_ms):.0f} to {max(took_ms):.0f} ms")


def test_counts_tell_each_versions_failures_refusals_and_slow_requests(envoy, backends):
    servers = backends({}, {"error_rate": 0.5}, {"error_rate": 0.5, "status": 400}, {"latency_s": 0.03})
    keys = _route(envoy, servers, 25, 25, 25, 25, failover=False)
    answered = _ask(240)
    time.sleep(0.5)  # Envoy gathers durations five times a second
    good, failing, refusing, slow = (envoy.counts(keys, slow_ms=30)[key] for key in keys)
    assert sum(one.requests for one in (good, failing, refusing, slow)) == 240
    assert failing.failed == answered[500] > 10
    assert refusing.refused == answered[400] > 10
    assert (good.failed, good.refused, refusing.failed, failing.refused) == (0, 0, 0, 0)
    assert slow.slow == slow.timed == slow.requests == answered[4]
    assert good.slow <= 0.1 * good.timed


def test_versions_can_be_added_and_taken_away_under_load_without_a_lost_request(envoy, backends):
    first, second = backends({}, {})
    _route(envoy, [first], 100)
    with Load(envoy.rest, PREDICT, [BODY], 300) as load:
        for _ in range(5):
            _route(envoy, [first, second], 50, 50)
            time.sleep(0.1)
            envoy.set_weights({first.backend.key: 100, second.backend.key: 0})
            envoy.set_versions([first.backend], "digits", failover=True)
    assert load.told().sent > 100
    assert load.told().failed == 0


@pytest.mark.parametrize("hangs_s", [0, 1])
def test_version_that_is_killed_under_load_loses_no_request_even_after_it_hung(envoy, backends, hangs_s):
    servers = backends({}, {})
    keys = _route(envoy, servers, 50, 50)
    before = envoy.counts(keys, 100)[keys[1]]
    over_grpc = _GrpcLoad()
    with Load(envoy.rest, PREDICT, [BODY], 400) as load, over_grpc:
        time.sleep(0.5)
        servers[1].process.send_signal(signal.SIGSTOP if hangs_s else signal.SIGCONT)
        time.sleep(hangs_s)
        servers[1].process.kill()
        time.sleep(2)
    told = load.told()
    since = envoy.counts(keys, 100)[keys[1]] - before
    print(f"REST {told.sent} sent, {told.failed} lost; gRPC {over_grpc.sent} sent, {over_grpc.lost} lost")
    print(f"the router counted against the dead version: {since}")
    assert told.sent > 200
    assert over_grpc.sent > 50
    assert (told.failed, over_grpc.lost) == (0, 0)
    assert since.failed > 0


class _GrpcLoad:
    """gRPC requests one after another over one channel."""

    sent = lost = 0

    def __enter__(self):
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def __exit__(self, *exception):
        self.over.set()
        self.thread.join()

    def work(self):
        import grpc

        with grpc.insecure_channel(f"127.0.0.1:{GRPC}") as channel:
            while not self.over.wait(0.005):
                self.sent += 1
                try:
                    fake.grpc_predict("", BODY, channel)
                except grpc.RpcError as error:
                    print(error)
                    self.lost += 1


def test_request_in_flight_is_answered_though_its_version_loses_the_traffic(envoy, backends):
    servers = backends({}, {"latency_s": 0.6})
    old, new = _route(envoy, servers, 0, 100)
    seen = []
    asking = threading.Thread(target=lambda: seen.append(_ask(1)))
    asking.start()
    time.sleep(0.2)
    assert envoy.active(new) == 1
    envoy.set_weights({old: 100, new: 0})
    assert _ask(5) == {1: 5}
    asking.join()
    assert seen == [{2: 1}]
    assert envoy.active(new) == 0


def test_taken_port_is_named_with_its_holder_and_the_remedy(tmp_path):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", REST))
        other.listen()
        with pytest.raises(ProgramFailed) as refused:
            router.start(
                router.RouterPlan(tmp_path / "envoy", "127.0.0.1", REST, GRPC, tmp_path / "log", "production")
            )
    assert f"Port {REST}" in str(refused.value)
    assert f"process {os.getpid()} (" in str(refused.value)
    assert "production.rest_port" in str(refused.value)
    assert not (tmp_path / "envoy").exists()


def test_two_routers_never_share_a_port(envoy, tmp_path):
    with pytest.raises(ProgramFailed, match=f"is taken by process {envoy.process.pid}"):
        router.start(
            router.RouterPlan(tmp_path / "other", "127.0.0.1", REST, GRPC, tmp_path / "log", "staging")
        )


def test_configuration_that_envoy_refuses_is_an_error_and_changes_nothing(envoy, backends):
    (server,) = backends({})
    _route(envoy, [server], 100)
    with pytest.raises(ProgramFailed, match="refused routes-rest"):
        envoy.set_weights({"no.such version\n": 2**40})
    assert _ask(5) == {1: 5}
