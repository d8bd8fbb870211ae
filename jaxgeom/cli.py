"""The command line: `jaxgeom COMMAND`. Exit 0 on success, 2 on a mistake of the user's, 1 where a check failed."""

import contextlib
import importlib
import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxgeom.errors import UserError
from jaxgeom.interruption import stoppable

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
    "export": ("export", "write a step of a run as a Hugging Face directory"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in ([], ["-h"], ["--help"]):
        print(_help())
        return 0
    if arguments == ["--version"]:
        from jaxgeom import __version__

        print(__version__)
        return 0
    name = next((n for n in COMMANDS if arguments[: len(n.split())] == n.split()), None)
    if name is None:
        return _fail(f"no command {shlex.quote(' '.join(arguments[:2]))}; one of: {', '.join(COMMANDS)}")
    # Only tokenizers and configurations are taken from transformers; that PyTorch is missing is no news.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    _keep_compiled_programs()
    try:
        module = importlib.import_module(f"jaxgeom.commands.{COMMANDS[name][0]}")
        function = getattr(module, name.replace(" ", "_"))
        command = shlex.join(["jaxgeom", *arguments])
        call = _parse(function, name, arguments[len(name.split()) :])
        with stoppable():
            return call(command) or 0
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        # A full disk, a missing permission: the system's own words and the file are all there is to say.
        return _fail(f"{error.filename or 'input/output'}: {error.strerror or error}")
    except KeyboardInterrupt as stop:
        return _fail(
            str(stop) or "interrupted; the same command goes on from here", status=getattr(stop, "status", 130)
        )


def _parse(function, name: str, arguments: list[str]):
    """The command with its arguments bound, by tyro; a parsing mistake becomes one line."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(function, prog=f"jaxgeom {name}", args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as stop:
        if not stop.code:
            raise
        words = re.sub(r"[\u2500-\u257f]+|-{4,}|\x1b\[[0-9;]*m", " ", said.getvalue())
        line = re.sub(r"\s+", " ", words).removeprefix(" Parsing error ").strip()
        raise UserError(re.sub(r" For full helptext, (run|see)\b.*$", "", line)) from None


def _keep_compiled_programs() -> None:
    """Programs compiled once serve every later run, small ones too: a small model compiles longer than it steps."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxgeom" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _fail(message: str, *, status: int = 2) -> int:
    print("jaxgeom: " + " ".join(message.split()), file=sys.stderr)
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return f"usage: jaxgeom COMMAND …\n\n{rows}\n\njaxgeom COMMAND --help tells a command's arguments."


if __name__ == "__main__":
    sys.exit(main())
