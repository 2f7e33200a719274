"""Short stories for the bundled model: a dozen plots, each told in many ways.

A story keeps its names, its things and its places from the first sentence to the last, since
that is what a reader notices first.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from knowledge import article, capitalised

GIRLS = ["Anna", "Lily", "Mia", "Rosa", "Nora", "Ella", "Zoe", "Ruby", "Clara", "Ida", "Maya", "Eva"]
BOYS = ["Tom", "Ben", "Max", "Leo", "Sam", "Finn", "Jack", "Otto", "Paul", "Hugo", "Noah", "Tim"]
ANIMALS = ["fox", "rabbit", "mouse", "bear", "owl", "cat", "dog", "duck", "hedgehog", "squirrel", "frog", "horse"]
TRAITS = ["little", "brave", "clever", "kind", "curious", "shy", "cheerful", "quiet"]
PLACES = ["forest", "village", "garden", "valley", "town", "park", "meadow"]
COLOURS = ["red", "blue", "green", "yellow", "white", "golden", "silver"]
THINGS = ["ball", "kite", "boat", "hat", "bell", "key", "lamp", "scarf", "drum", "book"]
FOODS = ["apple", "pear", "cake", "pie", "loaf of bread", "cookie"]
WEATHERS = ["sunny", "windy", "warm", "cold", "bright", "rainy"]
OPENINGS = ["Once upon a time there was", "There once was", "Once there lived", "A long time ago there was"]
PROMPT_WORDS = ["story", "short story", "little story", "tale"]


@dataclass
class Who:
    """Someone in a story: a child or an animal, with the words that stand for them."""

    name: str
    noun: str
    she: str
    her: str
    hers: str


@dataclass
class Cast:
    """Everything a plot may speak of."""

    hero: Who
    friend: Who
    trait: str
    place: str
    colour: str
    thing: str
    food: str
    weather: str


def invented_name(rng: Random) -> str:
    """A name in no list, so that names are copied from the request and not only remembered."""
    syllables = [rng.choice("BDFGKLMNPRSTVZ").lower() + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3)))]
    return capitalised("".join(syllables)) + rng.choice(["", "", "n", "l", "s"])


def someone(rng: Random, taken: tuple[str, ...] = (), noun: str | None = None, name: str | None = None) -> Who:
    is_girl = name in GIRLS if name else rng.random() < 0.5
    if name is None:
        known = [n for n in (GIRLS if is_girl else BOYS) if n not in taken]
        name = rng.choice(known) if rng.random() < 0.85 else invented_name(rng)
    if noun is None:
        noun = rng.choice(ANIMALS) if rng.random() < 0.6 else ("girl" if is_girl else "boy")
    return Who(name, noun, *(("she", "her", "her") if is_girl else ("he", "him", "his")))


def cast(rng: Random, hero: Who | None = None, **fixed: str) -> Cast:
    hero = hero or someone(rng)
    friend = someone(rng, (hero.name,))
    while friend.noun == hero.noun:
        friend = someone(rng, (hero.name,))
    chosen = {
        "trait": rng.choice(TRAITS),
        "place": rng.choice(PLACES),
        "colour": rng.choice(COLOURS),
        "thing": rng.choice(THINGS),
        "food": rng.choice(FOODS),
        "weather": rng.choice(WEATHERS),
    }
    return Cast(hero, friend, **(chosen | fixed))


def opening(rng: Random, c: Cast) -> str:
    h = c.hero
    where = rng.choice([f"{capitalised(h.she)} lived in a {c.place}.", f"{capitalised(h.hers)} home was in a {c.place}."])
    return f"{rng.choice(OPENINGS)} {article(c.trait)} {h.noun} named {h.name}. {where}"


def lost(rng: Random, c: Cast) -> list[str]:
    h, f, thing = c.hero, c.friend, f"{c.colour} {c.thing}"
    return [
        rng.choice([f"{h.name} had a {thing} and loved it very much.", f"Best of all {h.she} loved {h.hers} {thing}."]),
        rng.choice([f"One {c.weather} day the {c.thing} was gone.", f"One morning {h.name} could not find the {c.thing}."]),
        rng.choice([f"{h.name} looked everywhere and began to cry.", f"{h.name} was sad and sat down under a tree."]),
        f"Then a {f.noun} named {f.name} came by.",
        rng.choice([f'"Why are you sad?" asked {f.name}.', f'"What is wrong?" asked {f.name}.']),
        f'"I lost my {thing}," said {h.name}.',
        f"They looked together, and {f.name} found the {c.thing} behind a big stone.",
        rng.choice([f"{h.name} was so happy that {h.she} hugged {f.name}.", f'"Thank you!" said {h.name} and smiled.']),
        rng.choice([f"From that day on {h.name} and {f.name} were friends.", "They played together until the sun went down."]),
    ]


def share(rng: Random, c: Cast) -> list[str]:
    h, f = c.hero, c.friend
    return [
        f"One {c.weather} day {h.name} found {article(c.food)} on the way home.",
        rng.choice([f"It smelled very good, and {h.name} was hungry.", f"{h.name} wanted to eat it all alone."]),
        f"But then {h.she} saw a {f.noun} named {f.name}, who had nothing to eat.",
        rng.choice([f'"I am so hungry," said {f.name}.', f"{f.name} looked thin and tired."]),
        f"{h.name} thought for a while.",
        f'"We can share the {c.food}," said {h.name}.',
        f"So they cut the {c.food} in two and ate it under a tree.",
        rng.choice([f"{f.name} smiled. \"You are very kind,\" {f.she} said.", f'"Thank you, {h.name}," said {f.name}.']),
        rng.choice([f"{h.name} learned that food tastes better with a friend.", "From then on they shared everything."]),
    ]


def storm(rng: Random, c: Cast) -> list[str]:
    h, f = c.hero, c.friend
    return [
        f"One day {h.name} went for a long walk.",
        rng.choice(["Dark clouds came, and it began to rain.", "Suddenly there was a loud storm."]),
        rng.choice([f"{h.name} was wet and afraid.", f"{h.name} did not know the way home."]),
        f"Far away {h.she} saw a small light.",
        f"It was the house of a {f.noun} named {f.name}.",
        f'"Come in and get warm," said {f.name}.',
        f"{f.name} gave {h.her} hot soup and {article(c.food)}.",
        rng.choice(["They told each other stories until the storm was over.", "They sat by the fire and listened to the rain."]),
        f"In the morning the sun was shining, and {f.name} showed {h.name} the way home.",
    ]


def dark(rng: Random, c: Cast) -> list[str]:
    h, f = c.hero, c.friend
    return [
        f"{h.name} was afraid of the dark.",
        rng.choice([f"Every night {h.she} hid under the blanket.", f"At night {h.she} could not sleep."]),
        f"{capitalised(h.hers)} friend {f.name}, a {f.noun}, wanted to help.",
        f"{f.name} lit a candle and put it by the window.",
        rng.choice(['"Look," said {f}, "a small light is stronger than a big night."', '"Look how brightly it burns," said {f}.']).format(f=f.name),
        f"{h.name} looked at the little flame for a long time.",
        rng.choice([f"Soon {h.she} was not afraid any more.", f"Slowly {h.hers} fear went away."]),
        f"{h.name} fell asleep and dreamed of {article(c.colour)} {c.thing}.",
    ]  # fmt: skip


def race(rng: Random, c: Cast) -> list[str]:
    h, f = c.hero, c.friend
    return [
        f"One {c.weather} morning there was a big race in the {c.place}.",
        f"{h.name} wanted to win, and so did {f.name} the {f.noun}.",
        rng.choice(["They ran and ran as fast as they could.", "Everyone shouted when the race began."]),
        f"Near the end {f.name} fell over a stone.",
        rng.choice([f"{h.name} could have won, but {h.she} stopped.", f"{h.name} heard {f.name} cry and turned around."]),
        f'"Take my hand," said {h.name}.',
        "They walked to the end side by side.",
        f"Both of them got a prize: {article(c.colour)} {c.thing}.",
        rng.choice([f"{h.name} had never been so proud.", "It was the best race of all."]),
    ]


def gift(rng: Random, c: Cast) -> list[str]:
    h, f = c.hero, c.friend
    return [
        f"It was the birthday of {h.hers} friend {f.name}, a {f.noun}.",
        f"{h.name} wanted to give {f.her} a gift, but {h.she} had no money.",
        rng.choice([f"So {h.name} had an idea.", f"{h.name} thought all day long."]),
        f"{capitalised(h.she)} took some wood and some paint and made a {c.colour} {c.thing}.",
        rng.choice([f"It took {h.her} three days.", "It was not easy, and it took a long time."]),
        f"When {f.name} opened the box, {f.hers} eyes shone.",
        f'"A {c.colour} {c.thing}!" said {f.name}. "You made it yourself!"',
        rng.choice([f"{f.name} kept it for ever.", f"It was the best gift {f.she} ever got."]),
    ]


def tree(rng: Random, c: Cast) -> list[str]:
    h, f = c.hero, c.friend
    return [
        f"One day {h.name} climbed a very high tree to see the whole {c.place}.",
        rng.choice([f"But then {h.she} could not come down again.", f"When {h.she} looked down, {h.she} was afraid."]),
        f'"Help!" called {h.name}.',
        f"A {f.noun} named {f.name} heard {h.her} and brought a ladder.",
        rng.choice(['"Step by step," said {f}.', '"Do not look down," said {f}.']).format(f=f.name),
        f"Slowly {h.name} came down from the tree.",
        f"To say thank you, {h.she} gave {f.name} {article(c.food)}.",
        rng.choice(["They laughed about it for a long time.", f"After that {h.name} climbed only small trees."]),
    ]


def garden(rng: Random, c: Cast) -> list[str]:
    h, f = c.hero, c.friend
    return [
        f"In spring {h.name} put a small seed into the ground.",
        rng.choice([f"Every day {h.she} gave it water.", f"{capitalised(h.she)} watered it every morning."]),
        rng.choice(["But nothing happened for a long time.", "Days went by, and there was nothing to see."]),
        f'"It will never grow," said {f.name} the {f.noun}.',
        f'"We have to wait," said {h.name}.',
        f"One {c.weather} morning there was a small green leaf.",
        f"In summer it was a tall plant with {c.colour} flowers.",
        rng.choice([f'"You were right," said {f.name}.', f"{f.name} could not believe {f.hers} eyes."]),
        rng.choice(["Good things need time.", "They sat beside the flowers and were happy."]),
    ]


def song(rng: Random, c: Cast) -> list[str]:
    h, f = c.hero, c.friend
    return [
        f"{h.name} loved to sing, but {h.she} only sang when nobody was near.",
        f"One {c.weather} day {f.name} the {f.noun} heard {h.her}.",
        rng.choice([f'"What a lovely song!" said {f.name}.', f'"Who is singing so well?" asked {f.name}.']),
        f"{h.name} turned red and wanted to run away.",
        f'"Please sing for all of us," said {f.name}.',
        f"In the evening everyone in the {c.place} came together.",
        rng.choice([f"{h.name} took a deep breath and sang.", f"First {h.name} was afraid, but then {h.she} sang."]),
        rng.choice(["All of them clapped and danced.", "It was so beautiful that nobody said a word."]),
        f"Since that day {h.name} sings every evening.",
    ]


def river(rng: Random, c: Cast) -> list[str]:
    h, f = c.hero, c.friend
    return [
        f"{h.name} wanted to visit {h.hers} friend {f.name}, a {f.noun}, on the other side of the river.",
        rng.choice(["But there was no bridge.", "But the water was deep and cold."]),
        f"{h.name} built a little {c.colour} boat out of wood.",
        rng.choice(["The first boat sank.", "The first boat was too small and turned over."]),
        f'{h.name} did not give up. "I will try again," {h.she} said.',
        "The second boat was strong and carried well.",
        f"{f.name} stood on the other side and waved.",
        f"They ate {article(c.food)} together and looked at the water.",
        rng.choice(["Whoever tries again will get there.", "That evening they were both very happy."]),
    ]


PLOTS = {
    "a lost thing": lost, "sharing": share, "a storm": storm, "the dark": dark, "a race": race, "a gift": gift,
    "a tree": tree, "a garden": garden, "a song": song, "a river": river,
}  # fmt: skip


def tell(rng: Random, c: Cast, plot: str | None = None) -> str:
    """A whole story with the given cast."""
    plot = plot or rng.choice(list(PLOTS))
    return " ".join([opening(rng, c), *PLOTS[plot](rng, c)])


def request(rng: Random) -> tuple[str, str]:
    """Something a person may ask for, and the story that answers it."""
    word = rng.choice(PROMPT_WORDS)
    ask = rng.choice(["Tell me a {w}{about}.", "Write a {w}{about}.", "Please tell me a {w}{about}.", "Can you tell me a {w}{about}?"])
    hero = someone(rng)
    kind = rng.randrange(8)
    plot, fixed = None, {}
    if kind == 0:
        about = ""
    elif kind == 1:
        about = f" about {article(hero.noun)}"
    elif kind == 2:
        about = f" about {article(hero.noun)} named {hero.name}"
    elif kind == 3:
        fixed["trait"] = rng.choice(TRAITS)
        about = f" about {article(fixed['trait'])} {hero.noun}"
    elif kind == 4:
        about = f" about {hero.name}"
    elif kind == 5:
        fixed["place"] = rng.choice(PLACES)
        about = f" about {article(hero.noun)} in a {fixed['place']}"
    elif kind == 6:
        fixed["colour"], fixed["thing"] = rng.choice(COLOURS), rng.choice(THINGS)
        plot = rng.choice(["a lost thing", "a gift", "a race"])
        about = f" about {article(fixed['colour'])} {fixed['thing']}"
    else:
        plot = rng.choice(list(PLOTS))
        about = f" about {plot}"
    return ask.format(w=word, about=about), tell(rng, cast(rng, hero, **fixed), plot)
