"""One form out of the several in which data sets write conversations: messages with `role` and `content`, both text.

Read are the rows of TRL (`messages`; `prompt` and `completion`), of verl (`prompt`, `reward_model.ground_truth`) and of
ShareGPT (`conversations` with `from` and `value`). A row that could be meant in two ways is refused.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxgeom.data.templates import RowError
from jaxgeom.plain_json import TwiceError, read_json_text
from jaxgeom.rewards import (
    CodeTests,
    GroundTruth,
    Truth,
    allowed_answers,
    extract_answer,
    holds_tests,
    read_tests,
    read_truth,
    same_truth,
)

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
Need = Literal["needed", "optional", "unread"]
"""Whether a prompt must have a right answer: to be refused without, taken where it is there, or not looked at."""

_QUESTIONS = ("prompt", "problem", "question", "question_content")
_ANSWERS = ("ground_truth", "answer", "solution")
_GROUND_TRUTH = "reward_model.ground_truth"
_SHOWN = 60  # characters of a truth in a message
_PROGRAM = re.compile(r"```|\b(?:def|class|import|return|print|int main)\b")
_BESIDE_TEXT = (
    "instruction", "instructions", "input", "query", "questions", "answers", "response", "output", "target", "code",
    "program", "canonical_solution", "solutions", "chosen", "rejected", "tests", "test", "test_cases", "test_list",
    "input_output", "reward_model",
)  # fmt: skip
"""Columns beside a `text` by which it may be the question of an answer that stands elsewhere."""

_DEEPEST = 64
_LEFT_OUT = ("weight", "train", "loss", "trainable")
"""Fields by which other trainers leave a message out of the loss, where they are 0 or false."""

_THOUGHTS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Conversation:
    """What a row asks and answers.

    Attributes:
        messages: `{"role", "content"}` each, with `tool_calls` and thoughts where the row has them.
        tools: JSON schemas of the tools, or None.
        text: Plain text in place of messages, or None.
        ground_truth: Of a prompt, or None: answers or tests.
        teacher: Of a prompt, who teaches it: a name or a place; None where nothing says.
        asked: Of a demonstration, how many messages at the beginning are its `prompt`, of which nothing is learned.
    """

    messages: list[dict]
    tools: list[dict] | None = None
    text: str | None = None
    ground_truth: Truth | None = None
    teacher: str | int | None = None
    asked: int = 0


def read_demonstration(row: Mapping[str, Any]) -> Conversation:
    """A row to learn from by imitation.

    Args:
        row: with `messages`; `conversations` (ShareGPT); `prompt` and `completion`, messages or text, of
            which the completion alone is learned; or plain `text`.
            A null column is an absent one.

    Raises:
        RowError: none of these, several of them, or one that is not as it should be.
    """
    forms = [name for name in ("messages", "conversations", "completion", "text") if row.get(name) is not None]
    if len(forms) != 1:
        wanted = "'messages' (or 'conversations', 'prompt' and 'completion', 'text')"
        if not forms:
            raise RowError(f"has no {wanted}; it has {_columns(row)}")
        raise RowError(f"has {' and '.join(map(repr, forms))}: which is meant cannot be told; keep one of them")
    form = forms[0]
    if form == "text":
        beside = [name for name in (*_QUESTIONS, *_ANSWERS, *_BESIDE_TEXT) if row.get(name) is not None]
        if beside:
            raise RowError(
                f"has 'text' beside {' and '.join(map(repr, beside))}: whether 'text' is learned as it is, or is a"
                " prompt, cannot be told; 'prompt' and 'completion' say so, or keep 'text' alone"
            )
        return Conversation([], text=_text(row["text"], "'text'"))
    asked = 0
    if form == "completion":
        if row.get("prompt") is None:
            raise RowError("has 'completion' and no 'prompt'")
        messages = _messages(row["prompt"], "'prompt'", "user")
        asked = len(messages)
        if messages[-1]["role"] == "assistant":
            raise RowError(
                "'prompt' ends with an assistant message, which 'completion' cannot go on with; put the whole answer"
                " into 'completion'"
            )
        messages += _messages(row["completion"], "'completion'", "assistant")
    else:
        messages = _messages(row[form], repr(form))
        if form == "conversations" and isinstance(row.get("system"), str) and row["system"]:
            messages.insert(0, {"role": "system", "content": _text(row["system"], "'system'")})
    if not any(message["role"] == "assistant" for message in messages[asked:]):
        raise RowError(f"{form!r} has no assistant message to learn from")
    for place, message in enumerate(messages):
        empty = not any(message.get(key) for key in ("tool_calls", *_THOUGHTS)) and not message["content"].strip()
        if message["role"] == "assistant" and empty:
            raise RowError(f"{form!r}: the assistant's message {place} is empty")
    return Conversation(messages, _tools(row), asked=asked)


def unread_columns(row: Mapping[str, Any]) -> list[str]:
    """Columns with a value that `read_demonstration` does not look at, of a row that it takes."""
    form = next((name for name in ("messages", "conversations", "completion", "text") if row.get(name) is not None), "")
    read = {form} if form == "text" else {form, "tools"}
    read |= {"prompt"} if form == "completion" else {"system"} if form == "conversations" else set()
    return [str(name) for name, value in row.items() if name not in read and value is not None]


def read_prompt(row: Mapping[str, Any], *, truth: Need = "needed") -> Conversation:
    """A row to be answered.

    Args:
        row: with `prompt` (messages, or text, which is one user message), and the right answer as
            `reward_model.ground_truth`, `ground_truth`, `answer` or `solution`, or tests of a program in a form that
            `jaxgeom.rewards.read_tests` reads. `problem` or `question` may stand for `prompt`; `text` may beside the
            `test_list` of MBPP; and where no right answer is needed `messages` may: those before the last answer.
        truth: whether the right answer is needed. Where it is optional, a null or empty one is none.

    Raises:
        RowError: none of these, several of them, or one that is not as it should be.
    """
    questions = [name for name in _QUESTIONS if row.get(name) is not None]
    if "prompt" in questions:  # a prepared prompt beside the text that it was made of, as verl's data have it
        questions = ["prompt"]
    if not questions and isinstance(row.get("text"), str) and row.get("test_list") is not None:
        questions = ["text"]
    if len(questions) > 1:
        raise RowError(f"has {' and '.join(map(repr, questions))}: which is meant cannot be told; keep one of them")
    if questions:
        messages = _messages(row[questions[0]], repr(questions[0]), "user")
    elif truth != "needed" and row.get("messages") is not None:
        messages = _messages(row["messages"], "'messages'")
        answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        messages = messages[: answers[-1]] if answers else messages
        if not messages:
            raise RowError("'messages' has nothing before the answer")
    else:
        raise RowError(
            "has no 'prompt' (messages or text), nor 'problem', 'question', or 'text' with 'test_list'; it has"
            f" {_columns(row)}"
        )
    if messages[-1]["role"] == "assistant":
        raise RowError("the prompt ends with an assistant message: there is nothing to answer")
    if not any(message["content"].strip() for message in messages if message["role"] != "system"):
        raise RowError("the prompt is empty")
    found = None if truth == "unread" else _truth(row, truth)
    return Conversation(messages, _tools(row), ground_truth=found, teacher=_teacher(row))


def _teacher(row: Mapping[str, Any]) -> str | int | None:
    """The field `teacher`; what is no name and no place there is another thing's, as if it were not there."""
    value = row.get("teacher")
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _truth(row: Mapping[str, Any], need: Need) -> Truth | None:
    try:
        tests = read_tests(row)
        if tests is not None:
            _require_tests_alone(row, tests)
            return tests
    except RowError:
        raise
    except ValueError as error:
        raise RowError(f"tests: {error}") from error
    if need == "optional" and not _has_answer(row):
        return None
    try:
        return _answers(row)
    except ValueError as error:
        raise RowError(str(error)) from error


