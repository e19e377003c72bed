"""A folder's own chat template (Jinja) as a `ChatTemplate`: it is rendered once with marked turns and cut at them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ts_lightning.models.encode import ChatTemplate

Messages = list[dict[str, Any]]
Render = Callable[[Messages, bool], str]
_Q1, _R1, _Q2, _R2 = "Qfirstquestion", "Rfirstanswer", "Qsecondquestion", "Rsecondanswer"


class Chat(NamedTuple):
    """`template`, what it writes for a picture (`mark`, which holds the picture's token once) and `behind` the last."""

    template: ChatTemplate
    mark: str
    behind: str = ""


def renderer(tokenizer: Any, template: str) -> Render:
    """The text of messages by transformers' own sandboxed renderer; without thinking where there is a switch."""

    def render(messages: Messages, ask: bool) -> str:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=ask, enable_thinking=False
        )

    return render


def derive(render: Render, image_token: str, special: Collection[str], ends: Collection[str], eos: str) -> Chat:
    """The parts around turns; ValueError (one line) for a template whose turns can't be told apart.

    `special` are the tokenizer's marks, `ends` those that may end an answer, `eos` ends it where the template has none.
    """
    p0, p1, p2, p3, p4 = _cut(render([_user(_Q1), _answer(_R1), _user(_Q2), _answer(_R2)], False), _Q1, _R1, _Q2, _R2)
    assistant = _cut(render([_user(_Q1)], True), _Q1)[1]
    blank = p3.removeprefix(assistant) if p3.startswith(assistant) else ""
    earlier = p1 if p1 != assistant + blank else None
    found = _end(p2, p4, special, ends)
    # p4 is what stands behind the last answer, also where it is no token that can end one
    end, user = found or (eos, p2.removeprefix(p4))
    with_picture = _cut(render([_user(_Q1), _answer(_R1), _user(_Q2, 1)], True), _Q1, _R1, _Q2)[2]
    with_two = _cut(render([_user(_Q1), _answer(_R1), _user(_Q2, 2)], True), _Q1, _R1, _Q2)[2]
    before, mark, behind = _mark(with_picture, with_two, image_token)
    if not mark:
        before, mark = p2, with_picture.removeprefix(p2)
    if mark.count(image_token) != 1:
        raise ValueError(f"chat template: seen {mark[:80]!r} for a picture, expected {image_token!r} in it once")
    stands = end if found else p2.removesuffix(user)  # what the template itself writes behind an answer
    user_picture = before.removeprefix(stands)
    system, between = p0.removesuffix(user) if p0.endswith(user) else None, ""
    if system is None:  # the first turn begins otherwise than the others: behind an answer comes a line break
        shorter = user.lstrip()
        if not p0.endswith(shorter):
            raise ValueError(f"chat template: seen {p0[-60:]!r} before a first question, expected {user[-60:]!r}")
        breaks = user[: len(user) - len(shorter)]
        between, stands = breaks if found else "", stands + breaks
        user, user_picture = shorter, user_picture.removeprefix(breaks)
        system = p0.removesuffix(shorter)
    template = ChatTemplate(
        system=system,
        user=user,
        assistant=assistant,
        end=end,
        blank=blank,
        after_picture="",
        user_picture=None if user_picture == user else user_picture,
        earlier=earlier,
        between=between,
    )
    _check(template, mark + behind, render, stands)
    return Chat(template, mark, behind)


def _mark(one: str, two: str, image_token: str) -> tuple[str, str, str]:
    """(what stands before a picture, its mark, what stands behind the last), of texts with a picture and with two.

    The mark is what `two` has more, as far behind as it holds the token; empty strings where there is none.
    """
    more = len(two) - len(one)
    for end in range(len(one), 0, -1):
        mark = one[max(end - more, 0) : end]
        if mark.count(image_token) == 1 and one[:end] + mark + one[end:] == two:
            return one[: end - more], mark, one[end:]
    return "", "", ""


def _end(p2: str, p4: str, special: Collection[str], ends: Collection[str]) -> tuple[str, str] | None:
    """(end of an answer, what begins the next question), cut behind the mark that ends an answer."""
    found = [(p2.find(mark), -len(mark), mark) for mark in special if mark in p2]
    if not found:
        return None
    place, _, mark = min(found)
    written = p2[: place + len(mark)]
    if p2[:place].strip() or not (mark in ends or p4.startswith(written)):
        return None
    return written, p2[len(written) :]


def _check(template: ChatTemplate, mark: str, render: Render, end: str) -> None:
    """ValueError where the parts, put together, are not what the template writes."""
    before = template.user if template.user_picture is None else template.user_picture
    first = f"{template.system}{before}{mark}{_Q1}"
    cases: Sequence[tuple[Messages, bool, str]] = (
        ([_user(_Q1, 1)], True, first + template.assistant),
        (
            [_user(_Q1, 1), _answer(_R1), _user(_Q2)],
            True,
            f"{first}{template.assistant if template.earlier is None else template.earlier}"
            f"{template.blank if template.earlier is None else ''}{_R1}{end}{template.user}{_Q2}{template.assistant}",
        ),
    )
    for messages, ask, expected in cases:
        if (seen := render(messages, ask)) != expected:
            at = next((i for i, (a, b) in enumerate(zip(seen, expected, strict=False)) if a != b), 0)
            raise ValueError(
                f"chat template: seen {seen[at : at + 60]!r} where its parts say {expected[at : at + 60]!r}; "
                "expected turns that are written alike"
            )


def _cut(text: str, *marks: str) -> list[str]:
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise ValueError("chat template: seen one that does not write every turn, expected user and assistant")
        parts.append(before)
    return [*parts, text]


def _user(text: str, pictures: int = 0) -> dict[str, Any]:
    return {"role": "user", "content": [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]}


def _answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def chat_of(template: str | Mapping[str, str] | None) -> str | None:
    """The template itself, where a folder has several by name."""
    return template.get("default") if isinstance(template, Mapping) else template
