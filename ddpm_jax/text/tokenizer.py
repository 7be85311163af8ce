"""CLIP's tokenizer: prompts to the token ids of a text encoder, by the library `tokenizers`.

A prompt is normalised (NFC, runs of white space to one space, each character to lower case), split
by `SPLIT`, its bytes become the symbols of `vocabulary.byte_symbols`, and these are merged within
each piece (byte-pair encoding, Sennrich et al. 2016). The ids are those of transformers' tokenizer;
that of OpenAI's CLIP first repairs the text with ftfy, which is the option `clean`. Tokenizers in
files are read by `tokenizer_files.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.text.vocabulary import END, END_OF_WORD, START, Merge, clip_merges, vocabulary_of

LENGTH = 77  # of CLIP's context, start and end included
# pieces of a prompt: special tokens, English contractions, words, single digits, runs of the rest
SPLIT = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
CLEANING = {
    "none": "the prompt as it is",
    "ftfy": "ftfy.fix_text first, as OpenAI's CLIP: mojibake, HTML entities, curly quotes, ...",
}


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a vocabulary, which also have their ids where a prompt contains them.

    Stable Diffusion 1.x pads with the end token, 2.x with "!", whose id is 0.
    """

    start: str = START
    end: str = END
    pad: str = END
    unknown: str = END  # for a symbol that a cut vocabulary lacks
    any_case: frozenset[str] = frozenset()  # those found in capitals too

    @property
    def all(self) -> tuple[str, ...]:
        """Each of them once."""
        return tuple(dict.fromkeys((self.start, self.end, self.unknown, self.pad)))


CLIP = SpecialTokens()


