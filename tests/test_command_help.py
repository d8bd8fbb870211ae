"""Help waits for no library that it does not need, names what a command takes, offers nothing that it ignores."""

import re
import subprocess
import sys

import pytest

from jaxgeom.cli import COMMANDS
from tests.command_line import command

HEAVY = ("jax", "flax", "optax", "orbax", "transformers", "torch", "scipy", "matplotlib", "grain")


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("compare", "--help"), ("train", "opd", "--help")])
def test_help_and_version_load_no_heavy_library(arguments):
    """Modules are counted, not seconds: JAX alone is more than 500 of them and half a second."""
    counting = (
        "import sys; from jaxgeom.cli import main; status = main(sys.argv[1:]); "
        f"held = [n for n in {HEAVY!r} if n in sys.modules]; print(status, len(sys.modules), *held, file=sys.stderr)"
    )
    _, environment = command()
    line = [sys.executable, "-c", counting, *arguments]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    status, count, *held = done.stderr.split()
    assert (status, held) == ("0", []), done.stderr
    assert int(count) < (125 if len(arguments) == 1 else 450)


@pytest.mark.parametrize("name", [*COMMANDS, "train"])
def test_every_command_has_help(jaxgeom, name):
    said = jaxgeom(*name.split(), "--help")
    assert (
        said.status == 0 and said.err == "" and f"usage: jaxgeom {'COMMAND' if name == 'train' else name}" in said.out
    )


def test_help_of_train_lists_the_three(jaxgeom):
    assert re.findall(r"^  train (\w+) ", jaxgeom("train", "--help").out, re.MULTILINE) == ["sft", "rlvr", "opd"]


@pytest.mark.parametrize(
    ("name", "positional"),
    [
        ("compare", "INITIAL FINAL"),
        ("between", "INITIAL FINAL_A FINAL_B"),
        ("trajectory", "INITIAL CKPT [CKPT …]"),
        ("study", "FILE"),
        ("report", "DIR"),
        ("validate", "MODEL"),
        ("export", "RUN"),
    ],
)
def test_positional_arguments_are_named_by_what_they_are(jaxgeom, name, positional):
    usage = " ".join(jaxgeom(name, "--help").out.partition("\n\n")[0].split())
    assert f"{positional} " in f"{usage} " and "STR" not in usage and "PATH" not in usage


def option_lines(text: str) -> dict[str, str]:
    """`{option: what its help says}`."""
    words = " ".join(re.sub(r"[\u2500-\u257f]", " ", text).split())
    parts = re.split(r"(?<!\S)(--[a-z][\w-]*)(?=[ ,])", words)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_required_options_look_required(jaxgeom):
    held = option_lines(jaxgeom("train", "opd", "--help").out)
    for option in ("--out", "--model", "--data", "--steps", "--batch-size", "--learning-rate", "--teacher"):
        assert "(required)" in held[option], option
    assert "required" not in held["--eval-data"] and "None}" not in held["--eval-data"]
    assert "Optimizer steps." in held["--steps"]  # said where the settings of all three objectives are
    missing = jaxgeom("train", "opd", "--model", "m", "--data", "d", "--out", "o", "--steps", 1)
    assert missing.status == 2 and re.search(r"needs --batch-size INT, --lr FLOAT;", missing.err)
    given = ("--model", "m", "--data", "d", "--out", "o", "--steps", 1, "--batch-size", 8, "--lr", 1)
    untaught = jaxgeom("train", "opd", *given)
    assert untaught.status == 2 and "train opd needs --teacher DIR; see jaxgeom train opd --help" in untaught.err


@pytest.mark.parametrize(
    ("name", "unread"),
    [
        ("train sft", ["--teacher", "--temperature"]),
        ("train rlvr", ["--teacher", "--alpha"]),
        ("between", ["--suite", "--angle-k", "--mask-rank", "--mask-fraction", "--null-draws", "--seed"]),
        ("trajectory", ["--mask-fraction", "--permutation-draws"]),
    ],
)
def test_options_that_a_command_does_not_read_are_not_offered(jaxgeom, name, unread):
    held = option_lines(jaxgeom(*name.split(), "--help").out)
    assert not set(unread) & set(held)
    given = {"between": ("a", "b", "c"), "trajectory": ("a", "b")}.get(name, ())
    said = jaxgeom(*name.split(), *given, unread[0], "3")
    assert said.status == 2 and f"does not know {unread[0]}" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "usage"),
        (("train",), "train takes one of sft, rlvr, opd; see"),
        (("train", "dpo"), "train takes one of sft, rlvr, opd, not dpo; see"),
        (("compare",), "compare needs INITIAL, FINAL, --out DIR; see jaxgeom compare --help"),
        (("compare", "a", "--out", "o"), "compare needs FINAL; see"),
        (("compare", "a", "b", "--out", "o", "--angle-k", "x"), "--angle-k takes a whole number, not 'x'; see"),
        (("compare", "a", "b", "--out", "o", "--hill-k", "x"), "--hill-k takes a whole number, not 'x'; see"),
        (("compare", "a", "b", "--out", "o", "--eta", "x"), "--eta takes a number, not 'x'; see"),
        (("compare", "a", "b", "--out", "o", "--suite", "slow"), "--suite slow: one of full, fast is needed; see"),
        (("compare", "a", "b", "--out"), "--out stands without its value; see"),
        (("compare", "a", "b", "--out", "o", "--ange-k", "3"), "does not know --ange-k, 3; near to it: --angle-k; see"),
        (("compare", "a", "b", "--out", "o", "--eta", "2"), "eta = 2.0: a relative tolerance in [0, 1) is needed"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_said_in_one_plain_line(jaxgeom, arguments, words):
    said = jaxgeom(*arguments)
    assert words in said.out + said.err
    if arguments:
        assert said.status == 2 and said.err.count("\n") == 1 and said.out == ""
        assert said.err.startswith("jaxgeom: ") and "None}" not in said.err and len(said.err) < 200


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("compare", "x"), 2, "jaxgeom: compare needs FINAL, --out DIR; see"),
        (("train", "opd", "--help"), 0, "usage: jaxgeom train"),
    ],
)
def test_a_terminal_that_shows_ascii_alone(arguments, status, words):
    line, environment = command(*arguments)
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, (done.stdout + done.stderr).startswith(words)) == (status, True), done.stderr
