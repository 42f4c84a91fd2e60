#!/usr/bin/env bash
# Makes a virtual environment that runs the project: tools/install.sh [FOLDER, default .venv]
#
# A second call returns at once, until requirements.txt, setup.py or this file changes.
# An environment that already has Detectron2 keeps it. The interpreter is $PYTHON (python3).
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv}
python=$venv/bin/python
stamp=$venv/.installed
say() { printf '==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Where the checkout lies is part of it: the package is installed in editable mode.
wanted=$({ pwd; cat requirements.txt setup.py pyproject.toml tools/install.sh; } | cksum)
if [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

if [ ! -x "$python" ]; then
    interpreter=${PYTHON:-python3}
    "$interpreter" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        fail "'$interpreter' is $("$interpreter" --version 2>/dev/null || echo 'not found'); Python" \
            "3.10 or newer is needed. Name one: make PYTHON=/path/to/python3.11"
    say "Making $venv with $("$interpreter" --version)"
    "$interpreter" -m venv "$venv"
fi
"$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip --upgrade >/dev/null ||
    fail "$venv has no pip. Remove that folder; on Debian and Ubuntu install python3-venv"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

say "Installing requirements.txt (torch with its CUDA libraries takes about 5 GB and a few minutes)"
"$python" -m pip install -r requirements.txt | { grep -vE 'already satisfied|^Ignoring ' || true; }

say "Checking torch and torchvision"
"$python" -c 'import torch, torchvision; print(f"    torch {torch.__version__}, torchvision" \
    f" {torchvision.__version__}, CUDA device: {torch.cuda.is_available()}")' ||
    fail "torch and torchvision do not fit together (a torch labelled +cpu needs a torchvision" \
        "labelled +cpu). Look for another package folder in 'pip config list' and PIP_FIND_LINKS," \
        "take it out, remove $venv and try again"

if ! "$python" -c 'import detectron2' 2>/dev/null; then
    say "Installing Detectron2"
    # Detectron2 of 2024-04-17. The wheel is tagged for Python 3.10, its Python files serve any
    # version. The compiled detectron2._C loads on none of them here: no deformable convolution, no
    # rotated boxes, and COCO evaluation through pycocotools.
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -m pip install -q --no-deps --only-binary=:all: --python-version 3.10 \
        --implementation cp --abi none --platform any --target "$site" sal-detectron2==0.7.2
fi
"$python" -c 'import detectron2; print(f"    Detectron2 {detectron2.__version__}")' ||
    fail "Detectron2 does not import. Install it as its INSTALL.md says into $venv, then try again"

say "Installing this package in editable mode"
"$python" -m pip install -q --no-deps --no-build-isolation -e .

printf '%s' "$wanted" >"$stamp"
say "Ready. To use it in a shell: source $venv/bin/activate"
