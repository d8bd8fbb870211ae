"""Runs in a bucket: they end as local ones do, wherever they are killed and whatever machine goes on."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jaxgeom import processes
from jaxgeom.buckets import copies, hold, places, store
from jaxgeom.errors import UserError
from jaxgeom.training import checkpoint_folders, load_start
from jaxgeom.training.identity import model_content
from jaxgeom.training.timing import is_time
from tests import launching
from tests.command_line import command, process
from tests.object_store import BUCKET, CLOSED
from tests.training import runs

URL = f"gs://{BUCKET}"
MADE = f"{URL}/made"


@pytest.fixture(scope="module")
def changes(inputs, _served, tmp_path_factory):
    """A whole run in the bucket, and every change that it made there, in their order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("machine")))
        before = len(_served.journal)
        assert runs.train(inputs, MADE) == 0
        return [(name.removeprefix("made/"), held) for name, held in _served.journal[before:]]


def put(url, changes):
    """The bucket as a kill leaves it after so many changes, on another machine (where the lock's process is none)."""
    kept = {name: held for name, held in dict(changes).items() if held is not None and name != hold.NAME}
    for name, held in kept.items():
        store.write(f"{url}/{name}", held)


def logged(text):
    rows = [json.loads(line) for line in text.splitlines()]
    return [{key: value for key, value in row.items() if not is_time(key)} for row in rows]


def require_same(url, finished):
    """What a run in the bucket has come to is what the local one has."""
    assert logged(store.read(f"{url}/metrics.jsonl")) == runs.logged(finished)
    assert store.read(f"{url}/samples.jsonl") == (finished / "samples.jsonl").read_bytes()
    for step in (2, 4):
        there = load_start(copies.taken(f"{url}@{step}"), mesh=None, compute_dtype="float32")[1]
        for one, other in zip(runs.jax.tree.leaves(there), runs.weights(finished, step), strict=True):
            np.testing.assert_array_equal(one, other)
    assert "done" in store.listed(url)


def test_a_run_in_a_bucket_is_the_local_run(inputs, finished, bucket, changes, jaxgeom):
    require_same(MADE, finished)
    names = set(store.listed(MADE))
    assert {"config.json", "tokenizer/tokenizer.json", "checkpoints/4/checksums.json"} <= names
    assert any(name.startswith("events.out") for name in names) and hold.NAME not in names
    assert not any(name.startswith("rows/") or ".partial" in name for name in names)
    said = jaxgeom(*runs.arguments(inputs, MADE))  # a machine that has nothing of it
    assert said.status == 0 and f"finished already in {MADE}" in said.out, said.err
    said = jaxgeom(*runs.arguments(inputs, MADE, lr=1e-2))
    assert said.status == 2 and "learning_rate" in said.err and MADE in said.err and said.err.count("\n") == 1
    assert set(store.listed(MADE)) == names


def test_logs_and_list_come_after_the_arrays_of_their_step(changes):
    """What a checkpoint refers to is there before it counts, and `done` before nothing."""
    last = {name: place for place, (name, held) in enumerate(changes) if held is not None}
    for step in ("0", "2", "4"):
        counts = last[f"checkpoints/{step}/checksums.json"]
        assert all(place <= counts for name, place in last.items() if name.startswith(f"checkpoints/{step}/"))
        listing = json.loads(dict(changes[: counts + 1])[f"checkpoints/{step}/checksums.json"])
        for log, position in listing["logs"].items():
            assert len(dict(changes[:counts])[log]) >= position["bytes"]
    assert max(last, key=last.get) == "done"


def interesting(changes):
    """Between the arrays of a step; before its list; when all is there but `done`."""
    names = [name for name, _ in changes]
    arrays = [place for place, name in enumerate(names) if name.startswith("checkpoints/2/params/ocdbt.process_0/d/")]
    return [arrays[1], names.index("checkpoints/2/checksums.json"), len(names) - 1 - names[::-1].index("done")]


