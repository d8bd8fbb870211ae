"""What `jaxgeom train` says of rows and tokenizers before it writes anything, and what a run's tokenizer becomes."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from jaxgeom.data import RowSettings
from jaxgeom.data.chat import encode_prompt, load_tokenizer
from jaxgeom.data.rows import write_jsonl
from jaxgeom.errors import UserError
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.progress import Reporter
from jaxgeom.training import OPDSettings, RLVRSettings, RunInputs, SFTSettings
from jaxgeom.training.remarks import (
    closing_remarks,
    float32_on_accelerator,
    learned_nothing,
    truncated_evaluation,
)
from jaxgeom.training.rollouts import Answers, truncated
from jaxgeom.training.rows import read_run_rows, write_tokenizer
from tests.tiny import write_tiny_model

TRAIN = ("--steps", 1, "--batch-size", 8, "--learning-rate", 1e-3)
COMMON = dict(steps=4, batch_size=8, optimizer=AdamWSettings(learning_rate=1e-3), max_new_tokens=8)
TALK = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "model")


@pytest.mark.parametrize(
    ("objective", "rows", "options", "words"),
    [
        ("sft", [{"messages": TALK}, {"messages": TALK[:1]}], (), ("row 1 (line 2)", "no assistant message")),
        ("sft", [{"messages": TALK}], ("--max-length", 8), ("none of 1 rows", "no answer within 8 tokens")),
        ("sft", [{"messages": TALK}], ("--template-argument", "thinking=1"), ("'thinking'", "does not read it")),
        ("sft", [{"messages": TALK}], ("--chat-template", "absent.jinja"), ("absent.jinja",)),
        ("rlvr", [{"prompt": "1+1", "answer": None}], (), ("row 0 (line 1)", "ground_truth")),
        ("rlvr", [{"prompt": "x" * 300, "answer": "2"}], (), ("row 0 (line 1)", "context of 256")),
        ("rlvr", [{"prompt": "x", "answer": "2"}], ("--max-new-tokens", 512), ("context of 256; --max-new-tokens 2",)),
        ("rlvr", [{"prompt": "1+1", "answer": ""}], ("--on-bad-row", "skip"), ("none of 1 rows",)),
        ("opd", [{"prompt": "1+1", "answer": "2"}], ("--max-prompt-length", 3), ("none of 1 rows", "longer than 3")),
    ],
)
def test_rows_are_refused_in_one_line_and_nothing_is_written(jaxgeom, model, tmp_path, objective, rows, options, words):
    write_jsonl(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "run"
    teacher = ("--teacher", model) if objective == "opd" else ()
    small = () if objective == "sft" or "--max-new-tokens" in options else ("--max-new-tokens", 8)
    said = jaxgeom(
        "train", objective, "--model", model, "--data", tmp_path / "rows.jsonl", "--out", out,
        *TRAIN, *teacher, *small, *options,
    )  # fmt: skip
    assert said.status == 2 and said.err.count("\n") == 1, said.err
    assert all(word in said.err for word in words), said.err
    assert not out.exists()


def test_several_template_arguments_and_a_skipping_run_are_read(model, tmp_path):
    """The run's rows are those of its own template; its tokenizer has that template and every stop token."""
    start = tmp_path / "start"
    shutil.copytree(model, start)
    (start / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 9], "top_p": 0.9}))
    (start / "additional_chat_templates").mkdir()
    (start / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    template = "{% for m in messages %}{{ a }}{{ m.role }}{{ b }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}{{ a }}assistant{{ b }}\n{% endif %}"
    (tmp_path / "mine.jinja").write_text(template)
    write_jsonl(tmp_path / "rows.jsonl", [{"messages": TALK}, {"messages": []}])
    chosen = RowSettings(on_bad_row="skip", chat_template=tmp_path / "mine.jinja", template_argument=("a=x", "b=-"))
    settings = SFTSettings(**COMMON, rows=chosen)
    rows = read_run_rows(settings, RunInputs(model=start, data=tmp_path / "rows.jsonl"))
    assert rows.stops == (0, 2, 7, 9)
    assert rows.tokenizer.decode(rows.data.row(0).tokens) == "xuser-\n1+1<|im_end|>\nxassistant-\n2<|im_end|>\n"
    write_tokenizer(start, tmp_path / "tokenizer", rows, settings)
    held = json.loads((tmp_path / "tokenizer" / "generation_config.json").read_text())
    assert held == {"eos_token_id": [0, 2, 7, 9], "top_p": 0.9}
    # The run's template has the arguments of its own: what starts from the run, or loads its export, needs none.
    kept = load_tokenizer(tmp_path / "tokenizer")
    own = settings.rows.template_argument
    for changed in ((), ("a=other",)):
        wanted = encode_prompt(rows.tokenizer, TALK[:1], arguments=(*own, *changed))
        assert encode_prompt(kept, TALK[:1], arguments=changed) == wanted
    assert not (tmp_path / "tokenizer" / "additional_chat_templates").exists()
    plain = SFTSettings(**COMMON)
    write_tokenizer(start, tmp_path / "other", rows, plain)
    assert (tmp_path / "other" / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"


def test_rows_of_other_runs_are_found_by_their_content(model, tmp_path):
    """OPD and RLVR over the same prompts tokenize them once."""
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "1+1", "answer": "2"}])
    inputs = RunInputs(model=model, data=tmp_path / "rows.jsonl", eval_data=tmp_path / "rows.jsonl")
    first = read_run_rows(RLVRSettings(**COMMON), inputs)
    first.keep(tmp_path / "kept")
    kept = sorted((tmp_path / "kept").iterdir())
    read_run_rows(OPDSettings(**COMMON), inputs, kept=tmp_path / "kept").keep(tmp_path / "kept")
    assert sorted((tmp_path / "kept").iterdir()) == kept and len(kept) == 2


