"""The one family of errors that medsynth raises on purpose.

Every message follows ``<file or key>: need X, got Y; try Z`` and fits one line: the command line prints it as it is and
ends with the exit code of its class.
"""


class MedsynthError(Exception):
    """Base of all expected errors; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(MedsynthError):
    """The user's options, recipe or configuration cannot be carried out (exit code 2)."""

    exit_code = 2


class DataError(MedsynthError):
    """A file or cohort that medsynth refuses to trust (exit code 3); nothing has been written."""

    exit_code = 3


class GateError(MedsynthError):
    """A gate (privacy, reconstruction) failed and blocks what follows (exit code 4)."""

    exit_code = 4