@pytest.mark.parametrize("place", range(3))
def test_killed_between_two_writes_another_machine_ends_it(inputs, finished, bucket, changes, jaxgeom, place):
    number, url = interesting(changes)[place], f"{URL}/killed{place}"
    put(url, changes[:number])
    said = jaxgeom(*runs.arguments(inputs, url))
    reached = (0, 0, 4)[place]
    assert said.status == 0 and f"goes on from step {reached}" in said.out, said.err
    require_same(url, finished)
    assert not any(".partial" in name for name in store.listed(url))


@pytest.mark.slow
def test_killed_anywhere_another_machine_ends_it(inputs, finished, bucket, changes, jaxgeom, tmp_path):
    """After every fourth of all changes, some 200."""
    for number in range(1, len(changes), 4):
        url = f"{URL}/after{number}"
        put(url, changes[:number])
        shutil.rmtree(tmp_path / "machine", ignore_errors=True)
        said = jaxgeom(*runs.arguments(inputs, url))
        assert said.status == 0, (number, said.err)
        require_same(url, finished)


@pytest.mark.slow
def test_killed_by_the_system_the_same_command_goes_on(inputs, bucket, tmp_path):
    """SIGKILL before the 60th, then before the 40th change after the start; the copies are deleted each time."""
    url, local = f"{URL}/sigkill", tmp_path / "local"
    assert process(*runs.arguments(inputs, local)).status == 0
    line, environment = command(*runs.arguments(inputs, url))
    for number in (60, 40):
        with subprocess.Popen(line, env=environment) as started:
            bucket.kill(started.pid, number)
            assert started.wait(timeout=240) == -9
        bucket.doomed = None
        shutil.rmtree(tmp_path / "machine")
    done = process(*runs.arguments(inputs, url))
    assert done.status == 0 and "that held it is gone" in done.out, done.err
    require_same(url, local)


def test_a_damaged_object_is_named_and_the_step_before_is_used(inputs, finished, bucket, changes, jaxgeom):
    url = f"{URL}/damaged"
    put(url, changes)
    name = next(name for name in store.listed(url) if name.startswith("checkpoints/4/params/ocdbt.process_0/d/"))
    held = store.read(f"{url}/{name}")
    store.write(f"{url}/{name}", held[:-1])
    said = jaxgeom("export", f"{url}@4", "--to", places.root() / "export")
    assert said.status == 2 and "@2 is the last whole one" in said.err and said.err.count("\n") == 1, said.err
    said = jaxgeom(*runs.arguments(inputs, url))
    assert said.status == 0 and "goes on from step 2" in said.out, said.err
    assert f"checkpoints/4 is damaged: {name.removeprefix('checkpoints/4/')} has {len(held) - 1} bytes" in said.out
    require_same(url, finished)


def test_an_unreachable_bucket_loses_nothing(inputs, bucket, changes, jaxgeom, monkeypatch):
    """What cannot be read for a moment is not taken for damage: nothing begins anew over it."""
    url = f"{URL}/away"
    put(url, changes[: interesting(changes)[2]])
    names, real = set(store.listed(url)), store.read

    def read(where):
        if "checksums" in where:
            raise store.BucketError(where, "no answer")
        return real(where)

    monkeypatch.setattr(store, "read", read)
    said = jaxgeom(*runs.arguments(inputs, url))
    assert said.status == 1 and "no answer" in said.err and said.err.count("\n") == 1, said.err
    assert set(store.listed(url)) == names


def test_another_process_of_the_command_takes_what_all_read(bucket, changes):
    """Which model the run is of, and its tokenizer, as they are now; neither logs nor what is of that machine alone."""
    url = f"{URL}/followed"
    put(url, changes)
    local = places.working_copy(url)
    for name in ("config.json", "tokenizer/merges.txt", "rows/0.npz", "metrics.jsonl"):  # of an earlier run there
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_text("old")
    copies.WorkingCopy(url, local, "run").follow()
    there = {name: store.read(f"{url}/{name}") for name in store.listed(url)}
    wanted = {name: held for name, held in there.items() if name == "config.json" or name.startswith("tokenizer/")}
    assert len(wanted) > 2 and runs.files(local) == wanted | {"rows/0.npz": b"old", "metrics.jsonl": b"old"}
    assert (local / "checkpoints").is_dir()


