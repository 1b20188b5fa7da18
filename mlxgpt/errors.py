"""The two ways a command ends badly. Both carry one line: what is wrong, where, and what to do."""


class Error(Exception):
    """Something in the world is wrong (a file, the disk, the numbers); the command exits with status 1."""


class UsageError(Error):
    """What the user typed or configured is wrong; the command exits with status 2."""
