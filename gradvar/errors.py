"""The one exception that a user is meant to read, and nothing else."""


class GradvarError(ValueError):
    """Something the user gave cannot be used; the message is one line naming the cause and the remedy.

    The command line prints the message alone and exits with code 2; in Python it is an ordinary
    ``ValueError``.
    """


class EngineError(GradvarError):
    """The one-pass engine cannot measure this model; the reference engine may."""


class NotFiniteError(GradvarError):
    """Something that was measured is infinite or no number."""