def test_templates_with_names_of_the_models_own_are_taken_too(bucket, tmp_path):
    """By another machine that goes on, by another process, of this machine or not: none loses one, nor the bucket."""
    names = ["config.json", "tokenizer/templates.json", "tokenizer/additional_chat_templates/tool_use.jinja"]
    first, second = tmp_path / "first", tmp_path / "second"
    for kind, above in (("run", ""), ("study", "runs/sft/seed0/")):
        places_of = {"config.json", *(f"{above}{name}" for name in names)}
        url = f"{URL}/templates/{kind}"
        for name in places_of:
            store.write(f"{url}/{name}", name.encode())
        with hold.held(url, print) as held:
            writes = copies.WorkingCopy(url, first / kind, kind, held)
            writes.take()
            for local in (first / kind, second / kind):  # of one machine they share the copy
                copies.WorkingCopy(url, local, kind).follow()
                there = {file.relative_to(local).as_posix() for file in local.rglob("*") if file.is_file()}
                assert there == places_of
            (first / kind / above / "tokenizer/additional_chat_templates/other.jinja").write_bytes(b"other")
            writes.publish()
            copies.WorkingCopy(url, first / kind, kind).follow()
            writes.publish()
        assert store.read(f"{url}/{above}tokenizer/additional_chat_templates/other.jinja") == b"other"


def test_a_bucket_that_fails_in_one_process_is_no_mistake_of_the_user_in_another(monkeypatch):
    said = []
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "exchanged", lambda value, **_: said.append(value) or [value, value])

    def fail():
        raise store.BucketError(URL, "is away")

    with pytest.raises(store.BucketError):
        processes.from_first(fail)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "exchanged", lambda value, **_: [said[0], value])
    with pytest.raises(UserError, match="is away") as told:
        processes.from_first(fail)
    assert told.value.status == store.BucketLost.status == 1


def test_one_command_at_a_time(inputs, bucket, changes, jaxgeom, monkeypatch):
    url = f"{URL}/held"
    lock = f"{url}/{hold.NAME}"
    with hold.held(url):
        said = jaxgeom(*runs.arguments(inputs, url))
        assert said.status == 2 and f"process {os.getpid()} on" in said.err and said.err.count("\n") == 1
        held = json.loads(store.read(lock))
    assert set(store.listed(url)) == set()
    monkeypatch.setattr(hold, "SILENCE", 0.6)
    lines = []
    # A dead process of this machine is got past at once; another machine's when it has been silent.
    for other in ({"started": "1"}, {"machine": "another"}, {"machine": None, "host": "another"}):
        store.write(lock, json.dumps(held | other).encode())
        with hold.held(url, lines.append):
            pass
    assert [("is known in" in line) for line in lines] == [False, True, False, True, False]
    store.write(lock, json.dumps(held | {"machine": "another"}).encode())
    again = threading.Timer(
        0.3, lambda: store.write(lock, json.dumps(held | {"machine": "another", "alive": 1}).encode())
    )
    again.start()
    with pytest.raises(UserError, match="works in this folder"), hold.held(url):
        pass
    again.join()
    with pytest.raises(FileExistsError):  # the bucket itself lets one of two through
        store.write_over(lock, b"{}", store.ABSENT)


def test_what_was_taken_over_stops(bucket):
    url = f"{URL}/taken"
    with pytest.raises(store.BucketLost, match="has taken over"), hold.held(url) as held:
        held.require()
        store.write(f"{url}/{hold.NAME}", json.dumps({"id": "another", "pid": 1, "host": "h"}).encode())
        held.require()
    assert json.loads(store.read(f"{url}/{hold.NAME}"))["id"] == "another"


