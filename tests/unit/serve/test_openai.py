"""OpenAI's protocol over the server: what may be asked, what is answered, and in which shape."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed")
from starlette.testclient import TestClient

from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.continuous import Writing
from ts_lightning.pipelines.toy_world.render import jpeg, render
from ts_lightning.pipelines.toy_world.scene import sample_scene
from ts_lightning.runs.ask import ask
from ts_lightning.serve.conversation import found_boxes
from ts_lightning.serve.line import Begun
from ts_lightning.serve.openai import Drawing, Reply, UnknownModel, boxes_of, read_chat, token_bytes
from ts_lightning.serve.server import make_app, served

PICTURE = jpeg(render(sample_scene(11)))
URL = "data:image/jpeg;base64," + base64.b64encode(PICTURE).decode()
QUESTION = "What color is the star?"
GOOD: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": QUESTION}]}
WITH_PICTURE = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": URL}}]


def image(**more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": URL, **more}}


def message(**changes: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a", **changes}]}


CHAT = "/v1/chat/completions"
TWINS = TwinExpertVLM(TinyBackbone()).eval()
UNSERVED = ("completions", "responses", "embeddings", "models")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(make_app(TWINS, "tiny", TWINS.router), base_url="http://127.0.0.1:7860") as opened:
        yield opened


def post(client: TestClient, **changes: Any) -> Any:
    return client.post(CHAT, json=GOOD | changes)


def test_an_answer_is_that_of_ask_on_the_path_of_the_model(client: TestClient) -> None:
    for model, path in [("base", "understanding"), ("grounding", "grounding"), ("auto", "understanding")]:
        reply = post(client, model=model, messages=[{"role": "user", "content": WITH_PICTURE}], max_tokens=12).json()
        (choice,) = reply["choices"]
        expected = ask(TWINS, PICTURE, QUESTION, path, 12)
        assert choice["message"]["content"] == expected.text
        assert choice["message"]["role"] == "assistant"
        assert (reply["object"], reply["model"], reply["task"]) == ("chat.completion", model, path)
        assert choice["finish_reason"] in ("stop", "length")
        usage = reply["usage"]
        assert usage["prompt_tokens"] > 36  # the picture's
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_adds_up_to_the_answer(client: TestClient) -> None:
    how = {"messages": [{"role": "user", "content": WITH_PICTURE}], "max_tokens": 16, "logprobs": True}
    whole = post(client, **how).json()
    streamed = post(client, **how, stream=True, stream_options={"include_usage": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    *chunks, last, usage = map(json.loads, lines[:-1])
    deltas = [chunk["choices"][0]["delta"] for chunk in (*chunks, last)]
    assert "".join(delta["content"] for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert deltas[-1]["boxes"] == whole["choices"][0]["message"]["boxes"]
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    pieces = [one for chunk in (*chunks, last) for one in chunk["choices"][0]["logprobs"]["content"]]
    assert pieces == whole["choices"][0]["logprobs"]["content"]


def test_the_role_is_said_once_though_no_token_has_come_yet() -> None:
    writing = Writing(4)
    reply = Reply(TWINS, "base", [], Begun("understanding", True, {"input_ids": [1]}, writing))
    deltas = []
    for token in (None, 100, 101):
        writing.tokens += [] if token is None else [token]
        deltas += [chunk["choices"][0]["delta"] for chunk in reply.chunks(False, False)]
    assert [delta.get("role") for delta in deltas] == ["assistant", None, None]


def test_log_probabilities_and_seeds(client: TestClient) -> None:
    reply = post(client, logprobs=True, top_logprobs=3, max_tokens=4).json()
    for token in reply["choices"][0]["logprobs"]["content"]:
        assert len(token["top_logprobs"]) == 3
        assert token["logprob"] == token["top_logprobs"][0]["logprob"] <= 0  # greedy
        assert bytes(token["bytes"]).decode() == token["token"]
    drawn = [
        post(client, temperature=2, seed=seed, max_tokens=8).json()["choices"][0]["message"]["content"]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_tokens_keep_their_blank_and_parts_of_characters_their_bytes() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    def tokenizer(words: list[str], decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
        made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
        made.decoder = decoder
        return PreTrainedTokenizerFast(tokenizer_object=made)

    blank = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Strip(" ", 1, 0)])
    pieces = tokenizer(["\u2581the", "<0xE2>", "e"], blank)
    assert [token_bytes(pieces, i) for i in range(4)] == [b" the", b"\xe2", b"e", b""]
    letters = tokenizer(["\u0120the", "\u00e2\u0122", "\u00c3\u00a9"], decoders.ByteLevel())  # " the", e2 80, "\u00e9"
    assert [token_bytes(letters, i) for i in range(3)] == [b" the", b"\xe2\x80", b"\xc3\xa9"]


def test_a_nucleus_of_one_token_is_greedy() -> None:
    import torch

    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    assert Drawing(1.0, 0.0, 3)(logits, torch.tensor([0])).item() == logits.argmax().item()


def test_what_changes_nothing_is_taken_and_a_reply_can_be_sent_back(client: TestClient) -> None:
    asked = {"role": "user", "name": "ann", "content": [WITH_PICTURE[0], image(detail="low")]}
    plain = post(client, messages=[{"role": "user", "content": WITH_PICTURE}], max_tokens=4).json()["choices"][0]
    reply = post(client, messages=[asked], max_tokens=4).json()["choices"][0]
    assert reply == plain
    back = {**reply["message"], "tool_calls": [], "refusal": None, "annotations": [], "audio": None}
    assert post(client, messages=[asked, back, {"role": "user", "content": "And?"}], max_tokens=4).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {name: None for name in ("functions", "reasoning_effort", "prediction", "extra_body", "top_k")},
        {"functions": [], "extra_body": {}, "stop": "", "tools": [], "logit_bias": {}},
        {"parallel_tool_calls": True, "tool_choice": "auto", "function_call": "none", "reasoning_effort": "none"},
        {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0},
        {"stream_options": {"include_usage": None, "continuous_usage_stats": None}},
        message(tool_calls=None, tool_call_id=None),
        message(content=[{"type": "text", "text": "a", "image_url": None, "cache_control": None}]),
        message(content=[image(format=None), {"type": "text", "text": "a"}]),
        {
            "messages": [
                *message()["messages"],
                {"role": "assistant", "content": "b", "reasoning_content": "", "images": [], "thinking_blocks": None},
                *message()["messages"],
            ]
        },
    ],
    ids=lambda value: str(value)[:40],
)
def test_fields_that_ask_for_nothing_are_taken(changes: dict[str, Any]) -> None:
    """Clients write null, empty and default values of fields that nobody set."""
    read_chat(json.dumps(GOOD | changes).encode(), ["base"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": []}, "messages: seen 0"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role: seen 'system', expected user"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "the user's last"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "'input_audio', expected text"),
        ({"messages": [{"role": "user", "content": " "}]}, "question: seen nothing"),
        ({"messages": [{"role": "user", "content": "x" * 33_000}]}, "seen 33000 characters"),
        (message(tool_calls=[{"id": "a"}]), "messages[0].tool_calls: seen [{'id': 'a'}], expected none: this server"),
        (message(weight=0), "messages[0].weight: seen in the request, expected some of boxes, content, name, role"),
        (message(content=[{"type": "text", "text": "a", "cache_control": 1}]), "content.cache_control: seen"),
        (message(content=[image(detail="tiny")]), "messages[0].image_url.detail: seen tiny, expected none"),
        (message(content=[image(min_pixels=1)]), "messages[0].image_url.min_pixels: seen in the request"),
        ({"stream_options": {"often": True}}, "stream_options.often: seen in the request"),
        ({"n": 2}, "n: seen 2"),
        ({"tools": [{}]}, "tools: seen"),
        ({"stop": ["a"]}, "stop: seen"),
        ({"temperature": 3}, "temperature: seen 3, expected a number from 0 to 2"),
        ({"temperature": True}, "temperature: seen True"),
        ({"max_tokens": 0.5}, "max_tokens: seen 0.5"),
        ({"max_tokens": 0}, "max_tokens: seen 0, expected a whole number from 1"),
        ({"max_completion_tokens": 0, "max_tokens": 5}, "max_tokens: seen 0"),
        ({"stream": "false"}, "stream: seen 'false', expected true or false"),
        ({"logprobs": 1}, "logprobs: seen '1', expected true or false"),
        ({"constrain": "no"}, "constrain: seen 'no'"),
        ({"stream_options": []}, "stream_options: seen list, expected an object"),
        ({"stream_options": {"include_usage": 1}}, "include_usage: seen '1'"),
        ({"logprobs": True, "top_logprobs": ""}, "top_logprobs: seen "),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs: seen 21"),
        ({"top_logprobs": 3}, "top_logprobs: seen 3 without logprobs"),
        ({"seed": -1}, "seed: seen -1"),
        ({"best_of": 3}, "best_of: seen in the request"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cant_be_done_is_a_clear_400(client: TestClient, change: dict[str, Any], said: str) -> None:
    response = post(client, **change)
    assert response.status_code == 400
    error = response.json()["error"]
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1/a.png", "nothing is fetched"),
        ("file:///etc/passwd", "nothing is fetched"),
        ("data:text/html;base64,AAAA", "nothing is fetched"),
        ("data:image/png;base64,%%%", "seen no base64"),
        ("data:image/png;base64,AAAA", "image: seen 3 bytes"),
    ],
)
def test_pictures_are_data_urls_alone(client: TestClient, url: str, said: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    response = post(client, messages=[{"role": "user", "content": content}])
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


def test_errors_have_the_shape_whoever_finds_them(client: TestClient) -> None:
    found = [
        (post(client, model="gpt"), 404, "expected one of auto, base, grounding"),
        (client.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"}), 400, "JSON"),
        (
            client.post("/v1/chat/completions", content=b"{}", headers={"Content-Type": "text/plain"}),
            415,
            "Content-Type",
        ),
        (client.get("/v1/models", headers={"Host": "evil.example"}), 403, "Host"),
        (client.get("/v1/none"), 404, "/v1/none"),
        (client.get("/v1/models/gpt"), 404, "gpt"),
        *((client.post(f"/v1/{name}", json={}), 404, f"seen POST /v1/{name}") for name in UNSERVED),
        (client.put("/v1/chat/completions", json={}), 405, "seen PUT /v1/chat/completions"),
    ]
    for response, status, said in found:
        assert response.status_code == status
        assert said in response.json()["error"]["message"]
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    with pytest.raises(UnknownModel):
        read_chat(json.dumps(GOOD | {"model": "x"}).encode(), ["base"])


def test_models_are_the_base_and_its_packages(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert [one["id"] for one in listed["data"]] == ["auto", "base", "grounding"]
    assert client.get("/v1/models/grounding").json() == listed["data"][2]
    assert [*served(PlainVLM(TinyBackbone(), train=[]))] == ["base"]


def test_an_adapter_and_its_base_are_two_models() -> None:
    import torch

    lora, base = LoRAVLM(TinyBackbone(), rank=4), PlainVLM(TinyBackbone(), train=[]).eval()
    with torch.no_grad():
        for parameter in lora.trainable_state_dict().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.3)
    lora.eval()
    with TestClient(make_app(lora, "lora"), base_url="http://127.0.0.1:7860") as client:
        said = {
            name: post(client, model=name, max_tokens=8).json()["choices"][0]["message"]["content"]
            for name in served(lora)
        }
    assert said == {
        "adapter": ask(lora, [], QUESTION, max_new_tokens=8).text,
        "base": ask(base, [], QUESTION, max_new_tokens=8).text,
    }
    assert len(set(said.values())) == 2


def test_boxes_are_in_pixels_of_the_sent_picture() -> None:
    text = "Step 1: Find the hat [[10,20,30,40]]. Step 2: It [[50,60,70,80]] is red."
    first, second = boxes_of(TWINS, text, [(200, 100)])
    assert first == {
        **{"image": 0, "box": [20, 20, 60, 40], "points": [[20, 20], [60, 40]]},
        **{"phrase": first["phrase"], "step": 0, "start": 21, "end": 36},
    }
    assert (second["box"], second["step"]) == ([100, 60, 140, 80], 1)
    assert boxes_of(TWINS, text, []) == found_boxes(TWINS, text, []) == []  # as `ask` has it


def test_metrics_count_requests_tokens_and_questions(client: TestClient) -> None:
    def read() -> dict[str, float]:
        lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

    before = read()
    usage = post(client, max_tokens=5).json()["usage"]
    post(client, n=2)
    after = {name: value - before.get(name, 0) for name, value in read().items()}
    path = 'ts_lightning_requests_total{path="/v1/chat/completions",status='
    assert (after[path + '"200"}'], after[path + '"400"}']) == (1, 1)
    assert after["ts_lightning_questions_total"] == 1
    assert after["ts_lightning_prompt_tokens_total"] == usage["prompt_tokens"]
    assert 0 < after["ts_lightning_generation_tokens_total"] <= usage["completion_tokens"]
    assert after["ts_lightning_question_answer_seconds_total"] > 0
    assert read()["ts_lightning_questions_running"] == 0
