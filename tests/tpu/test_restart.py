"""What is started again after which exit status, and what is left in the store."""

import signal
import time
from pathlib import Path

import pytest

from tests.tpu.conftest import Cloud

STORE = ("--store", "gs://bucket/job", "--first-wait", "0")


def job(cloud: Cloud, *statuses: int) -> Path:
    """A program that ends with one status after the other, then with the last; its starts are counted in a file."""
    listed = " ".join(map(str, statuses))
    text = f'echo start >>starts; all=({listed}); n=$(wc -l <starts); exit "${{all[n > {len(statuses)} ? -1 : n - 1]}}"'
    return cloud.program("job", text)


def starts(work: Path) -> int:
    return len((work / "starts").read_text().splitlines())


@pytest.mark.parametrize(
    ("statuses", "ends", "started", "kept"),
    [
        ((0,), 0, 1, "0 done"),
        ((2,), 2, 1, "2 refused"),
        ((143,), 143, 1, None),
        ((130,), 130, 1, None),
        ((1, 137, 0), 0, 3, "0 done"),
        ((7,), 7, 3, "7 given up after 3 failures"),
    ],
)
def test_the_exit_status_decides(cloud: Cloud, statuses: tuple, ends: int, started: int, kept: str | None) -> None:
    work = cloud.folder / "work"
    status, _, err = cloud.run("restart.sh", *STORE, "--work", work, "--tries", 3, "--", job(cloud, *statuses))
    assert (status, starts(work)) == (ends, started), err
    assert starts(cloud.store / "work") == started
    path = cloud.store / "status"
    assert path.read_text().startswith(kept) if kept else not path.exists()
    if kept:  # a machine that starts again does not begin anew
        again, _, err = cloud.run("restart.sh", *STORE, "--work", work, "--", cloud.folder / "bin/job")
        assert (again, starts(work)) == (ends, started)
        assert "ended before" in err


def test_one_of_several_machines_goes_on_where_another_was_told_to_stop(cloud: Cloud) -> None:
    """All end with 143 then, and the others are started by nothing else."""
    work = cloud.folder / "work"
    words = ("--work", work, "--", job(cloud, 143, 0), "--distributed")
    status, _, err = cloud.run("restart.sh", *STORE, *words)
    assert (status, starts(work)) == (0, 2), err
    assert (cloud.store / "status").read_text() == "0 done\n"
    (cloud.folder / "alone").mkdir()  # under SLURM there is no store, and the queue is told
    status, _, _ = cloud.run("restart.sh", "--work", cloud.folder / "alone", *words[2:])
    assert (status, starts(cloud.folder / "alone")) == (143, 1)


def test_a_pod_leaves_the_next_start_to_its_jobset(cloud: Cloud) -> None:
    work = cloud.folder / "work"
    status, _, _ = cloud.run("restart.sh", *STORE, "--work", work, "--once", "--failed", 4, "--", job(cloud, 9, 0))
    assert (status, starts(work), (cloud.store / "status").exists()) == (9, 1, False)
    assert cloud.run("restart.sh", *STORE, "--work", work, "--once", "--", cloud.folder / "bin/job")[0] == 0
    assert (cloud.store / "status").read_text() == "0 done\n"


