"""A plan in a process of its own. libtpu's checks end the process that meets them, and the system one that takes too
much memory; what is lost is then the plan's process, and the command says so in a line.
"""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from jaxgeom.errors import UserError

ENDED = 64
"""Added to the exit status of a process that came to its end, which one that was ended does not have."""

_PROGRAM = Path(__file__).with_name("apart_program.py")
_CHECK = re.compile(r"^F\d{4} .*?\] (.*)", re.MULTILINE)


class Process:
    """Of this process: whether it is the plan's own."""

    is_apart = False


def plan_apart(command: str) -> int:
    """Runs the command once more, in a process of its own that ends with this one, and says what it says.

    Args:
        command: as it was typed.

    Returns:
        Its exit status.

    Raises:
        UserError: the process was ended before its end.
    """
    words = shlex.split(command)[1:]
    line = [sys.executable, "-P", str(_PROGRAM), json.dumps(sys.path), *words]
    # What was handed down to this process, a pipe for the numbers, is handed on.
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stderr=subprocess.PIPE, close_fds=False)
    assert process.stdin is not None and process.stderr is not None
    with process.stdin:  # which the process reads to its end, for that is the end of this one
        try:
            said = process.stderr.read().decode(errors="replace")
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
    if status >= ENDED:
        sys.stderr.write(said)
        return status - ENDED
    raise UserError(f"the process that compiles was ended {_how(status)}{_last_words(said)}")


def _how(status: int) -> str:
    if status == -signal.SIGKILL:
        return "by SIGKILL, as a rule because this machine's memory was full"
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"


def _last_words(said: str) -> str:
    """What the check that failed says, else the last line."""
    check = _CHECK.search(said)
    words = said.strip().splitlines()[-1:] if check is None else [check[1]]
    return "".join(f": {word.strip()}" for word in words)
