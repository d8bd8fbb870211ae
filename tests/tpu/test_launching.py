"""The launchers: the commands that `--dry-run` prints, the manifest, the shell, and a watch over a queue."""

import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from tests.tpu.conftest import ROOT, Cloud

JOB = ("--name", "job", "--project", "p", "--zone", "us-west4-a", "--store", "gs://bucket/job")
SLICE = ("--pool", "slice", "--type", "v5p", "--topology", "2x2x4", "--image", "registry/jaxgeom:1")
CLUSTER = ("--cluster", "c", "--project", "p", "--location", "us-west4")
HARD = ["jaxgeom", "train", "sft", "--out", "gs://bucket/a b", '"$HOME" ${ARGS} ${NAME} $(WORKER) & \\ \'é']

# Source: the synopses of gcloud's reference, `compute tpus queued-resources` and `container node-pools create`.
FLAGS = {
    "queued-resources create": "zone project node-id accelerator-type runtime-version scopes metadata-from-file spot "
    "reserved service-account valid-until-duration network subnetwork internal-ips",
    "queued-resources delete": "zone project force quiet",
    "queued-resources describe": "zone project format",
    "node-pools create": "cluster project location node-locations machine-type num-nodes disk-size spot tpu-topology "
    "reservation-affinity reservation scopes service-account",
}


def printed(out: str) -> list[list[str]]:
    return [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]


def test_the_shell_is_clean() -> None:
    scripts = [str(path) for path in sorted((ROOT / "tpu").iterdir()) if path.suffix in (".sh", ".sbatch")]
    shellcheck = Path(sys.executable).with_name("shellcheck")
    program = str(shellcheck) if shellcheck.exists() else "shellcheck"
    done = subprocess.run([program, "-x", "-P", str(ROOT), *scripts], capture_output=True, text=True)
    assert len(scripts) == 6 and done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (("--accelerator", "v5litepod-8", "--spot"), ["--spot", "--runtime-version=v2-alpha-tpuv5-lite"]),
        (("--accelerator", "v5p-32", "--reserved"), ["--reserved", "--runtime-version=v2-alpha-tpuv5"]),
        (("--accelerator=v6e-8", "--valid-until-duration", "6h"), ["--runtime-version=v2-alpha-tpuv6e"]),
        (("--accelerator", "v9-1", "--runtime-version", "r"), ["--runtime-version=r"]),
    ],
)
def test_the_request_for_machines(cloud: Cloud, arguments: tuple, flags: list[str]) -> None:
    status, out, err = cloud.run("queued.sh", "watch", *JOB, *arguments, "--dry-run", "--", *HARD)
    assert status == 0, err
    commands = printed(out)
    create = next(words for words in commands if words[4:5] == ["create"])
    assert set(flags) <= set(create) and ("--spot" in create) == ("--spot" in arguments)
    for words in commands:
        allowed = FLAGS.get(" ".join(words[3:5]))
        if allowed:
            assert {word[2:].split("=")[0] for word in words if word.startswith("--")} <= set(allowed.split())
    assert cloud.calls() == []  # nothing was run
    # What the machines read is the command as it was given, word for word.
    file = "\n".join(line.removeprefix("#   ") for line in out.splitlines() if line.startswith("#   "))
    words = subprocess.run(
        ["bash", "-c", file + '\nprintf "%s\\n" "$store" "${command[@]}"'], capture_output=True, text=True
    )
    assert words.stdout.splitlines() == ["gs://bucket/job", *HARD]


@pytest.mark.parametrize("accelerator", ["v5litepod-8", "v5litepod-4", "v5p-8", "v3-8"])
def test_one_host_may_write_to_its_own_disk(cloud: Cloud, accelerator: str) -> None:
    words = ("--accelerator", accelerator, "--dry-run", "--", "jaxgeom", "study", "e.py", "--out", "runs/study")
    status, out, err = cloud.run("queued.sh", "launch", *JOB, *words)
    assert (status, err) == (0, "") and "storage rm gs://bucket/job/status" in out
    status, out, err = cloud.run("queued.sh", "watch", *JOB, *words)
    # A watch that finds a status ends with it; only a launch takes one away.
    assert (status, err) == (0, "") and "storage rm gs://bucket/job/status" not in out


