"""Convert an exported torch program to a .tflite file with litert-torch.

The target ``litert`` runs this file as a separate program, in the interpreter that has
litert-torch. The file does not import y7edge, because y7edge need not be installed there.

    python -I _litert_convert.py PROGRAM.pt2 OUT.tflite fp32|fp16
"""

from __future__ import annotations

import sys


def convert(program: str, out: str) -> None:
    """Convert a program (torch.export) that takes keyword arguments and returns a dictionary."""
    import litert_torch
    import torch

    exported = torch.export.load(program)
    _, named = exported.example_inputs
    litert_torch.convert(exported.module(), (), dict(named)).export(out)


def halve(path: str) -> None:
    """Store the weights of convolutions in float16; LiteRT converts them back on opening."""
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.recipe_manager import AlgorithmName, RecipeManager

    recipe = RecipeManager()
    recipe.add_weight_only_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.CONV_2D,
        num_bits=16,
        algorithm_key=AlgorithmName.FLOAT_CASTING,
    )
    work = quantizer.Quantizer(path)
    work.load_quantization_recipe(recipe.get_quantization_recipe())
    work.quantize().export_model(path, overwrite=True)


def main(program: str, out: str, precision: str) -> None:
    """Convert, and report a failure as one line on standard error."""
    try:
        convert(program, out)
        if precision == "fp16":
            halve(out)
    except Exception as error:  # the packages have no common exception class
        line = " ".join(str(error).split())[:300]
        sys.exit(f"{type(error).__name__}: {line}")


if __name__ == "__main__":
    main(*sys.argv[1:])
