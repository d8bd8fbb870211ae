"""Messages to text by a chat template, and which of the text the assistant wrote; also the program that does it.

The program (`python -P templates.py`) is run by path and imports nothing of jaxgeom, so that it starts without JAX. A
template is a program out of a downloaded file: it may loop for ever or ask for all memory, and only a process that can
be ended bounds it. See `rendering.py` for its other side.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_ASKING = ("system", "developer", "user")
_MEMORY = 512 << 20  # bytes that a template may take
_LONGEST_TEXT = 32 << 20  # characters that it may make


Part = tuple[str, int, int]
"""Where a conversation is marked: `message`, `call` or `tool`, the message's number, that of the call or the tool."""


class RowError(ValueError):
    """A row that cannot be used as it is; the message says what is wrong, without the row's place.

    Rows are counted together by `reason`, which is the message where none is given.
    """

    def __init__(self, message: str = "", *, reason: str = ""):
        super().__init__(message)
        self.reason = reason or message


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: What the template made.
        spans: Begin and end, in characters of `text`, of what the assistant writes.
        last_only: Whether earlier answers are left out of `spans`, because the template rewrites them.
        asked_too: Whether `spans` hold what the assistant was told or asked, because the template marks it.
        head: What the template writes before an answer and not at the end of a prompt, whatever it is told.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    last_only: bool = False
    asked_too: bool = False
    head: str = ""


class Template:
    """A chat template with its variables, and what was found out of it by marked conversations."""

    def __init__(self, source: str, variables: dict[str, Any]):
        self.source, self.variables = source, variables
        self.left_out: dict[Any, tuple[Part, ...]] = {}
        self.heads: dict[Any, str] = {}
        self.marks_answers = _GENERATION.search(source) is not None

    def render(self, messages: Sequence[dict], tools: Any, *, prompt: bool = False, marks: bool = False) -> Any:
        """The text; with `marks` also the spans that the template's `generation` blocks name.

        Raises:
            RowError: the template fails on these messages.
        """
        from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self.source,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=prompt,
                **self.variables,
            )
        except (TemplateSyntaxError, SecurityError, TimeoutError, MemoryError):
            raise
        except TemplateError as error:
            raise RowError(f"the chat template refuses it: {_first_line(error)}") from error
        # A template computes with what it finds in the messages: any exception of Python may come of it.
        except Exception as error:
            raise RowError(f"the chat template fails on it: {type(error).__name__}: {_first_line(error)}") from error
        return (texts[0], spans[0]) if marks else texts[0]


def render_prompt(template: Template, messages: Sequence[dict], tools: Any = None) -> Rendered:
    """The messages and the template's generation prompt.

    Raises:
        RowError: the template fails, or leaves out a message, a call or a tool.
    """
    text = template.render(messages, tools, prompt=True)
    _require_context(template, text, messages, tools, prompt=True)
    return Rendered(text, (), head=_head(template, messages, tools))


def render_demonstration(template: Template, messages: Sequence[dict], tools: Any = None, asked: int = 0) -> Rendered:
    """A conversation and the parts of it that the assistant writes; what follows the last answer is left out.

    Where the template marks them (`{% generation %}`), its marks are the parts. Else the part of an answer is the text
    between the rendering of the messages before it (with the generation prompt) and the rendering up to and with it;
    where that is not how an earlier answer stands in the whole, the last answer alone is a part.

    Args:
        template: the chat template.
        messages: `{"role", "content"}` each.
        tools: of the row.
        asked: so many messages at the beginning are a prompt, of which nothing is a part.

    Raises:
        RowError: no assistant message, a template that fails or leaves something out, whose marks are not on the last
            answer, whose generation prompt is not how it begins, or that asks for another after it.
    """
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant" and place >= asked]
    if not answers:
        raise RowError("has no assistant message to learn from")
    messages = messages[: answers[-1] + 1]
    if template.marks_answers:
        text, spans = template.render(messages, tools, marks=True)
        if asked:
            begin = len(_before(template, text, messages, answers[0], tools))
            spans = [(max(start, begin), end) for start, end in spans if end > begin]
        _require_context(template, text, messages, tools)
        _require_answer(text, messages[-1])
        marked = [_squash(text[begin:end]) for begin, end in spans]
        _require_marked("".join(marked), messages[-1])
        return Rendered(text, tuple((begin, end) for begin, end in spans), asked_too=_is_asked(marked, messages))
    text = template.render(messages, tools)
    _require_context(template, text, messages, tools)
    before = _before(template, text, messages, answers[-1], tools)
    begin = len(before)
    _require_answer(text[begin:], messages[-1])
    _require_end(template, text, before, messages, tools)
    # A newline that the template puts between turns is no token that the assistant writes.
    last = (begin, len(text.rstrip("\n")))
    head = _head(template, messages[:-1], tools)
    spans = []
    for place in answers[:-1]:
        try:
            before = _before(template, text, messages, place, tools)
            after = template.render(messages[: place + 1], tools)
            if not text.startswith(after):
                raise RowError("rewritten")
            _require_answer(after[len(before) :], messages[place])
        except RowError:
            return Rendered(text, (last,), last_only=True, head=head)
        spans.append((len(before), len(after.rstrip("\n"))))
    return Rendered(text, (*spans, last), head=head)


