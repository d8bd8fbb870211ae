"""Chat templates as they are found: which answers are learned from, and what is refused."""

import random

import pytest

from jaxgeom.data import chat, rendering, templates
from jaxgeom.data.character_tokenizer import write_character_tokenizer
from jaxgeom.data.chat import with_defaults
from jaxgeom.data.templates import RowError, Template, render_demonstration, render_prompt
from jaxgeom.errors import UserError

HEAD = "{{- '<|im_start|>' + m.role + '\\n' -}}"
PROMPT = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
PLAIN = "{%- for m in messages -%}" + HEAD + "{{- m.content + '<|im_end|>\\n' -}}{%- endfor -%}" + PROMPT
# What Qwen3's does: only the answer to the last question keeps its thought; one without a thought gets an empty one.
THINKING = (
    "{%- set at = namespace(asked=-1) -%}"
    "{%- for m in messages if m.role == 'user' -%}{%- set at.asked = at.asked + 1 -%}{%- endfor -%}"
    "{%- set seen = namespace(users=-1) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set seen.users = seen.users + 1 -%}{%- endif -%}"
    + HEAD
    + "{%- if m.role == 'assistant' -%}{%- set parts = m.content.split('</think>') -%}"
    "{%- set thought = parts[0].split('<think>')[-1] | trim if parts | length > 1 else '' -%}"
    "{%- if seen.users == at.asked -%}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}{%- endif -%}"
    "{{- parts[-1].lstrip() -}}{%- else -%}{{- m.content -}}{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}"
    "{%- endif -%}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}[{% generation %}{{ m.content }}{% endgeneration %}]"
    "{% else %}({{ m.content }}){% endif %}{% endfor %}"
)

BRACKETS = (
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{{- '[INST] ' + m.content + ' [/INST]' -}}"
    "{%- else -%}{{- ' ' + m.content + '</s>' -}}{%- endif -%}{%- endfor -%}"
)


def talk(*contents, first="user"):
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]


def parts(source, messages, tools=None, **variables):
    rendered = render_demonstration(Template(source, variables), messages, tools)
    return [rendered.text[begin:end] for begin, end in rendered.spans], rendered.last_only


@pytest.mark.parametrize(
    ("source", "messages", "learned", "last_only"),
    [
        (PLAIN, talk("1", "2", "3", "4"), ["2<|im_end|>", "4<|im_end|>"], False),
        (PLAIN, talk("1", "2", "3"), ["2<|im_end|>"], False),
        (PLAIN, talk("1", "2", "3", first="assistant"), ["1<|im_end|>", "3<|im_end|>"], False),
        (THINKING, talk("1", "2"), ["<think>\n\n</think>\n\n2<|im_end|>"], False),
        (THINKING, talk("1", "2", "3", "4"), ["<think>\n\n</think>\n\n4<|im_end|>"], True),
        (THINKING, talk("1", "<think>\na\n</think>\n\n2", "3", "<think>\nb\n</think>\n\n4"),
         ["<think>\nb\n</think>\n\n4<|im_end|>"], True),
        (MARKED, talk("1", "2", "3", "4"), ["2", "4"], False),
        (PLAIN.replace("m.content", "m.content | trim"), talk(" 1 ", " 2 \n"), ["2<|im_end|>"], False),
        # Templates that have no generation prompt: the model writes the answer's head, or there is none.
        (PLAIN.removesuffix(PROMPT), talk("1", "2"), ["<|im_start|>assistant\n2<|im_end|>"], False),
        (BRACKETS, talk("1", "2", "3", "4"), [" 2</s>", " 4</s>"], False),
        # A thought may be left out of the marks; the answer may not.
        (MARKED.replace("{% generation %}{{ m.content }}", "{{ m.content[:16] }}{% generation %}{{ m.content[16:] }}"),
         talk("1", "<think>a</think>2"), ["2"], False),
    ],
)  # fmt: skip
def test_what_is_learned_from(source, messages, learned, last_only):
    assert parts(source, messages) == (learned, last_only)


def keeping(*places):
    """Writes the questions at these places alone, which it tells by their number and never by their words."""
    kept = "{%- if loop.index0 in " + str(list(places)) + " or m.role == 'assistant' -%}"
    body = HEAD + "{{- m.content + '<|im_end|>\\n' -}}"
    return "{%- for m in messages -%}" + kept + body + "{%- endif -%}{%- endfor -%}" + PROMPT


@pytest.mark.parametrize("seed", range(3))
def test_a_message_that_is_left_out_is_found_whatever_its_words_are(seed):
    """Words that stand in other messages, in answers and in what the template writes; against the places kept."""
    generator = random.Random(seed)
    words = ["hello", "hello world", "user", "im_start", "a", "system user", "hi", "1"]
    for _ in range(150):
        asking = generator.choice((["system", "user"], ["user"], ["developer", "user"]))
        roles = [*asking, *("assistant", "user") * generator.randrange(3)]
        messages = [{"role": role, "content": generator.choice(words)} for role in roles]
        asked = [place for place, role in enumerate(roles) if role != "assistant"]
        kept = [place for place in asked if generator.random() < 0.7]
        template = Template(keeping(*kept), {})
        if kept == asked:
            assert render_prompt(template, messages).text.count("<|im_end|>") == len(messages)
        else:
            with pytest.raises(RowError, match=r"leaves out message \d \((system|developer|user)\), or part of it"):
                render_prompt(template, messages)