def test_a_watch_asks_again_until_the_job_has_ended(cloud: Cloud) -> None:
    (cloud.folder / "states").write_text("GONE\nWAITING_FOR_RESOURCES\nACTIVE\nSUSPENDED\nPROVISIONING\nDONE\nACTIVE")
    python = cloud.program("python-of-the-test", 'mkdir -p "${@: -2:1}"; touch "${@: -2:1}/jaxgeom-0-py3.whl"')
    arguments = ("watch", *JOB, "--accelerator", "v6e-8", "--spot", "--poll", "0", "--", "jaxgeom", "study", "e.py")
    status, _, err = cloud.run("queued.sh", *arguments, PYTHON=str(python))
    assert status == 0, err
    verbs = [call[3] for call in cloud.calls() if call[2:3] == ["queued-resources"] and call[3] != "describe"]
    assert verbs == ["create", "delete", "create", "delete"]
    assert (cloud.store / "launch/jaxgeom-0-py3.whl").exists()


def manifest(cloud: Cloud, *arguments: str) -> dict[str, Any]:
    status, out, err = cloud.run("gke.sh", "manifest", "--name", "job", "--store", "gs://bucket/job", *arguments)
    assert status == 0, err
    return yaml.safe_load(out)


def unknown(given: Any, known: Any, path: str = "") -> list[str]:
    """Fields of what was given that are not in what a model has read of it."""
    if isinstance(given, dict):
        below = [unknown(value, (known or {}).get(key), f"{path}.{key}") for key, value in given.items()]
        return [name for names in below for name in names]
    if isinstance(given, list) and isinstance(known, list):
        return [name for one, other in zip(given, known, strict=True) for name in unknown(one, other, f"{path}[]")]
    return [] if given == known else [path]


def faults(jobset: dict[str, Any]) -> list[str]:
    """What the models of the JobSet API, and Kubernetes' schema of a Job, find."""
    found = unknown(jobset, JobsetV1alpha2JobSet.from_dict(jobset).to_dict())
    for job in jobset["spec"]["replicatedJobs"]:
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}} | job["template"]
        try:
            kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(str(error))
    return found


