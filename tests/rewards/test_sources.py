"""The digest of a verifier covers what it is made of, and nothing beside."""

import hashlib
import importlib
import sys

import pytest

from jaxgeom.rewards.sources import digest_of


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Files of a user's, and the digest of their verifier as a new process would have it."""
    monkeypatch.syspath_prepend(tmp_path)
    files = {
        "own_sources.py": (
            "import json, numpy, os.path\n"
            "from own_sources_helper import LIMIT\n"
            "def late(texts, rows):\n"
            "    from own_sources_package.inner import rule, number\n"
            "    try:\n        import not_there_at_all.sub\n    except ImportError:\n        pass\n"
        ),
        "own_sources_helper.py": "import own_sources\nLIMIT = 3\n",
        "own_sources_package/__init__.py": "",
        "own_sources_package/inner.py": "from . import beside\nfrom .beside import number\nrule = 1\n",
        "own_sources_package/beside.py": "number = 2\n",
        "own_sources_package/unread.py": "number = 2\n",
        "own_sources_other.py": "number = 2\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)

    def digest(**changed):
        for name, content in changed.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.write_text(content)
        for name in [name for name in sys.modules if name.startswith("own_sources")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        found = digest_of(importlib.import_module("own_sources"))
        for name in [name for name in sys.modules if name.startswith("own_sources")]:
            del sys.modules[name]
        return found

    return digest


def test_a_helper_of_a_verifier_counts(own):
    before = own()
    assert own() == before and len(before) == 64
    assert own(own_sources_other="number = 7\n", own_sources_package__unread="number = 7\n") == before
    seen = {before}
    seen.add(own(own_sources_helper="import own_sources\nLIMIT = 4\n"))
    seen.add(own(own_sources_package__beside="number = 4\n"))
    seen.add(own(own_sources_package__inner="from .beside import number\nrule = 4\n"))
    assert len(seen) == 4


def test_the_package_around_a_verifier_counts(tmp_path, monkeypatch):
    """Also where nothing of it is imported by name: it ran before the verifier, which may read what it has set."""
    monkeypatch.syspath_prepend(tmp_path)
    files = {"": "LIMIT = 1\n", "helper": "", "inner/": "", "inner/verifier": "import sys\n", "unread": ""}
    for name, content in files.items():
        path = tmp_path / "around_sources" / (f"{name}__init__.py" if name in ("", "inner/") else f"{name}.py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    (tmp_path / "around_sources" / "__init__.py").write_text("from around_sources.helper import *\n")
    module = importlib.import_module("around_sources.inner.verifier")
    seen = {digest_of(module)}
    for name in ("__init__", "helper", "inner/__init__", "inner/verifier"):
        with (tmp_path / "around_sources" / f"{name}.py").open("a") as file:
            file.write("LIMIT = 2\n")
        seen.add(digest_of(module))
    assert len(seen) == 5
    (tmp_path / "around_sources" / "unread.py").write_text("LIMIT = 2\n")
    assert digest_of(module) in seen


def test_of_one_file_it_is_that_files_own(own):
    """So that runs of before have the digest that they have kept."""
    content = "import json\nfrom jaxgeom.rewards import math_reward\nimport pytest\nf = 1\n"
    assert own(own_sources=content) == hashlib.sha256(content.encode()).hexdigest()


def test_nothing_is_imported_for_it(own, tmp_path):
    (tmp_path / "own_sources_loud.py").write_text("raise SystemExit('imported')\n")
    own(own_sources="def f():\n    import own_sources_loud, own_sources_loud.part\n")
    assert "own_sources_loud" not in sys.modules
