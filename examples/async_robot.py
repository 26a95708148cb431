"""Control a robot at a fixed rate with asyncio, while detection runs behind the newest frame.

    python examples/async_robot.py --model mine.onnx --source 0 --rate 50 --stale 0.2

The control loop never waits for the camera or the engine, but takes the newest result. If that is
older than ``--stale`` seconds, or the camera fails, the robot stops.
"""

import argparse
import asyncio
import sys
import time

from y7edge import Detections, Detector, Frame, Y7EdgeError, open_source

newest: list[tuple[Frame, Detections]] = []  # one result


def command(stale: float) -> str:
    """Follow the most certain object; stop if there is none in a recent image."""
    age = newest[0][0].age_ns(time.monotonic_ns()) if newest else None  # since the capture
    if age is None or age > stale * 1e9 or not len(newest[0][1]):
        return "stop: nothing to follow"
    x, y = newest[0][1].xyxyn[0].reshape(2, 2).mean(axis=0) - 0.5  # of its centre, -0.5 to 0.5
    return f"move {x:+.2f} {y:+.2f} to a {newest[0][1][0].class_name}, seen {age / 1e6:.0f} ms ago"


async def control(args: argparse.Namespace) -> None:
    """Send a command in each period; this example prints it if its first word changes."""
    with Detector(args.model) as detector, open_source(args.source) as source:

        async def see() -> None:
            while (frame := await asyncio.to_thread(source.read)) is not None:
                newest[:] = [(frame, await detector.detect(frame))]

        seeing, sent, count, worst = asyncio.create_task(see()), "", 0, 0.0
        start = due = time.monotonic()
        while not seeing.done() and not 0 < args.seconds <= due - start:
            due += 1 / max(1, args.rate)  # not from now on: delays would add up
            await asyncio.sleep(due - time.monotonic())
            count, worst = count + 1, max(worst, time.monotonic() - due)
            if (now := command(args.stale)).split()[0] not in sent:
                print(f"{due - start:.2f} s: {now}", flush=True)
            sent = now
        print(f"stop after {due - start:.2f} s: {count} commands, up to {1e3 * worst:.0f} ms late")
        source.close()  # ends `read`
        await seeing  # raises the error of the camera, if it failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/demo/parts.onnx", help="an exported model")
    parser.add_argument("--source", default="0", help="camera number, device, or any URI")
    parser.add_argument("--rate", type=float, default=50, help="commands per second, 1 or more")
    parser.add_argument("--stale", type=float, default=0.2, help="largest age of a result, s")
    parser.add_argument("--seconds", type=float, default=0, help="stop after this time; 0: never")
    try:
        asyncio.run(control(parser.parse_args()))
    except (KeyboardInterrupt, Y7EdgeError) as error:
        sys.exit(f"error: {error}" if isinstance(error, Y7EdgeError) else 0)
