#!/usr/bin/env bash
# Train with MaxSup.
#
#   bash train_with_MaxSup.sh                                 trains CE, label smoothing and MaxSup on scikit-learn's digits over
#                                                             several seeds and compares them in output/digits/; minutes on a CPU
#   bash train_with_MaxSup.sh --data-path /path/to/ImageNet   the paper's DeiT-Small recipe on every GPU of this node;
#                                                             further options go to Deit/main.py and override the recipe
set -euo pipefail
top=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
case "${1:-}" in -h | --help)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0"
    exit
    ;;
esac
. "$top/environment.sh" "$top/requirements.txt"
if [ $# -eq 0 ]; then
    exec "$PYTHON" "$top/results/quick.py"
fi
export PYTHON
exec bash "$top/Deit/train_with_MaxSup.sh" "$@"
