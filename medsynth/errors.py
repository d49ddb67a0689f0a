"""The family of errors that medsynth raises on purpose.

Every message reads `<file or key>: need X, got Y; try Z` and fits one line: the command line prints it as it is and ends with
the exit code of its class.
"""


def one_line(text: object) -> str:
    """Return `text` on one line: line breaks and all other characters that cannot be printed become escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in str(text))


class MedsynthError(Exception):
    """Base of all expected errors; `exit_code` is what the command line returns.

    The message is one line that a terminal can show safely: it may contain file names chosen by others.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(" ".join(str(message).split())))


class ConfigError(MedsynthError):
    """The user's options, recipe or configuration cannot be carried out (exit code 2)."""

    exit_code = 2


class DataError(MedsynthError):
    """A file or cohort that medsynth refuses to trust (exit code 3); nothing has been written."""

    exit_code = 3


class GateError(MedsynthError):
    """The privacy gate or the reconstruction check failed, which blocks the next step (exit code 4)."""

    exit_code = 4
