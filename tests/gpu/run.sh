#!/usr/bin/env bash
# Check and time the GPU kernels on this machine's GPU, from a plain checkout: needs torch with CUDA, its Triton, and onnx. With
# onnxruntime-gpu, CMake and a C++ compiler they are also run in ONNX Runtime, and where actx and TensorRT are installed as
# plugins in its engines; without, the page says why not.
# Writes one Markdown page, to the file that is given or to stdout:   tests/gpu/run.sh gpu.md
# Time is for a GPU that does nothing else; the kernels are compiled on the way (some minutes).
set -euo pipefail
page=$(realpath "${1:-/dev/stdout}")
cd "$(dirname "$0")/../.."
export PYTHONPATH=".dev:.${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec python3 -m tests.gpu.measure >"$page"
