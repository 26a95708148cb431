"""Print which device Core ML chooses for each operation of a package; macOS 14.4 or later.

    python examples/coreml_placement.py MODEL.mlpackage [cpu | gpu | npu | auto]

Not run on a Mac yet. The plan is that of ``MLComputePlan``
(https://apple.github.io/coremltools/source/coremltools.models.html#compute-plan). One line is
printed for each kind of operation and device, with the share of the estimated cost.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import coremltools as ct
from coremltools.models.compute_plan import MLComputePlan
from coremltools.models.utils import compile_model

UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "npu": "CPU_AND_NE", "auto": "ALL"}


def main() -> None:
    """Print the table."""
    if not 1 < len(sys.argv) < 4 or (sys.argv[2:] and sys.argv[2] not in UNITS):
        raise SystemExit(__doc__)
    units = getattr(ct.ComputeUnit, UNITS[sys.argv[2] if sys.argv[2:] else "auto"])
    counts: Counter[tuple[str, str]] = Counter()
    costs: defaultdict[tuple[str, str], float] = defaultdict(float)
    with TemporaryDirectory() as folder:
        compiled = compile_model(sys.argv[1], str(Path(folder) / "model.mlmodelc"))
        plan = MLComputePlan.load_from_path(compiled, compute_units=units)
        for operation in plan.model_structure.program.functions["main"].block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is None:  # constants
                continue
            device = type(usage.preferred_compute_device).__name__
            key = (operation.operator_name, device.removeprefix("ML").removesuffix("ComputeDevice"))
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            counts[key] += 1
            costs[key] += cost.weight if cost else 0
    for (name, device), count in sorted(counts.items(), key=lambda item: -costs[item[0]]):
        print(f"{name:32} {device:14} {count:4} operations  {costs[name, device]:6.1%} of the cost")


if __name__ == "__main__":
    main()
