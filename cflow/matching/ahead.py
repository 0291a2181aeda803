"""Work done ahead of its use, by threads: results in order, errors as they were raised.

Threads are enough, and share the data: POT's network simplex, SciPy's assignment and torch's
operations let go of Python's lock while they run.
"""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import TypeVar

__all__ = ["ahead"]

T = TypeVar("T")


def ahead(
    make: Callable[[int], T], *, start: int = 0, workers: int = 0
) -> Generator[T, None, None]:
    """Give `make(start)`, `make(start + 1)`, ... without end, in this order.

    Closing the generator drops what has not begun and waits for what has.

    Args:
        make: What is computed; its result may depend on nothing but its argument.
        start: The first argument.
        workers: Threads that compute ahead of what is asked for; with 0 nothing is ahead.

    Raises:
        Exception: Whatever `make` raised, when the turn of that result comes.

    Example:
        >>> squares = ahead(lambda k: k * k, start=3, workers=2)
        >>> next(squares), next(squares)
        (9, 16)
        >>> squares.close()
    """
    if workers == 0:
        yield from map(make, count(start))
    executor = ThreadPoolExecutor(workers, thread_name_prefix="cflow-ahead")
    waiting: deque[Future[T]] = deque()
    turns = count(start)
    try:
        while True:
            while len(waiting) <= workers:  # one for each worker while the first is used
                waiting.append(executor.submit(make, next(turns)))
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
