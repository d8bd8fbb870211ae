"""Code answers: a program from a response, run against function tests in a process with limits."""

import os
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxgeom.errors import UserError

_LONGEST_OUTPUT = 65536
_RUNNER = Path(__file__).with_name("code_runner.py")
_FENCE = re.compile(r"```(?:python|py|python3)?[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)


def extract_code(text: str) -> str | None:
    """The content of the last complete fenced block of a response (after the last `</think>`), or None.

    Args:
        text: the response.

    Returns:
        The code, or None where there is no such block or it is empty.
    """
    blocks = _FENCE.findall(text.rpartition("</think>")[2])
    return blocks[-1] if blocks and blocks[-1].strip() else None


def code_reward(
    response_text: str,
    tests: str,
    *,
    allow_execution: bool = False,
    timeout: float = 10.0,
    memory_bytes: int = 512 * 2**20,
) -> float:
    """1.0 where the response's program passes all tests, else 0.0. Off unless `allow_execution` is set.

    The program (last fenced block) and then the tests run in a fresh Python process in isolated mode: an empty
    temporary directory, no environment variables, standard streams closed off, limits on processor time, memory,
    file size and open files, and the whole process group killed at the timeout.

    **This is no security sandbox.** It catches accidents: endless loops, memory blow-up, crashes, early `exit(0)`. It
    does not stop a hostile program from reading files that this user can read, from using the network, from leaving
    the process group, or from forging the verdict by inspecting the runner. Run it inside a container or a virtual
    machine without network and without anything worth taking.

    Args:
        response_text: the whole response.
        tests: Python source that raises where the program is wrong, such as `assert add(1, 2) == 3` lines; it sees
            the program's names.
        allow_execution: True states that the machine is fit for running programs that a model wrote.
        timeout: seconds of wall time, and of processor time rounded up.
        memory_bytes: limit of the process's address space.

    Returns:
        1.0 or 0.0; no program, a syntax error, an exception, an exit, a limit reached: 0.0.

    Raises:
        UserError: allow_execution is not set.
        RuntimeError: the process could not be started with its limits (needs a POSIX system).
    """
    if not allow_execution:
        raise UserError(
            "code_reward would run a program that a model wrote; pass allow_execution=True on a machine fit for that "
            "(a container without network), after reading its docstring"
        )
    program = extract_code(response_text)
    if program is None or "\0" in program:
        return 0.0
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="jaxgeom-code-") as directory:
        Path(directory, "program.py").write_text(program, encoding="utf-8", errors="replace")
        Path(directory, "tests.py").write_text(tests, encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", str(_RUNNER), str(int(timeout) + 1), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={},
            start_new_session=True,
        )
        output, finished = _converse(process, token.encode(), time.monotonic() + timeout)
    if b"started" not in output:
        if not finished:
            return 0.0
        raise RuntimeError("code_reward: the process could not be started with its limits; a POSIX system is needed")
    return float(f"passed {token}".encode() in output)


def _converse(process: subprocess.Popen[bytes], token: bytes, deadline: float) -> tuple[bytes, bool]:
    """Sends the token, reads until it comes back, the process ends or the deadline, then kills its whole group.

    Returns what it wrote, and whether it came to an end by itself.
    """
    assert process.stdin is not None and process.stdout is not None
    output, finished = b"", False
    try:
        with process.stdin as stream:
            stream.write(token)
        while (left := deadline - time.monotonic()) > 0 and len(output) < _LONGEST_OUTPUT:
            if select.select([process.stdout], [], [], left)[0]:
                piece = os.read(process.stdout.fileno(), 4096)
                if not piece:
                    finished = True
                    break
                output += piece
                if token in output:  # a child that the program forked may hold the pipe open: no end to wait for
                    finished = True
                    break
    except BrokenPipeError:
        finished = True
    finally:
        # Not reaped yet, so the number still is that of its own group, which start_new_session made it lead.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    return output, finished
