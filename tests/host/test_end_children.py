"""An interrupt ends the child processes, whatever the threads do that started them."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from orchestrator.cluster.down import end_children

SLEEP = ("sleep", "60")


@pytest.fixture
def ending_threads() -> Iterator[None]:
    """Threads that start and end all the time."""
    over = threading.Event()

    def start() -> None:
        while not over.is_set():
            several = [threading.Thread(target=int) for _ in range(8)]
            for thread in several:
                thread.start()
            for thread in several:
                thread.join()

    thread = threading.Thread(target=start)
    thread.start()
    yield
    over.set()
    thread.join()


def test_threads_that_end_meanwhile_break_nothing(ending_threads: None) -> None:
    for _ in range(100):
        end_children()


def test_a_child_whose_thread_is_gone_is_ended() -> None:
    found: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: found.append(subprocess.Popen(SLEEP)))
    thread.start()
    thread.join()
    try:
        end_children()
        assert found[0].wait(timeout=10) == -signal.SIGTERM
    finally:
        found[0].kill()


def test_a_child_of_another_session_is_left() -> None:
    """A machine of the simulation, or a service: `down` ends those by their records."""
    with subprocess.Popen(SLEEP, start_new_session=True) as child:
        try:
            end_children()
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(timeout=0.5)
        finally:
            child.kill()
