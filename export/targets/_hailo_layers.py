"""Write nms_layers.json: nms.json with the names of the output layers, after `hailo parser`.

    python layers.py model.har

The Dataflow Compiler renames the layers (conv1, conv2, ...), and its NMS reads the outputs by these
names. A HAR file is a tar archive; its .hn file is JSON with the layers of the network. There is no
public document on its keys: if they have other names, the script says what to write by hand. Layers
that no other layer reads, or that an output layer reads, are the outputs. Each is matched with a
level by its size: the finest level has the most rows.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FILLED = "nms_layers.json"


def network(path: Path) -> dict[str, Any]:
    """Return the layers in a HAR file, by name."""
    with tarfile.open(path) as archive:
        names = [name for name in archive.getnames() if name.endswith(".hn")]
        content = archive.extractfile(names[0]) if len(names) == 1 else None
        if content is None:
            raise _advice(path, f"expected one .hn file in it, found {len(names)}")
        layers = json.load(content).get("layers", {})
    return dict(layers)


def outputs(layers: dict[str, Any]) -> list[tuple[int, str]]:
    """Return (rows, name) of the layers that write the outputs, the most rows first."""
    found: dict[str, Any] = {}
    for name, layer in layers.items():
        if layer["type"] == "output_layer":
            found |= {source: layers[source] for source in layer["input"]}
        elif not layer.get("output"):
            found[name] = layer
    return sorted(((_rows(layer), name) for name, layer in found.items()), reverse=True)


def _rows(layer: dict[str, Any]) -> int:
    shapes = layer["output_shapes"]
    shape = shapes[0] if isinstance(shapes[0], list) else shapes  # (-1, rows, columns, channels)
    return int(shape[1])


def _advice(path: Path, problem: object) -> SystemExit:
    return SystemExit(
        f"{path}: {problem}: copy nms.json to {FILLED}, and write the names of the output layers "
        "there by hand, as `hailo parser` printed them, the layer with the most rows first"
    )


def main() -> None:
    """Fill in ``encoded_layer`` of each decoder."""
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: python {Path(__file__).name} MODEL.har")
    config = json.loads((HERE / "nms.json").read_text("utf-8"))
    har = Path(sys.argv[1])
    try:
        found = outputs(network(har))
    except (OSError, tarfile.TarError) as error:
        raise SystemExit(f"{har}: expected a HAR file of `hailo parser`: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _advice(har, f"its .hn file has another form ({error!r})") from error
    decoders, height = config["bbox_decoders"], config["image_dims"][0]
    expected = [height // decoder["stride"] for decoder in decoders]
    if [rows for rows, _ in found] != expected:
        raise _advice(har, f"expected outputs with {expected} rows, found {found}")
    for decoder, (_, name) in zip(decoders, found):  # noqa: B905 - also runs in Python 3.8
        decoder["encoded_layer"] = name.rsplit("/", 1)[-1]
    (HERE / FILLED).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    print(f"{FILLED}: {', '.join(decoder['encoded_layer'] for decoder in decoders)}")


if __name__ == "__main__":
    main()
