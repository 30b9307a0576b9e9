"""A request body that goes up piece by piece and can be sent only once.

In: the client's pieces as they come. Out: the same to aiohttp's client, and whether any was taken.
"""

from collections.abc import AsyncIterator

from streaming.failures import SmolgateError


class StreamedBody:
    """`length` in bytes, None where it is not known ahead.

    `begun`: a piece was asked for. `failure`: what the pieces raised, which the HTTP library hides.
    """

    def __init__(self, pieces: AsyncIterator[bytes], *, length: int | None) -> None:
        self.length = length
        self.begun = False
        self.failure: SmolgateError | None = None
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun = True
        try:
            async for piece in self._pieces:
                yield piece
        except SmolgateError as error:
            self.failure = error
            raise