def test_messages_that_the_template_moves_joins_or_writes_large_are_there():
    rest, end = "{{ messages[1:] | map(attribute='content') | join(' ') }}", "{{ 'A:' if add_generation_prompt }}"
    joined = rest + " ({{ messages[0].content }})" + end
    for content in ("hello", "world", "user"):
        messages = [{"role": "system", "content": content}, {"role": "user", "content": "hello world"}]
        assert render_prompt(Template(joined, {}), messages).text == f"hello world ({content})A:"
    large = PLAIN.replace("m.content", "m.content | upper")
    assert "12 + 3" in render_prompt(Template(large, {}), talk("12 + 3")).text


def test_an_earlier_answer_and_a_name_that_are_left_out_of_a_prompt_are_found():
    asked = PLAIN.replace("for m in messages", "for m in messages if m.role == 'user'")
    with pytest.raises(RowError, match=r"leaves out message 1 \(assistant\)"):
        render_prompt(Template(asked, {}), talk("say hi", "hi", "hi"))
    tools = [{"type": "function", "function": {"name": "add"}}]
    called = talk("add 1", "2", "and?")
    called[1]["tool_calls"] = [{"function": {"name": "add", "arguments": {}}}]
    with pytest.raises(RowError, match="leaves out the tool 'add'"):
        render_prompt(Template(PLAIN, {}), talk("add 1"), tools)
    with pytest.raises(RowError, match=r"leaves out the tool call of message 1 \(add\)"):
        render_prompt(Template(PLAIN, {}), called)
    written = PLAIN.replace(
        "{{- m.content", "{%- for c in m.tool_calls or [] -%}{{- c.function.name -}}{%- endfor -%}{{- m.content"
    )
    assert "assistant\nadd2" in render_prompt(Template(written, {}), called).text


def test_what_stands_before_answers_alone_is_told_from_a_generation_prompt():
    heads = {
        PLAIN: "",
        PLAIN.removesuffix(PROMPT): "<|im_start|>assistant",
        THINKING: "",  # its empty thought is the answer's, where the prompt has a head
        BRACKETS: "",
    }
    for source, head in heads.items():
        assert render_prompt(Template(source, {}), talk("1")).head == head
        assert render_demonstration(Template(source, {}), talk("1", "2", "3", "4")).head == head


def test_an_argument_of_the_template_reaches_it():
    prompt = render_prompt(Template(THINKING, {"enable_thinking": False}), talk("1"))
    assert prompt.text.endswith("assistant\n<think>\n\n</think>\n\n")
    assert parts(THINKING, talk("1", "2"), enable_thinking=False) == (["2<|im_end|>"], False)


@pytest.mark.parametrize(
    "front", ["", "\n", "  {% if true %}x{% endif %}\n", "{% macro f() %}{{ a | tojson }}{% endmacro %}{{ f() }}"]
)
@pytest.mark.parametrize(
    "value", [False, None, 3, -1e-7, 'it\'s "\\n" \n { é 🙂 {{', ["x", {"y": None}], {"k": [True]}]
)
def test_arguments_of_the_templates_own_are_as_if_they_were_given(front, value):
    source = front + "{{ a | tojson }}{% for m in messages %}{{ a | tojson }}{{ m.content }}{% endfor %}{{ b }}"
    own = with_defaults(source, {"a": value, "b": "B"})
    given = {"a": value, "b": "B"}
    for changed in ({}, {"a": 7}):
        assert render_prompt(Template(own, changed), talk("1")) == render_prompt(
            Template(source, given | changed), talk("1")
        )
    assert with_defaults(own, given) == own and with_defaults(source, {}) == source


