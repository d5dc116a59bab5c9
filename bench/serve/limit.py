"""What TensorFlow does without any server: `python -m bench.serve.limit FOLDER SECONDS`, in a process of its own.

Runs a model of `bench.serve.make` through a session's callable, by one and by two threads. Prints JSON, a line each:
first that it answered, with its memory after batches of 1 and 32; then rows per second by batch size.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCHES = (1, 32, 512)
CALLERS = (1, 2)


def loaded(folder: Path) -> Callable[[int], Callable[[], object]]:
    """For a batch size, a call that runs the model on so many rows."""
    import tensorflow as tf

    from bench.serve.models import Model

    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(folder / "model/1"))
    signature = meta.signature_def["serving_default"]
    run = session.make_callable(
        [info.name for info in signature.outputs.values()],
        [session.graph.get_tensor_by_name(info.name) for info in signature.inputs.values()],
    )
    rows = Model(folder.name, folder).inputs
    arrays = [
        rows[alias].astype(object) if rows[alias].dtype.kind == "U" else rows[alias]
        for alias in signature.inputs
    ]

    def batch(size: int) -> Callable[[], object]:
        repeats = -(-size // len(arrays[0]))
        feeds = [np.concatenate([array] * repeats)[:size] for array in arrays]
        return lambda: run(*feeds)

    return batch


def rows_per_second(call: Callable[[], object], size: int, callers: int, seconds: float) -> float:
    """How many rows all callers together get through; after one call each that is not counted."""
    done = [0] * callers
    ready = threading.Barrier(callers + 1)
    stop = threading.Event()

    def repeat(number: int) -> None:
        call()
        ready.wait()
        while not stop.is_set():
            call()
            done[number] += size

    threads = [threading.Thread(target=repeat, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    ready.wait()
    begun = time.perf_counter()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - begun)


def main(folder: Path, seconds: float) -> None:
    """Answers, tells its memory, measures."""
    from bench.serve import process

    batch = loaded(folder)
    batch(1)()
    print(json.dumps({"answered": True}), flush=True)
    batch(32)()
    memory = process.memory_of([os.getpid()])
    print(json.dumps({"anonymous": memory.anonymous, "files": memory.files}), flush=True)
    for size in BATCHES:
        call = batch(size)
        begun = time.perf_counter()
        call()
        # A batch that takes so long keeps all cores busy by itself.
        callers = CALLERS if time.perf_counter() - begun < seconds else CALLERS[:1]
        found = {count: rows_per_second(call, size, count, seconds) for count in callers}
        print(json.dumps({"batch": size, "rows_per_s": found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
