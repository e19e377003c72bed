"""Generation over captions, local models and shares of an array."""

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.data_samples import sample as small_sample
from tests.unit.generation_samples import Server, detection, read
from tests.unit.models.hf_families import make_folder
from ts_lightning.cli import main
from ts_lightning.data.sample import REGION_MARK, Answer, SampleRegion
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines import generate
from ts_lightning.pipelines.llm_client import LocalChat, OpenAIChat, RequestFailed
from ts_lightning.pipelines.offline import OfflineChat
from ts_lightning.pipelines.region_chat import RegionChat
from ts_lightning.pipelines.response_cache import CachedChat, request_hash
from ts_lightning.pipelines.scenes import Scene, describe, scene_of, scenes
from ts_lightning.pipelines.scout_checks import Rejected, check_negative, check_positive
from ts_lightning.pipelines.shard_work import my_shards, shard_samples
from ts_lightning.pipelines.toy_world.multi_image import multi_image_samples

REAL = Path(__file__).parents[4] / "shared/real/coco_mini"

SCOUT = ("data", "generate", "scout")
DOG = (0.05, 0.1, 0.25, 0.4)


def test_a_picture_with_several_captions_is_asked_once(tmp_path, monkeypatch) -> None:
    captions = [replace(detection(0), key=f"c{i}", id=f"c{i}") for i in range(3)]
    (path,) = write_shards([*captions, detection(1)], tmp_path, "in")
    assert main([*SCOUT, str(path), "--out", str(tmp_path / "out"), "--negatives", "0"]) == 0
    samples = read(f"{tmp_path}/out/*.tar")
    questions = [(one.images[0].name, one.meta["question"]) for one in samples]
    assert len(set(questions)) == len(questions) > 10
    (note,) = (tmp_path / "out").glob("scout-*.json")
    assert json.loads(note.read_text())["dropped"]["near-duplicate question about the same picture"] > 5


def test_neighbours_of_one_name_are_two_pictures(tmp_path) -> None:
    one, other = detection(0), detection(6)  # the same objects in other pictures
    one.images[0].name = other.images[0].name = "0001.jpg"
    (path,) = write_shards([one, other], tmp_path, "in")
    assert [len(scene.things) for scene in generate.annotated([str(path)]).values()] == [3, 3]
    out = tmp_path / "out"
    assert main([*SCOUT, str(path), "--out", str(out), "--negatives", "0"]) == 0
    (note,) = out.glob("scout-*.json")
    assert "near-duplicate question about the same picture" not in json.loads(note.read_text())["dropped"]
    assert main(["data", "report", f"{out}/*.tar", "--annotations", str(path), "--out", str(out)]) == 0
    figures = json.loads((out / "report.json").read_text())
    assert (figures["table_a1"]["images"], figures["accepted"]["share_right"]) == (2, 1.0)


