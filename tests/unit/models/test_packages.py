"""Packages: saved and loaded, several on one base, per row; skills in plain text; tokens that the base lacks."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ts_lightning.data.collate import collate
from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.losses import token_nll
from ts_lightning.models import PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.package import read_package
from ts_lightning.models.vlm import VLM
from ts_lightning.pipelines.toy_world.shards import grounding_samples, understanding_samples
from ts_lightning.reports.certificate import certify_on
from ts_lightning.runs.class_paths import plain

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 4, "vision_layers": 1, "num_heads": 2}
GROUNDING = list(grounding_samples("train", 4, ("localization", "rec")))
UNDERSTANDING = list(understanding_samples("train", 4))
NEW = ["<loc>", "</loc>"]


def backbone(seed: int = 0, **notation: str) -> TinyBackbone:
    return TinyBackbone(pretrained=None, seed=seed, **SIZES, **notation)


def shaken(vlm: TwinExpertVLM, seed: int = 1) -> TwinExpertVLM:
    """The vlm with everything that trains moved away from its start."""
    torch.manual_seed(seed)
    for parameter in vlm.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return vlm.eval()


def reading(text: str = "left", answer: str = "right") -> Sample:
    """A record of a skill that answers in plain text."""
    turns = [Turn("user", f"<image>\nRead: {text}"), Turn("assistant", answer)]
    picture = GROUNDING[0]
    images = [SampleImage("x.jpg", picture.images[0].width, picture.images[0].height)]
    sample = Sample("r", task="reading", images=images, turns=turns, answer=Answer(answer), key="r")
    sample.image_bytes = picture.image_bytes
    return sample


def batch(vlm: VLM, samples: list, for_generation: bool = False) -> dict:
    rows = [vlm.encode(sample, for_generation) for sample in samples]
    return collate(rows, vlm.pad_id, "left" if for_generation else "right")


@pytest.mark.parametrize("options", [{}, {"alpha_scope": "layer", "every": 1, "num_experts": 1}])
@torch.no_grad()
def test_save_and_load_give_the_same_logits(options: dict, tmp_path: Path) -> None:
    vlm = shaken(TwinExpertVLM(backbone(), train_token_rows=["codec"], **options))
    vlm.save_pretrained(tmp_path, {"val/grounding/miou": 0.5})
    again = TwinExpertVLM.from_pretrained(tmp_path, backbone())
    rows = batch(vlm, GROUNDING + UNDERSTANDING)
    # not bitwise, as in this whole file: MKL rounds by the address, and weights that were read lie elsewhere
    torch.testing.assert_close(vlm(rows)["logits"], again(rows)["logits"], rtol=1e-6, atol=1e-6)
    files = {"package.safetensors", "twin_config.json", "config.json", "README.md"}
    assert {path.name for path in tmp_path.iterdir()} == files
    config, tensors = read_package(tmp_path)
    assert config["base"] == vlm.identity()
    assert config["options"]["every"] == options.get("every", 2)
    assert config["codec"] == {"name": "scout", "grid": "100", "frame": "original"}
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in vlm.parameters() if p.requires_grad)
    card = (tmp_path / "README.md").read_text()
    assert "val/grounding/miou: 0.5000" in card
    assert vlm.identity()["sha256"] in card
    started = TwinExpertVLM(backbone(), train_token_rows=["codec"], **options, init_from=str(tmp_path)).eval()
    torch.testing.assert_close(vlm(rows)["logits"], started(rows)["logits"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "trained", "here"),
    [
        ("alpha_param", {"alpha_param": "sigmoid"}, {}),  # 0.5 is stored as 0, which raw would take for alpha
        ("train_token_rows", {"train_token_rows": [" boat", " cup"]}, {"train_token_rows": [" chair", " boat"]}),
        ("new_tokens", {"new_tokens": ["<loc>"]}, {"new_tokens": ["</loc>"]}),
        ("seed_experts", {"expert_rank": 2, "seed_experts": [0, 1]}, {"expert_rank": 2, "seed_experts": [1, 0]}),
    ],
)
def test_weights_that_would_mean_something_else_are_refused(name: str, trained: Any, here: Any, tmp_path: Path) -> None:
    vlm = TwinExpertVLM(backbone(), **trained)
    vlm.save_pretrained(tmp_path / "package")
    state = {f"vlm.{key}": value for key, value in vlm.trainable_state_dict().items()}
    config = {"model": {"init_args": {"vlm": {"init_args": trained}}}}
    torch.save({"state_dict": state, "base": vlm.identity(), "config": config}, tmp_path / "x.ckpt")
    for start in ("package", "x.ckpt"):
        TwinExpertVLM(backbone(), **trained, top_k=2, alpha_init=0.3, init_from=str(tmp_path / start))
        with pytest.raises(ValueError, match=f"^init_from .*{start}: {name}: seen weights that were trained with .*"):
            TwinExpertVLM(backbone(), **here, init_from=str(tmp_path / start))
    other = {"seed_experts": [0, 1]}, {"seed_experts": [1, 0]}  # full copies have left their seeds
    TwinExpertVLM(backbone(), **other[0]).save_pretrained(tmp_path / "full")
    TwinExpertVLM(backbone(), **other[1], init_from=str(tmp_path / "full"))


@pytest.mark.parametrize("notation", [{"codec_grid": "1000"}, {"codec": "mirg"}])
def test_a_package_in_another_notation_is_refused(notation: dict, tmp_path: Path, caplog: Any) -> None:
    """A box of grid 100 read under grid 1000 is a tenth as large."""
    TwinExpertVLM(backbone()).save_pretrained(tmp_path)
    expected = r"codec: seen .*'grid': '100', 'name': 'scout'.*, expected .*'grid': '1000', 'name': '(scout|mirg)'"
    with pytest.raises(ValueError, match=expected):
        TwinExpertVLM.from_pretrained(tmp_path, backbone(**notation))
    with pytest.raises(ValueError, match=expected):
        TwinExpertVLM(backbone(**notation), package="other", packages={"grounding": str(tmp_path)})
    assert not caplog.text
    TwinExpertVLM(backbone(**notation), init_from=str(tmp_path))  # to train on in another one
    assert "trained to write {'frame': 'original', 'grid': '100', 'name': 'scout'}" in caplog.text


class Mine(TwinExpertVLM):
    """A vlm of somebody's own: one argument more, the others as they come."""

    def __init__(self, backbone: TinyBackbone, bonus: float = 1.0, **kw: Any) -> None:
        super().__init__(backbone, **kw)
        self.bonus = bonus


