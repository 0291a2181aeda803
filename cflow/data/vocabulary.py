"""A vocabulary: which symbol, of one or more characters, is which token.

    token k  <->  symbols[k],    k = 0, .., len(vocabulary) - 1

A padding symbol makes strings of many lengths one length. It is a symbol like the others, which a
model has to learn; only `decode` leaves it out. A mask is none: it stands for a token that is not
yet known, and no vocabulary has it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cflow.errors import DataError, DomainError, ShapeError
from cflow.typing import Data

__all__ = ["Vocabulary"]


@dataclass(frozen=True)
class Vocabulary:
    """Turn symbols into tokens and tokens into text.

    Args:
        symbols: The symbols in the order of their tokens, each of one or more characters.
        pad: The one of them that `decode` leaves out, if there is any.

    Raises:
        DomainError: There are no symbols, one is empty or occurs twice, or the padding symbol is
            none of them.

    Example:
        >>> vocabulary = Vocabulary(("_", "C", "Cl", "[nH]"), pad="_")
        >>> vocabulary.encode(["C", "[nH]", "Cl", "_"]).tolist()
        [1, 3, 2, 0]
        >>> vocabulary.decode(torch.tensor([1, 3, 2, 0]))
        'C[nH]Cl'
    """

    symbols: tuple[str, ...]
    pad: str | None = None

    def __post_init__(self) -> None:
        if not self.symbols or "" in self.symbols:
            raise DomainError(
                f"Vocabulary: symbols must be one or more, none of them empty, got {self.symbols}"
            )
        if len(self._tokens) < len(self.symbols):
            twice = next(s for k, s in enumerate(self.symbols) if s in self.symbols[:k])
            raise DomainError(f"Vocabulary: symbols must differ, got {twice!r} twice")
        if self.pad is not None and self.pad not in self._tokens:
            raise DomainError(
                f"Vocabulary: the padding symbol {self.pad!r} must be one of the symbols"
            )

    @classmethod
    def of(cls, text: Iterable[str], *, pad: str | None = None) -> "Vocabulary":
        """Make the vocabulary of a text, sorted.

        Args:
            text: A text, whose characters are the symbols, or symbols in any order and number.
            pad: A padding symbol, which becomes token 0; the text must not have it.

        Raises:
            DomainError: The text is empty, or has the padding symbol.

        Example:
            >>> Vocabulary.of("hello").symbols
            ('e', 'h', 'l', 'o')
        """
        found = set(text)
        if pad in found:
            raise DomainError(
                f"Vocabulary.of: the text has the padding symbol {pad!r} itself; choose another one"
            )
        return cls((() if pad is None else (pad,)) + tuple(sorted(found)), pad)

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: Sequence[str], where: str = "Vocabulary.encode") -> Data:
        """Return the tokens of a text, int64, `(symbols,)`.

        Args:
            text: Symbols in their order; a string counts as its characters.
            where: What the error names first, such as a file and its line.

        Raises:
            DataError: A symbol is not in the vocabulary; positions are counted from 0.

        Example:
            >>> Vocabulary.of("hello").encode("hole").tolist()
            [1, 3, 2, 0]
        """
        known = self._tokens
        tokens = [known.get(symbol, -1) for symbol in text]
        if -1 in tokens:
            k = tokens.index(-1)
            raise DataError(
                f"{where}: expected symbols of the vocabulary, {self._shown()}, got {text[k]!r} at "
                f"position {k} ({tokens.count(-1)} of {len(tokens)} symbols are affected)"
            )
        return torch.tensor(tokens, dtype=torch.int64)

    def decode(self, tokens: Data) -> str:
        """Return the text of one sequence of tokens, wherever padding stands in it left out.

        Args:
            tokens: Integers, `(length,)`.

        Raises:
            ShapeError: The tokens have more axes than one, or none.
            DomainError: They are no integers, or one is out of range; positions are counted from 0.

        Example:
            >>> Vocabulary.of("hello").decode(torch.tensor([1, 3, 2, 0]))
            'hole'
        """
        if tokens.dim() != 1:
            raise ShapeError(
                f"Vocabulary.decode: tokens must be one sequence (length,), got "
                f"{tuple(tokens.shape)}; decode the rows of a batch one by one"
            )
        if tokens.dtype == torch.bool or tokens.is_floating_point() or tokens.is_complex():
            raise DomainError(
                f"Vocabulary.decode: tokens must be integers, got {tokens.dtype}; call .long()"
            )
        self._expect_known(tokens)
        return "".join(s for s in map(self.symbols.__getitem__, tokens.tolist()) if s != self.pad)

    def _expect_known(self, tokens: Tensor) -> None:
        outside = (tokens < 0) | (tokens >= len(self))
        if not outside.any():
            return
        k = int(outside.nonzero()[0])
        mask = "; that state is the mask, which has to be drawn first"
        raise DomainError(
            f"Vocabulary.decode: tokens must lie between 0 and {len(self) - 1}, got "
            f"{int(tokens[k])} at position {k} ({int(outside.sum())} of {len(tokens)} tokens are "
            f"affected){mask if tokens[k] == len(self) else ''}"
        )

    def _shown(self) -> str:
        """Name the symbols, as far as a message has room for them."""
        shown = " ".join(repr(symbol) for symbol in self.symbols[:32])
        return shown if len(self) <= 32 else f"{shown} and {len(self) - 32} more"

    @cached_property
    def _tokens(self) -> dict[str, int]:
        return {symbol: k for k, symbol in enumerate(self.symbols)}