@pytest.mark.parametrize(
    ("verb", "one", "two"),
    [
        ("scout", "", "--second"),
        ("scout", "", "--answers-codec scout"),
        ("gic", "--least 1", "--least 0.5"),
        ("gic", "", "--captions-codec scout"),
        ("region-chat", "--turns 2", "--turns 1"),
        ("region-chat", "--vocabulary ONE", "--vocabulary TWO"),
        ("mirg", "--limit 1", "--limit 2"),
        ("mirg", "", "--locate-codec scout"),
    ],
)
def test_a_shard_made_with_other_options_is_named_and_made_anew(verb, one, two, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ONE", "TWO"):
        Path(name).write_text(name)
    made = multi_image_samples("sft", 8) if verb == "mirg" else [detection(0), detection(1)]
    path = write_shards(made, tmp_path, "in")[0]
    told = []
    for words in (one, one, two):
        assert main(["data", "generate", verb, str(path), "--out", "out", *words.split()]) == 0
        out, err = capsys.readouterr()
        told.append((": done before\n" in out, ": done before with other settings, made anew: " in err))
    assert told == [(False, False), (True, False), (False, True)]
    if "--limit" in two:
        assert len(read("out/*.tar")) == 2


def test_a_note_of_an_older_version_is_named_and_made_anew(tmp_path, capsys) -> None:
    (path,) = write_shards([detection(0)], tmp_path, "in")
    words = [*SCOUT, str(path), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    (note,) = (tmp_path / "out").glob("scout-*.json")
    first = json.loads(note.read_text())
    old = {name: value for name, value in first["settings"].items() if name not in ("codecs", "second")}
    note.write_text(json.dumps(first | {"settings": old}))
    capsys.readouterr()
    assert main(words) == 0
    line = "done before with other settings, made anew: codecs: seen nothing, expected {'questions': 'cogvlm', "
    assert (
        f"{path.name}: {line}'answers': 'cogvlm'}}; second: seen nothing, expected False\n" in capsys.readouterr().err
    )
    assert json.loads(note.read_text())["settings"] == first["settings"]
    note.write_text(json.dumps(first | {"settings": "another file's"}))
    assert main(words) == 0


def test_who_asks_and_who_answers_offline_know_each_other_in_any_notation(tmp_path) -> None:
    (path,) = write_shards([detection(0)], tmp_path, "in")
    for codec in ("cogvlm", "scout"):
        assert main([*SCOUT, str(path), "--out", str(tmp_path / codec), "--answers-codec", codec]) == 0
    one, two = ([sample.turns for sample in read(f"{tmp_path}/{codec}/*.tar")] for codec in ("cogvlm", "scout"))
    assert one == two
    assert len(one) > 5


def test_captions_with_boxes_are_scenes_too() -> None:
    one = detection(0)
    one.subtask = "caption"
    one.turns[1].text = "A man {region:0} holds two hats {region:1} ."
    one.regions = [SampleRegion(phrase="A man", category="people", box=DOG)]
    one.regions.append(
        SampleRegion(phrase="two hats", category="clothing", boxes=[(0.5, 0.5, 0.6, 0.6), (0.7, 0.5, 0.8, 0.6)])
    )
    made = scene_of(one)
    assert made is not None
    assert describe(made) == "A man [8, 12, 40, 48] holds two hats [[80, 60, 96, 72], [112, 60, 128, 72]] ."
    assert [thing.name for thing in made.things] == ["man", "hats", "hats"]
    assert scene_of(replace(one, task="understanding")) is None


def test_captions_of_one_picture_know_what_the_others_name(tmp_path) -> None:
    man, guitar = SampleRegion(phrase="A man", box=DOG), SampleRegion(phrase="a guitar", box=(0.4, 0.45, 0.6, 0.95))
    said = {"A man {region:0} plays music .": [man], "A guy {region:0} holds {region:1} .": [man, guitar]}
    captions = []
    for number, (text, regions) in enumerate(said.items()):
        one = replace(detection(0), key=f"c{number}", id=f"c{number}", subtask="caption", regions=[*regions])
        one.meta, one.turns[1].text = {"captions": [REGION_MARK.sub("", text)]}, text
        captions.append(replace(one, answer=Answer(regions=[*range(len(regions))])))
    (path,) = write_shards([*captions, detection(1)], tmp_path, "in")
    first, second, other = scenes(shard_samples(path))
    assert describe(first) == "A man [8, 12, 40, 48] plays music ."
    assert [thing.name for thing in first.things] == [thing.name for thing in second.things] == ["man", "guitar"]
    assert (first.own, second.own, len(other.things)) == ({0}, {0, 1}, 4)
    refusal = ["Find the guitar", "There is a man {region:0} in the image, not it", "This question is invalid"]
    with pytest.raises(Rejected, match="the thing is in the picture"):
        check_negative(first, "Where is the guitar?", ". ".join(refusal), [DOG], refusal)
    steps = "Step 1: Find the guitar {region:0}. Step 2: So the answer is guitar {region:0}."
    assert not check_positive(first, "What is it?", "guitar", (steps, [(0.4, 0.45, 0.6, 0.95)]), None).unchecked
    assert {one.regions[0].phrase for one in RegionChat(OfflineChat(), image_level=0)(first)} == {"A man"}


def test_a_local_model_answers(tmp_path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "USER:", "ASSISTANT:", "where", "is", "the", "dog"])}
    plain = Tokenizer(models.WordLevel(words, "<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>").save_pretrained(tmp_path)
    config = GPT2Config(vocab_size=7, n_embd=8, n_layer=1, n_head=1, n_positions=64, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    chat = LocalChat(str(tmp_path), max_tokens=4)
    shutil.copytree(tmp_path, tmp_path / "other" / tmp_path.name)
    other = LocalChat(str(tmp_path / "other" / tmp_path.name), max_tokens=4)
    assert chat.name == other.name
    assert chat.identity == LocalChat(str(tmp_path), max_tokens=4).identity != other.identity
    asked = [{"role": "user", "content": "where is the dog"}]
    assert chat.chat(asked) == chat.chat(asked)
    assert isinstance(chat.chat(asked, attempt=1), str)
    with pytest.raises(RequestFailed, match="seen a picture, expected text alone"):
        chat.chat(asked, [b"x"])


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_a_local_model_sees_pictures_without_torchvision(name: str, tmp_path: Path) -> None:
    chat = LocalChat(str(make_folder(name, tmp_path)), max_tokens=2, device="cpu")
    batches, generate = [], chat.model.generate
    chat.model.generate = lambda **batch: batches.append(batch) or generate(**batch)
    assert isinstance(chat.chat([{"role": "user", "content": "Where is the dog?"}], detection(0).image_bytes), str)
    (batch,) = batches
    assert (batch["input_ids"] == chat.model.config.image_token_id).sum() > 1
    assert batch["pixel_values"].numel() > 0


def test_models_of_one_name_are_asked_apart(tmp_path, capsys) -> None:
    pytest.importorskip("openai")
    asked, cache = [{"role": "user", "content": "Who?"}], tmp_path / "cache.jsonl"
    a, b = (Server({request_hash(asked, [], None, 0): text}) for text in "ab")

    def ask(url: str, **how: float) -> str:
        cached = CachedChat(OpenAIChat("vlm", url, "k", **how), cache)
        text = cached.chat(asked)
        cached.close()
        return text

    told = f"{cache}: %d answers are of another model, server or temperature, or of a version that did not note it: "
    told += "not used, openai:vlm is asked\n"
    cache.write_text(json.dumps({"request": request_hash(asked, [], None, 0), "text": "whose?"}) + "\n")
    assert (ask(a.url), capsys.readouterr().err) == ("a", told % 1)
    assert (ask(b.url), capsys.readouterr().err) == ("b", told % 2)
    assert (ask(a.url, temperature=1.0), capsys.readouterr().err) == ("a", told % 3)
    assert [ask(a.url), ask(b.url)] == ["a", "b"]
    assert ask(a.url.replace("://", "://user:pa55@"), max_tokens=9) == "a"  # the same server, under another key
    assert (a.requests, b.requests, capsys.readouterr().err) == (2, 1, "")
    assert "pa55" not in cache.read_text()
    a.stop()
    b.stop()


def test_the_offline_backend_keeps_what_threads_look_at_apart() -> None:
    chat, asked = OfflineChat(), [{"role": "system", "content": "questions: here"}, {"role": "user", "content": "Ask."}]

    def ask(scene: Scene) -> str:
        chat.look(scene)
        return chat.chat(asked)

    one, two = (scene_of(detection(i)) for i in (0, 1))
    first = ask(one)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(ask, two).result() != first
    assert chat.chat(asked) == first


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", 1),
        ("--workers 3", 3),
        ("--answers openai:m@http://h/v1", 8),
        ("--answers openai:m@http://h/v1 --workers 2", 2),
    ],
)
def test_how_many_pictures_are_worked_on_at_once(words, expected, tmp_path, monkeypatch) -> None:
    pytest.importorskip("openai")
    (path,) = write_shards([detection(0)], tmp_path, "in")
    seen: list[int] = []
    monkeypatch.setattr(generate, "work", lambda *given: seen.append(given[-1]))
    assert main([*SCOUT, str(path), "--out", str(tmp_path / "out"), *words.split()]) == 0
    assert seen == [expected]