def _before(template: Template, text: str, messages: Sequence[dict], place: int, tools: Any) -> str:
    """What stands in `text` before the answer at `place`."""
    before = template.render(messages[:place], tools, prompt=True)
    if not text.startswith(before):
        raise RowError(
            f"the chat template does not begin message {place} as its generation prompt does, so that the assistant's"
            " tokens cannot be told apart; another template (--chat-template) or --template-argument may help"
        )
    return before


def _require_context(
    template: Template, text: str, messages: Sequence[dict], tools: Any, *, prompt: bool = False
) -> None:
    """What the model is asked, and every tool and call, stands in the text.

    That a message's words are found in the text says little (`hello` is in `hello world`, and `user` in any text of
    ChatML): a conversation of the same shape is rendered once with a mark in the place of each, and the marks must come
    through. Where one does not, and where the words are not found one after another, the row itself is marked.
    """
    squashed, begin, in_order = _squash(text), 0, True
    for place, message in enumerate(messages):
        content = message.get("content")
        # An answer's thoughts may go, that is what templates are for; a tool's output may be escaped.
        if message["role"] in _ASKING and isinstance(content, str):
            wanted = _squash(content)
            found = squashed.find(wanted, begin)
            if found < 0 and wanted not in squashed:
                raise RowError(_leaves_out(("message", place, 0), messages, tools))
            in_order, begin = in_order and found >= 0, max(begin, found + len(wanted))
        for number, name in enumerate(_call_names(message)):
            if name not in text:
                raise RowError(_leaves_out(("call", place, number), messages, tools))
    for number, tool in enumerate(tools or ()):
        name = tool.get("function", tool).get("name")
        if isinstance(name, str) and name not in text:
            raise RowError(_leaves_out(("tool", 0, number), messages, tools))
    shape = (prompt, len(tools or ()), *map(_shape, messages))
    if shape not in template.left_out:
        template.left_out[shape] = _unmarked(template, messages, tools, _parts(messages, tools, prompt), prompt)
    doubtful = template.left_out[shape]
    if not in_order:
        doubtful = _unmarked(template, messages, tools, _parts(messages, tools, prompt), prompt)
    for part in doubtful:
        if _unmarked(template, messages, tools, (part,), prompt):
            raise RowError(_leaves_out(part, messages, tools))


def _shape(message: dict) -> tuple:
    """What decides, besides its words, how a template takes a message."""
    fields = tuple(sorted(key for key, value in message.items() if value))
    return (message["role"], fields, len(message.get("tool_calls") or ()))


def _parts(messages: Sequence[dict], tools: Any, prompt: bool) -> tuple[Part, ...]:
    """What must not be left out: earlier answers among it where nothing else looks at them, in a prompt."""
    parts: list[Part] = [("tool", 0, number) for number in range(len(tools or ()))]
    for place, message in enumerate(messages):
        calls = _call_names(message)
        parts += [("call", place, number) for number in range(len(calls))]
        is_said = isinstance(message.get("content"), str) and message["content"].strip()
        if is_said and (message["role"] != "assistant" or (prompt and not calls)):
            parts.append(("message", place, 0))
    return tuple(parts)


def _unmarked(
    template: Template, messages: Sequence[dict], tools: Any, parts: Sequence[Part], prompt: bool
) -> tuple[Part, ...]:
    """Those of the parts whose mark, put in their place, is not in what the template makes; none where it fails."""
    messages, tools = list(messages), list(tools or ()) or None
    for part in parts:
        kind, place, number = part
        if kind == "message":
            messages[place] = messages[place] | {"content": _mark(part)}
        elif kind == "call":
            calls = list(messages[place]["tool_calls"])
            calls[number] = _renamed(calls[number], _mark(part))
            messages[place] = messages[place] | {"tool_calls": calls}
        elif tools is not None:
            tools[number] = _renamed(tools[number], _mark(part))
    try:
        text = template.render(messages, tools, prompt=prompt).lower()  # letters that it makes large are there
    except RowError:  # the row itself was rendered: it is the mark that the template stumbles over
        return ()
    return tuple(part for part in parts if _mark(part) not in text)


def _mark(part: Part) -> str:
    return f"q{part[0][0]}z{part[1]}x{part[2]}q"


def _renamed(entry: dict, name: str) -> dict:
    if "function" in entry:
        return entry | {"function": entry["function"] | {"name": name}}
    return entry | {"name": name}


def _leaves_out(part: Part, messages: Sequence[dict], tools: Any) -> str:
    kind, place, number = part
    if kind == "message":
        return f"the chat template leaves out message {place} ({messages[place]['role']}), or part of it"
    if kind == "call":
        return f"the chat template leaves out the tool call of message {place} ({_call_names(messages[place])[number]})"
    return f"the chat template leaves out the tool {tools[number].get('function', tools[number]).get('name')!r}"


