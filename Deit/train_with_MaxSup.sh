#!/usr/bin/env bash
''':' # For bash a command that does nothing; for Python the beginning of a string, after which it hands the file to bash.

# The paper's recipe: DeiT-Small on ImageNet-1K, 300 epochs, a global batch of 1024, MaxSup with alpha 0.1 -> 0.2.
#
#   bash train_with_MaxSup.sh --data-path /path/to/ImageNet [--output_dir DIR] [any option of main.py, overriding these]
#   python train_with_MaxSup.sh ...    the same with this interpreter
#
# Each --loss has its published strength and schedule unless --alpha is given. Every GPU of the machine is used, with 1024 / GPUs
# images per GPU and step. Environment variables, with their defaults:
#   PYTHON  the interpreter (python3)
#   GPUS    number of processes (all GPUs, or 1 without a GPU)
#   BATCH   images per step on this machine (1024)
# On several machines, run it once on each: for four machines, with BATCH=256 and
# TORCHRUN="--nnodes=4 --node-rank=N --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT". On SLURM, use run_with_submitit.py.
# --resume auto continues an interrupted run.
set -euo pipefail
case " $* " in *" -h "* | *" --help "*)
    sed -n '/^# The paper/,/^set/{/^#/s/^# \{0,1\}//p;}' "$0"
    exit
    ;;
esac
folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-python3}
found=$("$python" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null) || {
    echo "error: $python is missing, or has no PyTorch; activate the environment that has it, or set PYTHON" >&2
    exit 1
}
gpus=${GPUS:-$((found > 0 ? found : 1))}
batch=${BATCH:-1024}
if ! [[ $gpus =~ ^[1-9][0-9]*$ && $batch =~ ^[1-9][0-9]*$ ]]; then
    echo "error: GPUS=$gpus BATCH=$batch: both are whole numbers from 1 on" >&2
    exit 1
fi
if [ $((batch % gpus)) -ne 0 ]; then
    echo "error: BATCH=$batch images per step do not divide among $gpus processes; set BATCH or GPUS" >&2
    exit 1
fi
recipe=(
    --model deit_small_patch16_224 --input-size 224 --drop-path 0.1
    --epochs 300 --batch-size $((batch / gpus))
    --opt adamw --lr 5e-4 --weight-decay 0.05 --sched cosine --warmup-epochs 5 --warmup-lr 1e-6 --min-lr 1e-5
    --color-jitter 0.3 --aa rand-m9-mstd0.5-inc1 --repeated-aug --reprob 0.25 --mixup 0.8 --cutmix 1.0
)
if [ "$gpus" -eq 1 ] && [ -z "${TORCHRUN:-}" ]; then
    exec "$python" "$folder/main.py" "${recipe[@]}" "$@"
fi
# shellcheck disable=SC2086  # TORCHRUN holds several words
exec "$python" -m torch.distributed.run ${TORCHRUN:---standalone} --nproc-per-node="$gpus" "$folder/main.py" "${recipe[@]}" "$@"

'''
import os
import sys

os.environ.setdefault("PYTHON", sys.executable)
try:
    os.execvp("bash", ["bash", __file__, *sys.argv[1:]])
except OSError as error:
    sys.exit(f"error: bash: {error.strerror}; this script needs it, main.py does not")
# '
