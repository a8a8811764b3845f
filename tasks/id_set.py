"""A set of task ids for tens of millions of them: exact, and of small memory.

Two kinds of ids are kept apart:

1. whole numbers that are not much greater than the set is large (line numbers, running numbers):
   one bit each, in whatever order they come;
2. every other id: its text goes to a temporary file, and a hash table in memory keeps 8 bytes a
   slot: where in the file the text begins, and some bits of its hash. A slot whose bits agree is
   compared with the text itself, so that ids whose hashes are equal are never taken for each other.

Ten million random ids take 134 MB of memory (half as much again while the table is doubled), ten
million line numbers one and a half.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator
from typing import Final

from agentcloud.cluster.errors import ConfigError

#: Slots of the first table; a power of two, as every later one.
_FIRST_SLOTS: Final = 1 << 10
#: A table is doubled when it holds more than two thirds of its slots.
_FULL_NUMERATOR, _FULL_DENOMINATOR = 2, 3
#: A slot: the upper bits are of the text's hash, the lower ones say where it begins, plus 1.
_PLACE_BITS: Final = 40
_PLACE_MASK: Final = (1 << _PLACE_BITS) - 1
_TAG_MASK: Final = (1 << 24) - 1
#: Before a text in the file: how long it is, little-endian.
_LENGTH_BYTES: Final = 4
#: What has not been written yet is kept in memory up to here.
_TAIL_BYTES: Final = 1 << 16
#: A number may be kept as a bit up to 64 times the set's size and this: 8 bytes an id at most.
_BITS_PER_ID: Final = 64
_FREE_BITS: Final = 1 << 16
_MOST_DIGITS: Final = 12


class IdSet:
    """Ids; they can be added, looked up and listed, and never be taken out."""

    def __init__(self) -> None:
        self._count = 0
        self._bits = bytearray()
        self._slots = array("Q", bytes(8 * _FIRST_SLOTS))
        self._texts = 0
        self._file: int | None = None
        self._written = 0
        self._tail = bytearray()

    def __repr__(self) -> str:
        return f"<IdSet of {self._count}, {self._texts} as text>"

    def __len__(self) -> int:
        return self._count

    def __contains__(self, id_: object) -> bool:
        if not isinstance(id_, str):
            return False
        number = _number(id_)
        if number is not None and self._has_bit(number):
            return True
        if not self._texts:
            return False
        return self._slots[self._slot_of(_bytes(id_))] != 0

    def __iter__(self) -> Iterator[str]:
        for at, byte in enumerate(self._bits):
            for bit in range(8):
                if byte >> bit & 1:
                    yield str(at * 8 + bit)
        for _, text in self._all_texts():
            yield text.decode("utf-8", "surrogatepass")

    def add(self, id_: str) -> bool:
        """Put an id in; returns whether it was not there yet.

        Raises:
            ConfigError: there is no room for it in the folder of temporary files.
        """
        number = _number(id_)
        if number is not None:
            if self._has_bit(number):
                return False
            # It may be there as text too, from when the set was smaller.
            if number < _BITS_PER_ID * self._count + _FREE_BITS and not (
                self._texts and self._slots[self._slot_of(_bytes(id_))]
            ):
                self._set_bit(number)
                self._count += 1
                return True
        text = _bytes(id_)
        slot = self._slot_of(text)
        if self._slots[slot]:
            return False
        self._put(text, slot)
        self._count += 1
        return True

    def _has_bit(self, number: int) -> bool:
        at = number >> 3
        return at < len(self._bits) and bool(self._bits[at] >> (number & 7) & 1)

    def _set_bit(self, number: int) -> None:
        at = number >> 3
        if at >= len(self._bits):
            self._bits.extend(bytes(at + 1 - len(self._bits)))
        self._bits[at] |= 1 << (number & 7)

    def _put(self, text: bytes, slot: int) -> None:
        self._slots[slot] = _entry(text, self._written + len(self._tail))
        self._tail += len(text).to_bytes(_LENGTH_BYTES, "little") + text
        self._texts += 1
        if len(self._tail) >= _TAIL_BYTES:
            self._write_tail()
        if self._texts * _FULL_DENOMINATOR > len(self._slots) * _FULL_NUMERATOR:
            self._grow()

    def _slot_of(self, text: bytes) -> int:
        """The slot that holds a text, else the free one where it belongs."""
        slots = self._slots
        mask = len(slots) - 1
        hash_ = hash(text)
        tag = hash_ >> _PLACE_BITS & _TAG_MASK
        slot = hash_ & mask
        while entry := slots[slot]:
            if entry >> _PLACE_BITS == tag and self._text_at((entry & _PLACE_MASK) - 1) == text:
                break
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        # Hashes are not kept whole, so the texts are read again: in one pass, and rarely.
        slots = array("Q", bytes(16 * len(self._slots)))
        mask = len(slots) - 1
        for place, text in self._all_texts():
            slot = hash(text) & mask
            while slots[slot]:
                slot = (slot + 1) & mask
            slots[slot] = _entry(text, place)
        self._slots = slots

    def _text_at(self, place: int) -> bytes:
        length = int.from_bytes(self._read(place, _LENGTH_BYTES), "little")
        return self._read(place + _LENGTH_BYTES, length)

    def _read(self, place: int, length: int) -> bytes:
        if place >= self._written:  # entries are written whole: it is in one of the two
            place -= self._written
            return bytes(self._tail[place : place + length])
        assert self._file is not None
        return os.pread(self._file, length, place)

    def _all_texts(self) -> Iterator[tuple[int, bytes]]:
        """Every text with its place, in the order in which they came."""
        self._write_tail()
        if self._file is None:
            return
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            place = 0
            while place < self._written:
                text = file.read(int.from_bytes(file.read(_LENGTH_BYTES), "little"))
                yield place, text
                place += _LENGTH_BYTES + len(text)

    def _write_tail(self) -> None:
        if not self._tail:
            return
        try:
            if self._file is None:
                # It has no name: it goes with the process, whatever becomes of that.
                file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with the set
                weakref.finalize(self, file.close)
                self._file = file.fileno()
            rest = memoryview(self._tail)
            place = self._written
            while rest:
                count = os.pwrite(self._file, rest, place)
                place += count
                rest = rest[count:]
        except OSError as error:
            raise ConfigError(
                f"cannot keep task ids there ({error.strerror}); make room, or set TMPDIR",
                where=tempfile.gettempdir(),
            ) from None
        self._written = place
        self._tail = bytearray()


def _number(id_: str) -> int | None:
    # Only as `str(int)` writes it: "07" is another id than "7".
    if len(id_) <= _MOST_DIGITS and id_.isdecimal() and id_.isascii():
        return int(id_) if id_[0] != "0" or id_ == "0" else None
    return None


def _bytes(id_: str) -> bytes:
    return id_.encode("utf-8", "surrogatepass")


def _entry(text: bytes, place: int) -> int:
    return (hash(text) >> _PLACE_BITS & _TAG_MASK) << _PLACE_BITS | (place + 1)
