"""The same run gone on with, whatever it is called and however it is laid out; another one is refused with why."""

import dataclasses
import gzip
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxgeom.errors import UserError
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.training.identity import contents_of, differences, model_content
from jaxgeom.training.logs import JsonLines, read_json_lines
from jaxgeom.training.rows import read_run_rows
from jaxgeom.training.settings import RunInputs, SFTSettings
from tests.tiny import write_tiny_model
from tests.training import runs


def test_more_steps_another_mesh_and_another_path_are_the_same_run(jaxgeom, inputs, finished, run, monkeypatch):
    held = (run / "metrics.jsonl").read_bytes()
    monkeypatch.chdir(inputs.parent)
    moved = {"model": f"{inputs.name}/model", "data": f"./{inputs.name}/demos.jsonl"}
    said = jaxgeom(
        *runs.arguments(inputs, run, **moved, steps=6, save_every=3), "--mesh-data", 2, "--mesh-fsdp", 4,
        "--micro-batches", 1, "--eval-every", 5,
    )  # fmt: skip
    assert said.status == 0, said.err
    assert "goes on from step 4 (" in said.out and "steps: 4 there, 6 asked for" in said.out
    assert "sft: compiling first" in said.out and "sft: step 6: loss " in said.out
    assert "; held-out accuracy " in said.out and " over 16 prompts at step 6 (" in said.out
    assert runs.steps(run) == [0, 2, 4, 6]
    assert (run / "metrics.jsonl").read_bytes().startswith(held)
    assert [row["step"] for row in runs.logged(run) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert json.loads((run / "config.json").read_text())["settings"]["steps"] == 6
    fewer = jaxgeom(*runs.arguments(inputs, run, steps=5))
    assert fewer.status == 2 and "5 asked for, the run has taken 6" in fewer.err and runs.steps(run)[-1] == 6


def test_another_run_is_refused_with_the_difference(jaxgeom, inputs, run):
    held = runs.files(run)
    said = jaxgeom(*runs.arguments(inputs, run, lr=2e-3, seed=1))
    assert said.status == 2 and said.err.count("\n") == 1
    assert "optimizer.learning_rate: 0.001 there, 0.002 asked for" in said.err and "seed: 0 there, 1" in said.err
    assert runs.files(run) == held


@pytest.mark.parametrize("name", ["demos.jsonl", "model/model.safetensors", "model/tokenizer_config.json"])
def test_the_same_path_with_other_content_is_another_run(jaxgeom, inputs, run, tmp_path, name):
    changed = shutil.copytree(inputs, tmp_path / "inputs")
    said = jaxgeom(*runs.arguments(changed, run))
    assert said.status == 0 and "finished already" in said.out
    path = changed / name
    if path.suffix == ".safetensors":
        runs.flip(path, -1)
    else:
        path.write_text(path.read_text().replace("2", "3", 1) + ("\n" if path.suffix == ".json" else ""))
    said = jaxgeom(*runs.arguments(changed, run))
    assert said.status == 2 and said.err.count("\n") == 1 and "content" in said.err, said.err
    assert {"demos.jsonl": "data:", "model/model.safetensors": "model:"}.get(name, "tokenizer:") in said.err


@pytest.mark.parametrize("kind", ["demos.json.gz", "demos.json"])
def test_the_same_rows_in_another_file_are_the_same_data(jaxgeom, inputs, run, tmp_path, kind):
    rows = [json.loads(line) for line in (inputs / "demos.jsonl").read_text().splitlines()]
    made = json.dumps(rows, indent=1).encode()
    (tmp_path / kind).write_bytes(gzip.compress(made) if kind.endswith("gz") else made)
    assert "finished already" in jaxgeom(*runs.arguments(inputs, run, data=tmp_path / kind)).out
    (tmp_path / "turned.json").write_text(json.dumps(rows[::-1]))
    said = jaxgeom(*runs.arguments(inputs, run, data=tmp_path / "turned.json"))
    assert said.status == 2 and "other content" in said.err


def test_more_steps_of_a_schedule_that_would_have_differed_are_refused(finished):
    held = json.loads((finished / "config.json").read_text())

    def change(steps, taken, **optimizer):
        old = json.loads(json.dumps(held))
        old["settings"]["optimizer"] |= optimizer
        new = json.loads(json.dumps(old))
        new["settings"]["steps"] = steps
        return differences(old, new, taken)

    assert not change(40, 4) and not change(40, 0, schedule="cosine")
    assert "cosine schedule" in change(40, 4, schedule="cosine")[0]
    assert change(40, 4, warmup_fraction=0.5) and not change(4, 4, schedule="cosine")
    # A warmup of one step either way: the rates of all steps are the same.
    assert not change(5, 4, warmup_fraction=0.25)


def test_a_damaged_configuration_is_no_traceback(jaxgeom, inputs, run):
    held = json.loads((run / "config.json").read_text())
    for change in ({"settings": 3}, {"contents": None}, {"settings": {}}):
        (run / "config.json").write_text(json.dumps(held | change))
        said = jaxgeom(*runs.arguments(inputs, run))
        assert said.status == 2 and said.err.count("\n") == 1 and "another run" in said.err, said.err
    (run / "config.json").write_text('{"schema": 1, "kind"')
    said = jaxgeom(*runs.arguments(inputs, run))
    assert said.status == 2 and said.err.count("\n") == 1


def test_rows_end_at_a_newline_alone_and_stay_as_they_were_written(tmp_path):
    path, text = tmp_path / "samples.jsonl", "a\u2028b\u0085c\x0bd\x0c\x1ce\u2029é\r\ud800"
    log = JsonLines(path)
    log.write([{"step": step, "response": text.replace("\ud800", "")} for step in range(4)])
    log.write([{"step": 4, "response": text}])  # no Unicode: a tokenizer may give it
    position = log.position()
    log.write([{"step": 5, "response": text[:3]}])
    log.close()
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"step": 6, "resp')
    assert [row["step"] for row in read_json_lines(path)] == [0, 1, 2, 3, 4, 5]
    assert read_json_lines(path)[4]["response"] == text
    again = JsonLines(path, position["bytes"])
    assert again.position() == position
    again.write([{"step": 5, "response": text[:3]}])
    again.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("spoilt", [b"3", b'{"step": "3"}', b"[" * 100_000, b"\xff", b'{"step": 1'])
def test_a_damaged_row_of_a_log_is_named(tmp_path, spoilt):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + spoilt + b'\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged"):
        read_json_lines(path)


def test_an_adapter_is_its_base_too(inputs, tmp_path):
    """The same adapter on another base is another run; the same base by another path, or date, is the same."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    bases = [write_tiny_model(tmp_path / f"base{seed}", seed=seed) for seed in (0, 1)]
    stem, generator = "base_model.model.model.layers.0.self_attn.q_proj", np.random.default_rng(0)
    parts = {f"{stem}.lora_A.weight": (2, 32), f"{stem}.lora_B.weight": (32, 2)}
    save_file(
        {name: generator.standard_normal(shape).astype(np.float32) for name, shape in parts.items()},
        adapter / "adapter_model.safetensors",
    )
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    read = RunInputs(model=adapter, data=inputs / "demos.jsonl", base=bases[0])
    held = contents_of(read)
    assert contents_of(dataclasses.replace(read, base=bases[1]))["model"] != held["model"] != model_content(bases[0])
    moved = shutil.copytree(bases[0], tmp_path / "moved")
    assert contents_of(dataclasses.replace(read, base=moved)) == held
    os.utime(bases[0] / "model.safetensors", (1, 1))
    assert contents_of(read) == held
    (bases[0] / "additional_chat_templates").mkdir()
    (bases[0] / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    assert contents_of(read)["tokenizer"] != held["tokenizer"]
    shutil.copyfile(bases[1] / "model.safetensors", bases[0] / "model.safetensors")
    assert contents_of(read)["model"] != held["model"]
    # What ends an answer is declared beside the base too, where the adapter brings its own tokenizer.
    (bases[0] / "generation_config.json").write_text('{"eos_token_id": [7]}')
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(bases[0] / name, adapter / name)
    settings = SFTSettings(steps=1, batch_size=1, optimizer=AdamWSettings(learning_rate=1e-3))
    assert 7 in read_run_rows(settings, read).stops
