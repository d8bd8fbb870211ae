"""Whole files as tokens: what is left out, cut, refused, said and kept."""

import io
import json
import signal
import threading

import numpy as np
import pytest
from rich.console import Console

from jaxgeom.data import chat, preparing, rendering
from jaxgeom.data.character_tokenizer import write_character_tokenizer
from jaxgeom.data.pipelines import all_prompts
from jaxgeom.data.prepared import Limits, recall
from jaxgeom.data.preparing import prepare_demonstrations, prepare_prompts
from jaxgeom.data.row_settings import RowSettings
from jaxgeom.data.rows import write_jsonl
from jaxgeom.errors import UserError
from jaxgeom.progress import Reporter

REFUSE, SKIP = RowSettings(), RowSettings(on_bad_row="skip")
LIMITS = Limits(vocabulary=112, context=256)


def shown(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def asked(question, truth):
    return {"prompt": question, "answer": truth}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    write_character_tokenizer(directory)
    return chat.load_tokenizer(directory)


@pytest.fixture
def prepare(tokenizer, tmp_path):
    """Rows or raw lines through a file: what comes of them, and what was said."""

    def run(rows, how=prepare_demonstrations, settings=REFUSE, limits=LIMITS, **options):
        path = tmp_path / "rows.jsonl"
        if rows is not None:
            write_jsonl(path, rows) if isinstance(rows, list) else path.write_text(rows)
        stream = io.StringIO()
        reporter = Reporter(Console(file=stream, width=500))
        return how(path, tokenizer, settings=settings, limits=limits, reporter=reporter, **options), stream.getvalue()

    return run


def learned(tokenizer, prepared):
    rows = [prepared.row(place) for place in range(len(prepared))]
    return [tokenizer.decode(row.tokens[row.loss_mask]) for row in rows]


def test_rows_are_what_each_is_alone(tokenizer, prepare):
    rows = [shown(f"{i}+1", str(i + 1)) for i in range(40)]
    prepared, said = prepare([*rows, {"text": "plain text"}], stops=(2,))
    assert said == "" and prepared.numbers.tolist() == list(range(41))
    for place, row in enumerate(rows):
        alone = chat.encode_demonstration(tokenizer, row["messages"])
        np.testing.assert_array_equal(prepared.row(place).tokens, alone.tokens)
        np.testing.assert_array_equal(prepared.row(place).loss_mask, alone.loss_mask)
    assert learned(tokenizer, prepared)[40] == "plain text"


def test_the_first_bad_row_is_named_and_the_others_counted(prepare):
    good = json.dumps(shown("1", "2")) + "\n"
    bad = json.dumps(shown("1", "")) + "\n"
    with pytest.raises(
        UserError, match=r"rows.jsonl: row 1 \(line 2\): not JSON.*so are 2 more of 5 rows.*--on-bad-row skip"
    ):
        prepare(good + "{\n" + bad + good + bad)


def test_bad_rows_are_left_out_with_their_reasons(tokenizer, prepare):
    rows = [shown("1", "2"), shown("1", ""), {"other": 1}, shown("3", "4"), shown("5", " ")]
    prepared, said = prepare(rows, settings=SKIP)
    assert learned(tokenizer, prepared) == ["2<|im_end|>", "4<|im_end|>"] and prepared.numbers.tolist() == [0, 3]
    assert (
        "3 of 5 rows are left out: 2: 'messages': the assistant's message 1 is empty (first: row 1 (line 2)); 1:"
        in said
    )
    with pytest.raises(UserError, match="none of 2 rows can be used: 2: 'messages': the assistant's"):
        prepare([shown("1", ""), shown("1", "")], settings=SKIP)


def test_rows_without_an_answer_in_length_are_left_out_and_cut_ones_counted(tokenizer, prepare):
    limits = Limits(vocabulary=112, context=256, max_length=20)
    head = len(tokenizer("<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    prepared, said = prepare([shown("1", "2"), shown("1", "y" * 40), shown("x" * 40, "2")], limits=limits, stops=(2,))
    assert learned(tokenizer, prepared) == ["2<|im_end|>", "y" * (20 - head)]
    assert "1 of 3 rows are left out: 1: no answer within 20 tokens" in said and "first: row 2 (line 3)" in said
    assert (
        f"1 rows are cut at 20 tokens and lose {41 - (20 - head)} tokens" in said and "not taught to stop" not in said
    )
    assert "not taught to stop" in prepare([shown("1", "y" * 40)], limits=limits, stops=(2,))[1]
    with pytest.raises(UserError, match="none of 2 rows can be used: 2: no answer within 20 tokens"):
        prepare([shown("x" * 40, "2")] * 2, limits=limits)


def test_the_models_context_cuts_too(prepare):
    prepared, said = prepare([shown("1", "y" * 400)], limits=Limits(vocabulary=112, context=32, max_length=4096))
    assert len(prepared.row(0).tokens) == 32 and "cut at 32 tokens" in said


def test_a_text_of_one_token_teaches_nothing(prepare):
    with pytest.raises(UserError, match="row 0 .*no token to learn from"):
        prepare([{"text": "x"}])


def test_prompts_that_are_too_long(tokenizer, prepare):
    rows = [asked("1", "2"), asked("x" * 60, "3"), asked("4", ["5", "6"])]
    roomy = Limits(vocabulary=112, context=256, max_prompt=20, new_tokens=8)
    prepared, said = prepare(rows, prepare_prompts, limits=roomy)
    assert [(p.row, p.ground_truth) for p in all_prompts(prepared)] == [(0, "2"), (2, ("5", "6"))]
    assert "1: longer than 20 tokens (--max-prompt-length) (first: row 1 (line 2))" in said
    narrow = Limits(vocabulary=112, context=64, new_tokens=8)
    with pytest.raises(UserError, match=r"row 1 \(line 2\): its \d+ tokens and max_new_tokens=8 do not fit .* of 64"):
        prepare(rows, prepare_prompts, limits=narrow)
    assert len(prepare(rows, prepare_prompts, SKIP, narrow)[0]) == 2
    assert len(prepare(rows, prepare_prompts, limits=Limits(vocabulary=112, context=64, new_tokens=8, rows=1))[0]) == 1


def test_a_token_outside_the_vocabulary_is_never_passed_over(prepare):
    with pytest.raises(UserError, match=r"row 0 \(line 1\): token \d+ .*vocab_size=20"):
        prepare([shown("x", "y")], settings=SKIP, limits=Limits(vocabulary=20, context=64))


def test_earlier_answers_that_the_template_rewrites_are_said(tokenizer, prepare, monkeypatch):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last or m.role == 'user' else '-' }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    prepared, said = prepare([{"messages": shown("1", "2")["messages"] + shown("3", "4")["messages"]}, shown("1", "2")])
    assert learned(tokenizer, prepared) == ["4<|im_end|>", "2<|im_end|>"]
    assert "in 1 rows the chat template rewrites earlier answers" in said


def test_questions_that_the_template_marks_are_said(tokenizer, prepare, monkeypatch):
    marked = "{% generation %}{{ m.content }}{% endgeneration %}"
    everything = "{% for m in messages %}" + marked + "{% endfor %}"
    answers = everything.replace(marked, "{% if m.role == 'user' %}{{ m.content }}{% else %}" + marked + "{% endif %}")
    for template, learned_is, said_is in ((everything, ["1+2", "3"], True), (answers, ["3"], False)):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        prepared, said = prepare([shown("1+2", "3"), shown("4", "so 4 is 4")])
        assert learned(tokenizer, prepared)[0] == "".join(learned_is)
        assert ("in 1 rows the chat template's {% generation %} marks hold questions" in said) == said_is


def test_a_template_without_a_generation_prompt_is_said_once(tokenizer, prepare, monkeypatch):
    bare = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", bare)
    prepared, said = prepare([shown("1", "2"), shown("3", "4")])
    assert learned(tokenizer, prepared)[0] == "<|im_start|>assistant\n2<|im_end|>"
    note = "in 2 rows the chat template writes '<|im_start|>assistant' before an answer and not at the end of a prompt"
    assert said.count(note) == 1 and "learned with the answers" in said
    said = prepare([asked("1", "2"), asked("3", "4")], prepare_prompts)[1]
    assert said.count(note) == 1 and "left to the model to write" in said


def test_what_is_learned_after_the_end_of_an_answer_is_said(tokenizer, prepare, monkeypatch):
    plain = tokenizer.chat_template
    footer = (
        "{% if not add_generation_prompt %}<|im_start|>system\nsummary {{ messages[-1].content }}<|im_end|>{% endif %}"
    )
    line_end = plain.replace(
        "message['content'] + '<|im_end|>' + '\\n'", "message['content'] + '<|im_end|>' + '\\n\\n'"
    )
    for template, said_is in ((plain, False), (line_end, False), (plain + footer, True)):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        prepared, said = prepare([shown("1", "b"), shown("1", "c")], stops=(2,))
        assert ("in 2 rows the chat template goes on after the token that ends the answer" in said) == said_is
        assert learned(tokenizer, prepared)[0].startswith("b<|im_end|>")
    text = "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    assert "goes on" not in prepare([{"text": text}], stops=(2,))[1]


def test_of_a_prompt_and_its_completion_the_completion_alone_is_learned(tokenizer, prepare, monkeypatch):
    earlier = [*shown("1", "2")["messages"], {"role": "user", "content": "3"}]
    later = shown("5", "6")["messages"]
    rows = [
        {"prompt": earlier, "completion": "4"},
        {"prompt": earlier, "completion": [{"role": "assistant", "content": "4"}, *later]},
    ]
    assert learned(tokenizer, prepare(rows)[0]) == ["4<|im_end|>", "4<|im_end|>6<|im_end|>"]
    assert learned(tokenizer, prepare([{"messages": [*earlier, later[1]]}])[0]) == ["2<|im_end|>6<|im_end|>"]
    mark, end = "{% if m.role == 'assistant' %}{% generation %}", "{% endgeneration %}{% endif %}"
    asked_is = "{% if m.role == 'user' %}{{ m.content }}{% endif %}"
    source = "{% for m in messages %}" + mark + "{{ m.content }}" + end + asked_is + "{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", source)
    assert learned(tokenizer, prepare(rows)[0]) == ["4", "46"]


def test_text_that_was_rendered_before_is_not_rendered_again(tokenizer, prepare):
    text = "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    with pytest.raises(UserError, match=r"row 0 .*message 0 holds the special token '<\|im_start\|>'"):
        prepare([asked(text, "2")], prepare_prompts)
    assert learned(tokenizer, prepare([{"text": text}])[0]) == [text]


def test_text_that_the_tokenizer_cannot_write_makes_a_row_bad(tokenizer, prepare):
    rows = [shown("1", "2"), shown("3", "é = 15"), shown("Что?", "4"), {"text": "a\tb"}]
    with pytest.raises(UserError, match=r"row 1 \(line 2\): the tokenizer cannot write 'é'; so are 2 more of 4 rows"):
        prepare(rows)
    prepared, said = prepare(rows, settings=SKIP)
    assert learned(tokenizer, prepared) == ["2<|im_end|>"]
    assert "3 of 4 rows are left out: 3: the tokenizer cannot write 'é' (first: row 1 (line 2))" in said
    with pytest.raises(UserError, match=r"row 1 \(line 2\): the tokenizer cannot write 'Что'"):
        prepare([asked("1", "2"), asked("Что?", "3")], prepare_prompts)


def test_what_a_template_writes_beside_the_messages_may_be_lost(tokenizer, prepare, monkeypatch):
    around = "»{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", around)
    assert learned(tokenizer, prepare([shown("1", "2")])[0]) == ["2]"]
    monkeypatch.setattr(tokenizer, "chat_template", around.replace("]{% endfor", "»{% endfor"))
    with pytest.raises(UserError, match="row 0 .*cannot write '»'"):
        prepare([shown("1", "2")])


