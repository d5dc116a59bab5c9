"""A tiny model server with knobs, and what tests of deployments share.

As a program it takes TF Serving's options and answers status and predict over REST, and predict as
JSON over gRPC. Its knobs lie in the model's folder (`knobs.json`), where `publish` put them.
With `client` as its first argument it is the gRPC client, with `image` the entrypoint of an image.
"""

import contextlib
import http.server
import json
import os
import random
import signal
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

if __name__ != "__main__":  # in an image it stands alone
    from deploy import engine
    from deploy.engine import Container
    from tests.support_ports import port

    PORTS = {
        "staging.rest_port": port(20301),
        "staging.grpc_port": port(20300),
        "production.rest_port": port(20311),
        "production.grpc_port": port(20310),
    }
    QUICK = {
        **PORTS,
        "target.ready_timeout_s": 20,
        "target.drain_s": 2,
        "canary.step_s": 0.4,
        "canary.step_timeout_s": 20,
        "canary.requests_at_least": 10,
        "canary.load_rps": 200,
        "staging.golden_requests": 8,
    }

ROOT = Path(__file__).resolve().parent.parent
KNOBS = "knobs.json"
_METHOD = "/tensorflow.serving.PredictionService/Predict"


def answer(row) -> list[float]:
    """The probabilities that every fake version gives to a row."""
    total = int(sum(sum(line) for line in row))
    return [1.0 if k == total % 10 else 0.0 for k in range(10)]


# --- the server ---------------------------------------------------------------------------------------


class Model:
    """The fake version. Knobs: latency_s, error_rate, status (of an error), die_after, wrong_by, never_ready, exit."""

    def __init__(self, folder: Path):
        self.version = int(folder.name)
        self.knobs = json.loads((folder / KNOBS).read_text())
        self.random = random.Random(1)
        self.asked = 0
        self.lock = threading.Lock()

    def predict(self, body: bytes) -> tuple[int, dict]:
        with self.lock:
            self.asked += 1
            fails = self.random.random() < self.knobs.get("error_rate", 0)
        if self.asked > self.knobs.get("die_after", float("inf")):
            os.kill(os.getpid(), signal.SIGKILL)
            os._exit(137)  # the first process of a container cannot kill itself
        time.sleep(self.knobs.get("latency_s", 0))
        if fails:
            return self.knobs.get("status", 500), {"error": "as told"}
        rows = json.loads(body)["instances"]
        wrong = self.knobs.get("wrong_by", 0)
        return 200, {
            "predictions": [
                {"probabilities": [p + wrong for p in answer(row)], "class": 0, "version": self.version}
                for row in rows
            ]
        }


