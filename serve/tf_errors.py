"""What TensorFlow raises in a run, in the words of serving.

Needs `serve.framework.lean` (or TensorFlow itself) before it is imported.
"""

import contextlib
from collections.abc import Iterator

from tensorflow.python.framework import errors

from serve.status import ServingError, code_of, invalid


def serving_error(error: errors.OpError) -> ServingError:
    """The same code and text."""
    return ServingError(code_of(error.error_code), error.message)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Raises what TensorFlow raises within as a ServingError.

    An error that quotes bytes of the request which are no text loses its code on the way to Python: it is the client's.
    """
    try:
        yield
    except errors.OpError as error:
        raise serving_error(error) from error
    except UnicodeDecodeError as error:
        raise invalid(bytes(error.object).decode("utf-8", "replace")) from error
