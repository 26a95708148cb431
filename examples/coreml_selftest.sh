#!/usr/bin/env bash
# Complete the proof of a Core ML package on a Mac: self-test, latency and placement by device.
#
#     examples/coreml_selftest.sh MODEL.mlpackage [FOLDER]
#
# MODEL.mlpackage  made by `y7edge export --target coreml`, with MODEL.mlpackage.json beside it
# FOLDER           for the results; default: coreml-selftest
#
# Not run on a Mac yet. Needs macOS 14.4, and in the current environment
#     pip install "y7edge[coreml]"
# A device that fails does not end the script; its exit code is 1 if the self-test fails on one.
set -euo pipefail

if [ "$#" -lt 1 ] || [ "$#" -gt 2 ]; then
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
package=$1 folder=${2:-coreml-selftest} failed=0
if [ ! -d "$package" ] || [ ! -f "$package.json" ]; then
    echo "$package and $package.json are needed: copy both" >&2
    exit 1
fi
if [ "$(uname)" != Darwin ]; then
    echo "Core ML runs on macOS only, this is $(uname)" >&2
    exit 1
fi
placement=$(dirname "$0")/coreml_placement.py
mkdir -p "$folder"
y7edge check --json > "$folder/check.json" || true
for device in cpu gpu npu auto; do
    echo "$device:"
    if y7edge selftest "$package" --device "$device" --json > "$folder/selftest-$device.json"; then
        echo "  the self-test passed"
        y7edge benchmark "$package" --device "$device" --json > "$folder/benchmark-$device.json" || failed=1
        python "$placement" "$package" "$device" > "$folder/placement-$device.txt" || failed=1
    else
        echo "  the self-test failed: $folder/selftest-$device.json"
        failed=1
    fi
done
echo "results are in $folder"
exit "$failed"
