"""The judge of the tiny task: an exact program that gives a reply 0 to 6 points.

The prompt asks for a reply to a person about a topic. A reply that is not well-formed has 0
points. It is well-formed when it is one to four sentences of at most 40 words in all; a sentence
is two or more words of plain letters, starts with a capital and ends with `.`, `!` or `?`; no
sentence stands twice and no word more than three times. A well-formed reply earns one point each:

    name     names the person exactly once, and nobody else of this world
    topic    names the topic once or twice
    fact     states something true of the topic, and nothing false of it (`FACTS`)
    thanks   opens with "Thank you" or "Thanks"
    closing  ends with one of the kind sentences in `CLOSINGS`, after at least one other sentence
    brief    has 8 to 16 words
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

NAMES = (
    "Ana", "Ben", "Cara", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jon", "Kim", "Leo",
    "Mia", "Nils", "Olga", "Paul", "Rosa", "Sam", "Tara", "Uma", "Vera", "Yuri", "Zoe", "Amir",
)  # fmt: skip

# Topic -> what is true of it. No two topics share a predicate, so a swapped one is false.
FACTS = {
    "tea": ("is brewed from leaves", "is poured from a pot", "tastes good with lemon"),
    "coffee": ("is made from roasted beans", "keeps people awake", "smells strong"),
    "bread": ("is baked from flour", "has a brown crust", "rises before it is baked"),
    "honey": ("is made by bees", "is sweet and golden", "keeps for years"),
    "cheese": ("is made from milk", "ripens in a cellar", "goes well with grapes"),
    "soup": ("is eaten with a spoon", "warms the body", "cooks in a big pot"),
    "rice": ("grows in wet fields", "is eaten with sticks", "feeds half the world"),
    "chess": ("is played on a board", "ends when the king falls", "needs much patience"),
    "tennis": ("is played with a racket", "needs a net", "is counted in sets"),
    "football": ("is played by two teams", "lasts ninety minutes", "fills big stadiums"),
    "swimming": ("trains every muscle", "is done in a pool", "is safer with a friend"),
    "sailing": ("needs a steady wind", "is done on a lake", "teaches you knots"),
    "cycling": ("needs two wheels", "saves fuel", "is good for the legs"),
    "rain": ("falls from grey clouds", "fills the rivers", "helps the garden"),
    "snow": ("falls in soft flakes", "covers the hills", "is fun for children"),
    "fog": ("hides the road", "lies low in the valley", "lifts before noon"),
    "jazz": ("came from New Orleans", "is full of surprises", "swings at night"),
    "poetry": ("says much in few words", "often rhymes", "is best read aloud"),
    "painting": ("needs a brush", "is done with oil", "hangs on a wall"),
    "gold": ("never rusts", "is found in rivers", "is used for rings"),
    "iron": ("rusts in damp air", "is pulled by magnets", "is shaped with a hammer"),
    "glass": ("is made from sand", "breaks when it falls", "lets the light in"),
    "silk": ("is spun by worms", "feels smooth", "came along an old road"),
    "wool": ("comes from sheep", "is knitted into socks", "itches a little"),
    "clay": ("is shaped by hand", "hardens in the oven", "is dug from the ground"),
    "coal": ("is dug in mines", "is black and heavy", "heats old stoves"),
    "summer": ("has long days", "is the time for beaches", "ripens the berries"),
    "autumn": ("turns the leaves red", "is the time of harvest", "brings strong storms"),
    "winter": ("has short days", "freezes the pond", "is the time for candles"),
    "sleep": ("rests the mind", "takes eight hours", "comes with dreams"),
    "fishing": ("needs a rod", "is done at dawn", "is very quiet"),
    "baking": ("needs a hot oven", "fills the house with smell", "makes a mess"),
}

TRUTHS = [(topic, said.lower()) for topic, known in FACTS.items() for said in known]
"""Every (topic, predicate) that is true."""

REQUESTS = (
    "Reply to {name}, who asks about {topic}.",
    "{name} wants to know about {topic}. Write an answer.",
    "Please tell {name} something about {topic}.",
    "What should {name} know about {topic}?",
)

CLOSINGS = ("Take care.", "Have a nice day.", "All the best.", "See you soon.")

LONGEST = 40
"""Words of a well-formed reply at most."""

BRIEF = range(8, 17)
"""Numbers of words that earn the point for brevity."""

SENTENCE = r"[A-Z][A-Za-z']*(?:,? [A-Za-z']+)+[.!?]"
WELL_FORMED = re.compile(rf"{SENTENCE}(?: {SENTENCE}){{0,3}}")


class Request(NamedTuple):
    """What a prompt asks for."""

    name: str
    topic: str


def words(text: str) -> list[str]:
    """Runs of letters and apostrophes, as they are written."""
    return re.findall(r"[A-Za-z']+", text)


def sentences(reply: str) -> list[str]:
    """The sentences of a reply, each with its final mark."""
    return re.findall(r"[^.!?]+[.!?]", reply)


def request_patterns() -> list[re.Pattern[str]]:
    """One pattern for each of `REQUESTS`, over the names and topics of this world."""
    name, topic = rf"(?P<name>{'|'.join(NAMES)})", rf"(?P<topic>{'|'.join(FACTS)})"
    return [
        re.compile(re.escape(r).replace(r"\{name\}", name).replace(r"\{topic\}", topic))
        for r in REQUESTS
    ]


REQUEST_PATTERNS = request_patterns()


def read_request(prompt: str | Sequence[dict[str, str]]) -> Request:
    """The last request in a prompt, be it a string or a list of messages."""
    if not isinstance(prompt, str):
        prompt = "\n".join(m["content"] for m in prompt if m["role"] == "user")
    found = [match for pattern in REQUEST_PATTERNS for match in pattern.finditer(prompt)]
    if not found:
        raise ValueError(f"no request in prompt {prompt!r}; need one like {REQUESTS[0]!r}")
    last = max(found, key=lambda match: match.start())
    return Request(last["name"], last["topic"])


def well_formed(reply: str) -> bool:
    """Whether a reply may earn points at all."""
    spoken = [word.lower() for word in words(reply)]
    if not spoken or len(spoken) > LONGEST or not WELL_FORMED.fullmatch(reply):
        return False
    said = [sentence.strip().lower() for sentence in sentences(reply)]
    return len(set(said)) == len(said) and max(Counter(spoken).values()) <= 3


def names_person(request: Request, reply: str) -> bool:
    """The person is named exactly once, and nobody else."""
    return [word for word in words(reply) if word in NAMES] == [request.name]


def names_topic(request: Request, reply: str) -> bool:
    """The topic is named once or twice."""
    return words(reply.lower()).count(request.topic) in (1, 2)


def states_fact(request: Request, reply: str) -> bool:
    """A sentence says `topic predicate` truly, and none says it falsely."""
    said = [f" {' '.join(words(sentence.lower()))} " for sentence in sentences(reply)]
    owners = {
        owner
        for owner, predicate in TRUTHS
        if any(f" {request.topic} {predicate} " in sentence for sentence in said)
    }
    return owners == {request.topic}


def gives_thanks(request: Request, reply: str) -> bool:
    """The reply opens with thanks."""
    return re.match(r"(Thank you|Thanks)\b", reply) is not None


def closes_kindly(request: Request, reply: str) -> bool:
    """The last of several sentences is a kind one."""
    *before, last = sentences(reply)
    return bool(before) and last.strip() in CLOSINGS


def is_brief(request: Request, reply: str) -> bool:
    """Neither a scrap nor a speech."""
    return len(words(reply)) in BRIEF


RULES: dict[str, Callable[[Request, str], bool]] = {
    "name": names_person,
    "topic": names_topic,
    "fact": states_fact,
    "thanks": gives_thanks,
    "closing": closes_kindly,
    "brief": is_brief,
}

MAXIMUM = float(len(RULES))
"""The best score."""


def points(prompt: str | Sequence[dict[str, str]], response: str) -> dict[str, bool]:
    """Which rules a response keeps; none where it is not well-formed."""
    request, reply = read_request(prompt), response.strip()
    if not well_formed(reply):
        return dict.fromkeys(RULES, False)
    return {label: rule(request, reply) for label, rule in RULES.items()}


def score(
    *, prompts: Sequence[str | Sequence[dict[str, str]]], responses: Sequence[str], **columns: Any
) -> list[float]:
    """Score responses from 0 to `MAXIMUM`, one point a rule.

    Args:
        prompts: Strings or lists of messages; each holds one of `REQUESTS`.
        responses: Texts without special tokens, one for each prompt.
        **columns: Not used; the prompt says everything.

    Returns:
        One number for each response.
    """
    return [float(sum(points(*pair).values())) for pair in zip(prompts, responses, strict=True)]
