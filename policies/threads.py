"""How many threads does learning take? One: it adds up in one order, and never waits for a core that others use."""

from contextlib import AbstractContextManager


def one_thread() -> AbstractContextManager[object]:
    """Return a context in which BLAS and OpenMP use one thread.

    Threads that wait for each other on cores shared with a service took six to thirty times as long.
    """
    from threadpoolctl import threadpool_limits  # comes with scikit-learn; only where something is learned

    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits
