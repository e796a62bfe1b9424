"""13. A handle used after a fork: refused by type, in the child; the parent goes on."""

from __future__ import annotations

from collections.abc import Callable

from lifelong_edit.stores import EditLog

MakeStore = Callable[..., EditLog]
RunPython = Callable[..., str]


def test_is_refused(make_store: MakeStore, run_python: RunPython) -> None:
    log = make_store()
    log.close()
    code = """
        import os, sys
        from lifelong_edit.errors import StoreError
        from lifelong_edit.stores import EditLog
        from tests.faults import small
        log = EditLog.open(sys.argv[1])
        if not (child := os.fork()):
            uses = (log.head, log.steps, lambda: small.add(log), lambda: log.consume(0, []))
            for use in (*uses, lambda: EditLog.open(sys.argv[1], timeout=0.1)):
                try:
                    use()
                    print("used")
                except StoreError as error:
                    print(type(error).__name__, "fork" in str(error), flush=True)
            log.close()
            os._exit(0)
        os.waitpid(child, 0)
        print(log.head().step)
    """
    *refused, last, parent = run_python(code, log.path).splitlines()
    assert refused == ["StoreError True"] * 4
    assert (last, parent) == ("StoreLockedError False", "0")


def test_what_the_parent_has_open_the_child_cannot_open_anew(make_store: MakeStore, run_python: RunPython) -> None:
    """LMDB has it open in the child as well. Once the parent has closed it, forks may open it."""
    log = make_store()
    log.close()
    code = """
        import os, sys
        from lifelong_edit.errors import StoreError
        from lifelong_edit.stores import EditLog
        def child():
            if not (pid := os.fork()):
                try:
                    print(EditLog.open(sys.argv[1], read_only=True).head().step, flush=True)
                except StoreError as error:
                    print("fork" in str(error), flush=True)
                os._exit(0)
            os.waitpid(pid, 0)
        with EditLog.open(sys.argv[1], read_only=True) as log:
            child()
            print(log.head().step, flush=True)
        child()
    """
    assert run_python(code, log.path).split() == ["True", "0", "0"]
