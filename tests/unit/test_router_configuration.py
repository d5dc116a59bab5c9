"""What Envoy is told, how its durations are read, and how even the load is; no Envoy runs here."""

import json
import math

import pytest

from deploy import envoy, load, ports
from deploy.envoy import Backend
from deploy.router import Times
from pipeline.errors import SettingsError

A, B, C = (Backend(f"v{n}_{100 + n}", 4000 + n, 5000 + n) for n in (1, 2, 3))


def _by_name(resources: list[dict]) -> dict[str, dict]:
    return {one["name"]: one for one in resources}


def _chain(cluster: dict) -> list[str]:
    return cluster["cluster_type"]["typed_config"]["clusters"]


def test_each_version_comes_first_in_its_own_chain_and_the_others_follow():
    made = _by_name(envoy.clusters([A, B, C], "digits", failover=True))
    assert _chain(made["to_rest_v2_102"]) == ["rest_v2_102", "rest_v1_101", "rest_v3_103"]
    assert _chain(made["to_grpc_v1_101"]) == ["grpc_v1_101", "grpc_v2_102", "grpc_v3_103"]


def test_without_failover_a_version_answers_for_itself():
    made = _by_name(envoy.clusters([A, B], "digits", failover=False))
    assert _chain(made["to_rest_v1_101"]) == ["rest_v1_101"]


def test_both_protocols_are_checked_by_the_models_status_over_rest():
    made = _by_name(envoy.clusters([A], "a model", failover=True))
    for name, port in (("rest_v1_101", 4001), ("grpc_v1_101", 5001)):
        endpoint = made[name]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        assert endpoint["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": port}
        assert endpoint["health_check_config"] == {"port_value": 4001}
        assert made[name]["health_checks"][0]["http_health_check"] == {"path": "/v1/models/a%20model"}


def test_many_requests_may_be_tried_again_at_once():
    for cluster in envoy.clusters([A, B], "digits", failover=True):
        assert cluster["circuit_breakers"]["thresholds"][0]["max_retries"] > 1024


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({"a": 90, "b": 10}, [("to_rest_a", 90), ("to_rest_b", 10)]),
        ({"a": 100, "b": 0}, [("to_rest_a", 100)]),
    ],
)
def test_traffic_is_shared_by_weight(weights, shares):
    (route,) = envoy.routes("rest", weights)["virtual_hosts"][0]["routes"]
    assert [(c["name"], c["weight"]) for c in route["route"]["weighted_clusters"]["clusters"]] == shares
    assert route["route"]["timeout"] == "0s"


@pytest.mark.parametrize("weights", [{}, {"a": 0}])
def test_without_a_version_clients_are_told_so(weights):
    (route,) = envoy.routes("grpc", weights)["virtual_hosts"][0]["routes"]
    assert route["direct_response"]["status"] == 503
    assert "no version is running" in json.loads(route["direct_response"]["body"]["inline_string"])["error"]


def test_public_ports_are_never_shared_and_administration_is_on_loopback(tmp_path):
    made = envoy.bootstrap(tmp_path, "0.0.0.0", 8501, 8500)
    assert made["admin"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 0}
    listeners = {one["name"]: one for one in made["static_resources"]["listeners"]}
    assert listeners["rest"]["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 8501}
    assert [one["enable_reuse_port"] for one in listeners.values()] == [False, False]


@pytest.mark.parametrize(("limit_ms", "slow"), [(0, 10), (30, 6), (250, 1), (251, 0), (1000, 0)])
def test_requests_at_or_above_the_limit_are_slow(limit_ms, slow):
    assert Times(((1, 4), (30, 5), (250, 1))).at_least(limit_ms) == (10, slow)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([1, 2, 3, 4], 0.5, 2),
        ([1, 2, 3, 4], 0.99, 4),
        (range(1, 101), 0.99, 99),
        ([7], 0.0, 7),
        ([], 0.5, None),
    ],
)
def test_percentile_is_a_value_that_was_seen(values, share, expected):
    assert load.percentile(list(values), share) == expected


def test_load_keeps_its_pace_and_has_no_burst_after_a_stall(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(load.time, "monotonic", lambda: now[0])
    made = load.Load("127.0.0.1:1", "/", [b"{}"], rps=10)
    assert [round(made._wait_s(), 3) for _ in range(3)] == [0, 0.1, 0.2]
    now[0] = 60.0
    waits = [made._wait_s() for _ in range(3)]
    assert math.isclose(waits[2], 0.2)


def test_rows_become_requests_of_one_row_each(tmp_path):
    import numpy

    numpy.save(tmp_path / "rows.npy", numpy.arange(12, dtype="float32").reshape(3, 2, 2))
    made = load.bodies(tmp_path / "rows.npy", 2)
    assert [json.loads(one) for one in made] == [
        {"instances": [[[0, 1], [2, 3]]]},
        {"instances": [[[4, 5], [6, 7]]]},
    ]


@pytest.mark.parametrize(
    ("ip", "address"),
    [("127.0.0.1", "127.0.0.1:80"), ("0.0.0.0", "127.0.0.1:80"), ("::", "[::1]:80"), ("::1", "[::1]:80")],
)
def test_this_machine_reaches_its_own_servers(ip, address):
    assert ports.reachable(ip, 80) == address


def test_address_that_means_nothing_is_told():
    with pytest.raises(SettingsError, match=r"target\.address is '1\.2\.3\.4\.5'"):
        ports.resolve("1.2.3.4.5")


def test_free_ports_differ_and_a_bound_one_is_taken():
    first, second = ports.free(2)
    assert first != second
    assert not ports.taken("127.0.0.1", first)


def test_holder_of_a_port_is_found_by_its_socket(tmp_path):
    (tmp_path / "net").mkdir()
    row = "0: 0100007F:2135 00000000:0000 {} 00000000:00000000 00:00000000 00000000 0 0 {} 1"
    table = "header\n" + row.format("01", 555) + "\n" + row.format("0A", 777) + "\n"
    (tmp_path / "net" / "tcp").write_text(table)
    for pid, inode in (("12", 555), ("34", 777)):
        (tmp_path / pid / "fd").mkdir(parents=True)
        (tmp_path / pid / "fd" / "3").symlink_to(f"socket:[{inode}]")
        (tmp_path / pid / "cmdline").write_bytes(b"python\0-m\0http.server\0")
    assert ports.holder(0x2135, tmp_path) == "process 34 (python -m http.server)"
    assert ports.holder(80, tmp_path) == "another process"
