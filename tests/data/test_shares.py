"""Rows that several processes make by shares: what one makes of all of them, to the last bit and word."""

import functools
import io
import json
import random
import signal
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from jaxgeom import gathering, processes
from jaxgeom.data import chat, preparing, rendering
from jaxgeom.data.character_tokenizer import write_character_tokenizer
from jaxgeom.data.prepared import Limits, Prepared
from jaxgeom.data.preparing import prepare_demonstrations, prepare_prompts
from jaxgeom.data.row_settings import RowSettings
from jaxgeom.data.rows import Row
from jaxgeom.data.shares import Asked, Reason, Share, count_row, of_all
from jaxgeom.errors import UserError
from jaxgeom.progress import Reporter
from tests import simulated

REFUSE, SKIP = RowSettings(), RowSettings(on_bad_row="skip")
LIMITS = Limits(vocabulary=112, context=256, max_length=48, max_prompt=60, new_tokens=8)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
ASKING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {
    "plain": "{{ tools[0].name if tools }}{% for m in messages %}" + TURN + "{% endfor %}" + ASKING,
    "rewrites": "{% for m in messages %}"
    + TURN.replace("m.content", "m.content if loop.last or m.role == 'user' else '-'")
    + "{% endfor %}"
    + ASKING,
    "no generation prompt": "{{ tools[0].name if tools }}{% for m in messages %}" + TURN + "{% endfor %}",
    "marks all": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "goes on": "{% for m in messages %}"
    + TURN
    + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|im_start|>system\nx{% endif %}",
    "refuses": "{% for m in messages %}{% if m.content == '7' %}{{ raise_exception('seven') }}{% endif %}"
    + TURN
    + "{% endfor %}"
    + ASKING,
}


