"""Control a robot at a fixed rate with asyncio, while detection runs behind the newest frame.

python examples/async_robot.py --model mine.onnx --source 0 --rate 50 --stale 0.2
"""

import argparse
import asyncio
import signal
import time
from collections import deque

from y7edge import Detections, Detector, Frame, Y7EdgeError


def command(newest: deque[tuple[Frame, Detections]], stale: float) -> str:
    """Follow the most certain object; stop if there is none, or no recent result."""
    frame, found = newest[0] if newest else (None, None)
    age = None if frame is None else frame.age_ns()  # since the capture
    if found is None or age is None or age > stale * 1e9:
        return "stop: no recent result"
    if not len(found):
        return "stop: no object"
    x, y = found.xyxyn[0].reshape(2, 2).mean(axis=0) - 0.5  # of its centre, -0.5 to 0.5
    return f"move {x:+.2f} {y:+.2f} to a {found[0].class_name}, seen {age / 1e6:.0f} ms ago"


async def control(args: argparse.Namespace) -> None:
    """Send a command in each period; this example prints it if it is of another kind."""
    newest: deque[tuple[Frame, Detections]] = deque(maxlen=1)
    with Detector(args.model) as detector, detector.stream(args.source) as stream:
        seeing = asyncio.create_task(asyncio.to_thread(newest.extend, stream))
        sent, count, worst = "", 0, 0.0
        start = due = time.monotonic()
        try:
            while not seeing.done() and not 0 < args.seconds <= due - start:
                due += 1 / max(1, args.rate)  # not from now on: delays would add up
                await asyncio.sleep(due - time.monotonic())
                count, worst = count + 1, max(worst, 1e3 * (time.monotonic() - due))
                now = command(newest, args.stale)
                if now != sent and not now[:4] == sent[:4] == "move":
                    print(f"{due - start:.2f} s: {now}", flush=True)
                sent = now
        finally:  # also on SIGTERM
            print(f"stop after {due - start:.2f} s: {count} commands, up to {worst:.0f} ms late")
            stream.close()
        await seeing  # raises the error of the camera or engine, if one failed


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/demo/parts.onnx", help="an exported model")
    parser.add_argument("--source", default="0", help="camera number, device, or any URI")
    parser.add_argument("--rate", type=float, default=50, help="commands per second, 1 or more")
    parser.add_argument("--stale", type=float, default=0.2, help="stop if the result is older, s")
    parser.add_argument("--seconds", type=float, default=0, help="stop after this time; 0: never")
    try:
        asyncio.run(control(parser.parse_args()))
    except (KeyboardInterrupt, Y7EdgeError) as error:
        raise SystemExit(f"error: {error}" if isinstance(error, Y7EdgeError) else 130) from None