@pytest.mark.parametrize(
    ("source", "messages", "words"),
    [
        (PLAIN, talk("1"), "no assistant message"),
        ("{{ raise_exception('no system here') }}", talk("1", "2"), "refuses it: no system here"),
        ("{{ messages[7].content + 1 }}", talk("1", "2"), "no element 7"),
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", talk("1", "2"), "fails on it: TypeError"),
        (PLAIN, talk("1") + [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}],
         "leaves out the tool call of message 1"),
        (PLAIN.replace("in messages", "in messages if m.role != 'system'"),
         [{"role": "system", "content": "be brief"}, *talk("1", "2")], "leaves out message 0 .system."),
        # Opens a thought that the rendered answer does not have.
        (PLAIN.replace("assistant\\n'", "assistant\\n<think>\\n'"), talk("1", "2"), "does not begin message 1"),
        # Drops the thought of the very answer that is to be learned from.
        (PLAIN.replace("m.content", "m.content.split('</think>')[-1]"), talk("1", "<think>a</think>2"),
         "leaves out a part of the last answer's content"),
        (PLAIN, talk("1") + [{"role": "assistant", "content": "2", "reasoning_content": "add"}],
         "leaves out a part of the last answer's reasoning_content"),
        ("{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}", talk("1", "2"), "not begin message 1"),
        (MARKED.replace("{{ m.content }}{% end", "{% end"), talk("1", "2"), "leaves out a part of the last answer"),
        # Marks on the question, in place of the answer.
        (MARKED.replace("'assistant'", "'user'"), talk("1", "2"), "marks leave out the last answer"),
        # Writes its generation prompt whatever it is told: the head of another answer would be learned.
        (PLAIN.removesuffix(PROMPT) + "{{- '<|im_start|>assistant\n' -}}", talk("1", "2"), "asks for another answer"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_says_why(source, messages, words):
    with pytest.raises(RowError, match=words):
        parts(source, messages)


def test_tools_that_the_template_does_not_know_are_not_lost_silently():
    tools = [{"type": "function", "function": {"name": "add"}}]
    with pytest.raises(RowError, match="leaves out the tool 'add'"):
        parts(PLAIN, talk("1", "2"), tools)
    assert parts("{{ tools | tojson }}" + PLAIN, talk("1", "2"), tools) == (["2<|im_end|>"], False)


def test_many_rows_are_those_rendered_one_by_one():
    template = Template(THINKING, {})
    rows = [(talk(str(i), str(i + 1), "x", "y") if i % 3 else talk("only asked"), None) for i in range(600)]
    found = [one for chunk in rendering.render_rows(template, rows, prompts=False) for _, one in chunk]
    assert len(found) == len(rows)
    for (messages, _), one in zip(rows, found, strict=True):
        if isinstance(one, RowError):
            assert len(messages) == 1 and "assistant" in str(one)
        else:
            assert one == render_demonstration(template, messages)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** (9 ** 9)) }}",
    ],
)
def test_a_template_without_end_is_ended(monkeypatch, source):
    monkeypatch.setattr(rendering, "SECONDS_A_ROW", 0.5)
    rendering.close_renderers()
    (chunk,) = rendering.render_rows(Template(source + PLAIN, {}), [(talk("1", "2"), None)] * 3, prompts=False)
    assert len(chunk) == 1 and "does not come to an end" in str(chunk[0][1])
    rendering.close_renderers()


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 11 }}",
        "{% set x = namespace(s='aa') %}{% for i in range(99) %}{% set x.s = x.s ~ x.s %}{% endfor %}",
        "{{ 'a' * 10 ** 8 }}",
    ],
)
def test_a_template_that_takes_all_memory_is_ended(source):
    (chunk,) = rendering.render_rows(Template(source, {}), [(talk("1", "2"), None)], prompts=False)
    assert "memory" in str(chunk[0][1]) or "end" in str(chunk[0][1])


def test_a_template_has_seconds_and_half_a_gigabyte():
    """What a row may take before it is refused, so that a bad template is refused while one waits for it."""
    assert rendering.SECONDS_A_ROW <= 3 and templates._MEMORY <= 1 << 29


def test_a_template_that_is_none_is_refused():
    with pytest.raises(UserError, match="not usable"):
        list(rendering.render_rows(Template("{% for m in %}", {}), [(talk("1", "2"), None)], prompts=False))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_character_tokenizer(folder)
    return folder


def test_a_template_of_ones_own_and_its_arguments(directory, tmp_path):
    (tmp_path / "mine.jinja").write_text(THINKING)
    tokenizer = chat.load_tokenizer(directory, chat_template=tmp_path / "mine.jinja")
    for value in ("false", "False"):
        variables = chat.chat_format(tokenizer, [f"enable_thinking={value}"]).plain.variables
        assert variables["enable_thinking"] is False and variables["eos_token"] == "<|im_end|>"
    for argument, words in (
        ("enable_thinkin=1", "does not read it"),
        ("thinking", "NAME=VALUE"),
        ("messages=1", "rows"),
    ):
        with pytest.raises(UserError, match=words):
            chat.chat_format(tokenizer, [argument])
    with pytest.raises(UserError, match="absent.jinja"):
        chat.load_tokenizer(directory, chat_template=tmp_path / "absent.jinja")


def test_stop_tokens_are_the_union_of_all_that_are_declared(directory, tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    declared = chat.declared_stop_tokens(tmp_path)
    assert declared == (5, 7, 9)
    assert chat.stop_tokens(chat.load_tokenizer(directory), declared) == (2, 5, 7, 9)
    for content in ("null", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match="config.json: holds no JSON object"):
            chat.declared_stop_tokens(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(UserError, match="config.json: eos_token_id='x'"):
        chat.declared_stop_tokens(tmp_path)
