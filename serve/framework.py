"""Starts TensorFlow quickly and quietly: its runtime, without the parts that only training needs.

`import tensorflow` takes 2.4 s and 540 MB, most of it Keras and the public API. A model server needs
sessions, the SavedModel loader and the protocol messages, which come in 0.7 s and 350 MB when the
package's `__init__` is passed over. Call `lean` once, first of all, and only in a process of its own:
afterwards `import tensorflow` gives an empty package.
"""

import gc
import importlib.machinery
import importlib.util
import logging
import os
import sys


def lean() -> None:
    """Makes TensorFlow's modules importable one by one; does nothing if TensorFlow is imported already."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Threads within operations are each session's own, and not as many as the first session asked for.
    os.environ.setdefault("TF_OVERRIDE_GLOBAL_THREADPOOL", "true")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if "tensorflow" in sys.modules:
        return
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("tensorflow is not installed")
    bare = importlib.machinery.ModuleSpec("tensorflow", None, is_package=True)
    bare.submodule_search_locations = list(spec.submodule_search_locations)
    sys.modules["tensorflow"] = importlib.util.module_from_spec(bare)


def settle() -> None:
    """Tells the garbage collector that what is imported now stays: call it when TensorFlow is there.

    Else each full collection looks at 100,000 objects of TensorFlow, and all requests wait 80 ms for it.
    """
    gc.freeze()
