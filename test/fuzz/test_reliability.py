"""The table of faults is counted from reports, and written where it belongs."""

import pytest
from fuzz import KINDS
from reliability import (
    BEGIN,
    END,
    FAULTS,
    MUTANTS,
    PAGE,
    ROOT,
    counted,
    outcomes_in,
    page_with,
    table_of,
    try_tests,
)

OUTCOMES = """passed a.py::holds
failed a.py::breaks
failed a.py::cannot begin[x y]
passed a.py::cannot begin[x y]
skipped a.py::is_left_out
passed a.py::fails_at_last
failed a.py::fails_at_last
"""


def test_outcomes_are_counted(tmp_path):
    (tmp_path / "outcomes").write_text(OUTCOMES)
    row = counted("faults", outcomes_in(tmp_path / "outcomes"))
    assert (row.tried, row.held, row.skipped) == (4, 1, 1)
    assert row.failed == ("a.py::breaks", "a.py::cannot begin[x y]", "a.py::fails_at_last")
    assert counted("faults", {}).failed
    table = table_of([row], "so:", ["signals"])
    assert "| faults | 4 | 1 | 1 |" in table and "- faults: a.py::breaks" in table
    assert "| signals | not tried yet | | |" in table
    page = page_with(f"before\n{BEGIN}\nold\n{END}\nafter\n", table)
    assert page == f"before\n{BEGIN}\n{table}\n{END}\nafter\n"


@pytest.mark.slow
def test_tests_that_stay_or_fail_once_lose_no_others(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pathlib, time\n\n"
        "def test_holds():\n    pass\n\n"
        "def test_late():\n    path = pathlib.Path(__file__).with_name('tried')\n"
        "    again = path.exists()\n    path.touch()\n    assert again\n\n"
        "def test_breaks():\n    assert False\n\n"
    )
    row = try_tests("faults", ["test_some.py"], 100, tmp_path)
    assert (row.tried, row.held) == (3, 2) and len(row.failed) == 1 and "test_breaks" in row.failed[0]
    (tmp_path / "test_some.py").write_text(
        "import time\n\ndef test_holds():\n    pass\n\ndef test_stays():\n    time.sleep(600)\n"
    )
    row = try_tests("faults", ["test_some.py"], 15, tmp_path)
    assert (row.tried, row.held) == (1, 1) and "ended after 15 s" in row.failed[0]


def test_the_page_takes_the_table_and_all_that_is_tried_is_there():
    assert BEGIN in PAGE.read_text() and END in PAGE.read_text()
    assert tuple(MUTANTS) == KINDS
    assert all((ROOT / path).is_file() for selection in FAULTS.values() for path in selection)
