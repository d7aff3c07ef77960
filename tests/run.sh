#!/usr/bin/env bash
# The tests: sets up the environment, checks format and lint, runs pytest.
#
#   bash tests/run.sh                          everything
#   bash tests/run.sh tests/test_viz.py -x     pytest with these arguments
#
# The tests run on the CPU, even on machines with a GPU; bash benchmarks/gpu.sh runs those that need one.
set -euo pipefail
top=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$top"
. "$top/environment.sh" "$top/requirements.txt" "$top/tests/requirements.txt" "$top/Tasks/segmentation/requirements.txt"
# FFCV compiles against system packages. Where they cannot be had its tests are skipped, unless FFCV_REQUIRED is set.
PYTHON=$PYTHON bash "$top/Conv/ffcv/install.sh" || echo "Conv/ffcv: its tests are skipped; the line above says what enables them" >&2
# Without what it asks for: its OpenCV wants a screen's libraries, grad-cam's has come without them.
"$PYTHON" -c 'import imagecorruptions' 2>/dev/null ||
    "$PYTHON" -m pip install --disable-pip-version-check --quiet --no-deps imagecorruptions-imaug==1.1.5
# The report's page is opened in a real browser. Without one those tests are skipped, except where CI is set.
if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ]; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null ||
        echo "chromium could not be installed; the tests of the report's page are skipped" >&2
fi
"$PYTHON" -m ruff format --check --diff .
"$PYTHON" -m ruff check .
if [ $# -eq 0 ]; then set -- tests; fi
# What the tests compare to the last digit, a CPU has computed; benchmarks/gpu.sh runs those for GPUs.
export CUDA_VISIBLE_DEVICES=
exec "$PYTHON" -m pytest -q --durations=10 --timeout 1800 --numprocesses auto --dist loadfile "$@"
