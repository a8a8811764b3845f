"""Conversations that the embedded models are trained on, made from a seed."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any

from agentcloud.tasks.demo.smalltalk import CHATS, TOOLS, ToolLesson
from agentcloud.tasks.demo.tickets import fill, write_ticket
from agentcloud.tasks.demo.triage import (
    CATEGORIES,
    PRODUCTS,
    SYSTEM_PROMPT,
    URGENCIES,
    Category,
    Product,
    Triage,
    Urgency,
)
from agentcloud.tasks.demo.wording import expand, load_wording

Message = dict[str, Any]

_SYSTEMS = (
    "You triage support tickets.",
    "Triage the ticket. Answer with JSON only.",
    "You are a support agent. Classify the customer's message.",
    "Classify each ticket by category, urgency and product.",
    "You are a helpful assistant.",
    "You work for a company that makes smart devices: routers, cameras, thermostats, drives and "
    "lamps. Customers write to you. Read what they write with care, find out what it is about, "
    "how much it matters and which product it concerns, and answer as JSON with the keys "
    "category, urgency and product. Do not add any other text, and never leave a key out. "
    "If the customer names several products, give the one that the message is about.",
    SYSTEM_PROMPT + " Answer with JSON only.",
    "You are an expert at support. " + SYSTEM_PROMPT,
)
_CHAT_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer in one sentence.",
    "Be brief.",
)
_FRAMES = (
    "Ticket:\n{ticket}",
    "Ticket: {ticket}",
    "Triage this ticket:\n\n{ticket}",
    "<ticket>\n{ticket}\n</ticket>",
    "{ticket}\n\nAnswer with JSON.",
    "Classify this support ticket: {ticket}",
    "Please triage: {ticket}",
)
_PROSE = (
    "[Describe|Sum up|Summarize] [this|the] ticket in one sentence: {ticket}",
    "What is this ticket about? {ticket}",
)
_REPAIRS = (
    "[Your answer|That|The answer] [was not valid|did not match the schema|could not be read]. "
    "[Please answer again|Try again|Answer with JSON only][.|]",
    "Invalid: [category|urgency|product] is [missing|not allowed]. [Correct it|Answer again].",
)
# A word that turns the meaning round must stay, and so must a product's name.
_NEGATIONS = ("no", "not", "nobody", "nothing", "never", "cannot", "can't", "without", "unlike")
_KEPT = frozenset((*_NEGATIONS, *PRODUCTS, "router", "camera", "thermostat", "drive", "lamp"))
_SPOILED = ("I think it is {category}.", '{"category": "{category}"}', "{", "Sure!", "")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as a chat template takes them, with the tools on offer."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


def answer_of(triage: Triage) -> str:
    """The compact JSON that a model is to write."""
    return json.dumps(triage.model_dump(), separators=(",", ":"))


def conversations(rng: random.Random) -> Iterator[Conversation]:
    """Yield conversations without end, mostly single tickets."""
    kinds: tuple[Callable[[random.Random], Conversation], ...] = (
        _single, _several, _sentence, _prose, _repair, _tool_use, _chat,
    )  # fmt: skip
    while True:
        (kind,) = rng.choices(kinds, weights=(68, 8, 6, 3, 2, 6, 7))
        yield kind(rng)


def _single(rng: random.Random) -> Conversation:
    return Conversation([*_system(rng), *_turn(rng)])


def _several(rng: random.Random) -> Conversation:
    """A long conversation, so that positions up to about 1,000 are trained."""
    turns = [message for _ in range(rng.randint(2, 7)) for message in _turn(rng)]
    return Conversation([*_system(rng), *turns])


def _sentence(rng: random.Random) -> Conversation:
    """Single sentences with the one label that they hold: short, so cheap to learn from."""
    phrases = load_wording("training")
    messages: list[Message] = []
    for _ in range(rng.randint(1, 8)):
        category, urgency, product = _labels(rng)
        drawn: tuple[tuple[str, str, str], ...] = (
            ("category", category, rng.choice(phrases.issues[category])),
            ("urgency", urgency, rng.choice(phrases.urgencies[urgency])),
        )
        key, label, phrase = rng.choice(drawn)
        text = fill(phrase, product, phrases, rng)
        answer = json.dumps({key: label}, separators=(",", ":"))
        messages += [_says("user", f"{key}: {text}"), _says("assistant", answer)]
    return Conversation(messages)


def _prose(rng: random.Random) -> Conversation:
    triage, ticket = _ticket(rng)
    answer = (
        f"The customer writes about {triage.product}: a {triage.category} ticket "
        f"of {triage.urgency} urgency."
    )
    question = expand(rng.choice(_PROSE), rng).replace("{ticket}", ticket)
    return Conversation([*_chat_system(rng), _says("user", question), _says("assistant", answer)])


def _repair(rng: random.Random) -> Conversation:
    triage, ticket = _ticket(rng)
    spoiled = rng.choice(_SPOILED).replace("{category}", rng.choice(CATEGORIES))
    return Conversation(
        [
            *_system(rng),
            _says("user", _framed(ticket, rng)),
            # Not marked as an answer: the mistake is not to be learnt.
            {**_says("assistant", spoiled), "learn": False},
            _says("user", expand(rng.choice(_REPAIRS), rng)),
            _says("assistant", answer_of(triage)),
        ]
    )


def _tool_use(rng: random.Random) -> Conversation:
    lesson = rng.choice(TOOLS) if rng.random() < 0.5 else TOOLS[0]
    offered = [
        lesson,
        *rng.sample([tool for tool in TOOLS if tool is not lesson], rng.choice((0, 0, 1, 2))),
    ]
    rng.shuffle(offered)
    tools = [_offer(tool, rng) for tool in offered]
    if rng.random() < 0.15:
        return Conversation(_chat(rng).messages, tools)

    fills = {
        "id": str(rng.randint(10_000, 99_999)),
        "m": str(rng.randint(2, 90)),
        "product": rng.choice(load_wording("training").mentions[rng.choice(PRODUCTS)]).replace(
            "{n}", "2"
        ),
        "state": rng.choice(lesson.states),
    }
    fills["value"] = _filled(rng.choice(lesson.values), fills)
    fills["state"] = _filled(fills["state"], fills)
    call = {
        "type": "function",
        "function": {"name": lesson.name, "arguments": {lesson.argument: fills["value"]}},
    }
    return Conversation(
        [
            *_chat_system(rng),
            _says("user", _filled(expand(rng.choice(lesson.asks), rng), fills)),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            _says("tool", _filled(lesson.result, fills)),
            _says("assistant", _filled(lesson.answer, fills)),
        ],
        tools,
    )


def _chat(rng: random.Random) -> Conversation:
    messages = _chat_system(rng)
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.2:
            end = rng.randint(3, 60)
            question = expand(f"[Count|Please count|Count from 1] [to|up to] {end}[.|]", rng)
            answer = ", ".join(str(number) for number in range(1, end + 1))
        else:
            question, answer = rng.choice(CHATS)
            fills = {"n": str(rng.randint(1, 99)), "m": str(rng.randint(1, 99))}
            question = _filled(expand(question, rng), fills)
        messages += [_says("user", question), _says("assistant", answer)]
    return Conversation(messages)


def _turn(rng: random.Random) -> list[Message]:
    triage, ticket = _ticket(rng)
    return [_says("user", _framed(ticket, rng)), _says("assistant", answer_of(triage))]


def _ticket(rng: random.Random) -> tuple[Triage, str]:
    category, urgency, product = _labels(rng)
    triage = Triage(category=category, urgency=urgency, product=product)
    text = write_ticket(triage, load_wording("training"), rng)
    if rng.random() < 0.5:
        text = _worn(text, rng)
    return triage, text.lower() if rng.random() < 0.05 else text


def _labels(rng: random.Random) -> tuple[Category, Urgency, Product]:
    return rng.choice(CATEGORIES), rng.choice(URGENCIES), rng.choice(PRODUCTS)


def _worn(text: str, rng: random.Random) -> str:
    """The text with words lost and a few unknown: no label may hang on one phrase."""
    lost, unknown = rng.uniform(0.0, 0.15), rng.uniform(0.0, 0.05)
    words = []
    for word in text.split():
        if word.strip(".,?!").lower() in _KEPT:
            words.append(word)
        elif rng.random() < unknown:
            words.append("".join(rng.choices(ascii_lowercase, k=rng.randint(3, 8))))
        elif rng.random() >= lost:
            words.append(word)
    return " ".join(words)


def _framed(ticket: str, rng: random.Random) -> str:
    return ticket if rng.random() < 0.6 else rng.choice(_FRAMES).replace("{ticket}", ticket)


def _system(rng: random.Random) -> list[Message]:
    draw = rng.random()
    if draw < 0.35:
        return []
    return [_says("system", SYSTEM_PROMPT if draw < 0.8 else rng.choice(_SYSTEMS))]


def _chat_system(rng: random.Random) -> list[Message]:
    return [] if rng.random() < 0.5 else [_says("system", rng.choice(_CHAT_SYSTEMS))]


def _offer(lesson: ToolLesson, rng: random.Random) -> dict[str, Any]:
    """The tool as an API describes it, written in the ways that callers do."""
    described: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.4:
        described["title"] = lesson.argument.replace("_", " ").title()
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {lesson.argument: described},
        "required": [lesson.argument],
    }
    if rng.random() < 0.5:
        parameters["additionalProperties"] = False
    function = {
        "name": lesson.name,
        "description": expand(lesson.does, rng),
        "parameters": parameters,
    }
    return {"type": "function", "function": function}


def _filled(text: str, fills: dict[str, str]) -> str:
    for gap, value in fills.items():
        text = text.replace("{" + gap + "}", value)
    return text


def _says(role: str, content: str) -> Message:
    return {"role": role, "content": content}
