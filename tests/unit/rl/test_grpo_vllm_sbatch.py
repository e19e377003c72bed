"""The job of a trainer and a vLLM server: the server starts with what the trainer's policy needs."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration import tiny
from tests.unit.rl.vllm_stub import Stub, running
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.vlm import VLM
from ts_lightning.rl import VLLMEngine
from ts_lightning.rl.vllm_server import ARGUMENTS
from ts_lightning.runs.run_lock import process_start

SCRIPT = Path(__file__).parents[3] / "tools/slurm/grpo_vllm.sbatch"
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
[[ $2 == hostnames ]] && printf '%s\\n' first last || echo "NodeAddr=$3"
"""
SERVER = """#!/bin/bash
if mkdir "$TS_LIGHTNING_VLLM_FOLDER/lives"; then exit 137; fi  # the first one, as one that is killed
kill -USR1 $$  # as before the time limit
printf '%s\\n' "$@" >"$TS_LIGHTNING_VLLM_FOLDER/served.new"
mv "$TS_LIGHTNING_VLLM_FOLDER/served.new" "$TS_LIGHTNING_VLLM_FOLDER/served"
echo $$ >"$TS_LIGHTNING_VLLM_FOLDER/pid"
exec /bin/sleep 60
"""
SLEEP = """#!/bin/bash
exec /bin/sleep 0.1
"""
TRAINER = """#!/bin/bash
printf '%s\\n' "$TS_LIGHTNING_VLLM_URL" "$MASTER_ADDR" "$@"
/bin/sleep 0.3
mkdir "$TS_LIGHTNING_VLLM_FOLDER/start"
cp "$ASKED" "$TS_LIGHTNING_VLLM_FOLDER/start/arguments"
until [[ -f $TS_LIGHTNING_VLLM_FOLDER/pid ]]; do sleep 0.1; done
"""


def program(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return str(folder / name)


def test_the_job_keeps_a_server_with_what_the_trainer_wrote_as_long_as_it_trains(tmp_path: Path) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("sleep", SLEEP)):
        program(tmp_path, name, text)
    asked = ["--dtype", "float32", "--enable-lora", "--additional-config", '{"ts_lightning_packages": ["a b"]}']
    (tmp_path / "asked").write_text("".join(f"{line}\n" for line in asked))
    stale = tmp_path / "shared/start"
    stale.mkdir(parents=True)
    (stale / "arguments").write_text("--stale\n")
    known = {
        **{"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "x", "SLURM_JOB_ID": "7"},
        **{"PYTHON": program(tmp_path, "trainer", TRAINER), "ASKED": str(tmp_path / "asked")},
        **{"TS_LIGHTNING_VLLM_PYTHON": program(tmp_path, "server", SERVER)},
        **{"TS_LIGHTNING_VLLM_FOLDER": str(tmp_path / "shared"), "TS_LIGHTNING_VLLM_ARGUMENTS": "--seed 1"},
    }
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    line = ["bash", str(SCRIPT), "a folder", "-c", "run.yaml"]
    done = subprocess.run(line, env=os.environ | known, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = ["http://last:8000", "first", "-m", "ts_lightning", "fit", "-c", "run.yaml"]
    assert done.stdout.splitlines() == expected
    served = (tmp_path / "shared/served").read_text().splitlines()
    assert served[:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "a folder"]
    assert served[4:8] == ["--host", "0.0.0.0", "--port", "8000"]
    assert served[8:] == [*ARGUMENTS, *asked, "--seed", "1"]
    pid, until = int((tmp_path / "shared/pid").read_text()), time.monotonic() + 20
    while process_start(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not process_start(pid)


def backbone(folder: Path) -> TinyBackbone:
    TinyBackbone(**tiny.BACKBONE["init_args"]).save(folder / "base")
    return TinyBackbone(pretrained=str(folder / "base"))


@pytest.mark.parametrize("kind", ["plain", "lora", "twin"])
def test_the_trainer_writes_what_its_policy_needs(kind: str, tmp_path: Path) -> None:
    base = backbone(tmp_path)
    vlm: VLM = PlainVLM(base)
    if kind != "plain":
        vlm = LoRAVLM(base, rank=16) if kind == "lora" else TwinExpertVLM(base, package="boxes")
    folder = tmp_path / "shared"
    with running(Stub(base.image_token_id, 0)) as stub:
        VLLMEngine(url=stub.url, folder=str(folder)).hand_over(vlm, 0)
    lines = (folder / "start/arguments").read_text().splitlines()
    assert lines[:4] == ["--dtype", "float32", "--max-model-len", str(vlm.encoder.max_length)]
    named = {"lora": "policy", "twin": "boxes"}.get(kind)
    if named is None:
        assert lines[4:] == []
        return
    place = folder / "start" / named
    assert place.is_dir()
    packages = json.dumps({"ts_lightning_packages": [str(place)]})
    own = {"lora": ["--max-lora-rank", "16"], "twin": ["--enforce-eager", "--additional-config", packages]}[kind]
    assert lines[4:] == [*own, "--enable-lora", "--max-loras", "1", "--lora-modules", f"{named}={place}"]