def test_a_teacher_alone_needs_no_right_answer(model, tmp_path):
    """Accuracy is over the rows that have one; what mixes in verified rewards needs all."""
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "1+1"}, {"prompt": "1+2", "answer": "3"}, {"prompt": "1+3"}])
    write_jsonl(tmp_path / "none.jsonl", [{"prompt": "1+1"}])
    inputs = RunInputs(model=model, data=tmp_path / "rows.jsonl", eval_data=tmp_path / "rows.jsonl", teacher=model)
    stream = io.StringIO()
    rows = read_run_rows(OPDSettings(**COMMON), inputs, reporter=Reporter(Console(file=stream, width=200)))
    assert [prompt.row for prompt in rows.evaluated[""]] == [1] and rows.data.truths == [None, "3", None]
    assert stream.getvalue().count("2 of 3 rows have no right answer") == 2
    rows.keep(tmp_path / "kept")
    assert read_run_rows(OPDSettings(**COMMON), inputs, kept=tmp_path / "kept").data.truths == rows.data.truths
    with pytest.raises(UserError, match="row 0 .*ground_truth"):
        read_run_rows(OPDSettings(**COMMON, alpha=0.5), inputs)
    with pytest.raises(UserError, match=r"none.jsonl: no row has a right answer to evaluate by"):
        read_run_rows(OPDSettings(**COMMON), dataclasses.replace(inputs, eval_data=tmp_path / "none.jsonl"))


def test_a_model_without_any_stop_token_does_not_sample(model, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(model, start)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        text = (start / name).read_text().replace("<|im_end|>", "<|over|>")
        content = json.loads(text)
        content.pop("eos_token", None)
        (start / name).write_text(json.dumps(content))
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "1+1", "answer": "2"}])
    with pytest.raises(UserError, match="no token is given to end an answer"):
        read_run_rows(RLVRSettings(**COMMON), RunInputs(model=start, data=tmp_path / "rows.jsonl"))


def test_only_what_the_limit_ended_is_truncated():
    tokens = np.array([[5, 6, 7], [5, 6, 2], [5, 2, 0]])
    response = np.array([[False, True, True], [False, True, True], [False, True, False]])
    zeros = np.zeros(3, np.float32)
    answers = Answers(tokens, response, response, np.zeros((3, 3), np.float32), zeros, ["", "", ""], [])
    assert truncated(answers, (2,)).tolist() == [True, False, False]
    assert truncated(answers, ()).all()


def test_a_run_whose_answers_are_all_truncated_says_so():
    settings = RLVRSettings(**COMMON)
    assert truncated_evaluation(0.99, settings, (2,)) is None
    assert "cut at 8 tokens" in (truncated_evaluation(1.0, settings, (2,)) or "")
    rows = [
        {"step": 1, "truncated": 1.0, "loss": 0.1},
        {"step": 2, "truncated": 1.0, "skipped": 1.0},
        {"step": 2, "accuracy": 0.0},
    ]
    masked = dataclasses.replace(settings, overlong="mask", steps=2)
    idle = [row | {"skipped": 1.0} for row in rows[:2]]
    assert "every answer was cut, and overlong=mask" in (learned_nothing(idle, masked) or "")
    cut, skipped = closing_remarks(rows, settings)
    assert "in all 2 rollouts" in cut and "8 tokens" in cut and "1 of 4 steps had nothing" in skipped
    assert closing_remarks([{"step": 1, "truncated": 0.5, "loss": 0.1}], settings) == []


def test_float32_products_are_said_where_they_cost():
    assert "--compute-dtype bfloat16" in (float32_on_accelerator("gpu", "float32") or "")
    assert "tpu" in (float32_on_accelerator("tpu", "float32") or "")
    assert float32_on_accelerator("gpu", "bfloat16") is float32_on_accelerator("cpu", "float32") is None
