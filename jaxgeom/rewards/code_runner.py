"""The program of a sandboxed process: shuts itself in, then runs a program on one input, or calls its functions.

Run as source, with nothing of jaxgeom at hand. It reads one JSON request from standard input and never sees what the
right output is: whatever the program does to this process, it can only change what it answers.

A request has `program`, `memory`, `seconds` (of processor time), `processes`, `directory_bytes`, `isolated`,
`other_user`, and either `input` (the text that the program reads; its output goes to standard output) or `calls`
(`[function, arguments, names]`, values as `code_values` spells them; answered by a JSON line each: `["value", …]` or
`["error", what]`).
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
import types

# No Python and no system lives under this name.
WORK = "/program-directory"
LARGEST_FILE = 32 * 2**20
DEEPEST = 200
OPEN_FILES = 128
# Of tmpfs in the sandbox; without nr_inodes a million empty files would fill the kernel's memory.
INODES = 4096
NOSUID_NODEV = 2 | 4
# Numbers of the system calls that are refused: memory outside of what is counted, other namespaces, mounts, other
# processes' memory, message queues and shared segments that outlive a process.
_ON_BOTH = (425, 428, 429, 430, 431, 432, 433, 442, 447)
_REFUSED = {
    "x86_64": (319, 29, 68, 64, 250, 248, 249, 321, 323, 298, 272, 308, 165, 166, 155, 161, 101, 310, 311, 240, 304),
    "aarch64": (279, 194, 186, 190, 219, 217, 218, 280, 282, 241, 97, 268, 40, 39, 41, 51, 117, 270, 271, 180, 265),
}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_NEW_NAMESPACES = 0x7E020000
# socket, socketpair. Sockets are local or of the internet; the kernel's others (AF_VSOCK, AF_ALG, AF_NETLINK, …) reach
# out of a namespace or into its cryptography.
_SOCKETS = {"x86_64": (41, 53), "aarch64": (198, 199)}
_FAMILIES = (1, 2, 10)


def main() -> None:
    """Serves the one request."""
    request = json.loads(sys.stdin.buffer.read())
    os.closerange(3, 1024)
    directory = os.getcwd()
    if request["isolated"]:
        directory = WORK
        shut_in(request["directory_bytes"], int(request["other_user"]))
    os.chdir(directory)
    for name, limit in (
        ("CPU", request["seconds"]),
        ("AS", request["memory"]),
        ("FSIZE", LARGEST_FILE),
        ("NOFILE", OPEN_FILES),
        ("CORE", 0),
        ("MSGQUEUE", 0),
        ("NPROC", request["processes"]),
    ):
        if limit is not None:
            number = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(number)[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(number, (limit, limit))
    os.environ.update(PATH="/usr/bin:/bin", HOME=directory, TMPDIR=directory, LANG="C.UTF-8")
    path = os.path.join(directory, "program.py")
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(request["program"])
    sys.path.insert(0, directory)
    sys.argv = [path]
    if "input" in request:
        run_script(path, request["program"], request["input"])
    else:
        call_functions(path, request["program"], request["calls"])


def shut_in(directory_bytes: int, user: int) -> None:
    """Directories of bounded size, then the user, no capability, no way to new ones. Raises OSError where any fails."""
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    options = f"size={directory_bytes},nr_inodes={INODES},mode=0755,uid={user},gid={user}".encode()
    for place in (WORK, "/dev/shm"):
        checked(libc.mount(b"tmpfs", place.encode(), b"tmpfs", NOSUID_NODEV, options))
    for capability in range(64):
        if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP; EINVAL beyond the last one
            break
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    checked(libc.capset(header, nothing))
    checked(libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
    machine = platform.machine()
    if machine in _REFUSED:
        code = filter_code(machine)
        buffer = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
        checked(libc.prctl(22, 2, program, 0, 0))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def filter_code(machine: str) -> bytes:
    """The classic BPF that refuses system calls. Source: linux/filter.h, linux/seccomp.h."""
    load, equal, at_least, any_bit, give_back = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, absent, no_family, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x00050061, 0x80000000
    lines = [(load, 0, 0, 4), (equal, 1, 0, _ARCHITECTURE[machine]), (give_back, 0, 0, kill), (load, 0, 0, 0)]
    if machine == "x86_64":
        lines += [(at_least, 0, 1, 0x40000000), (give_back, 0, 0, refuse)]
    for number in _REFUSED[machine] + _ON_BOTH:
        lines += [(equal, 0, 1, number), (give_back, 0, 0, refuse)]
    lines += [(equal, 0, 1, _CLONE3), (give_back, 0, 0, absent)]
    for number in _SOCKETS[machine]:
        lines += [(equal, 0, len(_FAMILIES) + 3, number), (load, 0, 0, 16)]
        lines += [(equal, len(_FAMILIES) - i, 0, family) for i, family in enumerate(_FAMILIES)]
        lines += [(give_back, 0, 0, no_family), (give_back, 0, 0, allow)]
    lines += [(equal, 0, 3, _CLONE[machine]), (load, 0, 0, 16), (any_bit, 0, 1, _NEW_NAMESPACES)]
    lines += [(give_back, 0, 0, refuse), (give_back, 0, 0, allow)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def run_script(path: str, program: str, text: str) -> None:
    """The program as `__main__`, the text as its standard input; the exit status is the program's."""
    import __main__

    name = path + ".in"
    # Its own name is gone before the program starts; a file, unlike a pipe, holds any size.
    source = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(name)
    with os.fdopen(os.dup(source), "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
    os.lseek(source, 0, os.SEEK_SET)
    os.dup2(source, 0)
    os.close(source)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    names = __main__.__dict__
    for key in [key for key in names if not key.startswith("__")]:
        del names[key]
    names.update(__name__="__main__", __file__=path, __spec__=None, __doc__=None)
    exec(compile(program, path, "exec", dont_inherit=True), names)


def call_functions(path: str, program: str, calls: list) -> None:
    """Imports the program as the module `program` and answers each call with a line."""
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    module = types.ModuleType("program")
    module.__file__ = path
    sys.modules["program"] = module
    names = module.__dict__
    if "class Solution" in program:
        # Programs of this form are written for a page that has these imported.
        for library in ("typing", "collections", "itertools", "functools", "heapq", "bisect", "math"):
            imported = __import__(library)
            public = getattr(imported, "__all__", [key for key in vars(imported) if not key.startswith("_")])
            names.update({key: getattr(imported, key) for key in public}, **{library: imported})
    try:
        exec(compile(program, path, "exec", dont_inherit=True), names)
    except BaseException as error:
        say(answers, ["error", type(error).__name__])
        return
    for name, arguments, keywords in calls:
        try:
            function = names.get(name)
            if function is None and "Solution" in names:
                function = getattr(names["Solution"](), name)
            if function is None:
                raise NameError(name)
            value = function(*map(decode, arguments), **{key: decode(value) for key, value in keywords.items()})
            say(answers, ["value", encode(value, 0)])
        except BaseException as error:
            say(answers, ["error", type(error).__name__])
    os._exit(0)


def say(stream: int, line: list) -> None:
    """One JSON line, whole."""
    left = (json.dumps(line) + "\n").encode()
    while left:
        left = left[os.write(stream, left) :]


def encode(value, depth: int):
    """A value with its type, as JSON; raises TypeError for what is no plain value. `code_values.decode` reads it."""
    if depth > DEEPEST:
        raise TypeError("nested too deeply")
    kind = type(value)
    if kind.__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
        kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return {"float": repr(value)}
    if kind is complex:
        return {"complex": [repr(value.real), repr(value.imag)]}
    if kind in (bytes, bytearray):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, dict):
        return {"dict": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in dict.items(value)]}
    for base in (list, tuple, set, frozenset):
        if isinstance(value, base):
            return {base.__name__: [encode(item, depth + 1) for item in base(value)]}
    raise TypeError(f"{kind.__name__} is no plain value")


def decode(value):
    """The value that was encoded."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return float(content)
    if kind == "complex":
        return complex(*map(float, content))
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "dict":
        return {decode(k): decode(v) for k, v in content}
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](map(decode, content))


if __name__ == "__main__":
    main()
