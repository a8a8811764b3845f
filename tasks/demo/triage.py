"""The labels of a support ticket, and the prompt that asks for them."""

from typing import Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict

Category: TypeAlias = Literal["billing", "bug", "account", "shipping", "feature_request", "how_to"]
Urgency: TypeAlias = Literal["low", "normal", "high", "critical"]
Product: TypeAlias = Literal["atlas", "beacon", "ember", "harbor", "lumen"]

CATEGORIES: tuple[Category, ...] = get_args(Category)
URGENCIES: tuple[Urgency, ...] = get_args(Urgency)
PRODUCTS: tuple[Product, ...] = get_args(Product)


class Triage(BaseModel):
    """Where a ticket goes, how soon, and which product it is about.

    The order of the fields is the order in which the embedded models were
    trained to write them, and so the order of the JSON schema.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    category: Category
    urgency: Urgency
    product: Product


SYSTEM_PROMPT = (
    "You triage support tickets. Read the ticket and answer with JSON that gives "
    "its category (billing, bug, account, shipping, feature_request or how_to), "
    "its urgency (low, normal, high or critical) and its product "
    "(atlas, beacon, ember, harbor or lumen)."
)
"""The system prompt of the demo, and the one the embedded models know best."""
