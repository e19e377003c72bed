"""Pictures in memory: within a budget for one visitor and for all, and nobody else's."""

import pytest

from ts_lightning.serve.pictures import Picture, Pictures


def picture(size: int) -> Picture:
    return Picture(bytes(size), (1, 1))


def test_a_visitor_forgets_the_own_longest_unused_picture() -> None:
    pictures = Pictures(visitor_bytes=30, all_bytes=100)
    first, second, third = (pictures.add("anna", picture(10)) for _ in range(3))
    pictures.get("anna", first)  # used: the second is now the oldest
    pictures.add("anna", picture(5))
    assert pictures.size("anna") == 25
    with pytest.raises(ValueError, match="no longer has this picture"):
        pictures.get("anna", second)
    assert len(pictures.get("anna", first).data) == len(pictures.get("anna", third).data) == 10


def test_whoever_keeps_the_most_pays_for_all() -> None:
    pictures = Pictures(visitor_bytes=60, all_bytes=100)
    small = pictures.add("anna", picture(10))
    for visitor in ("bert", "carl"):
        for _ in range(12):
            pictures.add(visitor, picture(10))
    assert pictures.get("anna", small)
    assert sum(map(pictures.size, ("anna", "bert", "carl"))) == 100


def test_a_picture_is_its_visitors_alone() -> None:
    pictures = Pictures()
    name = pictures.add("anna", picture(1))
    assert pictures.add("anna", picture(1)) != name  # a name tells nothing about the bytes
    with pytest.raises(ValueError, match="no longer has"):
        pictures.get("bert", name)