def test_shares_of_an_array_and_shards_without_pictures(tmp_path, monkeypatch, capsys) -> None:
    paths = [Path(f"{i}.tar") for i in range(5)]
    assert my_shards(paths, 1, 2) == [Path("1.tar"), Path("3.tar")]
    for array, expected in {(12, 10, 12, 3): [2], (7, 3, 7, 2): [1, 3], (3, 3, 3, 1): [0, 1, 2, 3, 4]}.items():
        for name, value in zip(("ID", "MIN", "MAX", "COUNT"), array, strict=True):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        assert my_shards(paths) == [Path(f"{i}.tar") for i in expected], array
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "9")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    with pytest.raises(ValueError, match="seen 3 tasks from 3 to 9, expected --array=FIRST-LAST without gaps"):
        my_shards(paths)
    with pytest.raises(ValueError, match="seen number 5 of 2"):
        my_shards(paths, 5, 2)
    for name in ("ID", "MIN", "MAX", "COUNT"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}")
    (path,) = write_shards([small_sample(1)], tmp_path, "plain")
    assert main([*SCOUT, str(path), "--out", str(tmp_path / "out")]) == 0
    assert "0 pictures, 0 samples" in capsys.readouterr().out


def test_the_sbatch_file_passes_its_words_on(tmp_path) -> None:
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    known = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "echo"}
    script = Path(__file__).parents[3] / "tools/slurm/generate.sbatch"
    done = subprocess.run(
        ["bash", str(script), "scout", "a b", "--out", "o"], env=known, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "-m ts_lightning data generate scout a b --out o\n")


def test_shards_of_one_name_and_other_bad_words_are_one_line(tmp_path, monkeypatch, capsys) -> None:
    paths = [write_shards([detection(i)], tmp_path / name, "in")[0] for i, name in enumerate("ab")]

    def run(*words: str) -> str:
        assert main([*SCOUT, *words, "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    message = run(str(paths[0]), str(paths[0]), f"{tmp_path}/b/*.tar")
    expected = f"shards: seen {paths[0]} and {paths[1]}, expected names that differ (outputs are named by them)"
    assert message == f"ts-lightning: error: {expected}\n"
    assert run(str(paths[0]), "--share", "3") == "ts-lightning: error: share: seen '3', expected i/n, as 0/4\n"
    assert not (tmp_path / "out").exists()
