"""Calls over gRPC that wait: their limit, deadlines, clients that leave, and the server's end."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from tests import support_serve
from tests.support_serve import one, request, running

CALLS_AT_MOST = 4


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folders of models."""
    return support_serve.models(tmp_path_factory.getbasetemp())


@pytest.fixture
def server(models, tmp_path):
    """A server that takes few calls at once, and ends in two seconds."""
    import grpc

    socket = tmp_path / "grpc.sock"
    ports = dict(zip(("grpc", "rest"), support_serve._free_ports(2), strict=True))
    flags = [
        f"--grpc_calls_at_most={CALLS_AT_MOST}",
        f"--grpc_socket_path={socket}",
        "--log_requests",
        "--log_format=json",
        "--drain_seconds=2",
    ]
    with running(*one("kinds", models), *flags, **ports) as process:
        support_serve.wait_ready(process, ports["rest"])
        with grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
            yield SimpleNamespace(process=process, channel=channel, socket=socket, port=ports["grpc"])


def stub(channel):
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def slow(seconds: float):
    return request("kinds", signature="slow", seconds=np.float64(seconds))


def code(ask, *arguments, **options) -> str:
    import grpc

    try:
        ask(*arguments, **options)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def test_calls_that_wait_have_a_limit_and_a_deadline_and_end_with_the_server(server):
    import grpc

    predict = stub(server.channel).Predict
    with grpc.insecure_channel(f"unix:{server.socket}") as channel:
        assert code(stub(channel).Predict, slow(0)) == "OK"
    assert code(predict, slow(2), timeout=0.2) == "DEADLINE_EXCEEDED"
    left = predict.future(slow(2))
    time.sleep(0.2)
    left.cancel()
    with ThreadPoolExecutor(2 * CALLS_AT_MOST) as pool:
        waiting = [pool.submit(code, predict, slow(1.5)) for _ in range(2 * CALLS_AT_MOST)]
        codes = [each.result() for each in waiting]
        assert sorted(codes) == ["OK"] * CALLS_AT_MOST + ["RESOURCE_EXHAUSTED"] * CALLS_AT_MOST
        assert code(predict, slow(0)) == "OK"  # there is room again
        ends, stays = pool.submit(code, predict, slow(1)), pool.submit(code, predict, slow(60))
        time.sleep(0.5)
        server.process.terminate()
        terminated = time.monotonic()
        time.sleep(0.3)
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            assert code(stub(channel).Predict, slow(0), timeout=1) == "UNAVAILABLE"
        assert (ends.result(), stays.result()) == ("OK", "UNAVAILABLE")
    _, said = server.process.communicate(timeout=10)
    assert server.process.returncode == 0
    assert time.monotonic() - terminated < 10  # the model of the last call runs for a minute
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    told = [line["code"] for line in lines if line.get("event") == "request"]
    assert told == ["OK", "DEADLINE_EXCEEDED", "CANCELLED", *["OK"] * CALLS_AT_MOST, "OK", "OK", "CANCELLED"]


def test_calls_that_hang_in_one_model_hold_up_no_other_model_and_no_other_service(models):
    import grpc
    from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

    from serve import health

    file = support_serve.config(models, ("half", ""), ("kinds", ""))
    ports = dict(zip(("grpc", "rest"), support_serve._free_ports(2), strict=True))
    flags = [f"--model_config_file={file}", "--enable_grpc_healthcheck_service", "--grpc_max_threads=2"]
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "half"
    with running(*flags, **ports), grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
        hanging = [stub(channel).Predict.future(slow(60)) for _ in range(40)]
        time.sleep(0.5)
        answer = stub(channel).Predict(request("half", x=np.float32([2])), timeout=20)
        assert list(answer.outputs["y"].float_val) == [4.0]
        status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(asked, timeout=20)
        assert status.model_version_status[0].state == 30
        told = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20)
        assert health.Response.FromString(told).status == health.Health.SERVING
        assert not any(each.done() for each in hanging)
