"""Progress: lines with the time left where there is no terminal, one live line where there is."""

import io
import re

import pytest
from rich.console import Console

from jaxgeom import progress as progress_module
from jaxgeom.commands.entries import entry_progress
from jaxgeom.progress import Reporter

NAME = "model.layers.0.mlp.experts.down_proj[q]"


class _Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = _Clock()
    monkeypatch.setattr(progress_module, "time", found)
    return found


def _plain():
    stream = io.StringIO()
    return stream, Reporter(Console(file=stream, highlight=False, soft_wrap=True))


def test_lines_give_the_share_the_time_left_and_the_whole_name(clock):
    stream, reporter = _plain()
    with entry_progress(reporter, "compare") as progress:
        assert not stream.getvalue()
        progress.begin()
        assert "compare" in stream.getvalue()  # said before the first matrix is finished
        for done in (100, 200, 400):
            clock.now += 60
            progress(done, 1000, NAME)
    lines = stream.getvalue().splitlines()
    assert lines[1:4] == [
        f"compare (‰ of the entries): 100/1000, unknown time left {NAME}",
        f"compare (‰ of the entries): 200/1000, 8 min 00 s left {NAME}",
        f"compare (‰ of the entries): 400/1000, 4 min 00 s left {NAME}",
    ]
    assert lines[-1].endswith("done in 3 min 00 s")


def test_a_first_step_that_compiles_is_not_taken_for_the_pace(clock):
    stream, reporter = _plain()
    with reporter.task("sft", 80) as task:
        for seconds in (20, 12):
            clock.now += seconds
            task.advance()
    assert "sft: 1/80, unknown time left\nsft: 2/80, 15 min 36 s left" in stream.getvalue()


def test_what_an_interrupted_run_had_measured_takes_no_time_again(clock):
    stream, reporter = _plain()
    with entry_progress(reporter, "compare") as progress:
        clock.now += 60
        progress(900, 1000, NAME)  # 850 of them were there already
        clock.now += 60
        progress(950, 1000, NAME)
    assert "950/1000, 1 min 00 s left" in stream.getvalue()


def test_names_between_colons_stay_as_they_are(capsys):
    """rich takes `:b:` for a picture."""
    Reporter().say("run: host:b:c")
    assert capsys.readouterr().out == "run: host:b:c\n"


def test_a_failure_is_not_called_done():
    stream, reporter = _plain()
    with pytest.raises(OSError), entry_progress(reporter, "compare") as progress:
        progress(100, 1000, NAME)
        raise OSError
    assert "done in" not in stream.getvalue()


@pytest.mark.parametrize(("width", "shown"), [(80, "model"), (160, NAME)])
def test_a_terminal_has_one_line_with_the_time_left(width, shown):
    stream = io.StringIO()
    reporter = Reporter(Console(file=stream, force_terminal=True, width=width, highlight=False))
    with reporter.task("compare", 1000) as task:
        for _ in range(3):
            task.advance(100, NAME)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert text.count("\n") == 1 and shown in text and " left " in text and "300/1000" in text
    assert max(len(line) for line in re.split("[\r\n]", text)) <= width
