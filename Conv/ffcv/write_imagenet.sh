#!/usr/bin/env bash
# Write both splits of an image folder as .ffcv files, for example as ffcv-imagenet does for ResNet-50:
#
#   IMAGENET_DIR=/path/to/ImageNet WRITE_DIR=/path/to/files bash write_imagenet.sh 500 0.5 90 [--num-workers N] [--overwrite]
#
# Images longer than 500 px are scaled down, half of all are stored as JPEG of quality 90, the rest as pixels; 0 instead of 500
# keeps every size. Writes train_500_0.5_90.ffcv and val_500_0.5_90.ffcv. By variable: PYTHON  the interpreter (python3)
set -euo pipefail
folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ $# -lt 3 ] || [ -z "${IMAGENET_DIR:-}" ] || [ -z "${WRITE_DIR:-}" ]; then
    echo "error: usage: IMAGENET_DIR=FOLDER WRITE_DIR=FOLDER bash write_imagenet.sh MAX_RESOLUTION COMPRESS_PROBABILITY JPEG_QUALITY" >&2
    exit 1
fi
size=$1 probability=$2 quality=$3
shift 3
mkdir -p "$WRITE_DIR"
for split in train val; do
    "${PYTHON:-python3}" "$folder/write_imagenet.py" --data-path "$IMAGENET_DIR/$split" \
        --output "$WRITE_DIR/${split}_${size}_${probability}_$quality.ffcv" \
        --max-resolution "$size" --compress-probability "$probability" --jpeg-quality "$quality" "$@"
done
