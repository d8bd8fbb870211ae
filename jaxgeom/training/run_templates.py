"""Chat templates with names of their own in a run's tokenizer: which of them the run wrote, by a list of digests.

Their names are the model's, so that a name alone does not tell a file that a user has put there.
"""

import contextlib
import json
from collections.abc import Collection
from pathlib import Path

from jaxgeom.checkpoints.plain_files import read_json
from jaxgeom.errors import UserError
from jaxgeom.files import sha256_of, write_atomically

TEMPLATES = "additional_chat_templates"
_LIST = "templates.json"


def own_templates(tokenizer: Path) -> list[str]:
    """Paths, from a run's `tokenizer`, of the templates that are there as the run wrote them."""
    try:
        listed = read_json(tokenizer / _LIST)
    except UserError:
        return []
    return [name for name, digest in listed.items() if _is(tokenizer, name, digest)]


def list_templates(tokenizer: Path, names: Collection[str]) -> None:
    """Writes the list of the templates that the run has written.

    Args:
        tokenizer: the run's.
        names: of the files.
    """
    _remove_if_empty(tokenizer / TEMPLATES)
    if names or (tokenizer / _LIST).exists():
        digests = {f"{TEMPLATES}/{name}": sha256_of(tokenizer / TEMPLATES / name) for name in sorted(names)}
        write_atomically(tokenizer / _LIST, json.dumps(digests, indent=1) + "\n")


def remove_templates(tokenizer: Path) -> None:
    """Takes away the templates that the run wrote; a folder that is empty then goes too."""
    for name in own_templates(tokenizer):
        (tokenizer / name).unlink()
    _remove_if_empty(tokenizer / TEMPLATES)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _is(tokenizer: Path, name: str, digest: object) -> bool:
    path = tokenizer / name
    inside = Path(name).parts[:1] == (TEMPLATES,) and len(Path(name).parts) == 2
    return inside and not path.is_symlink() and path.is_file() and sha256_of(path) == digest
