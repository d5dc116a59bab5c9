"""Start TensorFlow so that the same inputs give the same bytes, whatever the number of cores."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.errors import ProgramFailed

SEED = 0
# Eigen splits sums by the number of its threads, so their number is a part of the result: with 1 or 2
# threads some weights differ from those with 4 or 8. It is fixed here; fewer cores share them.
INTRA_OP_THREADS = 8
INTER_OP_THREADS = 2


def tensorflow() -> Any:
    """TensorFlow, imported with what must be set before: no oneDNN, which picks kernels by processor."""
    if "tensorflow" not in sys.modules:
        os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
        os.environ["KERAS_BACKEND"] = "tensorflow"
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    return tf


def use_cpu(replicas: int = 1) -> list[str]:
    """Hides the GPUs and splits the CPU into `replicas` logical devices. Returns their names.

    In a process whose devices are in use already, the devices stay as they are.
    """
    tf = tensorflow()
    cpu = tf.config.list_physical_devices("CPU")[0]

    def configure() -> None:
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)

    _start(configure)
    return [f"/cpu:{number}" for number in range(replicas)]


def use_gpus() -> list[str]:
    """Takes all GPUs that TensorFlow lists; memory is taken as it is needed. Returns their names."""
    tf = tensorflow()
    gpus = tf.config.list_physical_devices("GPU")

    def configure() -> None:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)

    _start(configure)
    return [f"/gpu:{number}" for number in range(len(gpus))]


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Turns TensorFlow's word for a disk that will not have `what` into ProgramFailed."""
    tf = tensorflow()
    try:
        yield
    except tf.errors.OpError as error:
        raise ProgramFailed(
            f"{what} could not be written: {str(error).splitlines()[0]}. Nothing half-written counts; "
            "make room or mend the permissions, then run again."
        ) from error


def _start(configure: Callable[[], None]) -> None:
    """Everything that may be set once only, before the first operation."""
    import keras
    import tensorflow as tf
    from tensorflow.python.eager import context  # nothing public tells whether TensorFlow has started

    if not context.context()._initialized:
        tf.config.threading.set_intra_op_parallelism_threads(INTRA_OP_THREADS)
        tf.config.threading.set_inter_op_parallelism_threads(INTER_OP_THREADS)
        configure()
    tf.config.experimental.enable_op_determinism()
    keras.config.set_floatx("float32")  # a keras.json in someone's home may say otherwise
    keras.config.set_image_data_format("channels_last")
    keras.utils.set_random_seed(SEED)