def test_a_machine_that_is_taken_away_saves_and_another_goes_on(cloud: Cloud) -> None:
    (cloud.store / "work").mkdir()
    (cloud.store / "work/data.jsonl").write_text("{}\n")
    saves = cloud.program(
        "job",
        "if [ -e saved ]; then exit 0; fi; test -e data.jsonl || exit 2\n"
        "mkdir -p run/.7.partial; touch run/.7.partial/x .lock\n"
        "trap 'cp data.jsonl saved; exit 143' TERM; touch ready; while :; do sleep 0.05; done",
    )
    first = cloud.folder / "first"
    process = cloud.start("restart.sh", *STORE, "--work", first, "--log", cloud.folder / "log", "--", saves)
    while not (first / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not (cloud.store / "status").exists()
    held = {path.relative_to(cloud.store).as_posix() for path in cloud.store.rglob("*") if path.is_file()}
    assert held == {"work/data.jsonl", "work/saved", "work/ready", "logs/worker-0.log"}  # no lock, nothing unfinished
    assert cloud.run("restart.sh", *STORE, "--work", cloud.folder / "second", "--", saves)[0] == 0
    assert (cloud.store / "status").read_text() == "0 done\n"


def test_who_is_told_to_stop_while_copying_waits_for_no_next_start(cloud: Cloud) -> None:
    """A machine that is taken away has less than the minutes between two starts."""
    real = cloud.program("real-gcloud", (cloud.folder / "bin/gcloud").read_text().partition("\n")[2])
    cloud.program("gcloud", f'case "$*" in *--exclude*) touch "$FAKE_CLOUD/copying"; sleep 1 ;; esac; exec {real} "$@"')
    words = ("--store", "gs://bucket/job", "--first-wait", 100, "--work", cloud.folder / "work", "--", job(cloud, 1))
    process = cloud.start("restart.sh", *words)
    while not (cloud.folder / "copying").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "started again" not in err and "stopped" in err


def test_only_the_first_machine_writes_to_the_store(cloud: Cloud) -> None:
    work = cloud.folder / "work"
    assert cloud.run("restart.sh", *STORE, "--work", work, "--worker", 1, "--", job(cloud, 0))[0] == 0
    assert not any(path.is_file() for path in cloud.store.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--store", "s3://bucket", "--", "true"), "s3://bucket is no gs:// path"),
        (("--",), "no command"),
        (("--stor", "x"), "unknown option --stor"),
        (("--work",), "--work needs a value"),
        (("--every", "5m", "--", "true"), "--every 5m: a whole number"),
        (("--every", "0", "--", "true"), "--every 0"),
        (("--tries", "many", "--", "true"), "--tries many"),
        (("--first-wait", "0.5", "--", "true"), "--first-wait 0.5"),
        (("--failed", "", "--", "true"), "--failed : a whole"),
        (("--work", "/nowhere", "--", "true"), "--work /nowhere: no such directory"),
    ],
)
def test_a_mistake_is_one_line(cloud: Cloud, arguments: tuple, said: str) -> None:
    status, _, err = cloud.run("restart.sh", *arguments)
    assert status == 2 and said in err and err.count("\n") == 1


def test_a_node_whose_time_is_up_goes_into_the_queue_again(cloud: Cloud) -> None:
    cloud.program("scontrol", 'echo "$*" >>"$FAKE_CLOUD/scontrol"')
    cloud.program("job", "trap 'exit 143' TERM; touch ready; while :; do sleep 0.05; done")
    tools = str(Path(__file__).resolve().parents[2] / "tpu")
    for number, requeued in ((signal.SIGTERM, False), (signal.SIGUSR1, True)):  # scancel; the time limit
        (cloud.folder / "ready").unlink(missing_ok=True)
        process = cloud.start("gpu.sbatch", "job", JAXGEOM_TPU=tools, SLURM_JOB_ID="42")
        while not (cloud.folder / "ready").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == 143
        assert (cloud.folder / "scontrol").exists() == requeued
    assert (cloud.folder / "scontrol").read_text() == "requeue 42\n"


@pytest.mark.parametrize(("out", "copied"), [(("--out", "gs://b/x"), 0), (("--out=gs://b/x",), 0), (("--out", "x"), 1)])
def test_what_goes_into_a_bucket_by_itself_is_not_copied_back(cloud: Cloud, out: tuple, copied: int) -> None:
    job = ("jaxgeom", "train", "sft", *out, "--steps", "1")
    status, said, err = cloud.run("restart.sh", *STORE, "--work", "w", "--log", "l", "--dry-run", "--", *job)
    assert status == 0, err
    lines = said.splitlines()
    assert sum("rsync --recursive gs://bucket/job/work w" in line for line in lines) == 1
    assert sum("rsync" in line and "--exclude" in line for line in lines) == copied
    assert any("logs/worker-0.log" in line for line in lines) and any(
        "gs://bucket/job/status" in line for line in lines
    )
