"""Questions over two to six pictures, in the shape of MIG-Bench's ten tasks, with exact truth and trajectories.

A picture is a scene; what a task needs (a common object, a change, motion, another view) is done to the scene, so the
target's box is known to the pixel.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import NamedTuple

from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.grounding.prompts import templates
from ts_lightning.pipelines.toy_world import scene_edits as edits
from ts_lightning.pipelines.toy_world.grounding import SKILL
from ts_lightning.pipelines.toy_world.render import jpeg, render
from ts_lightning.pipelines.toy_world.scene import Scene, Thing
from ts_lightning.pipelines.toy_world.understanding import ORDINALS

STYLES = ("grounded", "reasoning", "answer")
FIRST_SEED = {"sft": 20_000_000, "rl": 21_000_000, "val": 22_000_000, "dev": 23_000_000, "test": 24_000_000}


class Story(NamedTuple):
    """One question: scenes, the words asked, the thought with the target in it as `{}`, and where target and query are.

    `target` and `query` are (picture, thing); the query is an object that the question points at (`{query}`).
    """

    scenes: list[Scene]
    question: str
    thought: str
    target: tuple[int, Thing]
    query: tuple[int, Thing] | None = None


def common_object(seed: int, random: Random) -> Story | None:
    """The one kind of object that every picture has."""
    scenes = edits.scenes_from(seed, random.randint(2, 4))
    kind = random.choice([edits.kind_of(thing) for thing in scenes[0].things])
    for i, scene in enumerate(scenes):
        if not any(edits.kind_of(thing) == kind for thing in scene.things):
            added = edits.placed(scene, kind, random)
            if added is None:
                return None
            scenes[i] = replace(scene, things=(*scene.things, added))
    shared = set.intersection(*({edits.kind_of(thing) for thing in scene.things} for scene in scenes))
    picture = random.randrange(len(scenes))
    target = edits.only_one(scenes[picture], kind)
    if shared != {kind} or target is None:
        return None
    question = f"Which object is in every image? Find it in the {ORDINALS[picture]} image."
    return Story(scenes, question, f"Every image has a {' '.join(kind)}. It is {{}}.", (picture, target))


def static_difference(seed: int, random: Random) -> Story | None:
    """Two pictures that are equal but for the colour of one object."""
    (scene,) = edits.scenes_from(seed, 1)
    changed, thing = edits.recoloured(scene, random)
    question = "One object has another color in the second image. Find it there."
    thought = f"In the second image there is a {' '.join(edits.kind_of(thing))}, which is new. It is {{}}."
    return Story([scene, changed], question, thought, (1, thing))


def robust_difference(seed: int, random: Random) -> Story | None:
    """The same objects elsewhere on another background, one of them in another colour."""
    (scene,) = edits.scenes_from(seed, 1)
    changed, thing = edits.recoloured(scene, random)
    moved = edits.shuffled(replace(changed, seed=seed + 500_000), random)
    if moved is None:
        return None
    target = moved.things[changed.things.index(thing)]
    if edits.only_one(moved, edits.kind_of(target)) is None:
        return None
    question = "The objects have moved, and one has another color in the second image. Find it there."
    thought = f"The {' '.join(edits.kind_of(target))} is only in the second image. It is {{}}."
    return Story([scene, moved], question, thought, (1, target))


def object_tracking(seed: int, random: Random) -> Story | None:
    """Frames in which every object drifts; the one of the first frame is asked for in a later one."""
    frames = edits.scenes_from(seed, 1)
    thing = random.choice(frames[0].things)
    if edits.only_one(frames[0], edits.kind_of(thing)) is None:
        return None
    number = frames[0].things.index(thing)
    for _ in range(random.randint(2, 4)):
        following = edits.drifted(frames[-1], random)
        if following is None:
            return None
        frames.append(following)
    picture = random.randrange(1, len(frames))
    question = f"Track the object at {{query}} of the first image. Where is it in the {ORDINALS[picture]} image?"
    thought = f"It is a {' '.join(edits.kind_of(thing))}. In the {ORDINALS[picture]} image it is {{}}."
    return Story(frames, question, thought, (picture, frames[picture].things[number]), (0, thing))


def multi_view(seed: int, random: Random) -> Story | None:
    """The scene seen from behind: mirrored, on another background."""
    (scene,) = edits.scenes_from(seed, 1)
    thing = random.choice(scene.things)
    if edits.only_one(scene, edits.kind_of(thing)) is None:
        return None
    mirrored = tuple(
        replace(t, pixels=(scene.width - t.pixels[2], t.pixels[1], scene.width - t.pixels[0], t.pixels[3]))
        for t in scene.things
    )
    view = replace(scene, seed=seed + 500_000, things=mirrored)
    question = "Both images show one scene from two sides. Where is the object at {query} of the first in the second?"
    thought = f"It is a {' '.join(edits.kind_of(thing))}. In the second image it is {{}}."
    return Story([scene, view], question, thought, (1, mirrored[scene.things.index(thing)]), (0, thing))


def region(seed: int, random: Random) -> Story | None:
    """The second picture is a part of the first, enlarged."""
    (scene,) = edits.scenes_from(seed, 1)
    thing = random.choice(scene.things)
    if edits.only_one(scene, edits.kind_of(thing)) is None:
        return None
    part = Scene(seed + 500_000, scene.width, scene.height, (edits.filling(thing, scene),))
    question = "The second image shows an object of the first image. Find it in the first image."
    return Story(
        [scene, part], question, f"It is a {' '.join(edits.kind_of(thing))}. In the first it is {{}}.", (0, thing)
    )


def refer(seed: int, random: Random) -> Story | None:
    """The first picture shows what to find in one of the others."""
    scenes = edits.scenes_from(seed, random.randint(1, 3))
    picture = random.randrange(len(scenes))
    thing = random.choice(scenes[picture].things)
    if sum(edits.kind_of(t) == edits.kind_of(thing) for scene in scenes for t in scene.things) != 1:
        return None
    query = Scene(seed + 500_000, *edits.canvas_of(scenes[0]), (edits.filling(thing, scenes[0]),))
    question = "Find the object of the first image in the other images."
    thought = (
        f"The first image shows a {' '.join(edits.kind_of(thing))}. In the {ORDINALS[picture + 1]} image it is {{}}."
    )
    return Story([query, *scenes], question, thought, (picture + 1, thing))


def group_grounding(seed: int, random: Random) -> Story | None:
    """An object in words that only one of the pictures has."""
    scenes = edits.scenes_from(seed, random.randint(2, 6))
    picture = random.randrange(len(scenes))
    thing = random.choice(scenes[picture].things)
    if sum(edits.kind_of(t) == edits.kind_of(thing) for scene in scenes for t in scene.things) != 1:
        return None
    name = " ".join(edits.kind_of(thing))
    question = f"One of the images has a {name}. Find it."
    return Story(scenes, question, f"The {ORDINALS[picture]} image has a {name}. It is {{}}.", (picture, thing))


def reasoning(seed: int, random: Random) -> Story | None:
    """The object whose colour is that of an object in another picture."""
    first, second = edits.scenes_from(seed, 2)
    anchor = random.choice(first.things)
    same = [thing for thing in second.things if thing.color == anchor.color]
    if len(same) != 1 or sum(thing.shape == anchor.shape for thing in first.things) != 1:
        return None
    question = f"Find the object in the second image that has the color of the {anchor.shape} in the first image."
    thought = f"The {anchor.shape} is {anchor.color}. The {same[0].color} object of the second image is {{}}."
    return Story([first, second], question, thought, (1, same[0]))


def correspondence(seed: int, random: Random) -> Story | None:
    """The object of the same shape, whatever its colour."""
    first, second = edits.scenes_from(seed, 2)
    query = random.choice(first.things)
    same = [thing for thing in second.things if thing.shape == query.shape]
    if len(same) != 1 or same[0].color == query.color:
        return None
    question = "Which object of the second image has the shape of the object at {query} of the first image?"
    thought = f"It is a {query.shape}. The {same[0].shape} of the second image is {{}}."
    return Story([first, second], question, thought, (1, same[0]), (0, query))


TASKS: dict[str, Callable[[int, Random], Story | None]] = {
    task.__name__: task
    for task in (
        *(static_difference, robust_difference, common_object, object_tracking, multi_view),
        *(region, refer, group_grounding, reasoning, correspondence),
    )
}


def multi_image_samples(split: str, total: int, style: str = "grounded") -> Iterator[Sample]:
    """`total` samples of a split (sft, rl, val, dev, test), the tasks in turn; each depends on its seed alone.

    style: the trajectories' form, the rows of the paper's Table 3: "grounded" (boxes in the thought, named by id in the
    answer), "reasoning" (words only, then the box) or "answer" (no thought). ValueError for another one.
    """
    if style not in STYLES:
        raise ValueError(f"style: seen {style!r}, expected one of {', '.join(STYLES)}")
    seed, made, tasks = FIRST_SEED[split], 0, [*TASKS]
    while made < total:
        task, random = tasks[made % len(tasks)], Random(seed)
        story = TASKS[task](seed, random)
        if story is not None:
            made += 1
            yield record(story, seed, task, style, random)
        seed += 1


def record(story: Story, seed: int, task: str, style: str, random: Random) -> Sample:
    """The sample of a story, with its pictures."""
    places = [story.target, *([story.query] if story.query else [])]
    regions = [
        SampleRegion(
            image=picture,
            phrase=" ".join(edits.kind_of(thing)),
            category=thing.shape,
            area_px=float((thing.pixels[2] - thing.pixels[0]) * (thing.pixels[3] - thing.pixels[1])),
            box=story.scenes[picture].box(thing),
        )
        for picture, thing in places
    ]
    thought = story.thought.format("{region:0}" if style == "grounded" else "there")
    answer = (
        "<answer>{region:0}</answer>" if style == "answer" else f"<think>{thought}</think><answer>{{region:0}}</answer>"
    )
    question = random.choice(templates("toy_multi_image")).format(
        question=story.question.replace("{query}", "{region:1}")
    )
    return Sample(
        id=f"toy-{task}-{seed}",
        key=f"mig{seed:08d}",
        source="toy_world",
        task=SKILL,
        subtask=task,
        tags=["multi_image"],
        images=[SampleImage(f"toy_{seed}_{i}.jpg", s.width, s.height) for i, s in enumerate(story.scenes)],
        turns=[Turn("user", "<image>\n" * len(story.scenes) + question), Turn("assistant", answer)],
        regions=regions,
        answer=Answer(None, [0]),
        image_bytes=[jpeg(render(scene)) for scene in story.scenes],
    )
