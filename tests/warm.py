"""The program as a process of its own that need not import torch first: forked from one that has done so.

What differs from a start of `python -m lifelong_edit` is that modules have been imported. That it starts from nothing
is tested with the commands of the pages, the demo and the wheel.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

_SERVER = """
import json, os, signal, socket, struct, sys
import transformers.models.gpt2.modeling_gpt2
import lifelong_edit.scheduler, lifelong_edit.stores.index, lifelong_edit.timeline.solving
from lifelong_edit.cli import main

def serve(asked):
    # Returns in a process that is to run the program. Its parent waits for it and tells how it ended.
    waiting = set()
    while True:
        text, files, _, _ = socket.recv_fds(asked, 1 << 20, 4)
        if not text:
            os._exit(0)
        waiting -= {child for child in waiting if os.waitpid(child, os.WNOHANG)[0]}
        if (child := os.fork()):
            waiting.add(child)
        else:
            told = files[3]
            process = os.fork()
            if not process:
                asked.close()
                for number, file in enumerate(files[:3]):
                    os.dup2(file, number)
                for file in files:
                    os.close(file)
                return json.loads(text)
            for file in files[:3]:
                os.close(file)
            os.write(told, struct.pack("i", process))
            os.write(told, struct.pack("i", os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])))
            os._exit(0)
        for file in files:
            os.close(file)

wanted = serve(socket.socket(fileno=int(sys.argv[1])))
signal.signal(signal.SIGINT, signal.default_int_handler)
os.chdir(wanted["folder"])
os.environ.clear()
os.environ.update(wanted["environment"])
sys.argv = wanted["arguments"]
exec(wanted["before"], {})
main()
"""


class Running:
    """A process that was started; as much of `subprocess.Popen` as tests of it need."""

    def __init__(self, pid: int, stdout: IO[bytes], stderr: IO[bytes], told: int) -> None:
        self.pid, self.stdout, self.stderr, self._told = pid, stdout, stderr, told
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, or minus the signal, where it has ended."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The same, when it has ended; TimeoutExpired where that takes too long."""
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("lifelong-edit", timeout or 0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        """What is left to read of its two outputs, read to their ends."""
        read: dict[str, bytes] = {}
        streams = {"out": self.stdout, "err": self.stderr}
        threads = [
            threading.Thread(target=lambda n=name, s=stream: read.update({n: s.read()}), daemon=True)
            for name, stream in streams.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
            if thread.is_alive():
                raise subprocess.TimeoutExpired("lifelong-edit", timeout or 0)
        self.wait(timeout)
        self._close()
        return read["out"], read["err"]

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self.wait()

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            (self.returncode,) = struct.unpack("i", os.read(self._told, 4))
            os.close(self._told)
        return self.returncode

    def _close(self) -> None:
        self.stdout.close()
        self.stderr.close()


class Warm:
    """Starts the program, see the module. One thread: what it computes is promised bit for bit in one environment."""

    def __init__(self, folder: Path) -> None:
        self._asked, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(theirs.fileno())], cwd=folder, pass_fds=(theirs.fileno(),),
            env={**os.environ, **self._environment},
        )  # fmt: skip
        theirs.close()

    def start(self, *arguments: object, before: str = "") -> Running:
        """`lifelong-edit` with these arguments, in the folder and the environment of this process.

        before: code that runs first, as to have it killed at some point.
        """
        wanted: dict[str, Any] = {
            "arguments": ["lifelong-edit", *map(str, arguments)],
            "folder": str(Path.cwd()),
            "environment": {**os.environ, **self._environment},
            "before": before,
        }
        pipes = [os.pipe() for _ in range(3)]
        nothing = os.open(os.devnull, os.O_RDONLY)
        files = [nothing, *(write for _, write in pipes)]
        socket.send_fds(self._asked, [json.dumps(wanted).encode()], files)
        for file in files:
            os.close(file)
        out, err, told = (read for read, _ in pipes)
        (pid,) = struct.unpack("i", os.read(told, 4))
        return Running(pid, os.fdopen(out, "rb"), os.fdopen(err, "rb"), told)

    def close(self) -> None:
        """End the process that is forked; what it started goes on."""
        self._asked.close()
        self._server.wait()
