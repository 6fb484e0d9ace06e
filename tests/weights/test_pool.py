"""The memory budget."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from onnx_tailor.weights.pool import Memory


@pytest.mark.parametrize(("count", "together"), [(10, 10), (30, 3), (51, 1), (1000, 1)])
def test_work_in_progress_stays_within_the_budget(count: int, together: int) -> None:
    memory, lock, now, most = Memory(100), threading.Lock(), [0], [0]

    def work(_: int) -> None:
        with memory.reserved(count):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.002)
            with lock:
                now[0] -= 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(64)))
    assert 1 <= most[0] <= together


def test_a_failure_gives_its_part_back() -> None:
    memory = Memory(100)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), memory.reserved(100):
            raise ZeroDivisionError
