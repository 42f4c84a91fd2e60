"""The machine that something was measured on."""

import platform
from pathlib import Path

__all__ = ["processor_name"]


def processor_name() -> str:
    """
    Returns:
        str: vendor and model of the CPU, where the system names them; else its architecture.
    """
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