class Handler(http.server.BaseHTTPRequestHandler):
    """The two routes that deployments ask."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    # An answer is one write, as TF Serving's is: one that has begun when its server dies is lost to the client.
    wbufsize = -1

    def do_GET(self):
        name, model = self.server.name, self.server.model
        state = {"version": str(model.version), "state": "AVAILABLE", "status": {"error_code": "OK"}}
        found = self.path == f"/v1/models/{name}"
        self.say(200 if found else 404, {"model_version_status": [state]} if found else {"error": "unknown"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.say(*self.server.model.predict(body))

    def say(self, status: int, document: dict) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    """Answers for one model."""

    daemon_threads = True
    request_queue_size = 128


def serve(argv: list[str]) -> None:
    """Runs the fake server until SIGTERM."""
    options = dict(argument.removeprefix("--").split("=", 1) for argument in argv)
    (folder,) = Path(options["model_base_path"]).iterdir()
    model = Model(folder)
    print(f"fake server, version {model.version}, {model.knobs}", flush=True)
    if "exit" in model.knobs:
        print("cannot load the model: as told", flush=True)
        sys.exit(model.knobs["exit"])
    if model.knobs.get("never_ready"):
        time.sleep(600)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server = Server((options["address"], int(options["rest_api_port"])), Handler)
    server.name, server.model = options["model_name"], model
    _serve_grpc(options, model)
    server.serve_forever()


def _serve_grpc(options: dict, model: Model) -> None:
    import grpc

    def predict(body, context):
        status, document = model.predict(body)
        if status != 200:
            context.abort(grpc.StatusCode.INTERNAL, "as told")
        return json.dumps(document).encode()

    class Methods(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(predict) if details.method == _METHOD else None

    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Methods()])
    server.add_insecure_port(f"{options['address']}:{options['port']}")
    server.start()
    model.grpc = server  # lives as long as the model


# --- the client ---------------------------------------------------------------------------------------


def grpc_predict(address: str, body: bytes, channel=None) -> dict:
    """One prediction over gRPC."""
    import grpc

    with contextlib.nullcontext(channel) if channel else grpc.insecure_channel(address) as used:
        return json.loads(used.unary_unary(_METHOD)(body, timeout=10, wait_for_ready=True))


def client(argv: list[str]) -> None:
    """The stand-in for `python -m serve.client`."""
    import grpc
    import numpy

    options = dict(zip(argv[:-2:2], argv[1:-2:2], strict=True))
    body = json.dumps({"instances": numpy.load(argv[-2]).tolist()}).encode()
    try:
        said = grpc_predict(options["--address"], body)
    except grpc.RpcError as error:
        print(f"{options['--address']}: {error.details()}", file=sys.stderr)
        sys.exit(5)
    numpy.savez(argv[-1], probabilities=[row["probabilities"] for row in said["predictions"]])


# --- what tests share ---------------------------------------------------------------------------------


def publish(tmp_path: Path, number: int, **knobs) -> Path:
    """Publishes a fake version as a data image: the folder that the stages read as `publish/published`."""
    from tests.support_images import hand_image, tar

    body = tar({f"models/digits/1/{KNOBS}": json.dumps({"publication": number, **knobs}).encode()})
    registry = tmp_path / "registry"
    digest = hand_image(registry, body)
    folder = tmp_path / f"published-{number}"
    folder.mkdir(exist_ok=True)
    said = {"registry": f"oci:{registry}", "digest": digest, "version": number, "tags": [], "reference": ""}
    (folder / "published.json").write_text(json.dumps(said))
    return folder


def rows(tmp_path: Path) -> Path:
    """The folder that the stages read as `data/rows`."""
    import numpy

    folder = tmp_path / "rows"
    folder.mkdir(exist_ok=True)
    features = numpy.random.default_rng(1).integers(0, 17, (40, 8, 8)).astype("float32")
    numpy.save(folder / "test_features.npy", features)
    return folder


def predictions(tmp_path: Path) -> Path:
    """The folder that the stages read as `evaluate/predictions`."""
    import numpy

    folder = tmp_path / "predictions"
    folder.mkdir(exist_ok=True)
    features = numpy.load(rows(tmp_path) / "test_features.npy")
    numpy.save(folder / "probabilities.npy", numpy.array([answer(row) for row in features], "float32"))
    return folder


def use_fakes() -> None:
    """From here on the local target starts this server, and staging asks it with this client."""
    import functools

    from deploy import smoke, targets
    from deploy.targets.local import Local

    me = (sys.executable, str(Path(__file__).resolve()))
    targets.TARGETS["local"] = functools.partial(Local, server=me)
    smoke.GRPC_CLIENT = (*me, "client")


def who(said: dict):
    """What tells one process or container from another, of a row of `targets.look` or of a stage's evidence."""
    return said.get("container") or said["pid"]


def pid_of(handle) -> int:
    """The process of a handle; a container's is that of its server."""
    return handle.look()["State"]["Pid"] if isinstance(handle, Container) else handle.pid


def end(handle) -> None:
    """Ends what a handle names for good, as an operator's mistake would: the engine does not start it again."""
    if isinstance(handle, Container):
        engine.ask("POST", f"/containers/{handle.id}/kill")
        while handle.alive():
            time.sleep(0.01)
    else:
        kill(handle.pid)


def until(condition, patience_s=20.0):
    """The first true value of `condition`."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.02)
    return value


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to ask does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    """Ends a process as nobody should, and waits for that."""
    os.kill(pid, signal.SIGKILL)
    while lives(pid):
        time.sleep(0.01)


def canary(context):
    """The stage canary with fakes, for a process of its own: `tests.support_server.canary`."""
    use_fakes()
    from deploy import rollout

    return rollout.canary(context)


def as_image(argv: list[str]) -> list[str]:
    """The server's options where it is the entrypoint of an image, as TF Serving's image puts them together."""
    name = os.environ["MODEL_NAME"]
    base = f"--model_base_path=/models/{name}"
    return [f"--model_name={name}", base, "--port=8500", "--rest_api_port=8501", "--address=0.0.0.0", *argv]


if __name__ == "__main__":
    modes = {"client": lambda rest: client(rest), "image": lambda rest: serve(as_image(rest))}
    mode = modes.get(sys.argv[1])
    mode(sys.argv[2:]) if mode else serve(sys.argv[1:])