def test_the_manifest_is_what_the_api_takes(cloud: Cloud) -> None:
    found = manifest(cloud, *SLICE, "--", *HARD)
    assert faults(found) == []
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4  # 16 chips, 4 a host
    container = job["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}
    own = container["args"].index("--")
    assert [word.replace("$$", "$") for word in container["args"][own + 1 :]] == [*HARD, "--distributed"]
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    one = manifest(cloud, "--pool", "s", "--type", "v5e", "--topology", "2x2", "--image", "i", "--", "jaxgeom")
    assert one["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == 1
    assert "--distributed" not in str(one)
    # The check itself finds what is wrong.
    found["spec"]["failurePolicy"]["maxRestart"] = 3
    job["backofLimit"] = 1
    container["resources"]["limit"] = {"google.com/tpu": "4"}
    for name in ("maxRestart", "backofLimit", "resources.limit"):
        assert any(name in fault for fault in faults(found)), name


def test_the_pool_has_the_hosts_of_the_slice(cloud: Cloud) -> None:
    words = ("--name", "slice", *CLUSTER, "--zone", "us-west4-a", "--type", "v6e", "--topology", "4x8", "--spot")
    status, out, err = cloud.run("gke.sh", "pool", *words, "--dry-run")
    assert status == 0, err
    [create] = printed(out)
    assert {"--num-nodes=8", "--machine-type=ct6e-standard-4t", "--tpu-topology=4x8", "--spot"} <= set(create)
    assert {word[2:].split("=")[0] for word in create if word.startswith("--")} <= set(
        FLAGS["node-pools create"].split()
    )


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("queued.sh", ("launch", *JOB, "--accelerator", "v9-8", "--", "x"), "give --runtime-version"),
        ("queued.sh", ("launch", *JOB, "--accelerator", "v6e-8", "--spot", "--reserved", "--", "x"), "exclude"),
        ("queued.sh", ("launch", *JOB, "--accelerator", "v6e-8"), "no command after --"),
        ("queued.sh", ("launch", *JOB, "--", "x"), "--accelerator is missing"),
        ("queued.sh", ("launch", *JOB[:-1], "bucket", "--accelerator", "v6e-8", "--", "x"), "gs://BUCKET/FOLDER"),
        ("queued.sh", ("launch", *JOB, "--accelerator", "v6e-8", "--every", "abc", "--", "x"), "--every abc"),
        ("queued.sh", ("watch", *JOB, "--accelerator", "v6e-8", "--poll", "-3", "--", "x"), "--poll -3"),
        ("queued.sh", ("start",), "no action start"),
        ("queued.sh", ("status", "--project", "p", "--zone", "z"), "--name is missing"),
        ("gke.sh", ("delete", *CLUSTER), "--name is missing"),
        ("queued.sh", ("status", "--name", "My_Job", "--project", "p", "--zone", "z"), "--name My_Job"),
        (
            "gke.sh",
            ("manifest", *JOB[:2], *JOB[-2:], *SLICE[:2], "--type", "v5e", *SLICE[4:], "--", "x"),
            "one of 2x2 2x4",
        ),
        ("gke.sh", ("manifest", *JOB[:2], *JOB[-2:], *SLICE, "--every", "0", "--", "x"), "--every 0: a whole number"),
        ("gke.sh", ("manifest", "--zone"), "--zone needs a value"),
        ("gke.sh", ("teardown", *CLUSTER, "--pool", ""), "--pool needs a value"),
        ("gke.sh", ("teardown", *CLUSTER, "--pool="), "--pool needs a value"),
        ("gke.sh", ("manifest", *JOB[:2], *JOB[-2:], "--pool", "a: b", *SLICE[2:], "--", "x"), "--pool a: b"),
        ("gke.sh", ("manifest", *JOB[:2], *JOB[-2:], *SLICE[:6], "--image", 'i"j', "--", "x"), "HOST/PATH:TAG"),
        ("gke.sh", ("launch", "--colour", "red"), "unknown option --colour"),
        (
            "gke.sh",
            ("launch", *JOB[:2], *CLUSTER, *JOB[-2:], *SLICE, "--", "train", "--out", "a b"),
            "--out a b: of several",
        ),
        (
            "queued.sh",
            ("watch", *JOB, "--accelerator", "v6e-16", "--", "study", "--out=runs/a"),
            "--out runs/a: of several",
        ),
        ("queued.sh", ("launch", *JOB, "--accelerator", "v4-16", "--", "study", "--out", "a"), "give --out gs://"),
        ("queued.sh", ("launch", *JOB, "--accelerator", "v4-16", "--", "jaxgeom", "study", "e.py"), "give --out gs://"),
    ],
)
def test_a_mistake_is_one_line(cloud: Cloud, script: str, arguments: tuple, said: str) -> None:
    status, out, err = cloud.run(script, *arguments)
    assert (status, out) == (2, "") and said in err and err.count("\n") == 1
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("v5e", ("2x2", "4x8", "16x16"), ("2x6", "8x4", "16x32", "2x2 2x4", "2x2x1", "")),
        ("v5p", ("2x2x1", "2x4x4", "4x4x8", "4x4x20", "16x16x24"), ("4x4", "2x2x6", "8x4x4", "4x4x6", "16x16x28")),
    ],
)
def test_a_slice_is_one_that_there_is(cloud: Cloud, kind: str, good: tuple, bad: tuple) -> None:
    words = ("pool", "--name", "slice", *CLUSTER, "--zone", "z", "--type", kind, "--dry-run", "--topology")
    for topology in good:
        status, out, err = cloud.run("gke.sh", *words, topology)
        assert status == 0 and f"--num-nodes={math.prod(map(int, topology.split('x'))) // 4}" in out, err
    for topology in bad:
        status, out, err = cloud.run("gke.sh", *words, topology)
        assert (status, out, err.count("\n")) == (2, "", 1) and "--topology" in err, topology


