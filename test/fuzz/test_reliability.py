"""The table of faults is counted from reports, and written where it belongs."""

from fuzz import KINDS
from reliability import BEGIN, END, FAULTS, MUTANTS, PAGE, ROOT, counted, page_with, table_of

REPORT = """<testsuites><testsuite>
<testcase classname="a" name="holds"/>
<testcase classname="a" name="breaks"><failure/></testcase>
<testcase classname="a" name="cannot_begin"><error/></testcase>
<testcase classname="a" name="is_left_out"><skipped/></testcase>
</testsuite></testsuites>"""


def test_reports_are_counted(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    row = counted("faults", tmp_path / "report.xml")
    assert (row.tried, row.held, row.skipped) == (3, 1, 1)
    assert row.failed == ("a::breaks", "a::cannot_begin")
    assert counted("faults", tmp_path / "none.xml").failed
    table = table_of([row], "so:")
    assert "| faults | 3 | 1 | 1 |" in table and "- faults: a::breaks" in table
    page = page_with(f"before\n{BEGIN}\nold\n{END}\nafter\n", table)
    assert page == f"before\n{BEGIN}\n{table}\n{END}\nafter\n"


def test_the_page_takes_the_table_and_all_that_is_tried_is_there():
    assert BEGIN in PAGE.read_text() and END in PAGE.read_text()
    assert tuple(MUTANTS) == KINDS
    assert all((ROOT / path).is_file() for selection in FAULTS.values() for path in selection)
