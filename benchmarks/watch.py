"""Running a command, and watching what it prints, how long it takes and how much memory it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil


@dataclass
class Watched:
    """What was seen of a command.

    Attributes:
        lines: seconds since its start, and what it printed then.
        seconds: until its end.
        memory: the largest sum over it and its children, in bytes; what they share counts once (on Linux).
    """

    lines: list[tuple[float, str]]
    seconds: float
    memory: int


def watch(command: list[str], environment: Mapping[str, str] | None = None) -> Watched:
    """Run a command to its end; the benchmark stops when it fails."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1", **(environment or {})}
    start, peak = time.perf_counter(), [0]
    process = psutil.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def measure() -> None:
        while process.poll() is None:
            total, began = 0, time.perf_counter()
            try:
                for member in (process, *process.children(recursive=True)):
                    memory = member.memory_full_info()
                    total += getattr(memory, "pss", memory.rss)
            except psutil.NoSuchProcess:
                continue
            peak.append(max(peak.pop(), total))
            time.sleep(max(0.02, 30 * (time.perf_counter() - began)))  # looking takes time from what is looked at

    thread = threading.Thread(target=measure)
    thread.start()
    lines = [(time.perf_counter() - start, line.rstrip()) for line in process.stdout]
    code = process.wait()
    seconds = time.perf_counter() - start
    thread.join()
    if code:
        sys.exit(f"{' '.join(command)} ended with status {code}")
    return Watched(lines, seconds, peak[0])
