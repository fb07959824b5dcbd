"""The byte-level BPE tokenizer, built from what the GGUF file holds, and the chat format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gguf import GGUFReader
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from smollm2.weights import field

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # the model's own
NORMAL = 1  # GGUF's token type of an ordinary piece of text


class Tokenizer:
    """Text to tokens and back.

    Parameters
    ----------
    reader : GGUFReader
        From `weights.open_gguf`.

    Raises
    ------
    ValueError
        If the file's tokenizer is of another kind.
    """

    def __init__(self, reader: GGUFReader) -> None:
        kind = (field(reader, "tokenizer.ggml.model"), field(reader, "tokenizer.ggml.pre"))
        if kind != ("gpt2", "smollm"):
            raise ValueError(f"the GGUF file has a tokenizer of kind {kind}; expected ('gpt2', 'smollm')")
        tokens: list[str] = field(reader, "tokenizer.ggml.tokens")
        types: list[int] = field(reader, "tokenizer.ggml.token_type")
        merges: list[str] = field(reader, "tokenizer.ggml.merges")
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
        ids = {token: i for i, token in enumerate(tokens)}
        backend = Backend(models.BPE(ids, pairs))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        backend.decoder = decoders.ByteLevel()
        control = [token for token, sort in zip(tokens, types, strict=True) if sort != NORMAL]
        backend.add_special_tokens([AddedToken(token, normalized=False) for token in control])
        backend.encode_special_tokens = True  # in a text they are mere text: nobody can forge a turn
        self._backend = backend
        self._start, self.end = ids["<|im_start|>"], ids["<|im_end|>"]  # of a turn; `end` so ends an answer

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        tokens: list[int] = self._backend.encode(text).ids
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens; control tokens have none."""
        text: str = self._backend.decode(list(tokens))
        return text

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield the text of tokens piece by piece, a character as soon as all its bytes are there."""
        decoder = decoders.DecodeStream(skip_special_tokens=True)
        for token in tokens:
            piece = decoder.step(self._backend, token)
            if piece:
                yield piece

    def chat(self, question: str, system: str = SYSTEM) -> list[int]:
        """Return the tokens that ask a question and open the answer, in the model's chat format (ChatML)."""
        newline = self.encode("\n")
        turns = [("system", system), ("user", question)]
        asked = [[self._start, *self.encode(f"{role}\n{text}"), self.end, *newline] for role, text in turns]
        return [*asked[0], *asked[1], self._start, *self.encode("assistant\n")]
