"""docs/statistics.md is what its table says, and nothing is missing from it."""

import re
from pathlib import Path

from jaxgeom.diagnostics import STATISTICS
from jaxgeom.report.statistics_page import main, statistics_page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "statistics.md"


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == statistics_page(), "run python -m jaxgeom.report.statistics_page"


def test_the_page_has_every_statistic_once_and_every_link_a_target(tmp_path):
    main([str(tmp_path / "page.md")])
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    titles = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert titles == list(STATISTICS)
    assert {link.lower() for link in re.findall(r"\]\(#(.+?)\)", page)} <= {title.lower() for title in titles}
    for entry in STATISTICS.values():
        assert entry.definition in page and entry.meaning in page