class MineRows(TwinExpertVLM):
    """One that decides for itself."""

    def __init__(self, backbone: TinyBackbone, init_from: str | None = None) -> None:
        super().__init__(backbone, alpha_param="sigmoid", train_token_rows=[" boat"], init_from=init_from)


class MineAnyhow(TwinExpertVLM):
    """One that hands everything on."""

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)


def checkpoint(vlm: VLM, path: Path) -> Path:
    """As a module's: the weights, the base, the vlm's class and arguments."""
    state = {f"vlm.{key}": value for key, value in vlm.trainable_state_dict().items()}
    config = {"model": {"init_args": {"vlm": plain(vlm, "vlm")}}}
    torch.save({"state_dict": state, "base": vlm.identity(), "config": config}, path)
    return path


def test_arguments_without_names_could_not_be_built_again() -> None:
    with pytest.raises(ValueError, match=r"MineAnyhow: seen 2 values for \*args, expected each by its name"):
        MineAnyhow(TinyBackbone(), 2)
    assert MineAnyhow(backbone=TinyBackbone(), num_experts=3).init_args["num_experts"] == 3


def test_a_vlm_of_ones_own_starts_from_its_weights(tmp_path: Path) -> None:
    """`bonus` is nothing to a package; what no call names is the class's own."""
    raw, own = shaken(Mine(backbone(), bonus=2.0)), shaken(MineRows(backbone()))
    raw.save_pretrained(tmp_path / "raw")
    own.save_pretrained(tmp_path / "own")
    for start in (tmp_path / "raw", checkpoint(raw, tmp_path / "raw.ckpt")):
        again = Mine(backbone(), init_from=str(start))
        assert all(map(torch.equal, again.trainable_state_dict().values(), raw.trainable_state_dict().values()))
        with pytest.raises(ValueError, match="alpha_param: seen weights that were trained with 'raw', expected 'sig"):
            Mine(backbone(), alpha_param="sigmoid", init_from=str(start))
    for start in (tmp_path / "own", checkpoint(own, tmp_path / "own.ckpt")):
        again = MineRows(backbone(), init_from=str(start))
        assert all(map(torch.equal, again.trainable_state_dict().values(), own.trainable_state_dict().values()))
    assert Mine.from_pretrained(tmp_path / "raw", backbone()).bonus == 1.0
    named = Mine(backbone(), alpha_param="sigmoid")
    assert named.init_args.keys() == {"backbone", "alpha_param"}
    with pytest.raises(ValueError, match="alpha_param: seen weights that were trained with 'sigmoid', expected 'raw'"):
        Mine(backbone(), init_from=str(checkpoint(named, tmp_path / "named.ckpt")))
    with pytest.raises(ValueError, match="alpha_param: seen weights that were trained with 'raw', expected 'sigmoid'"):
        MineRows(backbone(), init_from=str(checkpoint(TwinExpertVLM(backbone()), tmp_path / "twin.ckpt")))