def test_what_is_written_is_kept_to_the_last_byte(bucket):
    """Of events and arrays any byte may be the last one."""
    for content in (b"", b"a", b"a\r", b"a\n", b"a\r\n", b"a\n--==0==--", b"a\0"):
        store.write(f"{URL}/bytes", content)
        assert bucket.get_file(BUCKET, "bytes") == content


def test_a_late_sign_of_life_does_not_overwrite_the_lock_of_who_took_over(bucket, monkeypatch):
    """The sign was on its way when the other came: the other's lock stands, whatever this process had seen before."""
    url = f"{URL}/late"
    lock, other = f"{url}/{hold.NAME}", json.dumps({"id": "another", "pid": 1, "host": "h"}).encode()
    real, signs = store.filesystem, []

    class Slow:
        """The bucket, to which a sign takes so long that another process has the lock when it comes there."""

        def __getattr__(self, name):
            return getattr(real(), name)

        def _overtaken(self, content):
            if b'"alive"' in content:
                signs.append(content)
                monkeypatch.setattr(store, "filesystem", real)
                store.remove([lock])
                store.write(lock, other)

        def call(self, *words, **options):
            self._overtaken(options.get("data", b""))
            return real().call(*words, **options)

        def pipe_file(self, path, content, **options):
            self._overtaken(content)
            return real().pipe_file(path, content, **options)

    monkeypatch.setattr(hold, "SIGN", 0.2)
    with pytest.raises(store.BucketLost, match="has taken over"), hold.held(url) as mine:
        made = json.loads(store.read(lock))
        until = time.monotonic() + 20
        while json.loads(store.read(lock)).get("alive", 0) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert json.loads(store.read(lock)) == made | {"alive": json.loads(store.read(lock))["alive"]}
        monkeypatch.setattr(store, "filesystem", Slow)
        while not signs and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1)  # several signs more
        assert signs and store.read(lock) == other
        mine.require()
    assert store.read(lock) == other


def test_a_sign_whose_answer_was_lost_is_no_end_of_the_lock(bucket, monkeypatch):
    """It came through, the client tries again and is told that another object stands there: its own."""
    url = f"{URL}/answerless"
    with hold.held(url) as mine:
        store.write(f"{url}/{hold.NAME}", store.read(f"{url}/{hold.NAME}"))
        mine._sign(1)
        mine._sign(2)
        assert json.loads(store.read(f"{url}/{hold.NAME}"))["alive"] == 2
        mine.require()
    assert not store.listed(url)


READER = """
import os, sys, time
from jaxgeom.buckets import copies
for number in range(12):
    os.environ["XDG_CACHE_HOME"] = f"{sys.argv[1]}/{number}"
    print(number, flush=True)
    sys.stdin.readline()
    copies.taken(sys.argv[2])
"""


def test_processes_of_one_machine_take_the_same_model_at_once(inputs, bucket, tmp_path):
    """One for each GPU: none takes away what another is downloading."""
    url = f"{URL}/together"
    files = {path.name: path.read_bytes() for path in (inputs / "model").iterdir()}
    for name, content in files.items():
        store.write(f"{url}/{name}", content)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    line = [sys.executable, "-c", READER, str(tmp_path), url]
    started = [subprocess.Popen(line, env=os.environ | {"PYTHONPATH": str(launching.ROOT)}, **pipes) for _ in range(3)]
    for number in range(12):
        for one in started:  # all of them, so that they begin together
            assert one.stdout.readline() == f"{number}\n", one.communicate()[1]
        for one in started:
            one.stdin.write("\n")
            one.stdin.flush()
    assert [one.communicate()[1:] and one.returncode for one in started] == [0, 0, 0]
    for number in range(12):
        local = tmp_path / f"{number}/jaxgeom/gs/read/{BUCKET}/together"
        assert {path.name: path.read_bytes() for path in local.iterdir()} == files


