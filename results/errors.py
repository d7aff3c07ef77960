"""A missing package, and a file that cannot be read or written, end a command with one line, without a traceback."""

import sys

for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")  # for file names that the terminal's encoding lacks


def _report(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Python's excepthook: one line for an error that the user can fix."""
    if isinstance(error, ModuleNotFoundError):
        missing = f"the package {error.name!r} is not installed for {sys.executable}"
        sys.stderr.write(f"error: {missing}; activate the environment that has it, or install requirements.txt\n")
    elif isinstance(error, OSError) and error.filename is not None:  # such as a name that is too long
        line = f"{error.filename}: {error.strerror}"
        sys.stderr.write("".join(["error: ", *(c if c.isprintable() else repr(c)[1:-1] for c in line), "\n"]))
    elif isinstance(error, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)


# It takes effect when this module is imported, so every command imports this module first (see pyproject.toml).
sys.excepthook = _report
