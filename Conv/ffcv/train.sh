#!/usr/bin/env bash
# The paper's row: trains the same network with each loss, one after the other. The same command continues an interrupted run and
# skips finished ones. --overwrite replaces each old run when its turn comes; after an interruption, give it again, with LOSSES
# set to the remaining losses.
#
#   bash train.sh --data.train_dataset=FILE --data.val_dataset=FILE [any option of train_imagenet.py, overriding the configs]
#
# Environment variables, with their defaults:
#   PYTHON  the interpreter (python3)
#   GPUS    number of processes (all GPUs, or 1 without a GPU)
#   ARCH    configs/ARCH.yaml: rn50, rn18, rn50_16 or rn18_16 (rn50)
#   LOSSES  losses, in this order ("ce ls ols zipf logit-penalty maxsup")
#   OUTPUT  folder that gets one folder per run (output)
# The learning rate scales with the global batch, GPUS x training.batch_size; the 90-epoch configs are meant for 4 x 512.
set -euo pipefail
case " $* " in *" -h "* | *" --help "*)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0"
    exit
    ;;
esac
folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-python3}
arch=${ARCH:-rn50}
output=${OUTPUT:-output}
found=$("$python" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null) || {
    echo "error: $python is missing, or has no PyTorch; activate the environment that has it, or set PYTHON" >&2
    exit 1
}
gpus=${GPUS:-$((found > 0 ? found : 1))}
if ! [[ $gpus =~ ^[1-9][0-9]*$ ]]; then
    echo "error: GPUS=$gpus: a whole number from 1 on" >&2
    exit 1
fi
launch=("$python")
if [ "$gpus" -gt 1 ]; then launch+=(-m torch.distributed.run --standalone --nproc-per-node="$gpus"); fi
case " $* " in *" --overwrite "*) going_on=() ;; *) going_on=(--resume auto) ;; esac
for loss in ${LOSSES:-ce ls ols zipf logit-penalty maxsup}; do
    echo "== ${arch}_$loss"
    "${launch[@]}" "$folder/train_imagenet.py" --config "$folder/configs/$arch.yaml" --loss="$loss" \
        --logging.folder="$output/${arch}_$loss" ${going_on[@]+"${going_on[@]}"} "$@"
done
