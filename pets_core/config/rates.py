"""Learning rates of layer groups in fastai's notation."""

from __future__ import annotations

import re
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

__all__ = ["RateSlice"]


class RateSlice:
    """Learning rates of layer groups in fastai's notation.

    `slice(lo, hi)` spreads geometrically from `lo` at the first group to `hi` at the head.
    `slice(hi)` gives `hi` to the head and `hi / 10` to every earlier group. A plain number is the
    rate of all groups (Howard and Ruder 2018, "discriminative fine-tuning").
    """

    __slots__ = ("hi", "lo", "uniform")
    _PATTERN = re.compile(r"^\s*slice\(\s*([^,()]+?)\s*(?:,\s*([^,()]+?)\s*)?\)\s*$")

    def __init__(self, hi: float, lo: float | None = None, *, uniform: bool = False) -> None:
        if not 0 < hi < float("inf") or (lo is not None and not 0 < lo < float("inf")):
            raise ValueError("learning rates must be finite numbers above 0")
        if lo is not None and lo > hi:
            raise ValueError(
                f"slice({lo:g}, {hi:g}) is reversed: the first rate is that of the first layer "
                "group and must not exceed the second. Exchange them"
            )
        self.hi, self.lo, self.uniform = float(hi), None if lo is None else float(lo), uniform

    @classmethod
    def parse(cls, value: Any) -> RateSlice:
        """Parse a number, "slice(hi)", "slice(lo, hi)" or a `RateSlice`.

        Raises:
            ValueError: The value has another form, is not positive, or is reversed.
        """
        if isinstance(value, RateSlice):
            return value
        remedy = f'expected a number, "slice(hi)" or "slice(lo, hi)", not {value!r}'
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError(remedy)
        match = cls._PATTERN.match(value) if isinstance(value, str) else None
        try:
            if match is None:
                return cls(float(value), uniform=True)
            first, second = match.groups()
            numbers = [float(first)] + ([float(second)] if second else [])
        except ValueError as error:
            if "learning rates" in str(error):
                raise
            raise ValueError(remedy) from None
        return cls(numbers[-1], numbers[0] if second else None)

    def __str__(self) -> str:
        if self.uniform:
            return f"{self.hi!r}"
        return f"slice({self.hi!r})" if self.lo is None else f"slice({self.lo!r}, {self.hi!r})"

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RateSlice) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "examples": ["slice(1e-6, 1e-4)", "slice(3e-3)", "3e-3"]}
