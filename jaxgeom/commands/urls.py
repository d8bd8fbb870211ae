"""`gs://…` among a command's arguments: each becomes the path of its copy here, before anything makes a path of it.

`pathlib` takes `gs://b/run` for the folder `gs:` with `b` in it. So words with a URL never come to a parser: those that
a command reads or trains to are replaced, all others refused.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from jaxgeom.buckets import places
from jaxgeom.errors import UserError

_URL = re.compile(r"(?P<before>(?:--[\w-]+=)?(?:[\w.-]+=)?)(?P<url>(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):/.*)", re.DOTALL)
_WRITES = ("--out", "--to", "--cache", "--json")
_TRAINS = ("train sft", "train rlvr", "train opd", "study")
_WRITTEN_BY_REPORT = ("report.html", "matrices.csv", "figures/")


@dataclasses.dataclass
class Remote:
    """What of a command's arguments lies in buckets.

    Attributes:
        inputs: what it reads.
        page_of: the folder whose page is written anew, None for other commands.
    """

    inputs: list[str] = dataclasses.field(default_factory=list)
    page_of: str | None = None

    def take(self) -> None:
        """Copies here what the command reads.

        Raises:
            UserError: it is not there, or cannot be read.
        """
        if not self.inputs:
            return
        from jaxgeom.buckets import copies  # heavy, and only needed for buckets

        for url in self.inputs:
            copies.taken(url)

    def give_back(self) -> None:
        """Puts a page that was written anew beside what it is of."""
        if self.page_of is None:
            return
        from jaxgeom.buckets import copies  # heavy, and only needed for buckets

        local = places.reading_copy(self.page_of)
        files = [path.relative_to(local).as_posix() for path in sorted(local.rglob("*")) if path.is_file()]
        copies.given_back(self.page_of, local, [name for name in files if name.startswith(_WRITTEN_BY_REPORT)])


def without_urls(command: str, words: Sequence[str]) -> tuple[list[str], Remote]:
    """The arguments with paths in the place of `gs://…`, and what these stand for; nothing is asked of a bucket yet.

    Args:
        command: as it is typed, `train sft`.
        words: what stands after it.

    Raises:
        UserError: another kind of URL, or a bucket where the command cannot write.
    """
    found, remote, option = [], Remote(), ""
    for word in words:
        if re.fullmatch(r"--[\w-]+", word):
            option = word
        given = _URL.fullmatch(word)
        if given is None or (given["scheme"].lower() != "gs" and not given["url"].startswith(f"{given['scheme']}://")):
            found.append(word)
            option = "" if option in _WRITES and word != option else option  # one value each
            continue
        own = re.match(r"(--[\w-]+)=", given["before"])
        path = _path(command, (own[1] if own else option).replace("_", "-"), given["url"], remote)
        found.append(f"{given['before']}{path}")
        option = "" if option in _WRITES else option
    return found, remote


def _path(command: str, option: str, url: str, remote: Remote) -> Path:
    if not url.startswith("gs://"):
        way = f"gs://{url[3:].lstrip('/')} is meant?" if url.lower().startswith("gs:") else "copy it here first"
        raise UserError(f"{url}: a path on this machine or gs://BUCKET/… is needed; {way}")
    if option in _WRITES:
        if option != "--out" or command not in _TRAINS:
            raise UserError(
                f"{option} {url}: {command} writes to a path on this machine; give one, and copy it afterwards by"
                f" `gcloud storage rsync --recursive`"
            )
        return places.working_copy(url)
    remote.inputs.append(url)
    if command == "report":
        remote.page_of = places.checked(url)
    return places.reading_path(url)
