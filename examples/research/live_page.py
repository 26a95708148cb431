"""Start `y7edge live` with synthetic trays, and save images of its page in docs/images/.

    python examples/research/live_page.py tests/reference/demo.safetensors

This needs Chromium and the package playwright. The checkpoint is exported first.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from y7edge.export import export
from y7edge.models import weights

IMAGES = Path(__file__).parents[2] / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCENES = "test://scenes?fps=15&width=960&height=720&seed=8"
STALLED = "test://pattern?fps=15&fault=stall&after=60"
# Name of the image -> viewport, pixels per CSS pixel, colour scheme.
VIEWS = {
    "live": ((1160, 840), 1, "light"),
    "live_phone": ((390, 800), 2, "dark"),
}


def main() -> None:
    """Save an image for each view, and one of a camera that has stalled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    arguments = parser.parse_args()
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"none of these was found: {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        model = Path(folder) / "demo.onnx"
        export(weights.load(arguments.checkpoint), model, imgsz=(160, 160))
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=browser, args=options)
        with running(model, SCENES, "--track", "--conf", "0.4") as url:
            for name, (size, scale, scheme) in VIEWS.items():
                context = chromium.new_context(
                    viewport={"width": size[0], "height": size[1]},
                    device_scale_factor=scale,
                    color_scheme=scheme,
                )
                page = context.new_page()
                page.goto(url)
                page.wait_for_timeout(5000)
                save(page, name)
                context.close()
        with running(model, STALLED) as url:
            page = chromium.new_page(viewport={"width": 1160, "height": 840})
            page.goto(url)
            page.get_by_text("No image is coming").wait_for()
            save(page, "live_stalled")
        chromium.close()


@contextmanager
def running(model: Path, *words: str) -> Iterator[str]:
    """Run `y7edge live` on a free port; yield the address of the page."""
    command = [sys.executable, "-m", "y7edge", "live", str(model), *words, "--web", ":0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            if (found := re.fullmatch(r"open (\S+)\n", line)) is None:
                sys.exit(line + process.stderr.read())
            yield found[1]
        finally:
            process.terminate()
            process.communicate(timeout=30)


def save(page: Page, name: str) -> None:
    """Save what the page shows as docs/images/NAME.png."""
    shown = Image.open(BytesIO(page.screenshot())).convert("RGB")
    path = IMAGES / f"{name}.png"
    # Six bits for each colour: the noise of the trays makes up most of the file.
    reduced = shown.point([round(round(v * 63 / 255) * 255 / 63) for v in range(256)] * 3)
    reduced.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
