"""`ts-lightning conflicts`."""

from pathlib import Path


def conflicts(
    *packages: Path,
    shards: list[str],
    out: Path | None = None,
    max_samples: int = 32,
    max_new_tokens: int = 32,
    device: str = "auto",
) -> int:
    """What packages on one base weigh, and whether one changes what another answers: it should not, to the last bit.

        ts-lightning conflicts store/boxes store/counting store/signs --shards 'data_shards/toy_world/val_[gu]*.tar'

    Every package is asked the questions of a skill, alone and then with the others installed; the base is asked the
    understanding questions. Exit status 1: something changed.

    Args:
        packages: folders that `export` wrote; a folder's name is the skill's
        shards: tars or patterns with questions of a skill, and of understanding
        out: everything as JSON
        max_samples: how many of the first questions of either kind
        max_new_tokens: length of an answer at most
        device: auto (the GPU where there is one), cpu, cuda or cuda:N
    """
    from ts_lightning.data import index_shards
    from ts_lightning.data.reader import ShardReader
    from ts_lightning.grounding.tasks import UNDERSTANDING
    from ts_lightning.reports.conflicts import conflicts as found_in
    from ts_lightning.reports.json_file import check_place, write_json

    if out is not None:
        check_place(out)
    kinds: dict[bool, list] = {True: [], False: []}
    for sample in ShardReader(index_shards(shards)):
        kind = kinds[sample.task == UNDERSTANDING]
        if len(kind) < max_samples:
            kind.append(sample)
    found = found_in(packages, [*kinds[False], *kinds[True]], max_new_tokens, device)
    for name, size in found["sizes"].items():
        print(f"{name:24}{size / 1e6:>10.2f} MB")
    names = list(found["sizes"])
    print(f"\n{'answers changed by':24}{''.join(f'{name[:11]:>12}' for name in names)}")
    for name, cells in found["matrix"].items():
        said = {
            other: f"{cell['answers_changed']}{'' if cell['bitwise_equal'] else '*'}" for other, cell in cells.items()
        }
        print(f"{name:24}{''.join(f'{said.get(other, chr(45)):>12}' for other in names)}")
    same = all(
        cell["bitwise_equal"] and not cell["answers_changed"]
        for row in found["matrix"].values()
        for cell in row.values()
    )
    counted = (
        f"{found['questions']['skill']} questions of a skill, {found['questions'][UNDERSTANDING]} of understanding"
    )
    print(f"\n{counted}; " + ("logits equal bit by bit everywhere" if same else "*: logits differ"))
    if out is not None:
        write_json(out, found)
    return 0 if same else 1
