"""What a record is, a frozen pydantic model, and the kinds of numbers in it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Widths = Annotated[tuple[Count, ...], Field(min_length=1)]


class Frozen(BaseModel):
    """A record: its values cannot be set, unknown ones are refused, inf and NaN are written."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