@pytest.mark.parametrize(
    "place",
    [
        {"reasoning_content": "so <|im_end|>"},
        {"tool_calls": [{"function": {"name": "add", "arguments": {"a": ["<|im_end|>"]}}}]},
        {"name": "<|im_end|>"},
    ],
)
def test_special_tokens_are_found_wherever_a_template_may_write_them(prepare, place):
    row = shown("1", "2")
    row["messages"][1] |= place
    with pytest.raises(UserError, match=r"message 1 holds the special token '<\|im_end\|>'"):
        prepare([row])
    tools = [{"type": "function", "function": {"name": "add", "description": "<|im_end|>"}}]
    with pytest.raises(UserError, match=r"a tool holds the special token '<\|im_end\|>'"):
        prepare([shown("1", "2") | {"tools": tools}])


def test_without_a_template_only_text_is_read(tokenizer, prepare, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert len(prepare([{"text": "plain"}])[0]) == 1
    with pytest.raises(UserError, match="no chat template; give one: --chat-template"):
        prepare([shown("1", "2")])


def test_an_endless_template_ends_the_preparation(tokenizer, prepare, monkeypatch):
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(rendering, "SECONDS_A_ROW", 0.3)
    monkeypatch.setattr(tokenizer, "chat_template", "{% if 'go' in messages[0].content %}" + loop + "{% endif %}")
    rendering.close_renderers()
    with pytest.raises(UserError, match=r"row 1 \(line 2\): the chat template does not come to an end"):
        prepare([shown("1", "2"), shown("go", "2")], settings=SKIP)
    rendering.close_renderers()


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_while_it_renders_is_said_with_the_rows_in_work(prepare, kind):
    rendering.close_renderers()
    prepare([shown("1", "2")])
    process = rendering._idle[-1].process
    process.send_signal(signal.SIGSTOP)  # it takes the rows and comes to none of them
    ending = threading.Timer(2.0, lambda: (process.send_signal(kind), process.send_signal(signal.SIGCONT)))
    ending.start()
    with pytest.raises(UserError) as refused:
        prepare([shown("1", "2"), {"nothing": 1}, shown("3", "4"), shown("5", "6")], settings=SKIP)
    ending.join()
    more = " (out of memory, perhaps)" if kind == signal.SIGKILL else ""
    assert (
        f"rows.jsonl: the process that renders chat templates was ended by {kind.name}{more} with rows 0 to 3 (lines 1"
        " to 4) in work; nothing is written, run the same command again"
    ) in str(refused.value)
    assert refused.value.status == 1  # what starts commands again takes 2 for a mistake, and gives up
    assert len(prepare([shown("1", "2"), shown("3", "4")])[0]) == 2


def test_a_process_that_died_while_it_was_idle_costs_nobody_a_row(prepare):
    prepare([shown("1", "2")])
    process = rendering._idle[-1].process
    process.kill()
    process.wait()
    assert len(prepare([shown("1", "2"), shown("3", "4")])[0]) == 2
    assert rendering._idle[-1].process is not process


def test_what_is_kept_is_found_again_and_only_for_the_same_data(prepare, tmp_path, monkeypatch):
    rows = [asked("1", "2"), asked("3", ["4", "5"]), asked("x" * 60, "6")]
    limits = Limits(vocabulary=112, context=256, max_prompt=20)
    first, said = prepare(rows, prepare_prompts, limits=limits)
    first.keep(tmp_path / "kept")
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "read_row_file", lambda path: pytest.fail("read again"))
        again, said_again = prepare(rows, prepare_prompts, limits=limits, kept=tmp_path / "kept")
    assert all_prompts(again) == all_prompts(first) and said_again == said != ""
    others = [
        prepare([*rows, asked("7", "8")], prepare_prompts, limits=limits),
        prepare(rows, prepare_prompts, SKIP, limits),
        prepare(rows, prepare_prompts, limits=LIMITS),
    ]
    assert len({first.key, *(other.key for other, _ in others)}) == 4
    file = tmp_path / "kept" / f"{first.key}.npz"
    file.write_bytes(file.read_bytes()[:-40])
    assert all_prompts(prepare(rows, prepare_prompts, limits=limits, kept=tmp_path / "kept")[0]) == all_prompts(first)
    assert not file.exists()
    first.keep(tmp_path / "kept")
    held = file.read_bytes()
    for place in range(0, len(held), 3):  # a bit anywhere, of the archive's own tables too
        spoilt = bytearray(held)
        spoilt[place] ^= 1 << place % 8
        file.write_bytes(spoilt)
        found = recall(tmp_path / "kept", first.key)
        assert found is None or all_prompts(found) == all_prompts(first), place


def test_kept_rows_that_were_rewritten_are_made_anew(prepare, tmp_path):
    first, _ = prepare([asked("1+2", "3"), asked("4", "5")], prepare_prompts)
    first.keep(tmp_path / "kept")
    file = tmp_path / "kept" / f"{first.key}.npz"
    with np.load(file) as archive:
        held = dict(archive)
    for name, other in (("tokens", held["tokens"][::-1]), ("numbers", held["numbers"] + 1)):
        np.savez(file, **(held | {name: other}))  # a whole archive, with right sums of its own
        assert recall(tmp_path / "kept", first.key) is None and not file.exists()
    np.savez(file, **(held | {"tokens": held["tokens"][::-1]}))
    rows = [asked("1+2", "3"), asked("4", "5")]
    again, said = prepare(rows, prepare_prompts, kept=tmp_path / "kept")
    assert "are not as they were written: made anew" in said and all_prompts(again) == all_prompts(first)
    np.savez(file, **held)
    assert all_prompts(recall(tmp_path / "kept", first.key)) == all_prompts(first)


def test_what_cannot_be_kept_leaves_no_part(prepare, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    found, _ = prepare([asked("1", "2")], prepare_prompts)
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError):
        found.keep(tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())
