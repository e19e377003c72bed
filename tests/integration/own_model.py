"""Your VLM, your data: init, fit, evaluate, ask and export by real commands, families x layouts of real photographs.

    python -m tests.integration.own_model --out outputs/own_model [--seconds 600] [--fork]

makes small random models in their public folder layouts, and data sets in theirs out of ../shared/real/coco_mini, and
runs the five commands on each pair; no file is edited in between. A line a case goes to OUT/results.jsonl as it ends;
cases that are there already are not run again. It prints the table, and exits with 1 where a case failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tests.unit.models.hf_families import make_folder
from ts_lightning.cli import main as main_command

ROOT = Path(__file__).parents[2]
COCO = ROOT.parent / "shared/real/coco_mini"
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "gemma3", "internvl", "llava", "smolvlm")
PHOTOS = 12
VERBS = ("init", "fit", "evaluate", "ask", "export")
Objects = list[tuple[str, list[float]]]


def photos() -> list[tuple[Path, tuple[int, int], Objects]]:
    """Photographs with their size, and name and pixels (x, y, width, height) of what is on them, crowds left out."""
    data = json.loads((COCO / "annotations/instances_val2017.json").read_text())
    names = {one["id"]: one["name"] for one in data["categories"]}
    found: list[tuple[Path, tuple[int, int], Objects]] = []
    for image in sorted(data["images"], key=lambda image: image["id"]):
        notes = [one for one in data["annotations"] if one["image_id"] == image["id"]]
        objects = [(names[one["category_id"]], one["bbox"]) for one in notes if not one["iscrowd"]]
        path = COCO / "val2017" / image["file_name"]
        if objects and len(objects) == len(notes) and path.is_file():
            found.append((path, (image["width"], image["height"]), objects))
    return found[:PHOTOS]


def copied(folder: Path) -> list[tuple[str, tuple[int, int], Objects]]:
    """The photographs in a folder."""
    folder.mkdir(parents=True)
    for path, _, _ in photos():
        shutil.copy(path, folder)
    return [(path.name, size, objects) for path, size, objects in photos()]


def coco_content(listed: list[tuple[str, tuple[int, int], Objects]]) -> dict[str, Any]:
    names = sorted({name for _, _, objects in listed for name, _ in objects})
    images = [{"id": i, "file_name": name, "width": w, "height": h} for i, (name, (w, h), _) in enumerate(listed)]
    boxes = [(i, name, box) for i, (_, _, objects) in enumerate(listed) for name, box in objects]
    notes = [
        {"id": n, "image_id": i, "category_id": names.index(name), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for n, (i, name, box) in enumerate(boxes)
    ]
    return {
        "images": images,
        "annotations": notes,
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }


def coco(folder: Path) -> list[str]:
    """COCO's folder."""
    content = coco_content(copied(folder / "val2017"))
    (folder / "annotations").mkdir()
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(content))
    return []


def roboflow(folder: Path) -> list[str]:
    """Roboflow's COCO export."""
    content = coco_content(copied(folder / "train"))
    (folder / "train/_annotations.coco.json").write_text(json.dumps(content))
    return []