def test_a_name_that_yaml_takes_for_something_else_stays_a_name(cloud: Cloud) -> None:
    words = ("--type", "v5e", "--topology", "2x2", "--image", "i", "--store", "gs://bucket/job", "--", "x")
    _, out, _ = cloud.run("gke.sh", "manifest", "--name", "on", "--pool", "null", *words)
    found = yaml.safe_load(out)
    assert found["metadata"]["name"] == "on" and faults(found) == []


def test_what_is_there_already_is_not_launched_again(cloud: Cloud) -> None:
    """How it ended stays in its store."""
    (cloud.store / "status").write_text("2 refused\n")
    (cloud.folder / "states").write_text("ACTIVE\nUNKNOWN")
    cloud.program("kubectl", 'echo "$*" >>"$FAKE_CLOUD/kubectl"; echo jobset.jobset.x-k8s.io/job')
    status, _, err = cloud.run("queued.sh", "launch", *JOB, "--accelerator", "v6e-8", "--", "x")
    assert status == 2 and "--name job: is there already" in err and err.count("\n") == 1
    cloud.program("gcloud", '[ "$1" = container ] || exit 1')
    status, _, err = cloud.run("gke.sh", "launch", "--name", "job", *CLUSTER, *SLICE, *JOB[-2:], "--", "x")
    assert status == 2 and "--name job: is there already" in err and err.count("\n") == 1
    asked = "get jobset job --ignore-not-found --output=name\n"
    assert (cloud.folder / "kubectl").read_text() == asked
    cloud.program("kubectl", 'echo "$*" >>"$FAKE_CLOUD/kubectl"; echo "no route to host" >&2; exit 1')
    status, _, err = cloud.run("gke.sh", "launch", "--name", "job", *CLUSTER, *SLICE, *JOB[-2:], "--", "x")
    assert status == 2 and "does not tell whether it is there" in err
    assert (cloud.folder / "kubectl").read_text() == 2 * asked
    assert (cloud.store / "status").read_text() == "2 refused\n"


@pytest.mark.parametrize(
    ("tasks", "command"),
    [("1", ["jaxgeom", "a b"]), ("8", ["srun", "--kill-on-bad-exit=1", "jaxgeom", "a b", "--distributed"])],
)
def test_a_slurm_job_of_several_tasks_is_distributed(cloud: Cloud, tasks: str, command: list[str]) -> None:
    environment = {"SLURM_NTASKS": tasks, "JAXGEOM_TPU": str(ROOT / "tpu"), "SLURM_GPUS_ON_NODE": "8"}
    status, out, err = cloud.run("gpu.sbatch", "--dry-run", "jaxgeom", "a b", **environment)
    assert (status, printed(out)) == (0, [command]), err


def test_tasks_that_would_leave_gpus_idle_are_refused(cloud: Cloud) -> None:
    """JAX takes one GPU for each of several tasks; four nodes with one task each would use 4 of 32."""
    words = {"SLURM_NTASKS": "4", "SLURM_NNODES": "4", "SLURM_GPUS_ON_NODE": "8", "JAXGEOM_TPU": str(ROOT / "tpu")}
    status, out, err = cloud.run("gpu.sbatch", "jaxgeom", "train", **words)
    assert (status, out, err.count("\n")) == (2, "", 1) and "--ntasks-per-node=8" in err


