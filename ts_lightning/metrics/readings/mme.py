"""MME's sums over its fourteen categories."""

from collections.abc import Iterable

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def mme_figures(rows: Iterable[tuple[str, str, bool]]) -> dict[str, float | dict[str, float]]:
    """`rows` are (category, picture, right), two questions a picture.

    A category is 100 x (accuracy + share of pictures with all questions right). `perception` (ten categories, at most
    2000; what papers print as MME) and `cognition` (four, at most 800) sum what is there; `by_category` has each.
    """
    pictures: dict[str, dict[str, list[bool]]] = {}
    for category, picture, right in rows:
        pictures.setdefault(category, {}).setdefault(picture, []).append(right)
    scores = {}
    for category, groups in pictures.items():
        every = [right for group in groups.values() for right in group]
        scores[category] = 100 * (sum(every) / len(every) + sum(map(all, groups.values())) / len(groups))
    return {
        "perception": sum(scores.get(name, 0.0) for name in PERCEPTION),
        "cognition": sum(scores.get(name, 0.0) for name in COGNITION),
        "by_category": scores,
    }
