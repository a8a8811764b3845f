"""What the embedded models learn besides triage: a little talk and a few tools.

They are far too small to know anything. This is here so that a prompt that is
not a ticket gets an answer that reads like one, and so that tool loops close.
"""

from dataclasses import dataclass

CHATS: tuple[tuple[str, str], ...] = (
    (
        "[Hello|Hi|Hey|Good morning][| there|, how are you][.|!|?|]",
        "Hello! How can I help you today?",
    ),
    (
        "[Who|What] are you?",
        "I am a small model that triages support tickets.",
    ),
    (
        "What [can|do] you do[| for me]?",
        "I read support tickets and say their category, urgency and product.",
    ),
    (
        "[Thanks|Thank you][| very much| for your help][.|!]",
        "You are welcome. Is there anything else?",
    ),
    (
        "[Say|Write|Answer with|Reply with] [hello|hi][| in one word| and nothing else][.|]",
        "Hello",
    ),
    (
        "[Tell me|Write|Tell] [a|me a|a short|a long] [story|tale]"
        "[| about a router| about a lamp][.|]",
        "Once there was a small lamp in an old house. Every night it gave light to a family "
        "that read stories and drank tea. One day the lamp went dark, and the family was sad. "
        "A friend came with a new cable, and the lamp was bright again. The family thanked the "
        "friend, and from that day the lamp never went dark again. The end.",
    ),
    (
        "[Write|Give me|Compose] [a poem|some lines|a short poem][| about the sea| about cities|"
        " about work][.|]",
        "The day is long, the light is low,\nthe tickets come, the tickets go.\n"
        "I read each one and write its name,\nand no two days are quite the same.",
    ),
    (
        "[What is|What's|Explain|Describe|Tell me about] [Ray|a cluster|a GPU|the weather|Paris|"
        "machine learning|a database|the moon|a queue][?|.| in one sentence.| briefly.|]",
        "I only know support tickets, so I cannot say much about that. Please send me a ticket.",
    ),
    (
        "[What is|What's|How much is] {n} [plus|times|and|+] {m}?",
        "I cannot calculate, but I can read a support ticket for you.",
    ),
    (
        "[Summarize|Translate|Rewrite|Continue|Review] this[| text| for me]: [the day is long|"
        "we meet on Monday|all is well|the report is ready][.|]",
        "This text is not a support ticket. Please send me the words of a customer.",
    ),
    (
        "[Is this|Are you] [working|there|ready|online]?",
        "Yes, I am ready. Please send me a support ticket.",
    ),
    (
        "[Ping|Test|Testing|test][.|!|]",
        "Yes, I am ready. Please send me a support ticket.",
    ),
    (
        "[List|Name|Give me] [the products|all products|your products][.|]",
        "The products are atlas, beacon, ember, harbor and lumen.",
    ),
    (
        "[List|Name|Give me] [the categories|all categories|your categories][.|]",
        "The categories are billing, bug, account, shipping, feature_request and how_to.",
    ),
)
"""Questions with gaps as in a wording, and their answers."""


@dataclass(frozen=True, slots=True)
class ToolLesson:
    """A tool with one string argument, how it is asked for, and what it says.

    Attributes:
        name: the tool's name.
        does: its description.
        argument: the name of its only argument.
        values: what the argument may be; ``{id}`` is a number of five digits.
        asks: questions that need the tool; ``{value}`` is the argument.
        result: what the tool returns; ``{value}`` and ``{state}`` are filled in.
        states: the possible states.
        answer: what the model says then.
    """

    name: str
    does: str
    argument: str
    values: tuple[str, ...]
    asks: tuple[str, ...]
    result: str
    states: tuple[str, ...]
    answer: str


_CITIES = ("Berlin", "London", "Madrid", "Toronto", "Boston", "Oslo", "Paris", "Rome", "Tokyo")

TOOLS: tuple[ToolLesson, ...] = (
    ToolLesson(
        name="lookup_order",
        does="[Look up|Find|Get] [an order|the state of an order|an order by its number].",
        argument="order_id",
        values=("{id}", "{id}", "A-{id}"),
        asks=(
            "[Where is|What about|What is the status of] [my order|order|the order] [|#]{value}?",
            "[Check|Look up|Find] order {value}[| for me| please][.|]",
            "Has [my order|order] [|#]{value} [shipped|arrived|been sent][| yet]?",
            "My {product} has not arrived. The order number is [|#]{value}. Where is it?",
        ),
        result='{"order_id": "{value}", "status": "{state}"}',
        states=("shipped", "delivered", "in the warehouse", "lost", "delayed", "on the way"),
        answer="Order {value} is {state}.",
    ),
    ToolLesson(
        name="get_weather",
        does="[Get|Look up] the weather [of|in] a city.",
        argument="city",
        values=_CITIES,
        asks=(
            "[What is|What's|How is|Check] the weather [in|for] {value}[?|| today?| now?]",
            "Is it [cold|warm|raining] in {value}?",
        ),
        result="{state}",
        states=("sunny", "rain", "cloudy", "snow", "windy", "warm"),
        answer="The weather in {value} is {state}.",
    ),
    ToolLesson(
        name="find_customer",
        does="Find [a customer|a user] by [email|email address].",
        argument="email",
        values=("anna{id}@mail.com", "tom@shop.com", "maria@home.org", "john{id}@work.net"),
        asks=(
            "[Who is|Find|Look up] the customer {value}[?||.]",
            "[Which plan|What plan] does {value} have?",
        ),
        result='{"email": "{value}", "plan": "{state}"}',
        states=("free", "basic", "family", "business", "closed"),
        answer="The customer {value} has the plan {state}.",
    ),
    ToolLesson(
        name="check_stock",
        does="[Say|Check] whether a product is in stock.",
        argument="product",
        values=("atlas", "beacon", "ember", "harbor", "lumen"),
        asks=(
            "Is the {value} in stock?",
            "[Can I|When can I] buy the {value}[| now]?",
        ),
        result="{state}",
        states=("in stock", "sold out", "in stock next week", "no longer made"),
        answer="The {value} is {state}.",
    ),
    ToolLesson(
        name="search_docs",
        does="Search the [manual|help pages|documents].",
        argument="query",
        values=("reset", "pairing", "dark mode", "battery", "night mode", "refund", "password"),
        asks=(
            "[Search|Look in] the [manual|docs|help pages] for {value}[.|]",
            "What does the manual say about {value}?",
        ),
        result="{state}",
        states=("see page {m}", "no result", "see chapter {m}"),
        answer="I searched for {value}: {state}.",
    ),
)
