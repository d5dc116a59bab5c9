"""The gRPC server: TF Serving's services on one port.

Needs `serve.framework.lean` (or TensorFlow itself) before it is imported: the messages build on TensorFlow's.
"""

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serve import health, profiler
from serve.call_threads import CallThreads
from serve.grpc_calls import Answers
from serve.grpc_front import Front
from serve.grpc_models import ModelService
from serve.grpc_prediction import PredictionService
from serve.health import Healths
from serve.models import Models
from serve.observe import Observer

MESSAGE_BYTES_AT_MOST = 2**31 - 1


def server(
    models: Models,
    threads: int,
    *,
    observer: Observer | None = None,
    healths: Healths | None = None,
    is_profiled: bool = False,
    as_content: bool = False,
    arguments: list[tuple[str, int | str]] | None = None,
    message_bytes_at_most: int = MESSAGE_BYTES_AT_MOST,
    calls_at_most: int | None = None,
) -> grpc.Server:
    """A gRPC server with both services, that of `healths`, and if asked the profiler's; not yet bound or started.

    `threads` is how many calls are read and written at once; many more may wait for their models meanwhile.
    """
    options = [
        ("grpc.max_send_message_length", MESSAGE_BYTES_AT_MOST),
        ("grpc.max_receive_message_length", message_bytes_at_most),
        ("grpc.so_reuseport", 0),
        *(arguments or []),
    ]
    observer = observer or Observer()
    call_threads = CallThreads(threads)
    made = grpc.server(
        Front(call_threads),
        options=options,
        maximum_concurrent_rpcs=calls_at_most,
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(models, as_content, observer, Answers(call_threads)), made
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(models, observer), made)
    if healths:
        made.add_generic_rpc_handlers([health.handler(healths, call_threads)])
    if is_profiled:
        made.add_generic_rpc_handlers([profiler.handler()])
    return made
