"""CoLLAP's processor: a tokenizer and the audio feature extractor behind one call.

Dimensions: `A` audios, `B` texts, `Q` sentences of a text, `L` text tokens.
"""

import copy
from collections.abc import Iterable

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import logging

from .feature_extraction_collap import CoLLAPFeatureExtractor, check_return_tensors, check_whole_songs
from .sentences_collap import list_sentences

logger = logging.get_logger(__name__)

NO_LIMIT = 2**31  # tokenizers without a limit say 1e30, which their own truncation and padding cannot hold
# What counts where a call leaves an argument out; the last four are those of texts.
CALL_DEFAULTS = {
    "sampling_rate": None,
    "device": "cpu",
    "return_tensors": "pt",
    "padding": None,
    "truncation": None,
    "max_length": None,
}
TEXT_KWARGS = ("max_length", "padding", "truncation", "return_tensors")
UNCUT = (False, "do_not_truncate")
# How sentence-transformers and mteb are told what is embedded, and by which method.
MODALITY_CONFIG = {name: {"method": f"get_{name}_features", "method_output_name": None} for name in ("text", "audio")}


def check_texts(text: str | list) -> list[str | list]:
    """Return one text or several as a list; each a string, or a list of sentences.

    Raises:
        ValueError: names the first that is empty or neither of these.
    """
    if isinstance(text, (bytes, dict)) or not isinstance(text, Iterable):
        raise ValueError(f"text is a {type(text).__name__}; expected a string or a list of strings")
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise ValueError("found an empty list of texts; expected at least one")
    for i, one in enumerate(texts):
        if isinstance(one, (list, tuple)):
            list_sentences(one, f"text[{i}]")
            continue
        if not isinstance(one, str):
            raise ValueError(f"text[{i}] is a {type(one).__name__}; expected a string")
        if not one.strip():
            raise ValueError(f"text[{i}] is empty; expected a description")
    return texts


def has_words(tokenizer) -> bool:
    """Tell whether a tokenizer knows more than special tokens; not so one whose tokenizer.json was missing."""
    return len(tokenizer) > len(set(tokenizer.all_special_tokens))


