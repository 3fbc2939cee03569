"""A limit on nodes at once, which a slow one does not use up."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.core.errors import UserError
from orchestrator.core.slots import Slots


def test_no_more_than_the_limit_at_once() -> None:
    slots = Slots(3, patience=60)
    lock = threading.Lock()
    now = most = 0

    def work(_: int) -> None:
        nonlocal now, most
        with slots.one():
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.01)
            with lock:
                now -= 1

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))
    assert most == 3


def test_a_dead_node_does_not_hold_the_others() -> None:
    slots = Slots(1, patience=0.05)
    ended = threading.Event()

    def dead() -> bool:
        with slots.one():
            return ended.wait(60)

    def quick() -> None:
        with slots.one():
            ended.set()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(dead)
        time.sleep(0.01)
        pool.submit(quick).result()
        assert first.result()


def test_a_slot_is_given_back_once_only() -> None:
    slots = Slots(1, patience=0.01)
    with slots.one():
        time.sleep(0.1)  # given back by now
    with slots.one():
        assert not slots._free.acquire(blocking=False)


def test_after_an_interrupt_nothing_begins() -> None:
    slots = Slots(1)

    def wait() -> None:
        with slots.one():
            raise AssertionError("it began")

    with ThreadPoolExecutor(2) as pool:
        with slots.one():
            waiting = [pool.submit(wait), pool.submit(wait)]
            slots.close()
        for each in waiting:
            with pytest.raises(UserError, match="interrupted"):
                each.result(timeout=60)