def test_one_wheel_lies_in_the_store(cloud: Cloud) -> None:
    """By names the newest is none that can be told: 0.10 stands before 0.9."""
    (cloud.store / "launch").mkdir()
    for version in ("0.10.0", "0.9.0"):
        (cloud.folder / "states").write_text("GONE\n")
        python = cloud.program(
            "of-the-test", f'mkdir -p "${{@: -2:1}}"; touch "${{@: -2:1}}/jaxgeom-{version}-py3.whl"'
        )
        status, _, err = cloud.run("queued.sh", "launch", *JOB, "--accelerator", "v6e-8", "--", "x", PYTHON=str(python))
        assert status == 0, err
    assert [path.name for path in (cloud.store / "launch").iterdir()] == ["jaxgeom-0.9.0-py3.whl"]


def started(cloud: Cloud, installs_at: int) -> tuple[int, list[str]]:
    """Status of a machine's start, and the words of its unit: its metadata, packages and systemd are programs here."""
    home = cloud.folder / "home"
    script = cloud.folder / "startup.sh"
    script.write_text((ROOT / "tpu/startup.sh").read_text().replace("home=/opt/jaxgeom", f"home={home}"))
    (cloud.folder / "jaxgeom-restart").write_text("")
    command = " ".join(map(shlex.quote, HARD))
    (cloud.folder / "jaxgeom-job").write_text(f"store=gs://bucket/job\nevery=300\ncommand=({command})\n")
    (cloud.store / "launch").mkdir()
    (cloud.store / "launch/jaxgeom-0-py3.whl").touch()
    cloud.program("curl", f'for word; do :; done; cat "{cloud.folder}/${{word##*/}}" 2>/dev/null')
    cloud.program("sleep", 'echo "$1" >>"$FAKE_CLOUD/slept"')
    cloud.program("systemd-run", 'printf "%s\\0" "$@" >"$FAKE_CLOUD/unit"')
    cloud.program(
        "python3",
        f'case "$*" in *"uv pip install"*) ;; *) exit 0 ;; esac; echo >>"$FAKE_CLOUD/installs"\n'
        f'[ "$(wc -l <"$FAKE_CLOUD/installs")" -ge {installs_at} ] || exit 1\n'
        f"mkdir -p {home}/venv/bin; touch {home}/venv/bin/jaxgeom; chmod +x {home}/venv/bin/jaxgeom",
    )
    # Of a pattern the real one copies what is there.
    real = cloud.program("real-gcloud", (cloud.folder / "bin/gcloud").read_text().partition("\n")[2])
    wheel = "gs://bucket/job/launch/jaxgeom-0-py3.whl"
    cloud.program("gcloud", f'case "$3" in *whl) exec {real} storage cp {wheel} "$4" ;; esac; exec {real} "$@"')
    done = subprocess.run(["bash", script], env=cloud.environment, capture_output=True, text=True, timeout=60)
    unit = cloud.folder / "unit"
    return done.returncode, unit.read_text().split("\0")[:-1] if unit.exists() else []


def test_a_machine_starts_the_command_word_for_word(cloud: Cloud) -> None:
    """systemd puts variables into the words of a unit's command, but where two dollars stand."""
    status, unit = started(cloud, 1)
    words = unit[unit.index("--") + 1 :]
    assert status == 0 and [word.replace("$$", "\0").count("$") for word in words] == [0] * len(HARD)
    assert [word.replace("$$", "$") for word in words] == HARD


def test_a_machine_that_cannot_install_tries_again_and_says_so_at_last(cloud: Cloud, tmp_path: Path) -> None:
    status, unit = started(cloud, 3)
    assert (status, unit[-len(HARD) - 1]) == (0, "--") and not (cloud.store / "status").exists()
    (tmp_path / "other").mkdir()
    other = Cloud(tmp_path / "other")
    status, unit = started(other, 99)
    assert (status, unit) == (1, []) and (other.store / "status").read_text().startswith("1 jaxgeom could not be")
    slept = (other.folder / "slept").read_text().split()
    assert slept == ["20", "40", "80", "160", "300", "300", "300"]
