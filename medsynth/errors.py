"""The one family of errors that medsynth raises on purpose.

Every message follows ``<file or key>: need X, got Y; try Z`` and fits one line: the command line prints it as it is and
ends with the exit code of its class.
"""


def printable(text: str) -> str:
    """Return `text` with every character that cannot be printed as its escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class MedsynthError(Exception):
    """Base of all expected errors; `exit_code` is what the command line returns.

    Its message is one line without anything that a terminal would act on: names in it come from files of others.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(" ".join(str(message).split())))


class ConfigError(MedsynthError):
    """The user's options, recipe or configuration cannot be carried out (exit code 2)."""

    exit_code = 2


class DataError(MedsynthError):
    """A file or cohort that medsynth refuses to trust (exit code 3); nothing has been written."""

    exit_code = 3


class GateError(MedsynthError):
    """A gate (privacy, reconstruction) failed and blocks what follows (exit code 4)."""

    exit_code = 4
