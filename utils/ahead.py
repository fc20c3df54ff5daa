"""Iterators that run ahead in a thread of their own, so that reading, computing and writing overlap."""

import threading
from collections.abc import Iterator
from queue import Empty, Full, Queue
from typing import Any, TypeVar

Item = TypeVar("Item")
END = object()
PATIENCE = 0.1  # seconds after which either side looks whether the other is still there


def ahead(items: Iterator[Item], depth: int = 1) -> Iterator[Item]:
    """The same items, taken from `items` by a thread, at most `depth` before they are asked for.

    What `items` raises is raised here. The thread ends with this iterator.

    >>> list(ahead(iter([1, 2, 3])))
    [1, 2, 3]
    """
    queue: Queue[Any] = Queue(depth)
    stopped = threading.Event()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=PATIENCE)
                return
            except Full:
                continue

    def run() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
            put((END, None))
        except BaseException as error:
            put((END, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            try:
                item, error = queue.get(timeout=PATIENCE)
            except Empty:
                continue
            if error is not None:
                raise error
            if item is END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