def test_buckets_that_cannot_be_used(inputs, bucket, jaxgeom, monkeypatch, tmp_path):
    for url, why in (
        ("gs://nowhere/run", "there is no bucket nowhere"),
        (f"gs://{CLOSED}/run", "no access to bucket closed"),
        (f"{URL}/run", None),
    ):
        if why is None:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
            monkeypatch.setattr(store, "PATIENCE", 0.5)
            why = "does not answer within"
        begun = time.monotonic()
        said = jaxgeom(*runs.arguments(inputs, url))
        assert said.status == 2 and why in said.err and said.err.count("\n") == 1, said.err
        assert time.monotonic() - begun < 15
        said = jaxgeom(*runs.arguments(inputs, tmp_path / "run", model=url))
        assert said.status == 2 and why in said.err and not (tmp_path / "run").exists(), said.err


def test_what_is_not_ours_stays(inputs, bucket, changes, jaxgeom):
    """Other files are not written over, and a run that is there is not deleted, `--force` or not."""
    store.write(f"{URL}/theirs/notes.txt", b"notes")
    store.write(f"{URL}/model/config.json", b"{}")
    for url, why in ((f"{URL}/theirs", "notes.txt"), (f"{URL}/model", "files that are no run")):
        said = jaxgeom(*runs.arguments(inputs, url))
        assert said.status == 2 and why in said.err and url in said.err, said.err
        assert len(store.listed(url)) == 1
    said = jaxgeom(*runs.arguments(inputs, MADE, lr=1e-2), "--force")
    assert said.status == 2 and "--force deletes nothing in a bucket" in said.err


def test_a_folder_within_anothers_is_refused(inputs, bucket, changes, jaxgeom):
    """The outer run's command makes its copy what the bucket held when it began: the inner one's would go."""
    names = set(store.listed(MADE))
    for url in (f"{MADE}/on", f"{MADE}/figures/deep/on"):
        said = jaxgeom(*runs.arguments(inputs, url))
        assert said.status == 2 and f"{url}: lies in the run {MADE};" in said.err, said.err
        assert said.err.count("\n") == 1 and set(store.listed(MADE)) == names


def test_models_data_and_runs_are_read_from_a_bucket(inputs, bucket, changes, jaxgeom, tmp_path):
    for path in [*(inputs / "model").iterdir(), inputs / "demos.jsonl"]:
        store.write(f"{URL}/inputs/{path.relative_to(inputs)}", path.read_bytes())
    given = {"model": f"{URL}/inputs/model", "data": f"{URL}/inputs/demos.jsonl", "steps": 1, "eval_data": None}
    assert jaxgeom(*runs.arguments(inputs, tmp_path / "there", **given)).status == 0
    assert jaxgeom(*runs.arguments(inputs, tmp_path / "here", steps=1, eval_data=None)).status == 0
    assert runs.logged(tmp_path / "there") == runs.logged(tmp_path / "here")
    named = json.loads((tmp_path / "there/config.json").read_text())["inputs"]
    assert (named["model"], named["data"]) == (given["model"], given["data"])
    said = jaxgeom("export", MADE, "--step", 2, "--to", tmp_path / "export")
    assert said.status == 0 and (tmp_path / "export/model.safetensors").is_file(), said.err
    assert json.loads((tmp_path / "export/checksums.json").read_text())["run"] == MADE
    ends, out = (f"{MADE}@0", f"{MADE}@4"), tmp_path / "compared"
    for what in ("page:", "page:"):  # the second time it is finished already
        said = jaxgeom("compare", *ends, "--out", out, "--suite", "fast", "--include", "q_proj")
        assert said.status == 0 and what in said.out, said.err
    report = (out / "report.json").read_text()
    assert tuple(json.loads(report)["inputs"][role]["name"] for role in ("initial", "final")) == ends
    for path in (out / "report.json", out / "report.html", tmp_path / "there/config.json"):
        assert str(places.root()) not in path.read_text()
    said = jaxgeom("report", MADE)
    assert said.status == 0 and f"page: {MADE}/report.html" in said.out, said.err
    assert store.read(f"{MADE}/report.html").startswith(b"<!")
    said = jaxgeom(*runs.arguments(inputs, tmp_path / "on", model=f"{MADE}@3"))
    assert said.status == 2 and f"{MADE}: no checkpoint at step 3; there are 0, 2, 4" in said.err
    said = jaxgeom(*runs.arguments(inputs, tmp_path / "on", data=f"{URL}/inputs/none.jsonl"))
    assert said.status == 2 and "none.jsonl: nothing is there" in said.err