def labelimg(folder: Path) -> list[str]:
    """LabelImg's XML beside the pictures."""
    for name, (width, height), objects in copied(folder):
        boxes = "".join(
            f"<object><name>{escape(what)}</name><bndbox><xmin>{x + 1:.0f}</xmin><ymin>{y + 1:.0f}</ymin>"
            f"<xmax>{x + w:.0f}</xmax><ymax>{y + h:.0f}</ymax></bndbox></object>"
            for what, (x, y, w, h) in objects
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        text = f"<annotation><folder>mine</folder><filename>{name}</filename>{size}{boxes}</annotation>"
        (folder / name).with_suffix(".xml").write_text(text)
    return []


def yolo(folder: Path) -> list[str]:
    """Ultralytics' folder."""
    listed = copied(folder / "images/train")
    (folder / "labels/train").mkdir(parents=True)
    names = sorted({name for _, _, objects in listed for name, _ in objects})
    for name, (width, height), objects in listed:
        lines = [
            f"{names.index(what)} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} {w / width:.6f} {h / height:.6f}"
            for what, (x, y, w, h) in objects
        ]
        (folder / "labels/train" / name).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    (folder / "data.yaml").write_text(f"train: images/train\nnc: {len(names)}\nnames: {json.dumps(names)}\n")
    return []


def llava(folder: Path) -> list[str]:
    """LLaVA's conversations with boxes in the text."""
    rows = []
    for number, (name, (width, height), objects) in enumerate(copied(folder / "images")):
        what, (x, y, w, h) = objects[0]
        box = ",".join(f"{value:.3f}" for value in (x / width, y / height, (x + w) / width, (y + h) / height))
        said = [{"from": "human", "value": f"<image>\nWhere is the {what}?"}, {"from": "gpt", "value": f"[{box}]"}]
        rows.append({"id": str(number), "image": name, "conversations": said})
    (folder / "train.json").write_text(json.dumps(rows))
    return ["--codec", "shikra"]


LAYOUTS: dict[str, Callable[[Path], list[str]]] = {
    "coco": coco,
    "roboflow": roboflow,
    "labelimg": labelimg,
    "yolo": yolo,
    "llava": llava,
}


def commands(vlm: Path, data: Path, options: Sequence[str], run: Path, steps: int) -> list[list[str]]:
    """The five commands of a case."""
    picture = str(photos()[0][0])
    few = ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps)]
    few += ["--data.init_args.global_batch_size", "4", "--data.init_args.micro_batch_size", "4"]
    return [
        ["init", "--vlm", str(vlm), "--data", str(data), "--out", str(run), *options],
        ["fit", "-c", f"{run}/fit.yaml", *few],
        ["evaluate", "--ckpt", str(run), "--suites", f"{run}/fit.yaml", "--out", f"{run}/report"],
        ["ask", "--ckpt", str(run), "--image", picture, "Where is the chair?", "--max_new_tokens", "16"],
        ["export", "--ckpt", str(run), "--to", "package", "--out", f"{run}/package"],
    ]


def command(words: list[str]) -> int:
    """`ts-lightning` in a process of its own; what it said is printed where it failed."""
    said = subprocess.run([sys.executable, "-m", "ts_lightning", *words], capture_output=True, text=True, check=False)
    if said.returncode:
        print(said.stdout[-2000:], said.stderr[-2000:], sep="\n", file=sys.stderr)
    return said.returncode


def forked(words: list[str]) -> int:
    """The command in a process that is forked from this one: what takes seconds to import has been imported."""
    for name in ("cli.lightning", "cli.evaluate", "models.backbones.hf", "reports.suite_report", "pipelines.convert"):
        import_module(f"ts_lightning.{name}")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            status = main_command(words)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(int(status))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def case(
    family: str, layout: str, folder: Path, steps: int = 20, call: Callable[[list[str]], int] = command
) -> dict[str, Any]:
    """Run the commands of a case: the verbs that worked, in order, and seconds; the first that failed ends it."""
    began, passed = time.monotonic(), []
    vlm, data, run = make_folder(family, folder / "vlm"), folder / "data", folder / "run"
    options = LAYOUTS[layout](data)
    for words in commands(vlm, data, options, run, steps):
        if call(words) != 0:
            break
        passed.append(words[0])
    made = ("checkpoints/last.ckpt", "report/report.json", "package/package.safetensors")
    ok = passed == [*VERBS] and all((run / name).is_file() for name in made)
    return {
        "family": family,
        "layout": layout,
        "passed": passed,
        "ok": ok,
        "seconds": round(time.monotonic() - began),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Families by layouts: yes, or the verb that failed."""
    found = {(one["family"], one["layout"]): one for one in results}

    def cell(family: str, layout: str) -> str:
        one = found.get((family, layout))
        return "-" if one is None else "yes" if one["ok"] else f"no: {VERBS[len(one['passed'])]}"

    lines = [f"| | {' | '.join(LAYOUTS)} |", f"|{'---|' * (1 + len(LAYOUTS))}"]
    lines += [f"| `{name}` | {' | '.join(cell(name, layout) for layout in LAYOUTS)} |" for name in FAMILIES]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="init, fit, evaluate, ask and export, for families x layouts.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after so many")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--fork", action="store_true", help="fork the processes of the commands: no imports in each")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log, began = args.out / "results.jsonl", time.monotonic()
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    done = {(one["family"], one["layout"]) for one in results}
    for family, layout in ((family, layout) for family in FAMILIES for layout in LAYOUTS):
        if (family, layout) in done or time.monotonic() - began > args.seconds:
            continue
        folder = args.out / f"{family}-{layout}"
        shutil.rmtree(folder, ignore_errors=True)
        results.append(case(family, layout, folder, args.steps, forked if args.fork else command))
        print(json.dumps(results[-1]), flush=True)
        with log.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
    print(table(results))
    return int(not all(one["ok"] for one in results))


if __name__ == "__main__":
    sys.exit(main())
