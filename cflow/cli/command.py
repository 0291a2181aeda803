"""The contract of a command: its settings, an example of their use, and what it does with them."""

from abc import ABC, abstractmethod
from typing import ClassVar

__all__ = ["Command"]


class Command(ABC):
    """A command of the command line; each is a frozen dataclass of its settings.

    Attributes:
        EXAMPLE: A line that runs it, which its help shows.
    """

    EXAMPLE: ClassVar[str]

    @abstractmethod
    def run(self) -> str:
        """Do it, and return what there is to say.

        Raises:
            CflowError: The input is not what it has to be; the message becomes one line.
        """
