"""Single flight, without time: who sends, who waits, and who takes over."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentcloud.cluster.cache_flights import Flights
from agentcloud.cluster.cache_wire import Alone, Answered, Ask, Entry, Fault, Fell, Send, Verdict
from agentcloud.cluster.errors import InvalidRequest

ENTRY = Entry(0.0, Decimal(1), b"answer")


def ask(name: str, key: str = "k", *, patient: bool = False) -> Ask:
    return Ask(name, key, "small", patient)


def book(*holders: str) -> Flights:
    flights = Flights(15.0)
    for each in holders:
        flights.heard(each, 0.0)
    return flights


def started(*asks: tuple[str, str]) -> Flights:
    """Equal asks of processes, the first of which was told to send."""
    flights = book(*{holder for holder, _ in asks})
    for number, (holder, name) in enumerate(asks):
        assert flights.ask(ask(name), holder) is (number == 0)
    assert flights.take_outbox(asks[0][0])[0] == Send(ask(asks[0][1]))
    return flights


def test_one_sends_and_its_answer_is_everybodys() -> None:
    flights = started(("p", "1"), ("p", "2"), ("q", "3"))
    assert repr(flights) == "<Flights 1 waiting=2>"
    assert flights.landed(ask("1"), ENTRY) == [ask("2"), ask("3")]
    assert flights.take_outbox("p") == [Answered(ask("2"), ENTRY, None)]
    assert flights.take_outbox("q") == [Answered(ask("3"), ENTRY, None)]
    assert len(flights) == 0


def test_another_takes_over_from_one_that_fails_and_after_two_failures_all_send() -> None:
    flights = started(*((f"p{n}", str(n)) for n in range(5)))
    flights.fell(Fell(ask("0")))
    assert flights.take_outbox("p1") == [Send(ask("1"))]
    flights.fell(Fell(ask("1"), given_up=True))  # a caller that went away is no failure
    assert flights.take_outbox("p2") == [Send(ask("2"))]
    flights.fell(Fell(ask("2")))
    assert [flights.take_outbox(f"p{n}") for n in (3, 4)] == [[Alone(ask("3"))], [Alone(ask("4"))]]
    assert len(flights) == 0


def test_what_is_wrong_with_the_request_is_everybodys_error() -> None:
    flights = started(("p", "1"), ("q", "2"))
    error = InvalidRequest("no such thing")
    flights.fell(Fell(ask("1"), error))
    assert flights.take_outbox("q") == [Fault(ask("2"), error)]
    assert flights.ask(ask("3"), "q"), "and it is no answer"


def test_a_process_that_falls_silent_loses_its_claim_to_one_that_is_heard() -> None:
    flights = started(("dead", "1"), ("dead", "2"), ("alive", "3"))
    flights.heard("alive", 10.0)
    assert flights.drop_silent(15.0) == []
    assert flights.drop_silent(15.1) == ["dead"]
    assert flights.take_outbox("alive") == [Send(ask("3"))]
    assert flights.take_outbox("dead") == []
    # It lived after all: its answer is as good, and it learns that its asks were dropped.
    before = started(("x", "1")).heard("x", 0.0)
    assert flights.heard("dead", 20.0) != flights.heard("alive", 20.0)
    assert before == 1
    assert flights.landed(ask("1"), ENTRY) == []
    assert len(flights) == 0


def test_a_process_that_has_nothing_to_say_is_no_dead_one() -> None:
    flights = started(("p", "1"))
    flights.landed(ask("1"), ENTRY)
    assert flights.drop_silent(16.0) == []
    assert flights.heard("p", 17.0) == 2, "and yet it is forgotten"


def test_all_silent_at_once() -> None:
    flights = started(("p", "1"), ("q", "2"))
    assert sorted(flights.drop_silent(16.0)) == ["p", "q"]
    assert len(flights) == 0
    assert list(flights.told_to()) == []


def test_who_can_wait_for_hours_holds_up_nobody_who_cannot() -> None:
    flights = book("p")
    assert flights.ask(ask("1", patient=True), "p")
    assert flights.ask(ask("2"), "p")
    assert not flights.ask(ask("3", patient=True), "p")
    flights.take_outbox("p")
    assert flights.landed(ask("2"), ENTRY) == [ask("3", patient=True)]


def test_asking_twice_is_asking_once() -> None:
    flights = started(("p", "1"), ("q", "2"))
    assert flights.ask(ask("1"), "p")
    assert not flights.ask(ask("2"), "q")
    assert flights.take_outbox("p") == [Send(ask("1"))]
    assert flights.waiting == 1


def test_after_a_restart_what_is_sent_is_not_sent_again() -> None:
    flights = book("p", "q")
    flights.sending(ask("1"), "p")
    assert not flights.ask(ask("2"), "q")
    flights.drop("1")
    assert flights.take_outbox("q") == [Send(ask("2"))]


def test_after_a_restart_those_who_wait_wait_for_the_one_that_sends_or_their_time() -> None:
    flights = book("p", "q", "r")
    flights.ask_again(ask("2"), "q", 3.0)
    assert not flights.ask(ask("3"), "r"), "a new one too"
    flights.sending(ask("1"), "p")
    flights.pass_on_orphans(9.0)
    assert list(flights.told_to()) == []
    assert flights.landed(ask("1"), ENTRY) == [ask("2"), ask("3")]
    flights = book("q", "r")
    flights.ask_again(ask("2"), "q", 3.0)
    flights.ask_again(ask("3"), "r", 4.0)
    flights.pass_on_orphans(2.9)
    assert list(flights.told_to()) == []
    flights.pass_on_orphans(3.0)
    assert flights.take_outbox("q") == [Send(ask("2"))]
    assert flights.waiting == 1
    flights = book("q")
    flights.ask_again(ask("2"), "q", 3.0)
    flights.drop("2")
    assert len(flights) == 0
    flights.pass_on_orphans(9.0)


class Cluster(RuleBasedStateMachine):
    """Any order of asks, answers, failures, cancellations and deaths."""

    def __init__(self) -> None:
        super().__init__()
        self.flights = Flights(15.0)
        self.now_s = 0.0
        self.count = 0
        self.asked: dict[str, tuple[str, Ask]] = {}
        self.sending: dict[str, tuple[str, Ask]] = {}

    def told(self) -> None:
        for holder in list(self.flights.told_to()):
            for verdict in self.flights.take_outbox(holder):
                self.take(holder, verdict)

    def take(self, holder: str, verdict: Verdict) -> None:
        name = verdict.ask.ask_id
        assert self.asked.pop(name) == (holder, verdict.ask), "told once, to whoever asked"
        if isinstance(verdict, Send):
            self.sending[name] = holder, verdict.ask

    @rule(holder=st.sampled_from("pqr"), key=st.sampled_from("kl"), patient=st.booleans())
    def ask(self, holder: str, key: str, patient: bool) -> None:
        self.count += 1
        each = ask(str(self.count), key, patient=patient)
        self.flights.heard(holder, self.now_s)
        self.asked[each.ask_id] = holder, each
        self.flights.ask(each, holder)
        self.told()

    @precondition(lambda self: self.sending)
    @rule(data=st.data(), how=st.sampled_from(["landed", "fell", "given up", "invalid"]))
    def end(self, data: st.DataObject, how: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.sending)))
        _, each = self.sending.pop(name)
        if how == "landed":
            self.flights.landed(each, ENTRY)
        else:
            error = InvalidRequest("no") if how == "invalid" else None
            self.flights.fell(Fell(each, error, how == "given up"))
        self.told()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.asked)))
        del self.asked[name]
        self.flights.drop(name)
        self.told()

    @rule(dead=st.sets(st.sampled_from("pqr"), min_size=1))
    def silence(self, dead: set[str]) -> None:
        self.now_s += 20.0
        for holder in set("pqr") - dead:
            self.flights.heard(holder, self.now_s)
        gone = self.flights.drop_silent(self.now_s)
        assert set(gone) <= dead
        for book_ in (self.asked, self.sending):
            for name in [name for name, (holder, _) in book_.items() if holder in dead]:
                del book_[name]
        self.told()

    @invariant()
    def everybody_waits_for_somebody_who_sends(self) -> None:
        # Those that still send beside another, which took over, are no harm.
        routes = {(each.key, each.patient) for _, each in self.sending.values()}
        assert {(each.key, each.patient) for _, each in self.asked.values()} <= routes
        assert self.flights.waiting == len(self.asked)


Cluster.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
TestCluster = Cluster.TestCase
