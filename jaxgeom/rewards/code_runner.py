"""The program of a code-testing process: sets its limits, runs program.py and tests.py, and writes the token if passed.

Run by path in isolated mode; imports nothing of jaxgeom.
"""

import os
import resource
import sys


def main() -> None:
    """Reads the token from standard input; arguments: seconds of processor time, bytes of memory."""
    seconds, memory = (int(argument) for argument in sys.argv[1:3])
    token = sys.stdin.buffer.read()
    verdict = os.dup(1)
    os.set_inheritable(verdict, False)
    devnull = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(devnull, stream)
    with open("program.py", encoding="utf-8") as file:
        program = file.read()
    with open("tests.py", encoding="utf-8") as file:
        tests = file.read()
    for name, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 16 * 2**20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (limit, limit))
    os.write(verdict, b"started\n")
    namespace = {"__name__": "program"}
    exec(compile(program, "program.py", "exec"), namespace)
    exec(compile(tests, "tests.py", "exec"), namespace)
    os.write(verdict, b"passed " + token)
    os._exit(0)


if __name__ == "__main__":
    main()
