"""What all commands share: options, user errors, output folders, logits files, processes."""

from common import errors  # noqa: F401  it reports a missing package in one line, so it precedes all imports of packages