def _head(template: Template, messages: Sequence[dict], tools: Any) -> str:
    """What stands before an answer to these messages and not at the end of them as a prompt; "" where it does."""
    shape = (len(tools or ()), *map(_shape, messages))
    if shape not in template.heads:
        mark = _mark(("message", len(messages), 0))
        try:
            asked = template.render(messages, tools, prompt=True)
            is_read = asked != template.render(messages, tools)
            shown = template.render([*messages, {"role": "assistant", "content": mark}], tools)
        except RowError:
            is_read, asked, shown = True, "", ""
        if is_read or not shown.startswith(asked):
            template.heads[shape] = ""
        else:
            template.heads[shape] = shown[len(asked) :].partition(mark)[0].strip()
    return template.heads[shape]


def _require_answer(part: str, message: dict) -> None:
    squashed = _squash(part)
    for key in ("content", *_REASONING):
        value = message.get(key)
        if isinstance(value, str) and _squash(value) not in squashed:
            raise RowError(
                f"the chat template leaves out a part of the last answer's {key} (a thought, perhaps);"
                " another template (--chat-template) may keep it"
            )
    for name in _call_names(message):
        if name not in part:
            raise RowError(f"the chat template leaves out the last answer's tool call ({name})")


def _require_marked(marked: str, message: dict) -> None:
    """The last answer is among what `generation` blocks name; its thoughts need not be."""
    answer = message["content"].rpartition("</think>")[2] if isinstance(message.get("content"), str) else ""
    if _squash(answer) not in marked:
        raise RowError("the chat template's {% generation %} marks leave out the last answer, or part of it")


def _is_asked(marked: Sequence[str], messages: Sequence[dict]) -> bool:
    """Whether a marked part holds a whole question or instruction, in other places than where an answer repeats it."""
    answers = [_squash(str(value)) for m in messages if m["role"] == "assistant" for value in m.values()]
    asked = [_squash(m["content"]) for m in messages if m["role"] in ("system", "user") and m.get("content")]
    return any(one in part and not any(one in answer for answer in answers) for one in asked for part in marked if one)


def _require_end(template: Template, text: str, before: str, messages: Sequence[dict], tools: Any) -> None:
    """A text ends with its last answer, where the template may write its generation prompt whatever it is told."""
    if "add_generation_prompt" in template.source or not os.path.commonprefix([text[::-1], before[::-1]]).strip():
        return
    try:
        after = template.render([*messages, {"role": "user", "content": "and"}], tools)
    except RowError:  # what a template refuses says nothing of how it ends
        return
    if not after.startswith(text.rstrip("\n")):
        raise RowError(
            "the chat template asks for another answer after the last one, which would be learned too: it does not read"
            " add_generation_prompt; another template (--chat-template) may"
        )


def _call_names(message: dict) -> list[str]:
    names = [call.get("function", call).get("name") for call in message.get("tool_calls") or ()]
    return [name for name in names if isinstance(name, str)]


def _squash(text: str) -> str:
    """Without white space, which templates trim and add."""
    return "".join(text.split())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


def main() -> None:
    """Serves requests until standard input closes: a JSON line with a template and rows in, a JSON line a row out."""
    seconds = float(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from jinja2.exceptions import SecurityError, TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template  # noqa: F401  loaded before the limits

    signal.signal(signal.SIGVTALRM, _give_up)
    _limit_memory()
    os.dup2(
        os.open(os.devnull, os.O_WRONLY), 2
    )  # until here a complaint reaches the parent; now nobody reads that pipe
    replies.write("ready\n")
    template = Template("", {})
    for line in sys.stdin:
        request = json.loads(line)
        if (template.source, template.variables) != (request["template"], request["variables"]):
            template = Template(request["template"], request["variables"])
        work: Callable[..., Rendered] = render_prompt if request["prompts"] else render_demonstration
        for row in request["rows"]:
            # Processor time, so that a busy machine changes nothing. The first timer raises; what no Python handler can
            # interrupt is ended by the second, whose default action kills the process.
            signal.setitimer(signal.ITIMER_PROF, 1.25 * seconds + 1.0)
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.2)
            try:
                done = work(template, *row)
                if len(done.text) > _LONGEST_TEXT:
                    raise MemoryError
                reply = {
                    "text": done.text,
                    "spans": done.spans,
                    "last_only": done.last_only,
                    "asked_too": done.asked_too,
                    "head": done.head,
                }
            except RowError as error:
                reply = {"bad": str(error)}
            except (TemplateSyntaxError, SecurityError) as error:
                reply = {"fatal": f"the chat template is not usable: {_first_line(error)}"}
            except TimeoutError:
                reply = {"endless": True}
            except MemoryError:
                reply = {"bad": "the chat template needs too much memory"}
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            replies.write(json.dumps(reply) + "\n")


def _give_up(_signal: int, _frame: object) -> None:
    raise TimeoutError


def _limit_memory() -> None:
    import resource

    try:
        # Beyond what the interpreter and its packages have mapped by now.
        with open("/proc/self/statm", encoding="ascii") as file:
            limit = int(file.read().split()[0]) * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (ValueError, OSError):  # where the system knows no such limit, time alone bounds it
        return


if __name__ == "__main__":
    main()
