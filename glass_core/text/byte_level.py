"""Byte-level BPE token ids to text while they arrive, without the tokenizer: a table and UTF-8.

Equals the `ByteLevel` decoder of the `tokenizers` library on the whole sequence, at a tenth of the cost per token: the
bytes of all tokens in a row, read as UTF-8, what is malformed replaced. Only the bytes of an unfinished character are
state.
"""

from codecs import utf_8_decode
from collections.abc import Callable, Sequence


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet (openai/gpt-2 `bytes_to_unicode`): printable Latin-1 bytes stand for themselves, the others, in
    order, for the characters from U+0100 on."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


class TokenTable(dict[int, str | bytes]):
    """What each token adds, filled in as tokens come up: its text, or its bytes where they are not whole characters.

    Ids the tokenizer does not know add nothing, as in its own decoder.
    """

    def __init__(self, id_to_token: Callable[[int], str | None]) -> None:
        super().__init__()
        self._id_to_token = id_to_token
        self._bytes = _byte_of_character()

    def __missing__(self, token_id: int) -> str | bytes:
        data = self._token_bytes(self._id_to_token(token_id) or "")
        try:
            piece: str | bytes = data.decode()
        except UnicodeDecodeError:
            piece = data
        self[token_id] = piece
        return piece

    def bytes_of(self, token_id: int) -> bytes:
        """What the token adds, as bytes."""
        piece = self[token_id]
        return piece.encode() if isinstance(piece, str) else piece

    def _token_bytes(self, token: str) -> bytes:
        # A token added as it stands, outside the alphabet, is its own text.
        known = all(character in self._bytes for character in token)
        return bytes(self._bytes[character] for character in token) if known else token.encode()


class ByteLevelDecoder:
    """Text of a growing token sequence, piece by piece, each as soon as it is certain.

    `context` are the tokens before it: a character they began is completed, and given out, by the first token.
    """

    def __init__(self, table: TokenTable, context: Sequence[int] = ()) -> None:
        self._table = table
        self._pending = b""
        for token_id in context:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that became certain with this token, possibly empty."""
        piece = self._table[token_id]
        if piece.__class__ is str and not self._pending:
            return piece
        data = self._pending + (piece.encode() if isinstance(piece, str) else piece)
        text, num_read = utf_8_decode(data, "replace", False)
        self._pending = data[num_read:]
        return text

    def flush(self) -> str:
        """The bytes of a character that never became whole, as replacement characters."""
        data, self._pending = self._pending, b""
        return data.decode("utf-8", "replace")
