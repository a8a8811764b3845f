import json
import random
import re
from importlib.resources import files

import pytest

from agentcloud.tasks.demo import tickets
from agentcloud.tasks.demo.corpus import answer_of, conversations
from agentcloud.tasks.demo.tickets import MAX_WORDS, MIN_WORDS, Ticket, generate
from agentcloud.tasks.demo.triage import CATEGORIES, PRODUCTS, URGENCIES, Triage
from agentcloud.tasks.demo.wording import WORDING_NAMES, WordingName, expand, load_wording


def many(wording: WordingName, n: int = 400, seed: int = 1) -> list[Ticket]:
    return list(generate(n, seed=seed, wording=wording))


def sentences(wording: WordingName) -> set[str]:
    """Sentences of four words and more, with names and numbers made alike."""
    mentions = [
        mention.replace("{n}", r"\d")
        for name in WORDING_NAMES
        for listed in load_wording(name).mentions.values()
        for mention in listed
    ]
    named = re.compile(r"\b(" + "|".join(sorted(mentions, key=len, reverse=True)) + r")\b")
    found = set()
    for ticket in many(wording, n=1500):
        for sentence in re.split(r"(?<=[.!?]) ", ticket.text):
            plain = re.sub(r"\d+", "0", named.sub("PRODUCT", sentence)).lower()
            if len(plain.split()) >= 4:
                found.add(plain)
    return found


@pytest.mark.parametrize("wording", WORDING_NAMES)
class TestEachWording:
    def test_the_same_seed_gives_the_same_tickets(self, wording: WordingName) -> None:
        assert many(wording) == many(wording)

    def test_another_seed_gives_other_tickets(self, wording: WordingName) -> None:
        texts = {ticket.text for ticket in many(wording)}
        others = {ticket.text for ticket in many(wording, seed=2)}
        assert len(texts & others) < len(texts) // 50

    def test_tickets_are_short_and_hold_no_gap(self, wording: WordingName) -> None:
        for ticket in many(wording):
            assert MIN_WORDS <= len(ticket.text.split()) <= MAX_WORDS
            assert not re.search(r"[\[\]{}|]", ticket.text), ticket.text

    def test_every_label_occurs_about_equally_often(self, wording: WordingName) -> None:
        drawn = [ticket.expected for ticket in many(wording, n=1200)]
        for labels, name in (
            (CATEGORIES, "category"), (URGENCIES, "urgency"), (PRODUCTS, "product"),
        ):  # fmt: skip
            for label in labels:
                share = sum(getattr(triage, name) == label for triage in drawn) / len(drawn)
                assert share == pytest.approx(1 / len(labels), rel=0.35), label

    def test_the_product_is_mentioned(self, wording: WordingName) -> None:
        mentions = load_wording(wording).mentions
        for ticket in many(wording):
            ways = (way.replace("{n}", r"\d") for way in mentions[ticket.expected.product])
            assert re.search("|".join(ways), ticket.text, re.IGNORECASE), ticket

    def test_every_phrase_can_be_filled(self, wording: WordingName) -> None:
        phrases = load_wording(wording)
        assert set(phrases.issues) == set(CATEGORIES)
        assert set(phrases.urgencies) == set(URGENCIES)
        assert set(phrases.mentions) == set(PRODUCTS)


def test_the_two_wordings_share_no_sentence_and_no_phrase() -> None:
    assert not sentences("training") & sentences("held-out")
    training, held_out = (
        set(
            re.findall(
                r'^ {2}"(.+)",$',
                (files(tickets.__package__) / f"wordings/{name}.toml").read_text(),
                re.M,
            )
        )
        for name in WORDING_NAMES
    )
    # They do share what products are called, and saying nothing.
    shared = {phrase for phrase in training & held_out if len(phrase.split()) > 2}
    assert len(training) > 150
    assert len(held_out) > 100
    assert not shared


def test_the_held_out_wording_is_not_in_what_models_are_trained_on() -> None:
    rng = random.Random(3)
    stream = conversations(rng)
    said = " ".join(
        str(message["content"]) for _ in range(800) for message in next(stream).messages
    )
    for phrase in load_wording("held-out").urgencies["critical"]:
        assert phrase not in said
    assert "emergency" in said.lower()


def test_answers_are_compact_and_in_the_order_of_the_schema() -> None:
    triage = Triage(category="how_to", urgency="low", product="ember")
    assert answer_of(triage) == '{"category":"how_to","urgency":"low","product":"ember"}'
    assert list(Triage.model_json_schema()["properties"]) == list(json.loads(answer_of(triage)))


def test_alternatives_nest() -> None:
    rng = random.Random(0)
    seen = {expand("[a|b[1|2]|]", rng) for _ in range(100)}
    assert seen == {"a", "b1", "b2", ""}


def test_the_command_writes_lines_that_agents_can_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tickets.main(["--n", "5", "--seed", "9", "--wording", "held-out"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == [f"ticket-000{number}" for number in range(5)]
    for line in lines:
        Triage.model_validate(line["expected"])


def test_the_examples_are_the_command_s_output() -> None:
    path = files(tickets.__package__).joinpath("../../examples/tickets.jsonl")
    with path.open() as lines:
        written = [json.loads(line) for line in lines]
    assert written == [ticket.to_dict() for ticket in generate(240, seed=7, wording="held-out")]
