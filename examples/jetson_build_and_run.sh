#!/usr/bin/env bash
# Install y7edge on a Jetson, build a TensorRT engine from a proved ONNX artifact, and run it.
#
#     examples/jetson_build_and_run.sh WHEEL ARTIFACT.onnx IMAGES [FOLDER]
#
# WHEEL         y7edge-*.whl, made on another computer: pip wheel --no-deps .
# ARTIFACT.onnx made by `y7edge export` on the computer that trained the model
# IMAGES        an image, a video or a folder
# FOLDER        for the environment and all results; default: y7edge-jetson
#
# Not run on a Jetson yet. Needs JetPack 6 or 7, and from apt: nvidia-jetpack, python3-venv,
# python3-dev (pycuda is compiled).
# JetPack's OpenCV and TensorRT are used, and nothing is installed outside FOLDER.
set -euo pipefail

if [ "$#" -lt 3 ] || [ "$#" -gt 4 ]; then
    sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
wheel=$1 artifact=$2 images=$3 folder=${4:-y7edge-jetson}
name=$(basename "${artifact%.onnx}")
engine=$folder/$name.engine

for path in "$wheel" "$artifact" "$images"; do
    if [ ! -e "$path" ]; then
        echo "$path does not exist" >&2
        exit 1
    fi
done
# pycuda is compiled here, with nvcc.
export PATH=/usr/local/cuda/bin:$PATH
for program in nvcc python3; do
    if ! command -v "$program" > /dev/null; then
        echo "$program was not found: sudo apt install nvidia-jetpack python3-venv python3-dev" >&2
        exit 1
    fi
done
if ! python3 -c 'import tensorrt' 2> /dev/null; then
    echo "JetPack's tensorrt cannot be imported: sudo apt install nvidia-jetpack" >&2
    exit 1
fi

# 1. Install. --system-site-packages shows JetPack's tensorrt, and its cv2, which needs NumPy 1.
mkdir -p "$folder"
if [ ! -x "$folder/env/bin/y7edge" ]; then
    python3 -m venv --system-site-packages "$folder/env"
    "$folder/env/bin/pip" install "numpy<2" pycuda "$wheel"
fi
PATH=$(cd "$folder/env/bin" && pwd):$PATH

# 2. Check: board, power mode, clocks, backends. Follow the commands of its warnings.
y7edge check

# 3. Build on the board: the engine works with this TensorRT and this kind of GPU only.
y7edge build "$artifact" --target tensorrt --out "$engine"

# 4. Repeat the proof on this GPU; the exit code is 4 if an output deviates.
y7edge selftest "$engine"

# 5. Latency, and energy per frame.
y7edge benchmark "$engine" --runs 200 --power-interval 100 --json | tee "$folder/benchmark.json"

# 6. Detect.
y7edge predict "$engine" "$images" --save "$folder/found"