class CoLLAPProcessor(ProcessorMixin):
    r"""Join a tokenizer and a [`CoLLAPFeatureExtractor`].

    The tokenizer is copied: padding goes to the right, and one without a pad token, such as GPT-2's, gets its
    end-of-text token as one.

    Args:
        feature_extractor: a [`CoLLAPFeatureExtractor`].
        tokenizer: of the text tower.
        max_text_tokens: tokens that the text tower can read; the tokenizer's `model_max_length` if None. Longer texts
            are cut, which is said once, with both lengths.
        split_texts: whether texts go to the model by sentences (see [`split_sentences`]), each of which may be as long
            as `max_text_tokens`.

    Raises:
        ValueError: if the tokenizer has neither a pad token nor an end-of-text token.
    """

    _said_texts_are_cut = False  # of the class: one warning in a process, not one for every length

    def __init__(self, feature_extractor, tokenizer, max_text_tokens=None, split_texts=False):
        tokenizer = copy.deepcopy(tokenizer)
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ValueError("the tokenizer has neither pad_token nor eos_token; set one of them to pad batches")
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        tokenizer.model_input_names = ["input_ids", "attention_mask"]  # BERT's has token types, too
        super().__init__(feature_extractor, tokenizer)
        self.max_text_tokens = max_text_tokens
        self.split_texts = split_texts

    @classmethod
    def from_model_config(cls, config, tokenizer) -> "CoLLAPProcessor":
        """Return the processor that fits a `CoLLAPConfig`; `tokenizer` is that of its text tower."""
        limits = [limit for limit in (config.text_positions, tokenizer.model_max_length) if limit]
        extractor, split_texts = CoLLAPFeatureExtractor.from_model_config(config), config.alignment != "paper"
        return cls(extractor, tokenizer, max_text_tokens=min(limits), split_texts=split_texts)

    def __call__(
        self,
        text=None,
        audio=None,
        sampling_rate=None,
        device="cpu",
        text_kwargs=None,
        audio_kwargs=None,
        return_tensors="pt",
        padding=None,
        truncation=None,
        max_length=None,
        common_kwargs=None,
        **unknown,
    ) -> BatchFeature:
        """Turn texts, songs or both into model inputs.

        Args:
            text: one text or a list of them, or None. A text is a string, or (within the list) a list of its sentences,
                or of sections: dicts with a `text`.
            audio, sampling_rate: as in [`CoLLAPFeatureExtractor`], or None.
            device: where audio features are computed and all tensors are returned.
            text_kwargs: `padding`, `truncation`, `max_length` and `return_tensors` for texts alone.
            audio_kwargs: more arguments of the feature extractor, e.g. `{"sampling_rate": 48000}`.
            return_tensors: `"pt"`, `"np"`, or None for lists of tokens and numpy features.
            padding: of texts: True or `"longest"` (the default), `"max_length"`, or False. Songs are padded to the
                longest.
            truncation: of texts: True cuts those that are longer than `max_length` or the text tower; None, the
                default, too, and says so once; False leaves them whole. Songs are never cut.
            max_length: tokens of a text, at most `max_text_tokens`.
            common_kwargs: any of these arguments, which count where they are not given.

        Returns:
            input_ids, attention_mask (B, L), with `split_texts` (B, Q, L) where the mask of what is no sentence is 0,
            and the outputs of the feature extractor.

        Raises:
            ValueError: if both text and audio are missing, for an empty text, for a tokenizer without a vocabulary,
                which gives every text the same tokens, for a `max_length` that the text tower cannot read, for an
                argument that is given twice, or as the feature extractor.
            TypeError: for an unknown argument.
        """
        given = {
            "sampling_rate": sampling_rate,
            "device": device,
            "return_tensors": return_tensors,
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
        }
        if unknown:
            expected = ", ".join(("text", "audio", "text_kwargs", "audio_kwargs", "common_kwargs", *given))
            raise TypeError(f"found an unknown argument {', '.join(unknown)}; expected {expected}")
        if common_kwargs:
            kept = {name: value for name, value in given.items() if value != CALL_DEFAULTS[name]}
            return self(text, audio, text_kwargs=text_kwargs, audio_kwargs=audio_kwargs, **{**common_kwargs, **kept})
        if text is None and audio is None:
            raise ValueError("found neither text nor audio; expected at least one of them")
        if text is not None and not has_words(self.tokenizer):
            raise ValueError(
                f"the tokenizer has no vocabulary but {len(self.tokenizer)} special tokens; put tokenizer.json (or "
                "vocab.json and merges.txt) beside config.json"
            )
        inputs = {}
        if text is not None:
            inputs.update(self._tokenize(text, join_text_kwargs(given, text_kwargs or {})))
        else:
            check_whole_songs(padding, truncation, max_length)
        if audio is not None:
            rate = {} if sampling_rate is None else {"sampling_rate": sampling_rate}
            options = {"device": device, "return_tensors": return_tensors, **(audio_kwargs or {})}
            inputs.update(self.feature_extractor(audio, **rate, **options))
        return BatchFeature(inputs).to(device=device)

    def _tokenize(self, text: str | list, options: dict) -> dict[str, torch.Tensor]:
        texts = check_texts(text)
        if not self.split_texts:
            return self._tokenize_whole(
                [one if isinstance(one, str) else join_sentences(one) for one in texts], options
            )
        sentences = [list_sentences(one, f"text[{index}]") for index, one in enumerate(texts)]
        as_lists = {**options, "return_tensors": options["return_tensors"] and "np"}
        encoded = self._tokenize_whole([one for own in sentences for one in own], as_lists)
        padding = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0}
        counts = [len(own) for own in sentences]
        nested = {name: nest(encoded[name], counts, value) for name, value in padding.items()}
        return BatchFeature(nested).convert_to_tensors(options["return_tensors"])

    def _tokenize_whole(self, texts: list[str], options: dict) -> dict[str, torch.Tensor]:
        limit = self._text_limit(options["max_length"])
        encoded = self.tokenizer(texts, return_attention_mask=True, verbose=False)
        longest = max(len(ids) for ids in encoded["input_ids"])
        limit = longest if limit >= NO_LIMIT else limit
        if longest > limit and options["truncation"] not in UNCUT:
            if options["truncation"] is None:
                self._say_texts_are_cut(longest, limit)
            encoded = self.tokenizer(texts, return_attention_mask=True, max_length=limit, truncation=True)
        padding = True if options["padding"] is None else options["padding"]
        length = {"max_length": limit} if padding == "max_length" else {}
        padded = self.tokenizer.pad(encoded, padding=padding, **length)
        lengths = {len(ids) for ids in padded["input_ids"]}
        if options["return_tensors"] is not None and len(lengths) > 1:
            raise ValueError(
                f"texts of {min(lengths)} and of {max(lengths)} tokens are no tensor: give padding=True, or "
                "return_tensors=None for lists"
            )
        return padded.convert_to_tensors(options["return_tensors"])

    def _say_texts_are_cut(self, longest: int, limit: int):
        if not CoLLAPProcessor._said_texts_are_cut:
            CoLLAPProcessor._said_texts_are_cut = True
            logger.warning(
                f"a text of {longest} tokens is cut to the {limit} that the text tower reads (said once; the end of "
                "every longer text is ignored)"
            )

    def _text_limit(self, max_length: int | None) -> int:
        """Return the number of tokens after which texts are cut."""
        tower = self.max_text_tokens or self.tokenizer.model_max_length
        if max_length is None:
            return tower
        if not 0 < max_length <= tower:
            raise ValueError(
                f"max_length must be from 1 to the {tower} tokens that the text tower reads, found {max_length}"
            )
        return max_length

    @property
    def model_input_names(self) -> list[str]:
        """Name all that a call may return."""
        return ["input_ids", "attention_mask", *self.feature_extractor.model_input_names]


