"""One class per way to fail, each with its exit code.

`pipeline.__main__` catches these and only these, prints the one text that each carries
(what happened, what it means, the next move) and leaves with its code. Anything else is
a bug and shows its traceback (exit code 1).
"""


class TidegateError(Exception):
    """Something a person can act on. The message is the whole of what they are told."""

    exit_code = 1


class SettingsError(TidegateError):
    """pipeline.yaml or the command line asks for something that does not exist or is not allowed."""

    exit_code = 2


class GateRefused(TidegateError):
    """A gate measured, and the answer was no."""

    exit_code = 3


class NoData(TidegateError):
    """A gate could not measure; nothing measured is never a pass."""

    exit_code = 4


class ProgramFailed(TidegateError):
    """Another program, or the machine, failed: absent, timed out, disk full, port taken."""

    exit_code = 5


class IntegrityError(TidegateError):
    """Some bytes are not what was pinned or signed."""

    exit_code = 6


class LostRace(TidegateError):
    """Someone else changed the channel first."""

    exit_code = 7
