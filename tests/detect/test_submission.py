"""``submit``, ``detect`` and ``timeout``: the queue, its policies, cancellation and closing."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest

from tests.detect.test_detector import detector_over, frame_with
from tests.fake_model import FakeSession, make_manifest
from y7edge.detect import detector as module
from y7edge.detect.detector import Detector
from y7edge.errors import ConfigError, DataError, DetectorClosed, DeviceError, FrameDropped

FRAME = frame_with((32, 64))


class Held(FakeSession):
    """A session whose runs wait until they are released."""

    def __init__(self, manifest):
        super().__init__(manifest)
        self.running, self.release = threading.Semaphore(0), threading.Semaphore(0)

    def _run(self, feeds):
        self.running.release()
        assert self.release.acquire(timeout=30)
        return super()._run(feeds)

    def wait_until_running(self):
        assert self.running.acquire(timeout=30)

    def let(self, count=100):
        for _ in range(count):
            self.release.release()


@pytest.fixture
def held():
    made = []

    def make(**options):
        manifest = make_manifest()
        session = Held(manifest)
        detector = Detector.from_session(session, manifest, **options)
        made.append((detector, session))
        return detector, session

    yield make
    for detector, session in made:
        session.let()
        detector.close()


def test_results_are_those_of_a_call_in_order():
    detector, _ = detector_over()
    frames = [frame_with((16 * i, 64)) for i in range(10)]
    futures = [detector.submit(frame, frame_id=i) for i, frame in enumerate(frames)]
    for i, (frame, future) in enumerate(zip(frames, futures, strict=True)):
        found = future.result(30)
        np.testing.assert_array_equal(found.xyxy, detector(frame).xyxy)
        assert found.frame_id == i


def test_full_queue_drops_what_was_asked(held):
    detector, session = held(queue=2)
    running = detector.submit(FRAME)
    session.wait_until_running()
    waiting = [detector.submit(FRAME, frame_id=i) for i in range(2)]
    refused = detector.submit(FRAME, drop="newest")
    with pytest.raises(FrameDropped, match="the queue was full"):
        refused.result(0)
    newest = detector.submit(FRAME, drop="oldest", frame_id=9)
    with pytest.raises(FrameDropped, match="a newer frame took its place"):
        waiting[0].result(0)
    session.let()
    assert running.result(30).class_id.tolist() == [1]
    assert [future.result(30).frame_id for future in (waiting[1], newest)] == [1, 9]


def test_a_callback_does_not_wait_for_a_place_that_it_would_have_to_free(held):
    """Callbacks of a result run in the thread that empties the queue."""
    detector, session = held(queue=1)
    session.let()
    raised, done = [], threading.Event()

    def submit_two(_):
        later.append(detector.submit(FRAME, frame_id=1))
        try:
            detector.submit(FRAME)
        except DeviceError as error:
            raised.append(str(error))
        done.set()

    later = []
    with detector._lock:  # the result is not ready before the callback is added
        first = detector.submit(FRAME)
        first.add_done_callback(submit_two)
    assert done.wait(30)
    assert "a callback of a future cannot wait for a place" in raised[0]
    assert later[0].result(30).frame_id == 1


def test_callbacks_of_a_dropped_frame_may_wait_for_other_frames(held):
    detector, session = held(queue=2)
    detector.submit(FRAME)
    session.wait_until_running()
    oldest, next_one = detector.submit(FRAME), detector.submit(FRAME)
    seen = []

    def wait_for_the_next(_):
        session.let()
        seen.append(next_one.result(5).class_id.tolist())

    oldest.add_done_callback(wait_for_the_next)
    detector.submit(FRAME, drop="oldest")
    assert seen == [[1]]


def test_block_waits_for_a_place(held):
    detector, session = held(queue=1)
    detector.submit(FRAME)
    session.wait_until_running()
    detector.submit(FRAME)
    done = threading.Event()
    threading.Thread(target=lambda: (detector.submit(FRAME).result(30), done.set())).start()
    assert not done.wait(0.2)
    session.let()
    assert done.wait(30)


def test_a_cancelled_frame_frees_its_place_and_does_not_run(held):
    detector, session = held(queue=1)
    detector.submit(FRAME)
    session.wait_until_running()
    cancelled = detector.submit(FRAME)
    assert cancelled.cancel()
    last = detector.submit(FRAME, drop="newest")
    session.let()
    last.result(30)
    assert len(session.batches) == 2


def test_close_cancels_waiting_frames(held):
    detector, session = held()
    running = detector.submit(FRAME)
    session.wait_until_running()
    waiting = detector.submit(FRAME)
    threading.Timer(0.2, session.let).start()
    detector.close()
    assert session.closed == 1
    assert running.result(0).class_id.tolist() == [1]
    with pytest.raises(CancelledError):
        waiting.result(0)
    with pytest.raises(DetectorClosed):
        detector.submit(FRAME)


def test_close_does_not_wait_for_an_engine_that_hangs(held, monkeypatch):
    monkeypatch.setattr(module, "_CLOSE_SECONDS", 0.1)
    detector, session = held()
    running = detector.submit(FRAME)
    session.wait_until_running()
    detector.close()
    assert not session.closed, "it was closed while it ran"
    with pytest.raises(DetectorClosed):
        detector.submit(FRAME)
    session.let()
    running.result(30)
    end = time.monotonic() + 30
    while not session.closed and time.monotonic() < end:
        time.sleep(0.01)
    assert session.closed == 1


def test_timeout_is_a_device_error_and_the_next_call_works(held):
    detector, session = held()
    with pytest.raises(DeviceError, match=r"no result within 0\.1 s"):
        detector(FRAME, timeout=0.1)
    with pytest.raises(DeviceError, match=r"no result within 0\.1 s"):
        detector(FRAME, timeout=0.1)
    session.let()
    assert detector(FRAME, timeout=30).class_id.tolist() == [1]
    assert len(session.batches) == 2, "the second frame was removed from the queue"


def test_timeout_covers_the_wait_for_a_place(held):
    detector, session = held(queue=1)
    detector.submit(FRAME)
    session.wait_until_running()
    detector.submit(FRAME)
    with pytest.raises(DeviceError, match="no place within"):
        detector(FRAME, timeout=0.1)


@pytest.mark.parametrize("timeout", [0, -1, True, float("nan"), float("inf"), 1e300, "1", [1]])
def test_timeouts_that_cannot_be_used(timeout):
    with pytest.raises(ConfigError, match="timeout is"):
        detector_over()[0](FRAME, timeout=timeout)


def test_errors_of_the_engine_arrive_in_the_future():
    detector, session = detector_over()
    session.fail = True
    with pytest.raises(DeviceError, match="the engine failed"):
        detector.submit(FRAME).result(30)
    session.fail = False
    assert detector.submit(FRAME).result(30).class_id.tolist() == [1]


def test_wrong_arguments_are_refused_at_once():
    detector, _ = detector_over()
    with pytest.raises(DataError, match="uint8"):
        detector.submit(FRAME.astype(np.float32))
    with pytest.raises(ConfigError, match="drop is 'all'"):
        detector.submit(FRAME, drop="all")
    for queue in (0, -1, 10**6):
        with pytest.raises(ConfigError, match="queue is"):
            detector_over(queue=queue)


def test_the_thread_ends_with_the_detector():
    before = set(threading.enumerate())
    detector, _ = detector_over()
    detector.submit(FRAME).result(30)
    (thread,) = set(threading.enumerate()) - before
    del detector
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()


def test_asyncio():
    detector, _ = detector_over()
    frames = [frame_with((16 * i, 64)) for i in range(8)]

    async def main():
        return await asyncio.gather(*(detector.detect(f, frame_id=i) for i, f in enumerate(frames)))

    for i, (frame, found) in enumerate(zip(frames, asyncio.run(main()), strict=True)):
        assert found.frame_id == i
        np.testing.assert_array_equal(found.xyxy, detector(frame).xyxy)


def test_asyncio_is_not_blocked_and_can_be_cancelled(held):
    detector, session = held(queue=1)
    detector.submit(FRAME)
    session.wait_until_running()

    async def main():
        waiting = asyncio.create_task(detector.detect(FRAME))
        await asyncio.sleep(0.1)
        full = asyncio.create_task(detector.detect(FRAME))  # waits for a place
        ticks = 0
        for _ in range(5):
            await asyncio.sleep(0.01)
            ticks += 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        session.let()
        await full
        return ticks, waiting.cancelled()

    assert asyncio.run(main()) == (5, True)
    assert len(session.batches) == 2


def test_asyncio_cancels_a_frame_that_waits_for_a_place(held):
    detector, session = held(queue=1)
    detector.submit(FRAME)
    session.wait_until_running()
    last = detector.submit(FRAME)

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(detector.detect(FRAME), 0.1)

    asyncio.run(main())  # would wait for the thread that waits for a place
    session.let()
    last.result(30)
    detector.submit(FRAME).result(30)
    assert len(session.batches) == 3, "the cancelled frame did not run"


def test_asyncio_frames_that_wait_leave_the_threads_of_asyncio_free(held):
    detector, session = held(queue=1)
    detector.submit(FRAME)
    session.wait_until_running()

    async def main():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        tasks = [asyncio.create_task(detector.detect(FRAME)) for _ in range(4)]
        await asyncio.sleep(0.1)
        try:
            return await asyncio.wait_for(asyncio.to_thread(str, 1), 10)
        finally:
            session.let()
            await asyncio.gather(*tasks)

    assert asyncio.run(main()) == "1"


def test_a_frame_that_waits_when_the_detector_is_closed_raises_an_error(held):
    detector, session = held()
    detector.submit(FRAME)
    session.wait_until_running()

    async def main():
        task = asyncio.create_task(detector.detect(FRAME))
        thread = asyncio.create_task(asyncio.to_thread(detector, FRAME, timeout=30))
        await asyncio.sleep(0.2)
        threading.Timer(0.1, session.let).start()
        await asyncio.to_thread(detector.close)
        return await asyncio.gather(task, thread, return_exceptions=True)

    found = asyncio.run(main())
    assert [type(error) for error in found] == [DetectorClosed, DetectorClosed]
