"""Envoy's configuration, made of plain values.

A version is one cluster per protocol, `rest_KEY` and `grpc_KEY`. Clients' requests are weighted
over aggregate clusters, `to_rest_KEY`, that name the version first and the others after it: a
request whose version dies is tried again on the next, so that a dying version loses none.
"""

import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROTOCOLS = ("rest", "grpc")
FLUSH_S = 0.2
_TYPE = "type.googleapis.com/envoy."
_MANY = 65_536


@dataclass(frozen=True)
class Backend:
    """A version as the router sees it: a name without dots, and the loopback ports that it answers on."""

    key: str
    rest: int
    grpc: int

    def port(self, protocol: str) -> int:
        """Its port for `rest` or `grpc`."""
        return self.rest if protocol == "rest" else self.grpc


def bootstrap(folder: Path, address: str, rest_port: int, grpc_port: int) -> dict:
    """What Envoy starts with: two listeners, and where it finds clusters and routes."""
    ports = {"rest": rest_port, "grpc": grpc_port}
    return {
        "node": {"id": folder.name, "cluster": "tidegate"},
        "admin": {"address": _address("127.0.0.1", 0)},
        "stats_flush_interval": f"{FLUSH_S}s",
        "dynamic_resources": {"cds_config": _watched(folder, "clusters")},
        "static_resources": {"listeners": [_listener(folder, p, address, ports[p]) for p in PROTOCOLS]},
    }


def clusters(backends: Sequence[Backend], model: str, failover: bool) -> list[dict]:
    """The clusters of every version; with `failover` the others rescue its requests, in the order given."""
    made = []
    for protocol in PROTOCOLS:
        for backend in backends:
            others = [b for b in backends if b is not backend] if failover else []
            made.append(_cluster(protocol, backend, model))
            made.append(_aggregate(protocol, backend, others))
    return made


def routes(protocol: str, weights: Mapping[str, int]) -> dict:
    """Where requests go: by weight to the versions; an error that says so where there is none."""
    shares = [{"name": f"to_{protocol}_{key}", "weight": weight} for key, weight in weights.items() if weight]
    action = (
        {"route": {"weighted_clusters": {"clusters": shares}, "timeout": "0s", "retry_policy": _RETRIES}}
        if shares
        else {
            "direct_response": {
                "status": 503,
                "body": {"inline_string": '{"error": "no version is running"}'},
            }
        }
    )
    host: dict = {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **action}]}
    host["request_body_buffer_limit"] = 16 * 2**20  # a larger body is passed on, and cannot be tried again
    return {"@type": _TYPE + "config.route.v3.RouteConfiguration", "name": protocol, "virtual_hosts": [host]}


# A prediction changes nothing, so one that got no answer may be asked again: on another version first.
_RETRIES = {
    "retry_on": "connect-failure,refused-stream,reset,unavailable",
    "num_retries": 3,
    "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
    "retry_priority": {
        "name": "envoy.retry_priorities.previous_priorities",
        "typed_config": {
            "@type": _TYPE + "extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            "update_frequency": 1,
        },
    },
}

# Envoy's default of 3 retries at a time loses requests when a busy version dies.
_LIMITS = {
    "thresholds": [
        {"max_connections": _MANY, "max_pending_requests": _MANY, "max_requests": _MANY, "max_retries": _MANY}
    ]
}

# Only a version that does not answer is set aside for a while. One that answers with errors keeps its
# share: its errors are what the canary counts.
_SET_ASIDE = {
    "split_external_local_origin_errors": True,
    "consecutive_local_origin_failure": 2,
    "enforcing_consecutive_local_origin_failure": 100,
    "enforcing_consecutive_5xx": 0,
    "enforcing_consecutive_gateway_failure": 0,
    "enforcing_success_rate": 0,
    "interval": "0.1s",
    "base_ejection_time": "5s",
    "max_ejection_percent": 100,
}


def _cluster(protocol: str, backend: Backend, model: str) -> dict:
    name = f"{protocol}_{backend.key}"
    endpoint = {"address": _address("127.0.0.1", backend.port(protocol))}
    # Both protocols are as healthy as the model's status over REST says: TF Serving's gRPC health service is off.
    endpoint["health_check_config"] = {"port_value": backend.rest}
    # Below the usual 5 s of a server's own limit, so that no request meets a connection that is being closed.
    options = {"common_http_protocol_options": {"idle_timeout": "4s"}}
    codec = "http_protocol_options" if protocol == "rest" else "http2_protocol_options"
    return {
        "@type": _TYPE + "config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": _LIMITS,
        "outlier_detection": _SET_ASIDE,
        "health_checks": [
            {
                "timeout": "2s",
                "interval": "0.3s",
                "no_traffic_interval": "0.3s",
                "unhealthy_threshold": 3,
                "healthy_threshold": 1,
                "http_health_check": {"path": f"/v1/models/{urllib.parse.quote(model)}"},
            }
        ],
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {codec: {}},
                **options,
            }
        },
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
    }


def _aggregate(protocol: str, backend: Backend, others: Sequence[Backend]) -> dict:
    return {
        "@type": _TYPE + "config.cluster.v3.Cluster",
        "name": f"to_{protocol}_{backend.key}",
        "connect_timeout": "1s",
        "circuit_breakers": _LIMITS,
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {
            "name": "envoy.clusters.aggregate",
            "typed_config": {
                "@type": _TYPE + "extensions.clusters.aggregate.v3.ClusterConfig",
                "clusters": [f"{protocol}_{b.key}" for b in (backend, *others)],
            },
        },
    }


def _listener(folder: Path, protocol: str, address: str, port: int) -> dict:
    manager = {
        "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": protocol,
        "rds": {"route_config_name": protocol, "config_source": _watched(folder, f"routes-{protocol}")},
        "server_header_transformation": "PASS_THROUGH",
        "generate_request_id": False,
        "http_filters": [
            {
                "name": "router",
                "typed_config": {
                    "@type": _TYPE + "extensions.filters.http.router.v3.Router",
                    "suppress_envoy_headers": True,
                },
            }
        ],
    }
    return {
        "name": protocol,
        "address": _address(address, port),
        "enable_reuse_port": False,  # else a second Envoy would quietly share the port
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _watched(folder: Path, name: str) -> dict:
    source = {"path": str(folder / f"{name}.json"), "watched_directory": {"path": str(folder)}}
    return {"path_config_source": source, "resource_api_version": "V3"}


def _address(address: str, port: int) -> dict:
    return {"socket_address": {"address": address, "port_value": port}}
