"""Extraction into a nested model, with rules that no JSON schema of the API can hold.

    agentcloud run examples/extract.py:extract --input invoices.jsonl --output results.jsonl

Input lines: {"text": "Invoice 2024-17 from ..."}. The model is held to the schema while it writes.
Limits and the sum are checked by pydantic after; when they do not hold, the model is shown what is
wrong and asked again.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from agentcloud.agents import Context, agent
from agentcloud.cluster.errors import OutputInvalid


class Line(BaseModel):
    description: str
    quantity: Annotated[int, Field(ge=1)]
    unit_price: Annotated[Decimal, Field(ge=0)]


class Invoice(BaseModel):
    number: str
    issued: date | None = Field(default=None, description="null when the text does not say")
    seller: str
    lines: list[Line]
    total: Decimal

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        total = sum((line.quantity * line.unit_price for line in self.lines), Decimal(0))
        if total != self.total:
            raise ValueError(f"the lines add up to {total}, but total is {self.total}")
        return self


@agent(tier="large", max_tokens=1024)
async def extract(ctx: Context, item: dict[str, Any]) -> dict[str, Any]:
    try:
        invoice = await ctx.ask(f"Extract the invoice.\n\n{item['text']}", output=Invoice)
    except OutputInvalid as error:
        # Paid for and still wrong: a row for a person to look at, not a failed task.
        return {"invoice": None, "problem": str(error)}
    return {"invoice": invoice, "problem": None}
