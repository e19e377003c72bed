"""Whether an answer says yes (True), no (False), or neither (None)."""

import re

_YES_NO = re.compile(r"\b(yes|no|not)\b", re.ASCII | re.IGNORECASE)


def read_yes_no(text: str) -> bool | None:
    """Our reading: the first of the words yes, no and not decides."""
    match = _YES_NO.search(text)
    return None if match is None else match[1].lower() == "yes"


def pope_yes_no(text: str) -> bool:
    """POPE's rule (`evaluate.py`): no, where the first sentence has one of the words No, no, not; yes otherwise.

    It never says neither: an answer about something else counts as yes.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return not any(word in words for word in ("No", "not", "no"))


def mme_yes_no(text: str) -> bool | None:
    """MME's rule (`calculation.py`): "yes", else "no", within the first four characters in lower case."""
    start = text.lower()[:4]
    return True if "yes" in start else False if "no" in start else None


def lmms_eval_mme_yes_no(text: str) -> bool | None:
    """MME's rule as lmms-eval (from Otter) has it: periods and outer blanks go first, and "y" or "n" alone count."""
    text = text.lower().strip().replace(".", "")
    return {"y": True, "n": False}.get(text) if len(text) == 1 else mme_yes_no(text)
