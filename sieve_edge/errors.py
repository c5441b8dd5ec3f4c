"""Errors that a user can act on, and the exit codes they end in.

SieveError                  exit 3   one line: what, value, limit, how to fix
|- ConfigError              exit 3   every problem of a file at once
|- ModelError               exit 3   unknown family, missing or left-over matrix, broken weights
|- TaskError                exit 3   data that cannot be used, or a task that the dense model cannot do
|- JudgeError               exit 3   a judge that does not answer, or a ceiling of calls or money
|- CalibrationError         exit 3   too few tokens, statistics that are not finite
|- ArtifactError            exit 3   missing manifest, hash mismatch, truncated file, full disk
|- ConnectionLost           exit 3   a device that does not answer; the same command goes on
|- EnvironmentMissing       exit 5   the message gives the command that fixes it
`- LimitMissed              exit 4   the artifact misses a limit of the target, or no plan meets those of the search

Usage errors exit 2 and Ctrl-C exits 130. Anything else is a bug: it keeps its traceback and exits 1.
"""


class SieveError(Exception):
    """Something that the user can fix; its message is one complete line."""

    exit_code = 3


class ConfigError(SieveError):
    """A target, task or recipe is not valid; the message names every problem."""

    def __init__(self, source: str, problems: list[str]) -> None:
        """Join all problems of one source.

        Args:
            source: The file or option the problems are in.
            problems: One entry per problem, each with its path inside the source.
        """
        self.source = source
        self.problems = problems
        super().__init__("; ".join(f"{source}: {problem}" for problem in problems))


class ModelError(SieveError):
    """The model cannot be loaded or does not match its architecture file."""


class TaskError(SieveError):
    """The task's data cannot be used, or the dense model cannot do the task."""


class JudgeError(SieveError):
    """The judge does not answer, or a ceiling of calls or money is reached; what it said is kept."""


class CalibrationError(SieveError):
    """The calibration statistics cannot be trusted."""


class ArtifactError(SieveError):
    """An artifact is missing, incomplete or not what its manifest says."""


class ConnectionLost(SieveError):
    """The device does not answer, or not any more; what was measured is kept."""


class EnvironmentMissing(SieveError):
    """A package or tool is missing; the message gives the command that installs it."""

    exit_code = 5


class LimitMissed(SieveError):
    """The artifact misses a limit of its target, or the search found no plan within its own limits."""

    exit_code = 4
