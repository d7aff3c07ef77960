"""What all commands share: options, the user's errors, output folders, logits files, processes."""

from common import errors  # noqa: F401  it says in one line which package is missing, so it comes before all that imports one
