"""`gcloud` for the tests: buckets are folders, a queue plays the states that it is given, and every call is kept.

Of the environment: FAKE_CLOUD, the folder of all; in it `states`, a line each, of which `describe` tells the first and
removes it unless it is the last.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

CLOUD = Path(os.environ.get("FAKE_CLOUD", "."))


def place(name: str) -> Path:
    return CLOUD / name.removeprefix("gs://") if name.startswith("gs://") else Path(name)


def fail(said: str) -> None:
    print(said, file=sys.stderr)
    sys.exit(1)


def storage(verb: str, *words: str) -> None:
    flags = [word for word in words if word.startswith("--")]
    paths = [word for word in words if not word.startswith("--")]
    if verb in ("ls", "rm") and "*" in paths[0]:
        found = list(place(paths[0]).parent.glob(Path(paths[0]).name))
        if not found:
            fail("not found: " + paths[0])
        for path in found if verb == "rm" else ():
            path.unlink()
    elif verb in ("ls", "cat", "rm"):
        path = place(paths[0])
        if not path.exists():
            fail("not found: " + paths[0])
        if verb == "cat":
            sys.stdout.write(path.read_text())
        if verb == "rm":
            path.unlink()
    elif verb == "cp":
        target = place(paths[-1])
        target = target / Path(paths[0]).name if paths[-1].endswith("/") else target
        target.parent.mkdir(parents=True, exist_ok=True)
        if paths[0] == "-":
            target.write_text(sys.stdin.read())
        else:
            shutil.copy(place(paths[0]), target)
    elif verb == "rsync":
        without = re.compile(next((flag.removeprefix("--exclude=") for flag in flags if "exclude" in flag), r"\A\Z"))
        source, target = map(place, paths)
        for path in source.rglob("*"):
            name = path.relative_to(source).as_posix()
            if path.is_file() and not without.search(name):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name)


def queued_resources(verb: str, *_: str) -> None:
    states = CLOUD / "states"
    if verb == "describe":
        first, *more = states.read_text().split("\n")
        states.write_text("\n".join(more or [first]))
        if first == "DONE":  # the machines have written how they ended
            (CLOUD / "bucket/job/status").write_text("0 done\n")
            first = "ACTIVE"
        if first == "GONE":
            fail("ERROR: NOT_FOUND")
        print(first)


def main(arguments: list[str]) -> None:
    with (CLOUD / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    if arguments[0] == "storage":
        storage(*arguments[1:])
    elif arguments[:3] == ["compute", "tpus", "queued-resources"]:
        queued_resources(*arguments[3:])
    else:
        fail("no such command: " + " ".join(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
