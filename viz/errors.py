"""The one kind of error that is the user's to mend: printed as a single line, without a traceback."""


class InputError(ValueError):
    """Says what is wrong, where, and what to do."""