class Tokenizer:
    """CLIP's tokenizer with a vocabulary of any size.

    `tokenizer(["a dog wearing hat"])` is int32 [1, 77]: start, at most 75 tokens, end, and padding.

    Attributes:
      merges, vocabulary, special, length, clean: as given.
      vocab_size: number of ids, the rows of the encoder's table of embeddings.
      start_id, end_id, pad_id: of the special tokens.
    """

    def __init__(
        self,
        merges: Sequence[Merge],
        vocabulary: Mapping[str, int] | None = None,
        *,
        special: SpecialTokens = CLIP,
        length: int = LENGTH,
        clean: str = "none",
    ):
        """Build the tokenizer.

        Args:
          merges: pairs of symbols, the first applied first.
          vocabulary: token -> id; None for that which follows from the merges.
          special: the special tokens, all of them in the vocabulary.
          length: of the rows of ids, at least 3: start, one token, end.
          clean: a key of `CLEANING`.

        Raises:
          UsageError: the vocabulary lacks a special token or the result of a merge, or an argument
            is invalid.
        """
        choose("cleaning of prompts", clean, CLEANING)
        if not isinstance(length, int) or length < 3:
            raise UsageError(f"length is {length!r}: give a whole number of at least 3.")
        self.merges = list(merges)
        self.vocabulary = dict(vocabulary_of(merges) if vocabulary is None else vocabulary)
        self.special, self.length, self.clean = special, length, clean
        for token in special.all:
            if token not in self.vocabulary:
                raise UsageError(f"The vocabulary lacks the special token {token!r}.")
        self.start_id, self.end_id, self.pad_id = (
            self.vocabulary[token] for token in (special.start, special.end, special.pad)
        )
        self.vocab_size = max(self.vocabulary.values()) + 1
        self._encoder = _byte_pair_encoder(self.merges, self.vocabulary, special)

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Return the ids of prompts, int32 [B, length].

        A row is start, the first length - 2 tokens of the prompt, end, and padding; `cut_warnings`
        says what did not fit.

        Raises:
          UsageError: a prompt is not a text.
        """
        encodings = self._encoder.encode_batch_fast(
            self._cleaned(prompts), add_special_tokens=False
        )
        ids = np.full((len(encodings), self.length), self.pad_id, np.int32)
        for row, encoding in zip(ids, encodings, strict=True):
            tokens = encoding.ids[: self.length - 2]
            row[: len(tokens) + 2] = [self.start_id, *tokens, self.end_id]
        return ids

    def lost_words(self, prompts: Sequence[str]) -> list[str]:
        """Return the end of each prompt that its row of ids leaves out, "" where all of it fits.

        A word of which the beginning was kept is among them.

        Raises:
          UsageError: a prompt is not a text.
        """
        texts = self._cleaned(prompts)
        encodings = self._encoder.encode_batch(texts, add_special_tokens=False)
        kept = self.length - 2
        return [
            _from_word(text, encoding.offsets[kept][0]) if len(encoding) > kept else ""
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def cut_warnings(self, prompts: Sequence[str]) -> list[str]:
        """Return a sentence for each prompt that was cut, which names the lost words.

        Raises:
          UsageError: a prompt is not a text.
        """
        return [
            f"The prompt {_shortened(prompt)!r} was cut after {self.length - 2} tokens, these "
            f"words were lost: {lost}"
            for prompt, lost in zip(prompts, self.lost_words(prompts), strict=True)
            if lost
        ]

    def _cleaned(self, prompts: Sequence[str]) -> list[str]:
        if isinstance(prompts, str):
            raise UsageError(f"Give a list of prompts: [{_shortened(prompts)!r}].")
        for prompt in prompts:
            _check_text(prompt)
        fix = _import_ftfy().fix_text if self.clean == "ftfy" else str
        return [fix(prompt) for prompt in prompts]


def clip_tokenizer(
    num_merges: int | None = None,
    *,
    pad: str = END,
    length: int = LENGTH,
    clean: str = "none",
) -> Tokenizer:
    """Return the tokenizer with CLIP's own vocabulary, that of Stable Diffusion.

    Args:
      num_merges: how many of its merges to use, the most frequent first: a vocabulary of
        514 + num_merges tokens, for a small encoder; None for all, 49,408 tokens.
      pad: the padding token; "!" in Stable Diffusion 2.x.
      length: as in `Tokenizer`.
      clean: as in `Tokenizer`.

    Raises:
      UsageError: an argument is invalid.
    """
    merges = clip_merges()
    if num_merges is not None and not 0 <= num_merges <= len(merges):
        raise UsageError(
            f"num_merges is {num_merges}: give a number in 0..{len(merges)}, those that CLIP has."
        )
    return Tokenizer(
        merges[:num_merges], special=SpecialTokens(pad=pad), length=length, clean=clean
    )


def _byte_pair_encoder(
    merges: list[Merge], vocabulary: dict[str, int], special: SpecialTokens
) -> Any:
    import tokenizers
    from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

    try:
        model = models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=END_OF_WORD,
            unk_token=special.unknown,
            fuse_unk=False,
        )
    except Exception as error:  # of no class of its own
        raise UsageError(
            f"The vocabulary does not fit the merges ({error}): both must be of one tokenizer."
        ) from error
    encoder = tokenizers.Tokenizer(model)
    # `Lowercase` goes character by character: no final sigma, unlike `str.lower`.
    encoder.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    encoder.add_special_tokens(
        [
            AddedToken(token, normalized=token in special.any_case, special=True)
            for token in special.all
        ]
    )
    return encoder


def _from_word(text: str, start: int) -> str:
    """Return the rest of a text from the beginning of the word at `start`."""
    while start and text[start - 1 : start + 1].isalpha():
        start -= 1
    return text[start:].strip()


def _check_text(prompt: object) -> None:
    if not isinstance(prompt, str):
        raise UsageError(f"The prompt {_shortened(prompt)} is not a text.")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"The prompt {_shortened(prompt)!r} holds half of a character: give it as UTF-8."
        ) from None


def _import_ftfy() -> Any:
    try:
        import ftfy
    except ImportError:
        raise UsageError(
            "Cleaning prompts with ftfy needs the package ftfy: pip install ftfy."
        ) from None
    return ftfy


def _shortened(prompt: object, longest: int = 40) -> str:
    text = str(prompt)
    return text if len(text) <= longest else f"{text[:longest]}..."
