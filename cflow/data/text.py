"""Text by characters: tiny Shakespeare, 1,115,394 characters of 65 kinds, and files of your own.

    train = the first 90 percent of the text,    test = the last 10 percent

The figure of a model is in nats per character on the last 10 percent. A small autoregressive
transformer reaches 1.47 (nanoGPT's); the uniform law over 65 characters has log 65 = 4.174.

Source: Karpathy (2015), The unreasonable effectiveness of recurrent neural networks; file in
karpathy/char-rnn, plays in the public domain.
"""

import os
from typing import NamedTuple

from torch import Tensor

from cflow.data.delimited import text as content_of
from cflow.data.fetch import RemoteFile, fetch
from cflow.data.vocabulary import Vocabulary
from cflow.errors import DataError, DomainError, ShapeError
from cflow.typing import Data

__all__ = ["SHAKESPEARE", "Text", "read", "shakespeare", "windows"]

SHAKESPEARE = RemoteFile(
    "tiny_shakespeare/input.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/"
    "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


class Text(NamedTuple):
    """Hold the tokens of both parts, int64, `(characters,)`, and which character is which token."""

    train: Tensor
    test: Tensor
    vocabulary: Vocabulary


def shakespeare(path: str | os.PathLike[str] | None = None, *, share: float = 0.9) -> Text:
    """Load tiny Shakespeare, character by character.

    Args:
        path: A text of your own instead, as `read` takes it; None is tiny Shakespeare.
        share: How much of the text trains.

    Returns:
        The first 1,003,854 characters, the last 111,540, and the vocabulary of 65.

    Raises:
        DataError: The file is damaged, or its address cannot be reached.
        MissingExtraError: The file has to be fetched and pooch is not installed.

    Example:
        >>> train, test, vocabulary = shakespeare()  # doctest: +SKIP
        >>> vocabulary.decode(train[:14])  # doctest: +SKIP
        'First Citizen:'
    """
    return read(fetch(SHAKESPEARE) if path is None else path, share=share)


def read(path: str | os.PathLike[str], *, share: float = 0.9) -> Text:
    """Read a text of your own, UTF-8, plain or gzipped (`.gz`), as it stands, ends of lines too.

    Args:
        path: The file.
        share: How much of the text trains; the rest, at its end, is the test part.

    Returns:
        Both parts. The vocabulary is that of the whole text, so that the test part has no character
        that is not in it.

    Raises:
        DataError: The file cannot be read, or is too short for two parts.
        DomainError: The share does not lie between 0 and 1.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "abc.txt")
        >>> _ = open(path, "w").write("abracadabra")
        >>> train, test, vocabulary = read(path, share=0.7)
        >>> vocabulary.decode(train), vocabulary.decode(test), len(vocabulary)
        ('abracad', 'abra', 5)
    """
    if not 0 < share < 1:
        raise DomainError(f"text.read: share must lie between 0 and 1, got {share}")
    content = content_of("text.read", path)
    trained = int(share * len(content))
    if not 0 < trained < len(content):
        raise DataError(
            f"text.read: {path} holds {len(content)} characters, too few for a part of {share:g} "
            "to train on and a rest to test"
        )
    vocabulary = Vocabulary.of(content)
    tokens = vocabulary.encode(content, where=f"text.read: {path}")
    return Text(tokens[:trained], tokens[trained:], vocabulary)


def windows(tokens: Data, length: int) -> Data:
    """Cut a sequence into windows that do not overlap, one behind the other.

    What is left behind the last whole window, at most `length - 1` tokens, is dropped.

    Args:
        tokens: A sequence, `(tokens,)`.
        length: Tokens of a window.

    Returns:
        Windows, `(tokens // length, length)`.

    Raises:
        ShapeError: The sequence has more axes than one, or none.
        DomainError: The length is not positive, or larger than the sequence.

    Example:
        >>> import torch
        >>> windows(torch.arange(8), 3).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    if tokens.dim() != 1:
        raise ShapeError(
            f"text.windows: tokens must be one sequence (tokens,), got {tuple(tokens.shape)}"
        )
    if not 0 < length <= len(tokens):
        raise DomainError(
            f"text.windows: length must lie between 1 and the {len(tokens)} tokens of the "
            f"sequence, got {length}"
        )
    whole = len(tokens) // length
    return tokens[: whole * length].reshape(whole, length)
