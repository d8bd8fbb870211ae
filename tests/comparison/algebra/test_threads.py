"""One BLAS thread a call, and what is said where that cannot be had."""

import threading

import pytest
import threadpoolctl

from jaxgeom.comparison.algebra import threads
from jaxgeom.comparison.algebra.threads import one_blas_thread


def counts() -> list[int]:
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


def test_numpy_and_scipy_are_limited_until_the_last_one_is_out():
    before = counts()
    assert len(before) >= 2  # NumPy's and SciPy's
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with one_blas_thread() as single:
            assert single
            entered.set()
            leave.wait(60)

    with one_blas_thread() as single:
        assert single and set(counts()) == {1}
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(60)
    assert set(counts()) == {1}
    leave.set()
    thread.join()
    assert counts() == before


@pytest.mark.parametrize("unknown", ["no library", "accelerate"])
def test_what_cannot_be_limited_is_said(monkeypatch, unknown):
    if unknown == "accelerate":
        held = {"Build Dependencies": {"blas": {"name": "accelerate"}}}
        monkeypatch.setattr(threads.scipy, "show_config", lambda mode: held)
    else:
        monkeypatch.setattr(threadpoolctl.ThreadpoolController, "info", lambda self: [])
    with pytest.warns(RuntimeWarning, match="cannot be limited .*one after another"), one_blas_thread() as single:
        assert not single
