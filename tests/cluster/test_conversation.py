from __future__ import annotations

import copy
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.contracts import EndpointKind, EndpointSpec
from agentcloud.cluster.conversation import ANTHROPIC, for_signer, mark_message, signer_of
from agentcloud.cluster.fold import message_of


def spec(kind: EndpointKind, model: str = "m") -> EndpointSpec:
    return EndpointSpec(
        name=f"{kind}/{model}",
        kind=kind,
        model=model,
        tier="small",
        context_tokens=1000,
        max_output_tokens=100,
        max_concurrency=1,
        account="main" if kind is EndpointKind.HOSTED else None,
        usd_per_hour=Decimal(1),
    )


OWN = signer_of(spec(EndpointKind.HOSTED), None)
SERVER = signer_of(spec(EndpointKind.HOSTED), "http://127.0.0.1:1")
LOCAL = signer_of(spec(EndpointKind.LOCAL), None)
OTHER = signer_of(spec(EndpointKind.LOCAL, "n"), None)

signers = st.sampled_from([OWN, SERVER, LOCAL, OTHER])
blocks = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=5)),
    st.builds(
        lambda text: {"type": "thinking", "thinking": text, "signature": "sig="},
        st.text(max_size=5),
    ),
    st.just({"type": "redacted_thinking", "data": "sealed=="}),
)


def answered(content: list[dict[str, Any]], signer: str) -> dict[str, Any]:
    """The content as the caller gets it from an endpoint of `signer`, sent back as a turn."""
    message = message_of(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": copy.deepcopy(content),
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
    )
    mark_message(message.content, signer)
    turn = [block.model_dump(exclude_unset=True) for block in message.content]
    return {"role": "assistant", "content": turn}


def test_signers_differ_by_server_and_by_local_model() -> None:
    assert OWN == ANTHROPIC
    assert len({OWN, SERVER, LOCAL, OTHER}) == 4


@given(st.lists(blocks, min_size=1, max_size=4), signers)
def test_back_at_its_signer_a_turn_is_what_it_was(
    content: list[dict[str, Any]], signer: str
) -> None:
    turn = answered(content, signer)
    assert for_signer([turn], signer) == [{"role": "assistant", "content": content}]


@given(st.lists(blocks, min_size=1, max_size=4), signers, signers)
def test_elsewhere_only_thinking_is_lost(
    content: list[dict[str, Any]], signer: str, other: str
) -> None:
    if signer == other:
        return
    turn = answered(content, signer)
    before = copy.deepcopy(turn)
    rest = [block for block in content if block["type"] == "text"]
    expected = [{"role": "assistant", "content": rest}] if rest else []
    assert for_signer([turn], other) == expected
    assert turn == before, "nothing is changed in place"


def test_users_and_plain_texts_pass_as_they_are() -> None:
    messages: list[Mapping[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
    ]
    sent = for_signer(messages, LOCAL)
    assert all(one is other for one, other in zip(sent, messages, strict=True))


def test_a_thinking_of_nobody_known_goes_to_anthropic_alone() -> None:
    turn = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "x", "signature": "EqoB"}],
    }
    assert for_signer([turn], OWN) == [turn]
    assert for_signer([turn], SERVER) == []
