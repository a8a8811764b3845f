"""A program for Anthropic's client that gathers many calls, ported: two lines changed.

Before:                                        After:
    from anthropic import AsyncAnthropic           from agentcloud.cluster.client import ...
    client = AsyncAnthropic()                      client = AsyncAgentCloud()

Run it on a running cluster (`agentcloud up`); `aliases:` of fleet.yaml says what serves the model
that it names:

    python examples/port_from_anthropic.py
"""

import asyncio

import anthropic

from agentcloud.cluster.client import AsyncAgentCloud

client = AsyncAgentCloud()


async def capital(country: str) -> str:
    try:
        message = await client.messages.create(
            model="claude-sonnet-4-20250514",
            max_tokens=32,
            messages=[{"role": "user", "content": f"What is the capital of {country}?"}],
        )
    except anthropic.RateLimitError as error:
        return f"rate limited: {error.message}"
    return "".join(block.text for block in message.content if block.type == "text")


async def main() -> None:
    countries = ["France", "Japan", "Kenya", "Peru", "Norway", "India", "Canada", "Egypt"]
    answers = await asyncio.gather(*(capital(country) for country in countries))
    for country, answer in zip(countries, answers, strict=True):
        print(f"{country}: {answer}")


if __name__ == "__main__":
    asyncio.run(main())