EXPERIMENT = """
from pathlib import Path
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.study import Arm, DataFiles, Experiment
from jaxgeom.training import SFTSettings
sft = SFTSettings(steps=1, batch_size=8, optimizer=AdamWSettings(learning_rate=1e-3))
data = DataFiles(demonstrations="{url}/demos.jsonl", prompts={prompts}, heldout="{url}/prompts.jsonl")
experiment = Experiment(name="remote", data=data, arms=(Arm("one", "{url}/model", sft),))
"""


LOADER = """
import json, sys
from jaxgeom.errors import UserError
from jaxgeom.study import load_experiment
from jaxgeom.study.identity import experiment_json
from jaxgeom.training.identity import model_content
for file in sys.argv[1:]:
    try:
        held = load_experiment(file)
        said = [experiment_json(held), str(held.data.demonstrations), model_content(held.arms[0].start)]
    except UserError as error:
        said = str(error)
    print(json.dumps(said))
"""


def test_an_experiment_names_what_lies_in_a_bucket(inputs, bucket, tmp_path):
    """As text, which the tests' own checks of annotations do not take: in a process of its own."""
    url = f"{URL}/experiment"
    for path in [*(inputs / "model").iterdir(), inputs / "demos.jsonl", inputs / "prompts.jsonl"]:
        store.write(f"{url}/{path.relative_to(inputs)}", path.read_bytes())
    prompts = f'"{url}/prompts.jsonl"', f'"{url}/none.jsonl"', f'Path("{url}/prompts.jsonl")'
    files = [tmp_path / f"{place}.py" for place in range(3)]
    for file, given in zip(files, prompts, strict=True):
        file.write_text(EXPERIMENT.format(url=url, prompts=given))
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *files], env=os.environ | {"PYTHONPATH": str(launching.ROOT)},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (said, demonstrations, content), missing, made_path = map(json.loads, done.stdout.splitlines())
    assert said["data"]["prompts"] == f"{url}/prompts.jsonl" and said["arms"]["one"]["start"] == f"{url}/model"
    assert pathlib.Path(demonstrations).read_bytes() == (inputs / "demos.jsonl").read_bytes()
    assert content == model_content(inputs / "model")
    assert f"{url}/none.jsonl: nothing is there" in missing
    assert f"write '{url}/prompts.jsonl' as text" in made_path


def test_who_lost_the_lock_changes_nothing_even_when_the_other_is_done(inputs, bucket, changes, tmp_path):
    url = f"{URL}/overtaken"
    put(url, changes)
    with hold.held(url) as mine:
        store.remove([f"{url}/{hold.NAME}"])  # another took over, finished and went
        before = dict(store.listed(url))
        folders = checkpoint_folders.folders_of(places.checkpoints_of(places.working_copy(url)), print, mine.require)
        for change in (lambda: folders.begin(4), lambda: folders.remove(2), folders.remove_unfinished, mine.require):
            with pytest.raises(store.BucketLost, match="another process has taken over"):
                change()
        assert dict(store.listed(url)) == before
    assert dict(store.listed(url)) == before


def test_an_emptied_cache_takes_nothing_from_the_bucket(inputs, bucket, changes, tmp_path):
    url = f"{URL}/emptied"
    put(url, changes)
    local = places.working_copy(url)
    with pytest.raises(store.BucketLost, match="was removed while this command ran"):
        with copies.opened(local, "run", print) as copy:
            before = set(store.listed(url)) - {hold.NAME}
            shutil.rmtree(local)
            copy.publish()
    assert set(store.listed(url)) == before