def test_what_options_come_to_is_compared(tmp_path: Path, caplog: Any) -> None:
    """qwen2_5_vl and chatspot have 13 rows each, the ten digits first; their marks are others."""
    trained = TwinExpertVLM(backbone(codec="qwen2_5_vl"), train_token_rows=["codec"])
    trained.save_pretrained(tmp_path / "rows")
    texts = trained.encoder.of_task(1).row_tokens(["codec"])
    other = backbone(codec="chatspot")
    assert len(texts) == len(other.encoder.row_tokens(["codec"])) == 13
    for start in map(str, (tmp_path / "rows", checkpoint(trained, tmp_path / "rows.ckpt"))):
        TwinExpertVLM(backbone(codec="qwen2_5_vl"), train_token_rows=texts, init_from=start)
        assert "init_from" not in caplog.text
        seen = (
            r"train_token_rows: .* with \['codec'\] of .*'name': 'qwen2_5_vl'.*, expected \['codec'\] of .*'chatspot'"
        )
        with pytest.raises(ValueError, match=seen):
            TwinExpertVLM(backbone(codec="chatspot"), train_token_rows=["codec"], init_from=start)
        TwinExpertVLM(backbone(codec="chatspot"), train_token_rows=texts, init_from=start)
        assert f"{start}: seen weights that were trained to write" in caplog.text
        caplog.clear()
    ranked = TwinExpertVLM(backbone(), expert_rank=2)
    ranked.save_pretrained(tmp_path / "rank")
    for start in map(str, (tmp_path / "rank", checkpoint(ranked, tmp_path / "rank.ckpt"))):
        for seeds in ([0, 1], [0, 1, 0]):  # of two experts: 0 and 1, as for None
            TwinExpertVLM(backbone(), expert_rank=2, seed_experts=seeds, init_from=start)
        with pytest.raises(ValueError, match=r"seed_experts: .* trained with None, expected \[1, 0\]"):
            TwinExpertVLM(backbone(), expert_rank=2, seed_experts=[1, 0], init_from=start)
    grid = checkpoint(TwinExpertVLM(backbone(codec_grid="1000")), tmp_path / "grid.ckpt")
    TwinExpertVLM(backbone(), init_from=str(grid))
    assert "trained to write {'frame': 'original', 'grid': '1000', 'name': 'scout'}, here boxes are" in caplog.text