def _require_tests_alone(row: Mapping[str, Any], tests: CodeTests) -> None:
    """Refuses a right answer beside tests; a program there is one that passes them, and judges nothing."""
    reward = row.get("reward_model")
    reward = _parsed(reward) if isinstance(reward, str) else reward
    held = {name: row.get(name) for name in ("ground_truth", "answer")}
    if isinstance(reward, Mapping):
        held[_GROUND_TRUTH] = reward.get("ground_truth")
    for name, value in held.items():
        is_text = isinstance(value, str) and value.strip() and not _PROGRAM.search(value)
        if (is_text or (isinstance(value, int | float) and not isinstance(value, bool))) and not holds_tests(value):
            raise RowError(
                f"has {name!r} ({_short(str(value))}) beside tests of a program ({tests.summary()}): which is meant"
                " cannot be told"
            )


def _has_answer(row: Mapping[str, Any]) -> bool:
    """Whether a row has something, right or wrong, in a field that right answers stand in."""
    reward = row.get("reward_model")
    reward = _parsed(reward) if isinstance(reward, str) else reward
    held = [reward["ground_truth"]] if isinstance(reward, Mapping) and "ground_truth" in reward else []
    held += [row.get(name) for name in _ANSWERS]
    return not all(value is None or value == [] or (isinstance(value, str) and not value.strip()) for value in held)


