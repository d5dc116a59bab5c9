"""A gRPC Predict client for rows in a .npy file: `python -m serve.client --help`."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve import dtypes, framework, tensors
from serve.status import ServingError

_FAILED = 5
_MESSAGE_BYTES_AT_MOST = 2**31 - 1

_EXAMPLE = """example:
  python -m serve.client --address 127.0.0.1:8500 --model digits rows.npy answers.npz
  python -c "import numpy; print(numpy.load('answers.npz')['class'])"

exit status: 0 answered, 2 wrong usage, 5 not answered (one line on stderr says why)"""


class ClientError(Exception):
    """Something that the person who called can act on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Sends the rows, writes the outputs; returns the exit status."""
    options = _parser().parse_args(arguments)
    framework.lean()
    try:
        rows = _rows(options.rows)
        outputs, version = predict(options, rows)
        _write(options.out, outputs)
    except (ClientError, ServingError) as error:
        print(f"serve.client: {' '.join(str(error).split())}", file=sys.stderr)
        return _FAILED
    shapes = ", ".join(f"{alias} {list(array.shape)}" for alias, array in outputs.items())
    print(f"{options.model} version {version} answered {shapes}: {options.out}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve.client",
        description="Asks a model server (TF Serving's gRPC API) for predictions; writes every output to a .npz file.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "rows", type=Path, metavar="ROWS.npy", help="the input: an array whose first axis is the batch"
    )
    parser.add_argument("out", type=Path, metavar="OUT.npz", help="where the outputs go, one array each")
    parser.add_argument("--address", required=True, metavar="HOST:PORT", help="the server's gRPC port")
    parser.add_argument("--model", required=True, metavar="M", help="the model's name")
    parser.add_argument(
        "--version", type=int, metavar="N", help="a version of it (the highest available one)"
    )
    parser.add_argument(
        "--signature", default="serving_default", metavar="S", help="a signature (%(default)s)"
    )
    parser.add_argument("--input", metavar="NAME", help="the input's name (needed where there are several)")
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="seconds to wait (%(default)s)"
    )
    return parser


def _rows(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except OSError as error:
        raise ClientError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise ClientError(f"{path} is no .npy file of numbers or strings: {error}") from error


def predict(options: argparse.Namespace, rows: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
    """Calls Predict; returns the outputs by alias, and the version that answered."""
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    limits = [
        ("grpc.max_send_message_length", _MESSAGE_BYTES_AT_MOST),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES_AT_MOST),
        ("grpc.enable_http_proxy", 0),
    ]
    with grpc.insecure_channel(options.address, options=limits) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            signature = _signature(stub, options)
            response = stub.Predict(_request(options, signature, rows), timeout=options.timeout)
        except grpc.RpcError as error:
            raise ClientError(
                f"{options.address} did not answer: {error.code().name}: {error.details()}"
            ) from error
    outputs = {alias: tensors.decode(proto) for alias, proto in sorted(response.outputs.items())}
    return outputs, response.model_spec.version.value


def _signature(stub: Any, options: argparse.Namespace) -> Any:
    """The signature's SignatureDef, asked from the server."""
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    _fill_spec(request.model_spec, options)
    found = get_model_metadata_pb2.SignatureDefMap()
    stub.GetModelMetadata(request, timeout=options.timeout).metadata["signature_def"].Unpack(found)
    if options.signature not in found.signature_def:
        known = ", ".join(sorted(found.signature_def))
        raise ClientError(f"{options.model} has no signature {options.signature}; it has {known}")
    return found.signature_def[options.signature]


def _fill_spec(spec: Any, options: argparse.Namespace) -> None:
    spec.name = options.model
    if options.version is not None:
        spec.version.value = options.version


def _request(options: argparse.Namespace, signature: Any, rows: np.ndarray) -> Any:
    from tensorflow_serving.apis import predict_pb2

    alias = options.input or _only_input(signature, options)
    if alias not in signature.inputs:
        raise ClientError(
            f"{options.signature} has no input {alias}; it has {', '.join(sorted(signature.inputs))}"
        )
    request = predict_pb2.PredictRequest()
    _fill_spec(request.model_spec, options)
    request.model_spec.signature_name = options.signature
    dtype = signature.inputs[alias].dtype
    tensors.encode(_converted(rows, dtype, alias), dtype, request.inputs[alias], as_content=True)
    return request


def _only_input(signature: Any, options: argparse.Namespace) -> str:
    if len(signature.inputs) != 1:
        raise ClientError(
            f"{options.signature} has inputs {', '.join(sorted(signature.inputs)) or '(none)'}; name one by --input"
        )
    return next(iter(signature.inputs))


def _converted(rows: np.ndarray, dtype: int, alias: str) -> np.ndarray:
    """The rows in the input's type. Raises ClientError where that is none of numbers to numbers."""
    is_text = dtypes.number_of(rows.dtype) == dtypes.STRING
    if is_text != (dtype == dtypes.STRING) or dtype not in dtypes.DTYPES:
        raise ClientError(f"input {alias} is of type {dtypes.name_of(dtype)}, the rows are {rows.dtype}")
    with np.errstate(over="ignore"):
        return rows.astype(dtypes.DTYPES[dtype].numpy)


def _write(out: Path, outputs: dict[str, np.ndarray]) -> None:
    """Writes the .npz file; it appears whole or not at all."""
    # Strings go as numpy's fixed-width bytes: object arrays would need pickle.
    arrays: dict[str, Any] = {
        alias: array.astype(bytes) if array.dtype == object else array for alias, array in outputs.items()
    }
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, suffix=".npz", delete=False) as file:
            np.savez(file, **arrays)
        os.replace(file.name, out)  # noqa: PTH105 (one step, over what may be there)
    except OSError as error:
        raise ClientError(f"{out} cannot be written: {error.strerror or error}") from error


if __name__ == "__main__":
    sys.exit(main())
