from pathlib import Path

from bev_perception.families.catalog import gives
from bev_perception.families.family import OCCUPANCY
from bev_perception.families.table import variants_table
from bev_perception.families.variants import list_variants, load_variant

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def test_the_page_has_the_table():
    text = PAGE.read_text()
    begin = "<!-- variants: begin (bev_perception.families.table.variants_table writes it) -->\n"
    assert text.split(begin)[1].split("\n<!-- variants: end -->")[0] == variants_table()


def test_the_table_says_what_the_files_say():
    header, ruler, *rows = [line.strip("|").split("|") for line in variants_table().splitlines()]
    assert [row[0].strip() for row in rows] == list_variants()
    assert all(len(row) == len(header) == len(ruler) for row in rows)
    for row in rows:
        config = load_variant(row[0].strip())
        text = "|".join(row)
        assert f"{config.image.width}x{config.image.height}" in text and str(config.backbone.depth) in text
        facts = config.provenance
        speed = [facts.published_fps, facts.published_hardware]
        for fact in (
            *(facts.published_nds_val, facts.published_nds_test, facts.published_rayiou, facts.published_raypq),
            facts.published_miou,
            *speed,
        ):
            assert fact is None or str(fact) in text
        assert ("occupancy" in row[1]) == (OCCUPANCY in gives(config))
        assert ("live" in row[-1]) == (config.frames.future == 0)
