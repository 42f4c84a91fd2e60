"""
Runs programs of tests without importing PyTorch for each: a process that has imported it forks.
Triton does not interpret kernels there.
"""

import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

__all__ = ["run_forked"]

ROOT = Path(__file__).resolve().parents[1]


def run_forked(module, *arguments):
    """
    Args:
        module (str): run as by ``python -m``.
        *arguments (str): arguments of its command line.

    Returns:
        subprocess.CompletedProcess: with its output as text.
    """
    server = _start()
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder, name)) for name in ("out", "err")]
        server.stdin.write(json.dumps([module, arguments, files]) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, f"The process that runs {module} has ended."
        output = [Path(file).read_text() for file in files]
    return subprocess.CompletedProcess([module, *arguments], int(answer), *output)


@functools.cache
def _start():
    """Popen: ends with this process, when its input is closed."""
    command = [sys.executable, "-m", "tests.forked"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def _serve():
    import triton  # noqa: F401

    import blockcopy_d2.modeling  # noqa: F401

    for line in sys.stdin:
        module, arguments, files = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(_run(module, arguments, files))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(module, arguments, files):
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv[1:] = arguments
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    _serve()
