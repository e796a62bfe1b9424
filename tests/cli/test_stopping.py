"""SIGTERM ends a command wherever it comes."""

from __future__ import annotations

import subprocess
import sys

IN_A_FINALISER = """
import os, signal, time
from lifelong_edit.cli.stopping import Terminated, terminable

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # the handler runs here, where Python drops what it raises
            pass

try:
    with terminable():
        Dying()
        print("still there", flush=True)
        time.sleep(30)
        print("never stopped")
except Terminated:
    print("ended in order")
"""


def test_a_signal_that_comes_in_a_finaliser_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_FINALISER], capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["still there", "ended in order"]
    assert "Traceback" not in done.stderr
