"""Tests of programs, in the forms that data sets have: DeepCoder, TACO and APPS, LiveCodeBench, MBPP."""

import base64
import dataclasses
import io
import json
import pickle
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgeom.plain_json import TwiceError, read_json_text

from . import code_values
from .code_asserts import Call, calls_of, json_of

_COLUMNS = ("tests", "input_output", "test_list", "public_test_cases", "private_test_cases")
_LONGEST_INPUT = 30 * 2**20
_LONGEST_PACKED = 2**30


@dataclass(frozen=True)
class FunctionCase:
    """A case that calls functions.

    Attributes:
        calls: Of the program's functions.
        check: An expression over their results; None where the one result is compared with `allowed`.
        allowed: JSON of right results, of which one is enough, as `code_values.encode` writes it.
    """

    calls: tuple[Call, ...]
    check: str | None = None
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class CodeTests:
    """What a program must do: all of it.

    Attributes:
        scripts: Pairs of standard input and standard output of the program run as a script.
        functions: Cases that call its functions.
    """

    scripts: tuple[tuple[str, str], ...] = ()
    functions: tuple[FunctionCase, ...] = ()

    @classmethod
    def of(cls, tests: Any) -> "CodeTests":
        """Tests in any of the forms: a list of cases, `inputs` and `outputs`, asserts; or JSON of one of these.

        Raises:
            ValueError: what is wrong with them.
        """
        scripts: list[tuple[str, str]] = []
        functions: list[FunctionCase] = []
        _add(_plain(tests), scripts, functions, None)
        if not scripts and not functions:
            raise ValueError("there is no test")
        if any(len(text) > _LONGEST_INPUT for text, _ in scripts):
            raise ValueError("an input of a test is longer than 30 MiB")
        return cls(tuple(scripts), tuple(functions))

    def to_json(self) -> Any:
        """As JSON; `from_json` reads it."""
        return {"scripts": self.scripts, "functions": [dataclasses.asdict(case) for case in self.functions]}

    @classmethod
    def from_json(cls, value: Any) -> "CodeTests":
        """What `to_json` wrote."""
        functions = (
            FunctionCase(tuple(Call(**call) for call in case["calls"]), case["check"], tuple(case["allowed"]))
            for case in value["functions"]
        )
        return cls(tuple((given, right) for given, right in value["scripts"]), tuple(functions))

    def summary(self) -> str:
        """A few words for the log of samples."""
        return f"{len(self.scripts)} runs and {len(self.functions)} function cases"


def read_tests(row: Mapping[str, Any]) -> CodeTests | None:
    """The tests of a row of a data set, or None where it has none.

    They are looked for in `reward_model.ground_truth` and in the columns `tests` (DeepCoder), `input_output` (TACO,
    APPS), `test_list` (MBPP), `public_test_cases` with `private_test_cases` (LiveCodeBench).

    Args:
        row: one row.

    Raises:
        ValueError: what is wrong with its tests.
    """
    reward = row.get("reward_model")
    truth = reward.get("ground_truth") if isinstance(reward, Mapping) else None
    found = [column for column in _COLUMNS if _holds_something(row.get(column))]
    if holds_tests(truth):
        given = CodeTests.of(truth)
        if found:
            _require_no_contradiction(given, row, found)
        return given
    return _of_columns(row, found) if found else None


def _require_no_contradiction(given: CodeTests, row: Mapping[str, Any], columns: list[str]) -> None:
    """Refuses columns that want another output for an input that `reward_model.ground_truth` has too."""
    try:
        beside = _of_columns(row, columns)
    except ValueError:  # columns of another meaning, which were not asked for
        return
    outputs = dict(given.scripts)
    results = {case.calls: case.allowed for case in given.functions if case.check is None}
    differ = any(outputs.get(entered, right) != right for entered, right in beside.scripts) or any(
        case.check is None and results.get(case.calls, case.allowed) != case.allowed for case in beside.functions
    )
    if differ:
        raise ValueError(
            f"'reward_model.ground_truth' and {' and '.join(map(repr, columns))} want different outputs for the same"
            " input: which is meant cannot be told"
        )


def _of_columns(row: Mapping[str, Any], found: list[str]) -> CodeTests:
    name = _function_name(row.get("metadata"))
    scripts: list[tuple[str, str]] = []
    functions: list[FunctionCase] = []
    for column in found:
        tests = row[column]
        if column == "private_test_cases":
            tests = _unpacked(tests)
        _add(_plain(tests), scripts, functions, name)
    if not scripts and not functions:
        raise ValueError("there is no test")
    setup = row.get("test_setup_code")
    if isinstance(setup, str) and setup.strip():
        _need_imports_alone(setup)
    return CodeTests(tuple(scripts), tuple(functions))


def _holds_something(value: Any) -> bool:
    return value is not None and not (hasattr(value, "__len__") and len(value) == 0)