def shown(question, answer, **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def asked(question, truth, **more):
    return {"prompt": question, "answer": truth, **more}


words = st.sampled_from(["1", "2+3", "7", "so", "x" * 30, "y" * 50, "é", "", "<|im_end|>"])
tools = [{"type": "function", "name": "add"}]
demonstrations = st.one_of(
    st.builds(shown, words, words),
    st.builds(functools.partial(shown, tools=tools), words, words),
    st.builds(shown, words, words, source=st.just(1), score=st.sampled_from([None, 2])),
    st.builds(lambda one, two: {"messages": one["messages"] + two["messages"]}, *[st.builds(shown, words, words)] * 2),
    st.builds(lambda text: {"text": text}, words),
    st.builds(lambda one, two: {"prompt": one, "completion": two}, words, words),
    st.sampled_from([{"other": 1}, "not JSON", {"messages": []}]),
)
prompts = st.one_of(
    st.builds(asked, words, st.sampled_from(["1", "two", ["3", "4"]])),
    st.builds(asked, words, words, teacher=st.sampled_from(["a", 1]), tools=st.sampled_from([None, tools])),
    st.builds(lambda one: {"prompt": one}, words),
    st.builds(lambda one: {"prompt": one, "tests": json.dumps({"inputs": ["1"], "outputs": ["2"]})}, words),
    st.sampled_from([{"other": 1}, "not JSON"]),
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """One for each process, and one for whoever works alone."""
    directory = tmp_path_factory.mktemp("tokenizer")
    write_character_tokenizer(directory)
    return [chat.load_tokenizer(directory) for _ in range(6)]


def written(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def made(how, path, tokenizer, **options) -> Any:
    """What comes of a file, every part of it, and what was said; or the refusal."""
    stream = io.StringIO()
    given = {"settings": REFUSE, "limits": LIMITS, "reporter": Reporter(Console(file=stream, width=2000))} | options
    try:
        found = how(path, tokenizer, **given)
    except UserError as error:
        return str(error), error.status, stream.getvalue()
    assert isinstance(found, Prepared)
    arrays = [getattr(found, name) for name in ("tokens", "targets", "starts", "numbers")]
    parts = [(array.dtype.str, array.shape, array.tobytes()) for array in arrays]
    return parts, found.key, found.digest, found.truths, found.teachers, found.notes, stream.getvalue()


def by_shares(count, tokenizers, how, path, **options):
    """The same of every process."""
    with simulated.several(count) as wire:
        return simulated.in_each(
            wire, lambda index: made(how, path, tokenizers[index], **{"by_shares": True, **options})
        )


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    count=st.integers(2, 5),
    kind=st.sampled_from(["demonstrations", "needed", "optional", "unread"]),
    template=st.sampled_from(sorted(TEMPLATES)),
    on_bad_row=st.sampled_from(["refuse", "skip"]),
    vocabulary=st.sampled_from([112, 112, 100]),
    at_once=st.sampled_from([1 << 20, 64]),
)
def test_shares_are_what_one_makes_of_the_whole(
    tokenizers, tmp_path, data, count, kind, template, on_bad_row, vocabulary, at_once
):
    """Rows used, cut, left out, bad, with tools, plain text: arrays, truths, notes in their order, or the refusal."""
    is_shown = kind == "demonstrations"
    rows = data.draw(st.lists(demonstrations if is_shown else prompts, min_size=1, max_size=14))
    path = written(tmp_path / "rows.jsonl", rows)
    how = prepare_demonstrations if is_shown else functools.partial(prepare_prompts, truth=kind)
    given = {"settings": RowSettings(on_bad_row=on_bad_row), **({"stops": (2,)} if is_shown else {})}
    given["limits"] = Limits(**vars(LIMITS) | {"vocabulary": vocabulary})
    for tokenizer in tokenizers:
        tokenizer.chat_template = TEMPLATES[template]
    alone = made(how, path, tokenizers[-1], **given)
    with mock.patch.object(gathering, "AT_ONCE", at_once):
        assert by_shares(count, tokenizers, how, path, **given) == [alone] * count


def test_what_is_said_of_shares_is_in_the_order_of_the_file():
    """The head is of the first row without tools, else of the first with them; of a reason the first row is named."""

    def worked_off(index):
        share = Share()
        rows = [Row(3 * index + place, 3 * index + place + 1, {}) for place in range(3)]
        for place in (2, 1):  # as rows with tools come after those without
            count_row(share.bad, "kind", rows[place], f"bad {rows[place].number}")
            count_row(share.left_out, f"{'late' if index else 'early'}", rows[place], "long")
        share.heads = [{True: "a"}, {True: "b", False: "c"}, {False: "d"}][index]
        share.unread = [{"x": None}, {"y": None, "x": None}, {"a": None}][index]
        share.counts["cut"] += index
        if index:  # of the first there is none
            share.use(rows[0], np.full(index, index, np.int32), np.ones(index, bool), Asked(str(index), index))
        return of_all(share)

    with simulated.several(3) as wire:
        found = simulated.in_each(wire, worked_off)
    for one in found:
        assert one.bad == {"kind": Reason(6, 1, "row 1 (line 2)", "bad 1")}
        early, late = Reason(2, 1, "row 1 (line 2)", "long"), Reason(4, 4, "row 4 (line 5)", "long")
        assert list(one.left_out.items()) == [("early", early), ("late", late)]
        assert one.heads == {True: "a", False: "c"} and list(one.unread) == ["x", "y", "a"] and one.counts["cut"] == 3
        assert one.numbers == [3, 6] and one.lengths == [1, 2] and one.asked == [("1", 1), ("2", 2)]
        assert [part.tolist() for part in (*one.tokens, *one.targets)] == [[1, 2, 2], [True] * 3]


@pytest.mark.slow
def test_ten_thousand_rows_by_three_are_those_of_one(tokenizers, tmp_path):
    """Several chunks of every share, in several processes that render; some rows are bad, some too long."""
    for tokenizer in tokenizers:
        tokenizer.chat_template = TEMPLATES["plain"]
    draw = random.Random(0)
    pairs = [(f"{n}+{draw.randrange(99)}", str(draw.randrange(10 ** draw.randrange(1, 60)))) for n in range(10_000)]
    rows = [shown(*pair) for pair in pairs]
    for place in draw.sample(range(10_000), 60):
        rows[place] = {"other": place}
    path = written(tmp_path / "rows.jsonl", rows)
    with mock.patch.object(rendering, "_ROWS_A_PROCESS", 1_000):
        alone = made(prepare_demonstrations, path, tokenizers[-1], settings=SKIP)
        found = by_shares(3, tokenizers, prepare_demonstrations, path, settings=SKIP)
    assert [one[:-1] for one in found] == [alone[:-1]] * 3  # but for the lines of progress
    assert alone[-2][0].startswith("60 of 10,000 rows are left out") and "rows are cut at 48" in alone[-2][1]


def test_the_first_bad_row_of_the_file_is_named_by_all_whoever_has_it(tokenizers, tmp_path):
    rows = [shown("1", "2")] * 9
    for place in (4, 7, 8):
        rows[place] = shown("1", "")
    for tokenizer in tokenizers:
        tokenizer.chat_template = TEMPLATES["plain"]
    path = written(tmp_path / "rows.jsonl", rows)
    for said, status, _ in by_shares(3, tokenizers, prepare_demonstrations, path):
        assert status == 2 and "row 4 (line 5): 'messages': the assistant's message 1 is empty" in said
        assert "so are 2 more of 9 rows" in said and "process" not in said


def test_what_ends_the_work_at_once_is_said_in_the_order_of_the_work(tokenizers, tmp_path, monkeypatch):
    """An endless row of the last process, before a token outside the vocabulary in a row of the first."""
    monkeypatch.setattr(rendering, "SECONDS_A_ROW", 0.3)
    rendering.close_renderers()
    for tokenizer in tokenizers:
        tokenizer.chat_template = "{% if messages[0].content == 'go' %}" + ENDLESS + "{% endif %}" + TEMPLATES["plain"]
    path = written(tmp_path / "rows.jsonl", [shown("1", "z"), shown("1", "2"), shown("go", "2")])
    given = {"limits": Limits(vocabulary=100, context=256)}
    alone = made(prepare_demonstrations, path, tokenizers[-1], **given)
    assert "row 2 (line 3): the chat template does not come to an end" in alone[0]
    assert by_shares(3, tokenizers, prepare_demonstrations, path, **given) == [alone] * 3
    rendering.close_renderers()


def test_a_template_that_is_none_is_said_by_all(tokenizers, tmp_path):
    """Of the process whose rows are texts too, which needs none."""
    rows = [{"text": "plain"}, {"text": "plain"}, shown("1", "2"), shown("1", "2")]
    path = written(tmp_path / "rows.jsonl", rows)
    for template, said in (("{% for %}", "the chat template is not usable"), (None, "has no chat template; give one")):
        for tokenizer in tokenizers:
            tokenizer.chat_template = template
        alone = made(prepare_demonstrations, path, tokenizers[-1])
        assert said in alone[0]
        assert by_shares(2, tokenizers, prepare_demonstrations, path) == [alone] * 2


def test_rows_that_one_process_loses_are_said_with_its_number(tokenizers, tmp_path, monkeypatch):
    for tokenizer in tokenizers:
        tokenizer.chat_template = TEMPLATES["plain"]
    path = written(tmp_path / "rows.jsonl", [shown("1", "2"), shown("lost", "2"), shown("3", "4")])
    real = rendering._Renderer.render

    def render(self, template, rows, **options):
        if rows[0][0][0]["content"] == "lost":
            self.process.send_signal(signal.SIGKILL)
        return real(self, template, rows, **options)

    monkeypatch.setattr(rendering._Renderer, "render", render)
    found = by_shares(3, tokenizers, prepare_demonstrations, path)
    lost = "the process that renders chat templates was ended by SIGKILL (out of memory, perhaps) with row 1 (line 2)"
    assert all(f"{path}: {lost} in work" in said and status == 1 for said, status, *_ in found)
    assert [said.startswith("process 1: ") for said, *_ in found] == [True, False, True]


def test_processes_with_other_files_tokenizers_or_templates_are_refused_by_all(tokenizers, tmp_path):
    for tokenizer in tokenizers:
        tokenizer.chat_template = TEMPLATES["plain"]
    paths = []
    for index in range(2):
        (tmp_path / str(index)).mkdir()
        paths.append(written(tmp_path / str(index) / "rows.jsonl", [shown("1", str(index))]))

    def refused(wire, path_of):
        return simulated.in_each(
            wire, lambda index: made(prepare_demonstrations, path_of(index), tokenizers[index], by_shares=True)
        )

    with simulated.several(2) as wire:
        for said, status, _ in refused(wire, lambda index: paths[index]):
            assert status == 2 and said.startswith('the processes disagree: rows.rows.jsonl.file: "')
        tokenizers[1].chat_template = TEMPLATES["goes on"]
        for said, *_ in refused(wire, lambda index: paths[0]):
            assert said.startswith('the processes disagree: rows.rows.jsonl.template: "')
        tokenizers[1].chat_template = TEMPLATES["plain"]
        first, second = refused(wire, lambda index: paths[0] if index == 0 else tmp_path / "none.jsonl")
        assert first[0] == f"process 1: {tmp_path}/none.jsonl: no such file" and second[0] in first[0]


def test_a_file_that_changes_while_it_is_read_is_refused(tokenizers, tmp_path, monkeypatch):
    """Its shares would be mixed with those of another file."""
    for tokenizer in tokenizers:
        tokenizer.chat_template = TEMPLATES["plain"]
    path = written(tmp_path / "rows.jsonl", [shown("1", "2")] * 4)
    real = preparing.read_row_file

    def read(path):
        if processes.is_first():
            return real(path)
        return real(written(path, [shown("1", "3")] * 4))

    monkeypatch.setattr(preparing, "read_row_file", read)
    for said, status, _ in by_shares(2, tokenizers, prepare_demonstrations, path):
        assert status == 2 and "rows.jsonl: was changed while it was read" in said


def test_kept_rows_are_taken_where_all_have_them(tokenizers, tmp_path, monkeypatch):
    """Where one has none, or a damaged file, all make them anew, and it is said."""
    for tokenizer in tokenizers:
        tokenizer.chat_template = TEMPLATES["plain"]
    path = written(tmp_path / "rows.jsonl", [asked(str(n), "2") for n in range(7)])
    first = prepare_prompts(path, tokenizers[-1], settings=REFUSE, limits=LIMITS)
    alone = made(prepare_prompts, path, tokenizers[-1])
    reads = []
    real = preparing.read_row_file
    monkeypatch.setattr(preparing, "read_row_file", lambda path: reads.append(path) or real(path))
    folders = [tmp_path / str(index) for index in range(3)]

    def found(*, truth="needed"):
        reads.clear()
        with simulated.several(3) as wire:
            return simulated.in_each(
                wire,
                lambda index: made(
                    prepare_prompts, path, tokenizers[index], kept=folders[index], by_shares=True, truth=truth
                ),
            )

    for folder in folders:
        first.keep(folder)
    assert found() == [alone] * 3 and not reads
    assert found(truth="optional") == [alone] * 3 and not reads
    file = folders[1] / f"{first.key}.npz"
    file.write_bytes(file.read_bytes()[:-40])
    anew = found()
    assert [one[:-1] for one in anew] == [alone[:-1]] * 3 and len(reads) == 3 and not file.exists()
    assert "are not as they were written: made anew" in anew[1][-1]
    assert all("process 1 does not have kept rows of it: made anew" in one[-1] for one in anew)
    for folder in folders:
        (folder / f"{first.key}.npz").unlink(missing_ok=True)
    assert found() == [alone] * 3 and len(reads) == 3


def test_one_process_alone_may_prepare_while_the_others_wait(tokenizers, tmp_path):
    """As it does before a study: nothing is exchanged that it was not asked to."""
    for tokenizer in tokenizers:
        tokenizer.chat_template = TEMPLATES["plain"]
    path = written(tmp_path / "rows.jsonl", [shown("1", "2")])
    with simulated.several(2) as wire:
        first, second = simulated.in_each(
            wire, lambda index: made(prepare_demonstrations, path, tokenizers[0]) if index == 0 else None
        )
    assert first == made(prepare_demonstrations, path, tokenizers[-1]) and second is None and not wire.sizes


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), min_size=2, max_size=5),
    dtype=st.sampled_from(["int32", "bool", "int64"]),
    at_once=st.sampled_from([7, 64, 1 << 20]),
)
def test_arrays_of_all_processes_are_joined_in_pieces_of_bounded_size(lengths, dtype, at_once):
    parts = [
        np.random.default_rng(index).integers(0, 2 if dtype == "bool" else 1 << 30, size).astype(dtype)
        for index, size in enumerate(lengths)
    ]
    with simulated.several(len(parts)) as wire, mock.patch.object(gathering, "AT_ONCE", at_once):
        joined = simulated.in_each(wire, lambda index: processes.joined(parts[index]))
        values = simulated.in_each(wire, lambda index: processes.exchanged(parts[index].tolist()))
    for one in joined:
        assert one.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(one, np.concatenate(parts))
    assert values == [[part.tolist() for part in parts]] * len(parts)
    assert all(size <= max(1, at_once // len(parts)) or size == 1024 for size in wire.sizes)
