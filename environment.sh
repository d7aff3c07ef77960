# Sourced by the scripts that set themselves up: . environment.sh REQUIREMENTS...
#
# Afterwards $PYTHON is an interpreter that has what the files ask for. That is the active environment if it has everything, and
# otherwise .venv in this checkout, which the first call makes and later calls reuse. Progress goes to stderr.

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
required=("$@")

# suits PYTHON: whether that interpreter exists and is new enough. Python 3.10 was seen to fail: the tested NumPy and SciPy refuse it.
suits() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# lacking PYTHON: prints the first requirement that this interpreter's packages do not meet, and nothing if they meet all.
lacking() {
    local said
    if ! "$1" -m pip --version >/dev/null 2>&1; then
        echo "pip"
    # pip itself compares the versions; without an index it can only find what is installed, and fails where that is not enough.
    # Nothing is installed, so a system's ban on installing into it does not matter.
    elif ! said=$(PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS='' PIP_BREAK_SYSTEM_PACKAGES=1 PIP_REQUIRE_VIRTUALENV=0 \
        "$1" -m pip install --dry-run --no-index --quiet --disable-pip-version-check \
        "${required[@]/#/--requirement=}" 2>&1 >/dev/null); then
        sed -n 's/.*No matching distribution found for //p; s/^ERROR: Could not open/could not open/p; $s/.*/a pip that works/p' \
            <<<"$said" | head -n 1
    fi
}

set_up() {
    local active missing='' base=
    active=$(command -v python3 || command -v python || true)
    if [ -n "$active" ] && suits "$active"; then
        missing=$(lacking "$active")
        if [ -z "$missing" ]; then
            PYTHON=$active
            return
        fi
    fi
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        echo "the active environment lacks ${missing:-Python 3.11 or later}; using $here/.venv instead" >&2
    fi
    PYTHON=$here/.venv/bin/python
    if suits "$PYTHON" && [ -z "$(lacking "$PYTHON")" ]; then return; fi
    # One set-up at a time: a second script waits here and then finds the environment made.
    exec 9>"$here/.venv.lock"
    if command -v flock >/dev/null && ! flock 9; then
        echo "note: $here/.venv.lock cannot be locked; see to it that no second set-up runs here" >&2
    fi
    if ! suits "$PYTHON" || ! "$PYTHON" -m pip --version >/dev/null 2>&1; then # interrupted, venv leaves an interpreter without pip
        for candidate in python3 python3.13 python3.12 python3.11; do
            if suits "$candidate"; then
                base=$candidate
                break
            fi
        done
        if [ -z "$base" ]; then
            echo "error: no Python 3.11 or later found (python3, python3.13, python3.12, python3.11); install one" >&2
            exit 1
        fi
        echo "making .venv with $("$base" --version) and installing into it, once (about 6 GB with PyTorch for GPUs)" >&2
        "$base" -m venv "$here/.venv" || {
            echo "error: $base -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
            exit 1
        }
    fi
    missing=$(lacking "$PYTHON")
    if [ -n "$missing" ]; then
        echo "installing into .venv, which lacks $missing" >&2
        local options=(--disable-pip-version-check --quiet --progress-bar on)
        "$PYTHON" -m pip install "${options[@]}" -r "$here/requirements-tested.txt" "${required[@]/#/--requirement=}" >&2 || {
            echo "error: the installation failed; see above, then run the same command again" >&2
            exit 1
        }
    fi
    exec 9>&-
}

set_up
