import itertools
import re
from pathlib import Path

from analysis import palette
from dato.sampler import SAMPLERS
from search.optimize.importance import KINDS
from search.records import FAMILIES

ROOT = Path(__file__).parents[2]


def test_what_stands_in_one_picture_has_a_colour_each() -> None:
    for colours in (
        palette.WAYS.values(), palette.SAMPLERS.values(), palette.GENES.values(), map(palette.depth_colour, range(13)), [*palette.WAYS.values(), *palette.SAMPLERS.values()],
        [palette.PLAIN, palette.STRATEGY, *palette.CACHES.values(), *palette.SAMPLERS.values()],
    ):
        found = list(colours)
        assert len(set(found)) == len(found)
    looks = palette.series(40)
    assert len(set(looks)) == 40
    assert len({colour for colour, _ in looks[:10]}) == 10


def test_colours_are_told_apart_without_hue() -> None:
    """What lies next to each other in a schedule differs in lightness too, which every eye sees."""

    def lightness(colour: str) -> float:
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2

    for a, b in itertools.combinations(map(palette.depth_colour, (0, 1, 12)), 2):
        assert abs(lightness(a) - lightness(b)) > 0.05


def test_everything_that_has_a_name_has_a_colour() -> None:
    assert set(palette.SAMPLERS) == set(SAMPLERS)
    assert set(palette.GENES) == set(KINDS)
    assert set(palette.WAYS) | set(palette.CACHES) == set(FAMILIES) - {"fewer", "limited"}
    assert palette.sampler_colour("HeunDiscreteScheduler", ["HeunDiscreteScheduler", "Other"]) != palette.sampler_colour("Other", ["HeunDiscreteScheduler", "Other"])


def test_a_colour_stands_in_one_place() -> None:
    given = {colour.lower() for colour in (*palette.WAYS.values(), *palette.CACHES.values(), *palette.SAMPLERS.values(), *palette.GENES.values()) if colour != palette.INK}
    for path in (ROOT / "analysis").glob("*.py"):
        if path.name != "palette.py":
            assert not given & {c.lower() for c in re.findall(r"#[0-9a-fA-F]{6}", path.read_text())}, path.name
