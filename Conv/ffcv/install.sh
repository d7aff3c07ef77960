#!/usr/bin/env bash
# Install FFCV into the environment of this project, or, where this folder stands alone, into that of python3. What is there
# stays as it is: FFCV's own list of requirements, which its package asks for and its loader does without, is not installed.
#
#   bash install.sh          by variables: PYTHON  the interpreter    FFCV  what pip installs (ffcv==1.0.2)
#
# Root on Debian or Ubuntu gets the system's packages too. Ends with FFCV imported, or with one line that says what to do.
set -euo pipefail
folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
elif [ -e "$folder/../../environment.sh" ]; then
    . "$folder/../../environment.sh" "$folder/../../requirements.txt"
    python=$PYTHON
else
    python=python3
fi
# A system's own Python comes without the headers to compile against.
has_headers='import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
headers=$("$python" -c "$has_headers" || echo " python3-dev")
debian="libopencv-dev libturbojpeg0-dev pkg-config g++$headers"

fail() {
    echo "error: $1" >&2
    exit 1
}

imports() {
    NUMBA_DISABLE_JIT=1 "$python" -c 'import ffcv.loader, ffcv.writer' >/dev/null 2>&1  # without it the import compiles for seconds
}

system_packages_are_there() {
    [ -z "$headers" ] && command -v pkg-config >/dev/null && command -v c++ >/dev/null &&
        pkg-config --exists opencv4 && pkg-config --exists libturbojpeg
}

# The command that installs the system's packages here.
advice() {
    if command -v apt-get >/dev/null; then
        echo "sudo apt-get install -y --no-install-recommends $debian"
    elif command -v dnf >/dev/null; then
        echo "sudo dnf install -y opencv-devel turbojpeg-devel pkgconf-pkg-config gcc-c++"
    elif command -v pacman >/dev/null; then
        echo "sudo pacman -S --needed opencv libjpeg-turbo pkgconf gcc"
    elif command -v brew >/dev/null; then
        echo "brew install opencv jpeg-turbo pkg-config"
    else
        echo "conda install -c conda-forge libopencv libjpeg-turbo pkg-config compilers"
    fi
}

"$python" -c 'import torch, torchvision, numba' 2>/dev/null || fail "$python lacks torch, torchvision or numba; first: $python -m pip install -r $folder/requirements.txt"
if ! imports; then
    if ! system_packages_are_there && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing $debian" >&2
        log=$(mktemp)
        # shellcheck disable=SC2086  # several words
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $debian; } >"$log" 2>&1 || {
            tail -n 5 "$log" >&2
            fail "apt-get could not install them; when it can reach its mirrors again: apt-get update && $(advice)"
        }
        rm -f "$log"
        headers=$("$python" -c "$has_headers" || echo " python3-dev")
    fi
    system_packages_are_there || fail "FFCV compiles against OpenCV and libjpeg-turbo; install them, then run this again: $(advice)"
    options=(--disable-pip-version-check --quiet --no-deps)
    echo "compiling and installing ${FFCV:=ffcv==1.0.2}" >&2
    "$python" -c 'import cv2' 2>/dev/null || "$python" -m pip install "${options[@]}" opencv-python-headless >&2 ||
        fail "pip could not install opencv-python-headless; see above"
    "$python" -c 'import distutils' 2>/dev/null || "$python" -m pip install "${options[@]}" setuptools >&2 ||
        fail "pip could not install setuptools; see above"
    "$python" -m pip install "${options[@]}" "$FFCV" >&2 || fail "pip could not build FFCV; see above. It needs: $(advice)"
    imports || fail "FFCV was installed but does not import: $("$python" -c 'import ffcv.loader' 2>&1 | tail -n 1)"
fi
"$python" -c 'import importlib.metadata, sys; print("FFCV", importlib.metadata.version("ffcv"), "is ready for", sys.executable)'
