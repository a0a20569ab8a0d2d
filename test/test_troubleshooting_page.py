"""docs/troubleshooting.md says what the program says, and has every cause that it counts."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
TREES = [ast.parse(path.read_text()) for path in sorted((ROOT / "bev_perception").rglob("*.py"))]
#: marked likewise on the page, and no part of a sentence
OTHER = {"score_threshold"}


def texts():
    """Every string of the package; what is filled in becomes a zero byte."""
    for tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)


def test_the_program_says_so():
    said = "\n".join(texts())
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "| what I see |" not in line]
    quoted = {text for row in rows for text in re.findall(r"`([^`]+)`", row.split("|")[1])}
    invented = [text for text in sorted(quoted - OTHER) if "..." not in text and text not in said]
    assert len(quoted) > 40 and not invented, f"no text of the program: {invented}"


def test_every_cause_is_on_the_page():
    calls = [node for tree in TREES for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    causes = {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in ("drop", "notice", "reset", "_fail")
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    }
    assert len(causes) > 15
    assert not [cause for cause in sorted(causes) if f"`{cause}`" not in PAGE]