def join_sentences(sentences: list) -> str:
    """Return one text of a list of sentences or sections, a line for each."""
    return "\n".join(list_sentences(sentences, "text"))


def nest(rows: np.ndarray | list, counts: list[int], padding: int) -> np.ndarray | list:
    """Group the rows of all sentences by their text.

    Args:
        rows: (all sentences, L), or lists of any lengths.
        counts: (B,) sentences of every text.
        padding: what a missing sentence consists of.

    Returns:
        (B, Q, L); or lists, where nothing is missing.
    """
    ends = np.cumsum(counts)
    groups = [rows[end - count : end] for end, count in zip(ends, counts, strict=True)]
    if isinstance(rows, list):
        return groups
    nested = np.full((len(counts), max(counts), rows.shape[1]), padding, rows.dtype)  # (B, Q, L)
    for place, group in zip(nested, groups, strict=True):
        place[: len(group)] = group
    return nested


def join_text_kwargs(given: dict, text_kwargs: dict) -> dict:
    """Return padding, truncation, max_length and return_tensors of texts.

    Args:
        given: the arguments of the call.
        text_kwargs: those for texts alone.

    Raises:
        TypeError: for another name in `text_kwargs`.
        ValueError: for an argument that is given twice, an unknown `truncation` or `return_tensors`.
    """
    unknown = sorted(set(text_kwargs) - set(TEXT_KWARGS))
    if unknown:
        raise TypeError(f"text_kwargs has {', '.join(unknown)}; expected only {', '.join(TEXT_KWARGS)}")
    for name, value in text_kwargs.items():
        if given[name] not in (CALL_DEFAULTS[name], value):
            raise ValueError(f"{name} is given twice, as {given[name]!r} and in text_kwargs as {value!r}")
    options = {name: text_kwargs.get(name, given[name]) for name in TEXT_KWARGS}
    check_return_tensors(options["return_tensors"])
    if options["truncation"] not in (None, True, "longest_first", "only_first", *UNCUT):
        raise ValueError(f"truncation must be True or False, found {options['truncation']!r}")
    return options
