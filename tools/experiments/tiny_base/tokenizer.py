"""The tiny backbone's tokenizer: byte-level BPE where every number 0..100 and every codec mark is one token."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

MARKUP = (
    *("<box>", "</box>", "<|box_start|>", "<|box_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<bbox_id>", "</bbox_id>", "<think>", "</think>", "<answer>", "</answer>"),
)
SPECIAL = ("<unk>", "<pad>", "<s>", "</s>", "<image>", *MARKUP)
# Brackets and numbers are cut off from everything else, so that coordinates always have the same tokens.
_PIECES = Regex(r" ?\[\[|\]\]|\d{1,3}| ?[A-Za-z]+|[^\sA-Za-z\d]|\s+")


def train_tokenizer(lines: Iterable[str], vocab_size: int = 1200) -> PreTrainedTokenizerFast:
    """A tokenizer trained on `lines`; words of one line are worth learning whole, any other text falls to bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_PIECES, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    numbers = [" ".join(str(n) for n in range(101)) + " [[ [[ ]]"] * 2000  # merges of all numbers come first
    tokenizer.train_from_iterator([*numbers, *lines], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>", *MARKUP],
        clean_up_tokenization_spaces=False,
    )
