from pathlib import Path

from bev_perception.families.reference import variants_reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "variants.md"


def test_the_page_is_current():
    assert PAGE.read_text() == variants_reference(), (
        "write docs/variants.md anew: python -m bev_perception.families.reference > docs/variants.md"
    )


def test_the_page_names_keys_units_and_defaults_of_every_family():
    text = variants_reference()
    for row in (
        "| `frames.interval` | `0.5` | s between two frames |",
        "| `image.height` | required | pixels, before padding to a multiple of `pad` |",
        "| `head.proposals.queries` | `0` |",
        "| `training.family.seen_only` | `false` |",
        "| `training.family.proposals.denoising_velocity` | `0.0` | m/s, standard deviation",
    ):
        assert row in text, row
