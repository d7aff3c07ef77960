"""What a library says of a failure, as part of the one line that a user reads."""


def reason(error: object) -> str:
    """The first line of an exception's message, or its kind where it has none."""
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__
