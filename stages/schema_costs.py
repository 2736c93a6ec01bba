"""What the machine costs, for the prices in reports."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stages.schema_base import Section

Price = Annotated[float, Field(ge=0)]


class CostsSection(Section):
    """Prices, if reports shall name any; no stage reads them, so changing them runs nothing again."""

    per_hour: Price | None = Field(default=None, description="Price of an hour of the machine, without its GPUs.")
    per_gpu_hour: Price | None = Field(default=None, description="Price of an hour of one GPU.")
    currency: str = Field(
        default="USD", min_length=1, max_length=8, description="What prices are in; written before them."
    )