def holds_tests(truth: Any) -> bool:
    """Whether a value of `reward_model.ground_truth` is tests of a program, rather than an answer.

    Raises:
        ValueError: it is JSON that says two things of one name.
    """
    try:
        truth = _plain(truth)
    except TwiceError:
        raise
    except ValueError:
        return False
    if isinstance(truth, Mapping):
        return "inputs" in truth and "outputs" in truth
    if isinstance(truth, str):
        return truth.lstrip().startswith("assert ")
    if not isinstance(truth, Sequence) or not truth:
        return False
    return all(isinstance(case, Mapping) and "input" in case and "output" in case for case in truth) or all(
        isinstance(case, str) and case.lstrip().startswith("assert ") for case in truth
    )


def _plain(tests: Any) -> Any:
    """Tests that may stand as JSON in a text."""
    if isinstance(tests, str) and tests.lstrip()[:1] in ("[", "{", '"'):
        try:
            return _plain(read_json_text(tests))
        except TwiceError:
            raise
        except (ValueError, RecursionError) as error:
            raise ValueError("the tests are no JSON") from error
    return tests.tolist() if isinstance(tests, np.ndarray) else tests


def _add(tests: Any, scripts: list[tuple[str, str]], functions: list[FunctionCase], name: str | None) -> None:
    if isinstance(tests, str):
        functions += [FunctionCase(calls, check) for calls, check in calls_of(tests)]
    elif isinstance(tests, Mapping):
        inputs, outputs = _plain(tests.get("inputs")), _plain(tests.get("outputs"))
        if not isinstance(inputs, Sequence) or not isinstance(outputs, Sequence) or len(inputs) != len(outputs):
            raise ValueError("'inputs' and 'outputs' are not two lists of one length")
        name = tests.get("fn_name") or name
        for given, right in zip(inputs, outputs, strict=True):
            if name:
                functions.append(_function_case(name, given, right))
            else:
                scripts.append((_lines(given), _lines(right)))
    elif isinstance(tests, Sequence):
        for case in tests:
            if isinstance(case, str):
                _add(case, scripts, functions, name)
                continue
            if not isinstance(case, Mapping) or "input" not in case or "output" not in case:
                raise ValueError("a test has no 'input' and 'output'")
            kind = case.get("testtype") or case.get("type") or ""
            own = case.get("fn_name") or _function_name(case.get("metadata")) or name
            if kind in ("functional", "function_call") or (own and kind not in ("stdin", "stdin_stdout")):
                if not own:
                    raise ValueError("a test of a function does not name it ('fn_name', 'metadata.func_name')")
                functions.append(_function_case(own, case["input"], case["output"]))
            elif kind in ("", "stdin", "stdin_stdout"):
                scripts.append((_lines(case["input"]), _lines(case["output"])))
            else:
                raise ValueError(f"a test is of the unknown kind {kind!r}")
    else:
        raise ValueError(f"tests of type {type(tests).__name__} are not read")


def _function_case(name: str, given: Any, right: Any) -> FunctionCase:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{name!r} is no name of a function")
    try:
        if isinstance(given, str):  # LiveCodeBench: an argument a line, as JSON
            arguments = [json.loads(line) for line in given.split("\n") if line.strip()]
        else:
            arguments = list(given) if isinstance(given, Sequence) else [given]
    except (ValueError, RecursionError) as error:
        raise ValueError("arguments of a test are no JSON, one a line") from error
    if isinstance(right, str) and isinstance(given, str):
        try:
            right = json.loads(right)
        except (ValueError, RecursionError) as error:
            raise ValueError("an output of a test is no JSON") from error
        allowed = [right]
    else:
        # TACO and APPS put the result into a list of one; which of the two is meant does not stand there.
        allowed = [right, right[0]] if isinstance(right, list) and len(right) == 1 else [right]
    call = Call(name, json_of([[code_values.encode(argument) for argument in arguments], {}]))
    return FunctionCase((call,), None, tuple(json_of(code_values.encode(value)) for value in allowed))


def _lines(text: Any) -> str:
    if isinstance(text, str):
        return text
    if isinstance(text, Sequence) and all(isinstance(line, str) for line in text):
        return "\n".join(text)
    if isinstance(text, int | float):
        return str(text)
    raise ValueError("an input or output of a test is no text")


def _function_name(metadata: Any) -> str | None:
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except (ValueError, RecursionError):
            return None
    name = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    return name if isinstance(name, str) and name else None


def _unpacked(tests: Any) -> Any:
    """LiveCodeBench's private tests: JSON, or JSON pickled, deflated and in base64."""
    if not isinstance(tests, str) or tests.lstrip()[:1] in ("[", "{"):
        return tests
    try:
        inflater = zlib.decompressobj()
        content = inflater.decompress(base64.b64decode(tests, validate=True), _LONGEST_PACKED)
        return _TextUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # what a pickle of anything else raises is not limited
        raise ValueError("'private_test_cases' are neither JSON nor packed as LiveCodeBench packs them") from error


class _TextUnpickler(pickle.Unpickler):
    """Reads a pickled text; a pickle that names any class or function is refused before it is called."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} in a pickle of text")


def _need_imports_alone(setup: str) -> None:
    try:
        calls_of(setup)
    except ValueError as error:
        raise ValueError("'test_setup_code' is more than imports; it would run where the answers are") from error