@torch.no_grad()
def test_two_packages_on_one_base_row_by_row(tmp_path: Path) -> None:
    boxes = shaken(TwinExpertVLM(backbone(), train_token_rows=["codec"]))
    texts = shaken(TwinExpertVLM(backbone(), package="reading", every=1, top_k=2), 2)
    boxes.save_pretrained(tmp_path / "boxes")
    texts.save_pretrained(tmp_path / "texts")
    both = TwinExpertVLM.from_pretrained(tmp_path / "boxes", backbone())
    both.install(tmp_path / "texts")
    assert both.skills == ("grounding", "reading")
    samples = [GROUNDING[0], reading(), UNDERSTANDING[0], GROUNDING[1], reading("top", "bottom")]
    rows = batch(both, samples)
    assert rows["task"].tolist() == [1, 2, 0, 1, 2]
    mixed, row_N = both(rows)["logits"], both(rows)["positions"][0]
    for vlm, members in ((boxes, [0, 3]), (texts, [1, 4]), (PlainVLM(backbone(), train=()).eval(), [2])):
        alone = vlm({**batch(both, samples), "task": torch.ones(5, dtype=torch.long)})["logits"]
        mine = torch.isin(row_N, torch.tensor(members))
        torch.testing.assert_close(mixed[mine], alone[mine], rtol=1e-5, atol=1e-5)
    one_skill = batch(both, samples[:1])
    torch.testing.assert_close(both(one_skill)["logits"], boxes(one_skill)["logits"], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(both(one_skill, package="reading")["logits"], boxes(one_skill)["logits"], atol=1e-3)
    with pytest.raises(ValueError, match="package: seen 'counting', expected one of grounding, reading"):
        both(one_skill, package="counting")
    prompts = batch(both, samples, for_generation=True)
    words = both.generate(prompts, 6)
    for vlm, members in ((boxes, [0, 3]), (texts, [1, 4]), (PlainVLM(backbone(), train=()).eval(), [2])):
        alone = vlm.generate({**prompts, "task": torch.ones(5, dtype=torch.long)}, 6)
        assert [words[i] for i in members] == [alone[i] for i in members]
    both.keep_copy("reference")
    shaken(both, 3)
    assert not torch.allclose(both(rows)["logits"], mixed, atol=1e-3)
    torch.testing.assert_close(both(rows, package="reference")["logits"], mixed, rtol=1e-5, atol=1e-5)


def test_a_text_skill_trains_beside_grounding_and_neither_changes_the_other(tmp_path: Path) -> None:
    boxes = shaken(TwinExpertVLM(backbone(), train_token_rows=["codec"]))
    boxes.save_pretrained(tmp_path / "boxes")
    both = TwinExpertVLM(backbone(), package="reading", packages={"grounding": str(tmp_path / "boxes")}).train()
    names = {name for name, p in both.named_parameters() if p.requires_grad}
    assert names
    assert all(".packages.reading." in name for name in names)
    optimizer = torch.optim.AdamW([p for p in both.parameters() if p.requires_grad], lr=0.03)
    rows = batch(both, [reading(), *GROUNDING, *UNDERSTANDING])
    losses = []
    for _ in range(15):
        output = both(rows)
        nll = token_nll(output["logits"], output["targets"])[output["positions"][0] == 0]
        losses.append(nll.mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5  # the frozen random head allows about 0.8
    both.eval()
    with torch.no_grad():
        grounding = batch(both, GROUNDING)
        assert grounding["task"].tolist() == [2] * 4
        theirs = boxes({**grounding, "task": grounding["task"].clamp(max=1)})["logits"]
        torch.testing.assert_close(both(grounding)["logits"], theirs, rtol=1e-6, atol=1e-6)
        understanding = batch(both, UNDERSTANDING)
        base = PlainVLM(backbone(), train=()).eval()
        torch.testing.assert_close(both(understanding)["logits"], base(understanding)["logits"], rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="seen task 'counting', expected understanding, reading, grounding"):
        both.encode(Sample("c", task="counting", turns=reading().turns, key="c"))


def test_new_tokens_train_and_are_absent_from_understanding(tmp_path: Path) -> None:
    vlm = shaken(TwinExpertVLM(backbone(), new_tokens=NEW, train_token_rows=["<box>"]))
    base = PlainVLM(backbone(), train=()).eval()
    size = len(base.backbone.embedding.weight)
    ids = vlm.encoder.token_ids(NEW)
    assert ids == [size, size + 1]
    assert vlm.backbone.embedding.weight.shape[0] == size
    prompt = reading("<image>")  # any record; its text gets the new tokens
    prompt.task, prompt.turns = "grounding", [Turn("user", "<image>\nx"), Turn("assistant", "y")]
    rows = batch(vlm, [prompt, *UNDERSTANDING])
    answer = (rows["step_ids"][0] >= 0).nonzero()[0]
    rows["input_ids"][0, answer] = ids[0]
    output = vlm.train()(rows)
    row_N = output["positions"][0]
    assert output["logits"].shape[1] == size + 2
    assert output["logits"][row_N == 0].isfinite().all()
    assert (output["logits"][row_N > 0][:, size:] == -torch.inf).all()
    token_nll(output["logits"], output["targets"]).mean().backward()
    embed = vlm.token_rows["grounding"].embed
    assert embed.grad.isfinite().all()
    assert embed.grad[1:].any(1).all()
    vlm.eval()
    with torch.no_grad():
        understanding = batch(vlm, UNDERSTANDING)
        ours, theirs = vlm(understanding)["logits"], base(understanding)["logits"]
        torch.testing.assert_close(ours[:, :size], theirs, rtol=1e-6, atol=1e-6)
        prompts = batch(vlm, UNDERSTANDING, for_generation=True)
        assert vlm.generate(prompts, 8) == base.generate(prompts, 8)
        vlm.save_pretrained(tmp_path)
        again = TwinExpertVLM.from_pretrained(tmp_path, backbone())
        torch.testing.assert_close(again(rows)["logits"], vlm(rows)["logits"], rtol=1e-6, atol=1e-6)
        assert again.tokenizer.decode(ids) == "<loc></loc>"


def test_a_new_token_starts_at_the_mean_of_its_pieces() -> None:
    bare = backbone()
    weight = bare.embedding.weight.clone()
    pieces = bare.encoder.tokenizer("<loc>", add_special_tokens=False)["input_ids"]
    vlm = TwinExpertVLM(bare, new_tokens=["<loc>"])
    torch.testing.assert_close(vlm.token_rows["grounding"].embed[0], weight[pieces].mean(0))


def test_an_understanding_row_with_a_region_has_the_base_tokens() -> None:
    vlm, base = TwinExpertVLM(backbone(), new_tokens=["[["]), PlainVLM(backbone(), train=())
    sample = UNDERSTANDING[0]
    sample.regions = [SampleRegion(box=(0.1, 0.1, 0.5, 0.5))]
    sample.turns = [Turn("user", "<image>\nWhat is in {region:0}?"), Turn("assistant", "x")]
    assert torch.equal(vlm.encode(sample)["input_ids"], base.encode(sample)["input_ids"])


def test_each_new_token_starts_at_its_own_pieces() -> None:
    """In whatever order rows are named, and where the matrices have a spare row for the token."""
    plain, spare = backbone(), backbone()
    spare.model.resize_token_embeddings(len(spare.embedding.weight) + 8)
    for bare in (plain, spare):
        weight, tokenizer = bare.embedding.weight.detach().clone(), bare.encoder.tokenizer
        vlm = TwinExpertVLM(bare, new_tokens=NEW, train_token_rows=[*NEW[::-1], "<box>"])
        ids = vlm.encoder.token_ids(NEW)
        assert vlm.token_rows["grounding"].ids.tolist()[:2] == ids[::-1]
        in_base = ids[1] < len(weight)
        assert in_base == (bare is spare)
        *started, known = vlm.token_rows["grounding"].embed
        assert not known.any()
        for text, token, own in zip(NEW, ids, started[::-1], strict=True):
            pieces = tokenizer(text, add_special_tokens=False)["input_ids"]
            torch.testing.assert_close(own + (weight[token] if in_base else 0), weight[pieces].mean(0))


def test_the_text_of_a_new_token_is_no_mark_in_understanding() -> None:
    """The base's row, character by character; the certificate sees a row that differs."""
    vlm, base = TwinExpertVLM(backbone(), new_tokens=["<part>"]).eval(), PlainVLM(backbone(), train=())
    question = UNDERSTANDING[1]
    sample = replace(question, turns=[Turn("user", "<image>\nWhat does <part> mean?"), *question.turns[1:]])
    assert torch.equal(vlm.encode(sample)["input_ids"], base.encode(sample)["input_ids"])
    skill = replace(sample, task="grounding")  # may not say it in its text
    assert vlm.encoder.token_ids(["<part>"])[0] not in vlm.encode(skill)["input_ids"]
    found = certify_on(vlm, [question, sample], max_new_tokens=2)
    assert (found["passed"], found["read_otherwise"]) == (True, [])
    vlm.encoder = replace(vlm.encoder, tokenizers=())
    found = certify_on(vlm, [question, sample], max_new_tokens=2)
    assert (found["passed"], found["read_otherwise"]) == (False, [sample.key])


def boxed(task: str) -> Sample:
    """A record whose answer is a box, in the codec's marks."""
    sample = reading(answer="at {region:0}")
    sample.task, sample.regions = task, [SampleRegion(box=(0.1, 0.1, 0.5, 0.5))]
    return sample


@torch.no_grad()
def test_packages_with_the_same_new_tokens_stand_side_by_side(tmp_path: Path) -> None:
    shaken(TwinExpertVLM(backbone(), new_tokens=NEW)).save_pretrained(tmp_path)
    vlm = TwinExpertVLM(backbone(), package="reading").eval()
    vlm.install(tmp_path, "one")
    vlm.install(tmp_path, "two")
    ids = vlm.encoder.token_ids(NEW)
    assert [vlm.token_rows[name].ids.tolist() for name in ("one", "two")] == [ids, ids]
    one, two = (vlm(batch(vlm, [replace(reading(), task=name)]))["logits"] for name in ("one", "two"))
    assert one[:, ids].isfinite().all()
    assert torch.equal(one, two)


@torch.no_grad()
def test_the_new_tokens_of_a_package_are_text_to_its_neighbours(tmp_path: Path) -> None:
    """Rows, logits and answers are those of a package alone, beside one with the codec's marks as tokens."""

    def glm() -> TinyBackbone:
        return TinyBackbone(pretrained=None, codec="glm", **SIZES)

    for name, new in (("marked", ["codec"]), ("plain", []), ("other", ["<loc>"])):
        shaken(TwinExpertVLM(glm(), package=name, new_tokens=new)).save_pretrained(tmp_path / name)
    size = len(glm().embedding.weight)
    packages = {name: str(tmp_path / name) for name in ("plain", "other")}
    beside = TwinExpertVLM(glm(), package="marked", new_tokens=["codec"], packages=packages).eval()
    marks = list(beside.codec.special_tokens)
    ids = beside.encoder.token_ids([*marks, "<loc>"])
    assert ids == list(range(size, size + len(marks) + 1))
    assert set(ids[:-1]) <= set(beside.encode(boxed("marked"))["input_ids"].tolist())
    for name, own in (("plain", []), ("other", ids[-1:])):
        alone = TwinExpertVLM.from_pretrained(tmp_path / name, glm())
        rows, theirs = batch(beside, [boxed(name)]), batch(alone, [boxed(name)])
        assert torch.equal(rows["input_ids"], theirs["input_ids"])
        ours, logits = beside(rows)["logits"], alone(theirs)["logits"]
        torch.testing.assert_close(ours[:, [*range(size), *own]], logits, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            token_nll(ours, rows["input_ids"][rows["step_ids"] >= 0]),
            token_nll(logits, rows["input_ids"][rows["step_ids"] >= 0]),
            rtol=1e-6,
            atol=1e-6,
        )
        prompts = batch(beside, [boxed(name)], for_generation=True)
        said = [
            vlm.generate(prompts | {"task": task}, 6)
            for vlm, task in ((beside, prompts["task"]), (alone, torch.ones(1, dtype=torch.long)))
        ]
        assert said[0] == said[1]


def test_packages_that_would_share_a_spare_row_are_refused(tmp_path: Path) -> None:
    """A row there is added to the base's: it is of use at its own place alone."""

    def spare() -> TinyBackbone:
        bare = backbone()
        bare.model.resize_token_embeddings(len(bare.embedding.weight) + 8)
        return bare

    vlm = TwinExpertVLM(spare(), new_tokens=["<loc>"])
    vlm.save_pretrained(tmp_path)
    other = TwinExpertVLM(spare(), package="reading", new_tokens=["<part>"])
    with pytest.raises(ValueError, match=r"^new_tokens of grounding: seen '<loc>' on a spare row .* another package"):
        other.install(tmp_path)
    assert other.skills == ("reading",)
    vlm.install(tmp_path, "two")  # the same tokens


def test_refusals_are_one_line(tmp_path: Path) -> None:
    vlm = TwinExpertVLM(backbone())
    vlm.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trained on a base of sha256"):
        TwinExpertVLM.from_pretrained(tmp_path, backbone(seed=7))
    with pytest.raises(ValueError, match="seen a second package 'grounding'"):
        vlm.install(tmp_path)
    with pytest.raises(ValueError, match=r"package: no twin_config\.json in"):
        vlm.install(tmp_path / "absent")
    (tmp_path / "package.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"package.safetensors changed since it was saved"):
        TwinExpertVLM.from_pretrained(tmp_path, backbone())
    (tmp_path / "twin_config.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match=r"seen \['format'\], expected format 1 with backbone, base"):
        TwinExpertVLM.from_pretrained(tmp_path, backbone())
    for name in ("understanding", "a.b"):
        with pytest.raises(ValueError, match="expected the name of a skill"):
            TwinExpertVLM(backbone(), package=name)


class Bomb:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_a_hostile_folder_executes_nothing(tmp_path: Path) -> None:
    import hashlib

    folder, trace = tmp_path / "package", tmp_path / "executed"
    TwinExpertVLM(backbone()).save_pretrained(folder)
    (folder / "package.safetensors").write_bytes(pickle.dumps(Bomb(trace)))
    config = json.loads((folder / "twin_config.json").read_text())
    config["sha256"] = hashlib.sha256((folder / "package.safetensors").read_bytes()).hexdigest()
    (folder / "twin_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"package.safetensors can't be read .*expected safetensors"):
        TwinExpertVLM.from_pretrained(folder, backbone())
    assert not trace.exists()
