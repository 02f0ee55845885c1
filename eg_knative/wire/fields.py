"""One JSON object of a launcher's, read field by field and distrusted.

It exists so that the readers of messages are lists of fields and nothing else: types, lengths and ranges are
checked here, once, and a mistake names its field and never repeats the value, which may be a key. Pure functions,
no I/O.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from eg_knative.errors import LauncherError

_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SENTENCE_LIMIT = 2_000
_TEXT_LIMIT = 4_096
T = TypeVar("T")


class Fields:
    """A JSON object of a launcher's, read field by field. Every getter raises LauncherError naming the field."""

    def __init__(self, document: object, *, where: str) -> None:
        if not isinstance(document, dict):
            raise LauncherError(f"The launcher's {where} is not a JSON object.", field=where)
        self._document: dict[str, Any] = document
        self._where = where

    def wrong(self, key: str, wanted: str) -> LauncherError:
        """The error to raise; it does not repeat the value, which may be a secret."""
        return LauncherError(f"{key} in the launcher's {self._where} is not {wanted}.", field=key)

    def text(self, key: str, *, limit: int = _TEXT_LIMIT, empty: bool = False) -> str:
        value = self._document.get(key)
        if not isinstance(value, str) or len(value) > limit or not (value or empty) or not _encodable(value) or "\0" in value:
            raise self.wrong(key, f"a string of at most {limit} characters")
        return value

    def word(self, key: str) -> str:
        value = self._document.get(key)
        if not isinstance(value, str) or not _WORD.fullmatch(value):
            raise self.wrong(key, "a lower-case word")
        return value

    def sentence(self, key: str) -> str | None:
        """Text for people: cut to a bearable length and freed of control characters, so that it cannot forge log lines."""
        value = self._document.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(key, "a string or null")
        return "".join(c if c.isprintable() else " " for c in value[:_SENTENCE_LIMIT])

    def integer(self, key: str, *, low: int = 0, high: int = 2**63) -> int:
        value = self._document.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str) -> float:
        value = self._document.get(key)
        if value is None or not _is_amount(value):
            raise self.wrong(key, "a finite number from 0")
        return float(value)

    def boolean(self, key: str) -> bool:
        value = self._document.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        return None if self._document.get(key) is None else read(key)

    def inner(self, key: str) -> Fields:
        return Fields(self._document.get(key), where=key)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self._document.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return value

    def seconds_by_name(self, key: str) -> Mapping[str, float]:
        value = self.mapping(key)
        if len(value) > 64 or not all(len(name) <= 64 and _is_amount(seconds) for name, seconds in value.items()):
            raise self.wrong(key, "an object of at most 64 durations")
        return {name: float(seconds) for name, seconds in value.items()}


def parse(body: bytes, *, where: str) -> Fields:
    """The JSON object in `body`. Raises LauncherError."""
    try:
        return Fields(json.loads(body, parse_constant=_no_constant), where=where)
    except (ValueError, RecursionError) as error:
        raise LauncherError(f"The launcher's {where} is not JSON.", field=where) from error


def _is_amount(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 2**63 and math.isfinite(value)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