def _answers(row: Mapping[str, Any]) -> GroundTruth:
    reward = row.get("reward_model")
    if isinstance(reward, str):
        reward = _parsed(reward)
    found: dict[str, GroundTruth] = {}
    if isinstance(reward, Mapping) and "ground_truth" in reward:
        found[_GROUND_TRUTH] = read_truth(reward["ground_truth"], f"'{_GROUND_TRUTH}'")
    for name in _ANSWERS:
        value = row.get(name)
        # Beside an answer an empty column says nothing, and a worked solution what it comes to, if it says that.
        if value is not None and not (found and (_is_empty(value) or (name == "solution" and _is_worked(value)))):
            found[name] = read_truth(value, repr(name))
    if not found:
        raise RowError(f"'{_GROUND_TRUTH}' is missing (and so are 'ground_truth', 'answer' and 'solution')")
    (first, truth), *others = found.items()
    for name, other in others:
        if truth != other and not same_truth(truth, other):
            raise RowError(
                f"has {first!r} ({_short(truth)}) and {name!r} ({_short(other)}), which differ: which is meant cannot"
                " be told"
            )
    return truth


def _is_empty(value: Any) -> bool:
    return value == [] or (isinstance(value, str) and not value.strip())


def _is_worked(solution: Any) -> bool:
    """Whether a solution is a text that does not say what it comes to, or no text at all."""
    if not isinstance(solution, str):
        return isinstance(solution, bool) or not isinstance(solution, int | float)
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", solution)
    return extract_answer(solution) is None and ("\n" in solution.strip() or len(words) >= 3)


