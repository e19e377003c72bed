"""`ts-lightning ask`."""

from pathlib import Path


def ask(
    question: str,
    /,
    *,
    ckpt: Path | None = None,
    image: tuple[Path, ...],
    task: str = "auto",
    max_new_tokens: int = 256,
    draw: Path | None = None,
    device: str = "auto",
) -> None:
    """Ask a model about a picture, or about several.

        ts-lightning ask --ckpt outputs/coco --image kitchen.jpg "Where is the mug?" --draw answer.png

    Without --ckpt the tiny base answers. It prints the answer, the path that gave it, and every box in pixels and in
    [0, 1]. Several pictures: --image a.jpg --image b.jpg

    Args:
        question: what to ask
        ckpt: a run's folder, a checkpoint, a package, an adapter, a standalone folder, or a plain model's
        image: file of a picture; once more for each further one, in the order that the question names them
        task: auto (the task router decides), understanding, or a skill
        max_new_tokens: longest answer in tokens
        draw: write the pictures with the boxes on them here
        device: auto (the GPU where there is one), cpu, cuda or cuda:N
    """
    from PIL import Image

    from ts_lightning.models.pixels import open_picture
    from ts_lightning.reports.drawing import Picture, draw_picture
    from ts_lightning.runs.ask import ask as ask_vlm
    from ts_lightning.runs.ask import encoded
    from ts_lightning.runs.load import load_or_tiny

    data = [encoded(path) for path in image]
    reply = ask_vlm(load_or_tiny(ckpt, device), data, question, task, max_new_tokens)
    print(reply.text)
    print(f"path: {reply.task}")
    for box, pixels, phrase, picture in zip(reply.boxes, reply.pixels, reply.phrases, reply.pictures, strict=True):
        where = f" in {image[picture]}" if len(image) > 1 else ""
        numbers = ", ".join(f"{n:.1f}" for n in pixels)
        print(f"box{where}: {numbers} pixels; {', '.join(f'{n:.3f}' for n in box)}{f' ({phrase})' if phrase else ''}")
    if draw is None:
        return
    tiles = []
    for number, one in enumerate(data):
        boxes = [box for box, picture in zip(reply.boxes, reply.pictures, strict=True) if picture == number]
        tiles.append(draw_picture(Picture(open_picture(one), question, reply.text, [[box] for box in boxes]), 640))
    sheet = Image.new("RGB", (sum(tile.width for tile in tiles), max(tile.height for tile in tiles)), "white")
    left = 0
    for tile in tiles:
        sheet.paste(tile, (left, 0))
        left += tile.width
    draw.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(draw)
    print(f"drawn: {draw}")
