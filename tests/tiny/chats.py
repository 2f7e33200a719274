"""Conversations for the bundled model: questions, small tasks, small talk, reading and remembering.

`document(rng)` is the whole training distribution: one text at a time, with the parts marked
that the model should learn to say (as opposed to what people say to it).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import stories
from knowledge import COLOURS, DAYS, GROUPS, KINDS, MASS, MONTHS, NUMBERS, OPPOSITES, article, capitalised, plural

# One exchange: what the user says, what the assistant answers.
Turn = tuple[str, str]

SYSTEMS = ["You are a helpful assistant.", "You are Candlewick, a tiny language model.", "You are a friendly assistant.",
           "You are a kind teacher.", "Answer in a full sentence."]  # fmt: skip
SHORT_SYSTEMS = ["Answer in one word.", "Give short answers.", "Answer as briefly as you can."]
GROUP_WEIGHTS = [4, 5, 3, 5, 3]

WORDS = ["cat", "dog", "sun", "moon", "star", "tree", "book", "fish", "rain", "snow", "house", "apple", "bread", "water",
         "candle", "river", "stone", "light", "horse", "green", "ship", "lamp", "wolf", "rose"]  # fmt: skip

SENTENCES = {
    "the sea": "The sea is wide and blue, and the waves never rest.", "the sun": "The sun rises and makes the world warm.",
    "the moon": "The moon shines softly over the quiet town.", "a cat": "The cat sleeps on the warm chair by the fire.",
    "a dog": "The dog runs through the grass and is happy.", "winter": "In winter the snow lies white on the roofs.",
    "summer": "In summer the children swim in the river.", "autumn": "In autumn the wind plays with the red leaves.",
    "spring": "In spring the first flowers open in the garden.", "a candle": "The candle burns and fills the room with light.",
    "rain": "The rain falls softly on the window.", "a friend": "A good friend listens and laughs with you.",
    "bread": "Fresh bread smells better than anything else.", "music": "Music makes a sad day a little brighter.",
}  # fmt: skip

POEMS = {
    "the moon": "The moon is round, the moon is white,\nit fills the garden with its light.",
    "the sea": "The sea is deep, the sea is wide,\nit sings its song at every tide.",
    "a candle": "A little flame, a little light,\nit keeps me company at night.",
    "winter": "The snow falls soft, the snow falls slow,\nit hides the sleeping seeds below.",
    "spring": "The birds are back, the fields are green,\nthe finest days that I have seen.",
    "a cat": "My cat is small, my cat is grey,\nshe sleeps and dreams the whole long day.",
    "the stars": "The stars are far, the stars are old,\nthey shine like little drops of gold.",
    "rain": "The rain goes drip, the rain goes drop,\nI hope that it will never stop.",
    "a friend": "A friend is someone by your side,\nwith arms and heart both open wide.",
    "a tree": "The tree stands tall, the tree stands still,\nit guards the house upon the hill.",
}

TALK: list[tuple[list[str], list[str]]] = [
    (["Hello", "Hello!", "Hi", "Hi!", "Hi there", "Good morning", "Hey", "Good evening!"],
     ["Hello! How can I help you?", "Hi! What would you like to know?", "Hello! Nice to meet you."]),
    (["How are you?", "How are you today?", "How do you do?"], ["I am fine, thank you. How are you?", "I am well, thank you!"]),
    (["Who are you?", "What are you?", "Tell me about yourself.", "What is your name?", "Are you a person?"],
     ["I am Candlewick, a tiny language model. I can tell stories and answer simple questions."]),
    (["What can you do?", "How can you help me?", "What do you know?"],
     ["I can tell short stories, answer simple questions, count, spell and do small sums."]),
    (["Thank you!", "Thanks", "Thank you very much.", "Thanks a lot!"], ["You are welcome!", "You are welcome. I am glad to help."]),
    (["Goodbye", "Bye!", "See you soon!", "Good night"], ["Goodbye! See you soon.", "Goodbye! Have a good day."]),
    (["Can you help me?", "I need help.", "I have a question."], ["Of course! What would you like to know?"]),
    (["Who made you?", "Where do you come from?"], ["I was made with the candlewick library, from text that a small program wrote."]),
    (["I am sad.", "I feel sad today."], ["I am sorry to hear that. Would you like to hear a story?"]),
    (["I am happy.", "I am so happy today!"], ["That is wonderful! I am happy with you."]),
    (["Tell me a joke.", "Do you know a joke?"], ["Why did the candle go to school? It wanted to be brighter."]),
    (["What is a good name for a cat?", "How should I call my cat?"], ["A good name for a cat is Mimi."]),
    (["What is the meaning of life?"], ["Perhaps it is to be kind and to share some light."]),
]  # fmt: skip

UNKNOWN_TOPICS = ["the price of gold", "the weather tomorrow", "the president of Mars", "quantum physics", "the stock market",
                  "the football results", "the year my house was built", "my phone number", "the history of taxes",
                  "the latest news", "your password", "what I had for dinner", "the name of my neighbour"]  # fmt: skip
UNKNOWN = "I do not know that. I am only a tiny model."


def ask_fact(rng: Random, short: bool) -> Turn:
    fact = rng.choice(rng.choices(GROUPS, GROUP_WEIGHTS)[0])
    question = rng.choice(fact.questions)
    if rng.random() < 0.1:
        question = question.lower().rstrip("?.")
    return question, fact.short.rstrip(".") + "." if short else fact.statement


def yes_or_no(rng: Random) -> Turn:
    if rng.random() < 0.5:
        kind = rng.choice([k for k in KINDS if k not in ("season", "colour")])
        member = rng.choice(KINDS[kind])
        of = member if kind in MASS else article(member)
        if rng.random() < 0.5:
            return f"Is {of} {article(kind)}?", f"Yes, {of} is {article(kind)}."
        other = rng.choice([k for k in KINDS if k not in (kind, "season", "colour") and member not in KINDS[k]])
        if {kind, other} != {"animal", "bird"}:
            return f"Is {of} {article(other)}?", f"No, {of} is {article(kind)}."
    thing, colour = rng.choice(list(COLOURS.items()))
    asked = colour if rng.random() < 0.5 else rng.choice(list(COLOURS.values()))
    return f"Is {thing} {asked}?", f"Yes, {thing} is {colour}." if asked == colour else f"No, {thing} is {colour}."


def name_three(rng: Random) -> Turn:
    kind = rng.choice(list(KINDS))
    count = rng.choice([2, 3, 3, 3, 4])
    chosen = rng.sample(KINDS[kind], count)
    if kind == "season":
        chosen = KINDS[kind][:count]
    names = chosen if kind in MASS else [plural(m) for m in chosen]
    listed = ", ".join(names[:-1]) + " and " + names[-1]
    ask = rng.choice(["Name {n} {k}.", "Tell me {n} {k}.", "Can you name {n} {k}?", "List {n} {k}."])
    return ask.format(n=NUMBERS[count], k=plural(kind)), f"{capitalised(listed)}."


def count(rng: Random) -> Turn:
    to = rng.randint(3, 10)
    if rng.random() < 0.3:
        return rng.choice([f"Count down from {NUMBERS[to]}.", f"Count backwards from {to}."]), ", ".join(
            capitalised(n) if i == 0 else n for i, n in enumerate(NUMBERS[to:0:-1])
        ) + "."
    ask = rng.choice([f"Count to {NUMBERS[to]}.", f"Count from one to {NUMBERS[to]}.", f"Please count to {to}."])
    return ask, "One, " + ", ".join(NUMBERS[2 : to + 1]) + "."


def spell(rng: Random) -> Turn:
    word = rng.choice(WORDS) if rng.random() < 0.7 else stories.invented_name(rng)
    ask = rng.choice([f"Spell {word}.", f"Spell the word {word}.", f"How do you spell {word}?"])
    return ask, "-".join(word.upper()) + "."


def repeat(rng: Random) -> Turn:
    words = " ".join(rng.sample(WORDS, rng.randint(1, 4)))
    if rng.random() < 0.4:
        word, times = rng.choice(WORDS), rng.randint(2, 4)
        ask = rng.choice([f"Say {word} {NUMBERS[times]} times.", f"Write the word {word} {NUMBERS[times]} times."])
        return ask, " ".join([word] * times) + "."
    return rng.choice([f"Repeat after me: {words}", f"Say: {words}", f"Repeat: {words}"]), words


def pick(rng: Random) -> Turn:
    words = rng.sample(WORDS, rng.randint(3, 5))
    listed = ", ".join(words)
    if rng.random() < 0.5:
        return f"What is the first word of this list: {listed}?", f"The first word is {words[0]}."
    return f"What is the last word of this list: {listed}?", f"The last word is {words[-1]}."


def greet(rng: Random) -> Turn:
    who = stories.someone(rng).name
    if rng.random() < 0.5:
        return rng.choice([f"Say hello to {who}.", f"Greet my friend {who}."]), f"Hello, {who}! Nice to meet you."
    return rng.choice([f"My name is {who}.", f"I am {who}.", f"Hello, I am {who}."]), f"Hello, {who}! Nice to meet you."


def compare(rng: Random) -> Turn:
    a, b = rng.sample(range(21), 2)
    if rng.random() < 0.5:
        return f"Which number is bigger, {a} or {b}?", f"{max(a, b)} is bigger than {min(a, b)}."
    return f"Which number is smaller, {a} or {b}?", f"{min(a, b)} is smaller than {max(a, b)}."


def all_of(rng: Random) -> Turn:
    if rng.random() < 0.5:
        return "Name the days of the week.", "The days of the week are " + ", ".join(DAYS[:-1]) + " and Sunday."
    return "Name the months of the year.", "The months are " + ", ".join(MONTHS[:-1]) + " and December."


def sentence(rng: Random) -> Turn:
    about, text = rng.choice(list(SENTENCES.items()))
    return rng.choice([f"Write a sentence about {about}.", f"Say something about {about}.", f"Write one sentence about {about}."]), text


def poem(rng: Random) -> Turn:
    about, text = rng.choice(list(POEMS.items()))
    return rng.choice([f"Write a poem about {about}.", f"Write a short poem about {about}.", f"Tell me a poem about {about}."]), text


def talk(rng: Random) -> Turn:
    asks, answers = rng.choice(TALK)
    return rng.choice(asks), rng.choice(answers)


def unknown(rng: Random) -> Turn:
    topic = rng.choice(UNKNOWN_TOPICS)
    return rng.choice([f"What is {topic}?", f"Tell me about {topic}.", f"Do you know {topic}?"]), UNKNOWN


def note(rng: Random, used: set[str]) -> tuple[str, str, str]:
    """A made-up fact about someone: the sentence, a question for it, the answer."""
    who = stories.someone(rng, tuple(used)).name
    used.add(who)
    colour, thing, place = rng.choice(stories.COLOURS), rng.choice(stories.THINGS), rng.choice(stories.PLACES)
    city, animal, day = rng.choice(["Paris", "Rome", "Oslo", "Cairo", "Lima"]), rng.choice(stories.ANIMALS), rng.choice(DAYS)
    return rng.choice([
        (f"{who} has {article(colour)} {thing}.", f"What does {who} have?", f"{who} has {article(colour)} {thing}."),
        (f"{who} has {article(colour)} {thing}.", f"What colour is the {thing} of {who}?", f"The {thing} of {who} is {colour}."),
        (f"{who} lives in the {place}.", f"Where does {who} live?", f"{who} lives in the {place}."),
        (f"{who} lives in {city}.", f"Where does {who} live?", f"{who} lives in {city}."),
        (f"{who} is {article(animal)}.", f"What is {who}?", f"{who} is {article(animal)}."),
        (f"{who} comes on {day}.", f"When does {who} come?", f"{who} comes on {day}."),
        (f"The {thing} is in the {place}.", f"Where is the {thing}?", f"The {thing} is in the {place}."),
        (f"The shop opens on {day}.", "When does the shop open?", f"The shop opens on {day}."),
    ])  # fmt: skip


def reading(rng: Random) -> Turn:
    used: set[str] = set()
    notes = {n[0].split()[0] + n[0].split()[1]: n for n in (note(rng, used) for _ in range(rng.randint(1, 5)))}
    text = " ".join(n[0] for n in notes.values())
    _, question, answer = rng.choice(list(notes.values()))
    return rng.choice([
        f"{text} {question}", f"Read this: {text}\n{question}", f"Context: {text}\nQuestion: {question}",
        f"Use the notes to answer.\n\nNotes:\n{text}\n\nQuestion: {question}",
    ]), answer  # fmt: skip


def opposite_list(rng: Random) -> Turn:
    pairs = [p if rng.random() < 0.5 else p[::-1] for p in rng.sample(OPPOSITES, 3)]
    return "Give the opposites of " + ", ".join(p[0] for p in pairs) + ".", capitalised(", ".join(p[1] for p in pairs)) + "."


TASKS: list[tuple[float, Callable[[Random], Turn]]] = [
    (26, lambda rng: stories.request(rng)), (34, lambda rng: ask_fact(rng, False)), (5, yes_or_no), (6, name_three), (4, count),
    (5, spell), (5, repeat), (3, pick), (4, greet), (3, compare), (1, all_of), (3, sentence), (3, poem), (8, talk),
    (3, unknown), (14, reading), (2, opposite_list),
]  # fmt: skip


def remembering(rng: Random) -> list[Turn]:
    """Something said early in a conversation and asked for later."""
    who = stories.someone(rng).name
    things = [(f"My name is {who}.", f"Hello, {who}! Nice to meet you.", "What is my name?", f"Your name is {who}.")]
    colour = rng.choice(list(COLOURS.values()))
    things.append((f"I like the colour {colour}.", f"{capitalised(colour)} is a nice colour.", "Which colour do I like?",
                   f"You like the colour {colour}."))  # fmt: skip
    animal = rng.choice(stories.ANIMALS)
    things.append((f"I have {article(animal)}.", f"How nice! {capitalised(article(animal))} is good company.",
                   "Which animal do I have?", f"You have {article(animal)}."))  # fmt: skip
    said, reply, question, answer = rng.choice(things)
    return [(said, reply), *chat_turns(rng, rng.randint(0, 2), False), (question, answer)]


def chat_turns(rng: Random, turns: int, short: bool) -> list[Turn]:
    weights, makers = zip(*TASKS)
    return [ask_fact(rng, True) if short else rng.choices(makers, weights)[0](rng) for _ in range(turns)]


# Text and whether the model should learn to say it.
Document = list[tuple[str, bool]]


def chat(rng: Random) -> Document:
    system, short = None, False
    kind = rng.random()
    if kind < 0.3:
        system = rng.choice(SYSTEMS)
    elif kind < 0.36:
        system, short = rng.choice(SHORT_SYSTEMS), True
    if not short and rng.random() < 0.08:
        turns = remembering(rng)
    else:
        turns = chat_turns(rng, rng.choices([1, 2, 3, 6], [70, 18, 9, 3])[0], short)
    out: Document = [(f"<|im_start|>system\n{system}<|im_end|>\n", False)] if system else []
    for question, answer in turns:
        out.append((f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", False))
        out.append((f"{answer}<|im_end|>", True))
        out.append(("\n", False))
    return out[:-1]


def plain(rng: Random) -> Document:
    """Text without a conversation: stories, and facts in a row."""
    if rng.random() < 0.6:
        return [("", False), (stories.tell(rng, stories.cast(rng)) + "<|endoftext|>", True)]
    facts = [rng.choice(rng.choices(GROUPS, GROUP_WEIGHTS)[0]).statement for _ in range(rng.randint(1, 6))]
    return [(" ".join(facts) + "<|endoftext|>", True)]


def document(rng: Random) -> Document:
    """One text of the training distribution."""
    return plain(rng) if rng.random() < 0.22 else chat(rng)
