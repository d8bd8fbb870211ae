"""The one exception that means «the user can mend this»."""


class UserError(ValueError):
    """A mistake in what the user gave: a file, a field, a shape.

    The command line prints its message as one line on stderr and exits with 2; from Python it is a `ValueError`.
    """
