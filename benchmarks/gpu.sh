#!/usr/bin/env bash
# Check, time and run on a GPU what needs one, in slices of some minutes; see gpu.py. Nothing is installed or downloaded here.
#
#   bash benchmarks/gpu.sh                          the next nine minutes of what has no fresh result for this GPU
#   bash benchmarks/gpu.sh --cpu-rehearsal          all of it in miniature on a CPU
#   bash benchmarks/gpu.sh --pack DIR --data-path FOLDER   CIFAR-10 and wheels in folders that travel one by one
set -euo pipefail
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-${VIRTUAL_ENV:-$here/../.venv}/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
exec "$python" "$here/gpu.py" "$@"
