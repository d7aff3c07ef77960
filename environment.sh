# Sourced by the scripts that set themselves up: . environment.sh REQUIREMENTS...
#
# Afterwards $PYTHON is an interpreter that has what the files ask for: the environment that is active, if it has it all, and
# else .venv in this checkout, made on the first call and reused. Progress goes to stderr.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
required=("$@")

# lacking PYTHON: prints what of the required files that interpreter does not have; fails if it cannot run at all.
lacking() {
    "$1" - "${required[@]}" <<'EOF' 2>/dev/null
import importlib.metadata, sys
from pip._vendor.packaging.requirements import Requirement

if not (3, 11) <= sys.version_info[:2] <= (3, 12):
    sys.exit("another Python than 3.11 or 3.12")
lacking = []
for path in sys.argv[1:]:
    for line in open(path):
        line = line.split("#")[0].strip()
        if not line or line.startswith("-"):
            continue
        requirement = Requirement(line)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            lacking.append(line.replace(" ", ""))
print(" ".join(lacking))
EOF
}

set_up() {
    local active missing base=
    active=$(command -v python3 || command -v python || true)
    if [ -n "$active" ] && missing=$(lacking "$active") && [ -z "$missing" ]; then
        PYTHON=$active
        return
    fi
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        echo "the active environment lacks ${missing:-Python 3.11 or 3.12}; using $here/.venv instead" >&2
    fi
    PYTHON=$here/.venv/bin/python
    # One set-up at a time: a second script waits here and then finds the environment made.
    exec 9>"$here/.venv.lock"
    if command -v flock >/dev/null; then flock 9; fi
    if ! { [ -x "$PYTHON" ] && missing=$(lacking "$PYTHON") && [ -z "$missing" ]; }; then
        if [ ! -x "$PYTHON" ]; then
            for candidate in python3 python3.12 python3.11; do
                if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
                    base=$candidate
                    break
                fi
            done
            if [ -z "$base" ]; then
                echo "error: no Python 3.11 or 3.12 found (python3, python3.12, python3.11); install one" >&2
                exit 1
            fi
            echo "making .venv with $("$base" --version) and installing into it, once (about 6 GB with PyTorch for GPUs)" >&2
            "$base" -m venv "$here/.venv" || {
                echo "error: $base -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
                exit 1
            }
        else
            echo "bringing .venv up to date: it lacks $missing" >&2
        fi
        local options=(--disable-pip-version-check --quiet --progress-bar on)
        "$PYTHON" -m pip install "${options[@]}" -r "$here/requirements-tested.txt" "${required[@]/#/--requirement=}" >&2 || {
            echo "error: the installation failed; see above, then run the same command again" >&2
            exit 1
        }
    fi
    exec 9>&-
}

set_up
