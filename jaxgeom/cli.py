"""The command line: `jaxgeom COMMAND`. Exit 0 on success, 2 on a mistake of the user's, 1 where a check failed."""

import importlib
import io
import os
import shlex
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxgeom.buckets.places import named
from jaxgeom.commands.parsing import parse
from jaxgeom.errors import UserError
from jaxgeom.files import full_disk, is_full
from jaxgeom.interruption import end_soon, goes_on, stoppable

# Command → (module of its function, one line of help). The modules are imported when asked for: they are slow to load.
COMMANDS = {
    "study": ("study", "run an experiment file: train every stage, measure, compare, report"),
    "compare": ("compare", "every diagnostic, with nulls, between two checkpoints"),
    "between": ("between", "what the updates of two runs from one checkpoint share, with nulls"),
    "trajectory": ("trajectory", "trajectory diagnostics over checkpoints in order"),
    "train sft": ("train", "one run of supervised fine-tuning"),
    "train rlvr": ("train", "one run of RL with verifiable rewards (GRPO)"),
    "train opd": ("train", "one run of on-policy distillation"),
    "report": ("report", "write tables, figures and page from what a directory holds"),
    "validate": ("validate", "a model in PyTorch and here: a table of errors against tolerances"),
    "plan": ("plan", "compile a run ahead of time for devices that are not there: does it fit, what binds it"),
    "export": ("export", "write a step of a run as a Hugging Face directory"),
}

_LONGEST_FAULT = 300  # characters of an unforeseen error's own words


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    own_process = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without a sign shows another, and goes on
            stream.reconfigure(errors="replace")
    status = _status(arguments, own_process=own_process)
    joined = sys.modules.get("jaxgeom.processes")
    if status and own_process and joined is not None and joined.is_joined():
        end_soon(status)  # JAX waits for the others at exit, who may wait for this one
    return status


def _status(arguments: list[str], *, own_process: bool) -> int:
    try:
        return _run(arguments)
    except UserError as error:
        return _fail(str(error), status=error.status)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where what Python still writes when it ends may go
        return 0
    except OSError as error:
        # A missing permission and the like: the system's own words and the file are all there is to say. Of a copy the
        # second file is the one that is written.
        place = error.filename2 or error.filename
        if is_full(error):
            return _fail(str(full_disk(place or _out(arguments) or "output")))
        return _fail(f"{place or 'input/output'}: {error.strerror or error}")
    except KeyboardInterrupt as stop:
        said = str(stop) or "stopped; the same command goes on from what is kept"
        status = _fail(said, status=getattr(stop, "status", 130))
        if own_process:
            end_soon(status)
        return status
    except Exception as error:  # the last resort: whatever else goes wrong is a fault of this program's
        if is_full(error):  # as a library says it
            return _fail(str(full_disk(_out(arguments) or "output")))
        if (platforms := _without_device(error)) is not None:
            return _fail(f"JAX_PLATFORMS={platforms}: no such device is here; unset it, or set it to cpu")
        return _fail(_fault(error, arguments), status=1)


def _run(arguments: list[str]) -> int:
    if arguments in ([], ["-h"], ["--help"]):
        print(_help(COMMANDS))
        return 0
    if arguments == ["--version"]:
        from jaxgeom import __version__

        print(__version__)
        return 0
    name = next((n for n in COMMANDS if arguments[: len(n.split())] == n.split()), None)
    if name is None:
        return _no_command(arguments)
    with stoppable():  # from here on: the packages alone may take half a minute to load
        goes_on("the same command goes on from what is kept", _out(arguments))
        module = importlib.import_module(f"jaxgeom.commands.{COMMANDS[name][0]}")
        function = getattr(module, name.replace(" ", "_"))
        from jaxgeom.commands.urls import without_urls  # help on all commands does without

        words, remote = without_urls(name, arguments[len(name.split()) :])
        call = parse(function, name, words)
        if call is None:
            return 0
        remote.take()
        # Only tokenizers and configurations are taken from transformers; that PyTorch is missing is no news.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        _keep_compiled_programs()
        from jaxgeom.checkpoints import late_errors

        late_errors.hush_process()
        status = call(shlex.join(["jaxgeom", *arguments])) or 0
        remote.give_back()
        return status


def _out(arguments: Sequence[str]) -> str | None:
    """The directory that a command writes to, before anything has read its arguments."""
    for place, word in enumerate(arguments):
        name, _, value = word.partition("=")
        if name in ("--out", "--to"):  # the second is what `export` writes
            return value or next(iter(arguments[place + 1 :]), None)
    return None


def _no_command(arguments: list[str]) -> int:
    """Help on a word that several commands begin with (`train`), else what there is."""
    below = {name: held for name, held in COMMANDS.items() if name.split()[0] == arguments[0]}
    if below and arguments[1:] in (["-h"], ["--help"]):
        print(_help(below))
        return 0
    if below:
        kinds = ", ".join(name.split()[1] for name in below)
        given = f", not {shlex.quote(arguments[1])}" if arguments[1:] else ""
        return _fail(f"{arguments[0]} takes one of {kinds}{given}; see jaxgeom {arguments[0]} --help")
    return _fail(f"no command {shlex.quote(arguments[0])}; one of: {', '.join(COMMANDS)}")


def _keep_compiled_programs() -> None:
    """Programs compiled once serve every later run, small ones too: a small model compiles longer than it steps."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxgeom" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # Where the cache cannot be written to, the next run compiles again; that a disk is full its results will say.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")


def _fail(message: str, *, status: int = 2) -> int:
    print("jaxgeom: " + named(" ".join(message.split())), file=sys.stderr)
    return status


def _without_device(error: Exception) -> str | None:
    """What JAX was told to use by a variable, where it ends because that is not here: by an error or an assertion."""
    platforms, frames = os.environ.get("JAX_PLATFORMS"), traceback.extract_tb(error.__traceback__)
    is_told = platforms and frames and frames[-1].filename.endswith("xla_bridge.py")
    return platforms if is_told and isinstance(error, (RuntimeError, AssertionError)) else None


def _fault(error: Exception, arguments: Sequence[str]) -> str:
    """What is said of an error that nothing foresaw; its traceback is kept in a file."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    said = said if len(said) <= _LONGEST_FAULT else f"{said[:_LONGEST_FAULT]} …"
    text = f"{shlex.join(['jaxgeom', *arguments])}\n\n{''.join(traceback.format_exception(error))}"
    try:
        handle, path = tempfile.mkstemp(prefix="jaxgeom-fault-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as refused:
        return f"a fault of this program's: {said}; its traceback could not be kept ({refused.strerror})"
    return f"a fault of this program's: {said}; its traceback is in {path}"


def _help(commands: Mapping[str, tuple[str, str]]) -> str:
    width = max(map(len, commands))
    rows = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in commands.items())
    return f"usage: jaxgeom COMMAND …\n\n{rows}\n\njaxgeom COMMAND --help tells a command's arguments."


if __name__ == "__main__":
    sys.exit(main())
