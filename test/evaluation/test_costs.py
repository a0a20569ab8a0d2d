from pathlib import Path

import pytest

from bev_perception.evaluation.costs import costs_table, count_costs
from bev_perception.families.variants import list_variants

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
BEGIN = "<!-- costs: begin (python -m bev_perception.evaluation.costs writes it) -->\n"


def on_page():
    return PAGE.read_text().split(BEGIN)[1].split("\n<!-- costs: end -->")[0].splitlines()


def test_the_page_has_every_variant_and_the_figures_of_some():
    header, ruler, *rows = on_page()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list_variants()
    some = ["r50_nuimg_704x256", "sparse4d_tiny", "sparsebev_tiny"]
    wanted = costs_table(some).splitlines()
    assert wanted == [header, ruler, *(row for row in rows if row.split(" | ")[0].removeprefix("| ") in some)]


@pytest.mark.slow
def test_the_page_has_the_table():
    assert on_page() == costs_table(list_variants()).splitlines()


def test_one_by_hand():
    """ResNet-50 of one 224x224 image: 4.09 GMAC without its last layer; operations go with the pixels."""
    _, operations = count_costs("bevdet-r50")
    backbone = 6 * 4.09e9 * (256 * 704) / (224 * 224)
    assert backbone < operations / 2 < 1.1 * backbone