def _short(truth: GroundTruth) -> str:
    """A truth in a message: what it comes to, where it is long."""
    shown = " or ".join(allowed_answers(truth)) if len(str(truth)) > _SHOWN else str(truth)
    return repr(shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…")


def _messages(value: Any, where: str, role: str | None = None) -> list[dict]:
    """A list of messages in the one form, which may be written out; other text is one message of `role`."""
    if isinstance(value, str):
        value = _written_messages(value) or value
    if isinstance(value, str) and role is not None:
        return [{"role": role, "content": _text(value, where)}]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise RowError(f"{where} must be a list of messages with 'role' and 'content'")
    return [_message(message, f"{where}: message {place}") for place, message in enumerate(value)]


def _message(message: Any, where: str) -> dict:
    if not isinstance(message, Mapping):
        raise RowError(f"{where} is no object with 'role' and 'content'")
    role, content = message.get("role"), message.get("content")
    if role is None and message.get("from") is not None:
        named, content = message["from"], message.get("value")
        role = _SHAREGPT_ROLES.get(named) if isinstance(named, str) else None
        if role is None:
            raise RowError(f"{where}: 'from' is {named!r}; known are {', '.join(_SHAREGPT_ROLES)}")
    if not isinstance(role, str) or not role:
        raise RowError(f"{where} has no 'role'")
    _text(role, f"{where}: 'role'")
    made: dict[str, Any] = {"role": role}
    calls = _calls(message.get("tool_calls"), where)
    thoughts = {key: _text(message[key], f"{where}: {key!r}") for key in _THOUGHTS if message.get(key)}
    if content is None and (calls or (thoughts and role == "assistant")):
        content = ""
    made["content"] = _content(content, where)
    for key in _LEFT_OUT:
        if role == "assistant" and message.get(key) is not None and not message[key]:
            raise RowError(
                f"{where}: {key!r} is {message[key]!r}: an answer that is not to be learned from, and every answer of a"
                " row is; split the row there"
            )
    # What else a message has (a name, a call's id) is for the template; a null is an absent field.
    others = {k: v for k, v in message.items() if k not in made and k not in ("from", "value", "tool_calls", "content")}
    made |= {key: _plain(value, f"{where}: {key!r}") for key, value in others.items() if value is not None} | thoughts
    return made | ({"tool_calls": calls} if calls else {})


def _content(content: Any, where: str) -> str:
    """Text, or the text of content parts put together."""
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        parts = []
        for part in content:
            kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
            if not isinstance(part, Mapping) or kind != "text":
                raise RowError(f"{where}: a content part is {kind!r}; only text can be learned from")
            parts.append(_text(part.get("text"), f"{where}: a content part's 'text'"))
        return "".join(parts)
    return _text(content, f"{where}: 'content'")


def _calls(calls: Any, where: str) -> list[dict]:
    if isinstance(calls, str):
        calls = _parsed(calls) if calls.strip() else None
    if calls is None or calls == []:
        return []
    called = [call.get("function", call) if isinstance(call, Mapping) else None for call in _sequence(calls)]
    if not called or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in called):
        raise RowError(f"{where}: 'tool_calls' must be a list of calls with a function's name")
    return [_plain(call, f"{where}: 'tool_calls'") for call in calls]


def _tools(row: Mapping[str, Any]) -> list[dict] | None:
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = _parsed(tools) if tools.strip() else None
    if tools is None or tools == []:
        return None
    entries = _sequence(tools)
    named = [tool.get("function", tool) if isinstance(tool, Mapping) else None for tool in entries]
    if not named or not all(isinstance(tool, Mapping) and isinstance(tool.get("name"), str) for tool in named):
        raise RowError("'tools' must be a list of JSON schemas, each with a function's name")
    return [_plain(tool, "'tools'") for tool in entries]


def _sequence(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else []


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{where} is {'null' if value is None else type(value).__name__}; it must be text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"{where} has half of a surrogate pair, which is no text") from error
    return value


def _plain(value: Any, where: str) -> Any:
    """A JSON value that a template can be given."""
    if _depth(value, _DEEPEST + 1) > _DEEPEST:
        raise RowError(f"{where} is nested too deeply")
    try:
        _text(json.dumps(value, ensure_ascii=False), where)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(f"{where} is no JSON value: {error}") from error
    return value


def _depth(value: Any, limit: int) -> int:
    """How deeply lists and objects are nested, at most `limit`."""
    if limit <= 0 or not isinstance(value, Mapping | list | tuple):
        return 0
    entries = value.values() if isinstance(value, Mapping) else value
    return 1 + max((_depth(entry, limit - 1) for entry in entries), default=0)


def _parsed(text: str) -> Any:
    try:
        return read_json_text(text)
    except TwiceError as error:
        raise RowError(str(error)) from error
    except (ValueError, RecursionError):
        return text


def _written_messages(text: str) -> list[dict] | None:
    """Messages that are written out as JSON, or as Python prints them; None for any other text."""
    if not (text.lstrip().startswith("[") and re.search(r"""["'](role|from)["']""", text)):
        return None
    for parse in (read_json_text, ast.literal_eval):
        try:
            found = parse(text.strip())
        except TwiceError as error:
            raise RowError(str(error)) from error
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and all(isinstance(m, dict) and m.keys() & {"role", "from"} for m in found):
            return found
    return None


def _columns(row: Mapping[str, Any]) -> str:
    names = [str(name) for name, value in row.items() if value is not None]
    if not names:
        return "no column with a value"
    return ", ".join(repr(name[:40]) for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
