"""What the bundled model knows: plain facts, each with the ways one may ask for it.

Every fact is a `Fact`: a full sentence, a short answer and questions that lead to it.
"""

from __future__ import annotations

from dataclasses import dataclass

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki",
    "Denmark": "Copenhagen", "Poland": "Warsaw", "Austria": "Vienna", "Hungary": "Budapest", "Greece": "Athens",
    "Russia": "Moscow", "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Egypt": "Cairo",
    "Kenya": "Nairobi", "Canada": "Ottawa", "Mexico": "Mexico City", "Brazil": "Brasilia", "Peru": "Lima",
    "Chile": "Santiago", "Cuba": "Havana", "Turkey": "Ankara", "Australia": "Canberra", "Iceland": "Reykjavik",
}  # fmt: skip

LANGUAGES = {
    "France": "French", "Germany": "German", "Italy": "Italian", "Spain": "Spanish", "Portugal": "Portuguese",
    "England": "English", "Norway": "Norwegian", "Sweden": "Swedish", "Poland": "Polish", "Greece": "Greek",
    "Russia": "Russian", "Japan": "Japanese", "China": "Chinese", "Brazil": "Portuguese", "Mexico": "Spanish",
}  # fmt: skip

HELLO = {"French": "bonjour", "German": "hallo", "Italian": "ciao", "Spanish": "hola", "Portuguese": "ola"}

COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "the sun": "yellow", "coal": "black", "a banana": "yellow",
    "a tomato": "red", "a carrot": "orange", "a frog": "green", "a lemon": "yellow", "blood": "red", "milk": "white",
    "a pumpkin": "orange", "a polar bear": "white", "chocolate": "brown", "the sea": "blue", "a fire engine": "red",
    "a strawberry": "red", "a leaf": "green", "an elephant": "grey", "a plum": "purple", "a flamingo": "pink",
    "the night": "black", "a cherry": "red", "honey": "golden", "a cucumber": "green",
}  # fmt: skip

SOUNDS = {
    "dog": "barks", "cat": "meows", "cow": "moos", "sheep": "bleats", "horse": "neighs", "duck": "quacks",
    "lion": "roars", "frog": "croaks", "bee": "buzzes", "owl": "hoots", "snake": "hisses", "wolf": "howls",
    "mouse": "squeaks", "bird": "sings", "pig": "grunts",
}  # fmt: skip

YOUNG = {
    "cat": "kitten", "dog": "puppy", "cow": "calf", "horse": "foal", "sheep": "lamb", "pig": "piglet",
    "duck": "duckling", "hen": "chick", "lion": "cub", "bear": "cub", "frog": "tadpole", "goat": "kid", "swan": "cygnet",
}  # fmt: skip

HOMES = {
    "bird": "a nest", "bee": "a hive", "fox": "a den", "rabbit": "a burrow", "fish": "the water", "camel": "the desert",
    "monkey": "the trees", "spider": "a web", "penguin": "the cold south", "whale": "the sea", "cow": "a barn",
    "bear": "the forest", "snail": "its shell", "mole": "the ground",
}  # fmt: skip

LEGS = {"dog": "four", "cat": "four", "horse": "four", "bird": "two", "spider": "eight", "bee": "six", "ant": "six",
        "cow": "four", "duck": "two", "snake": "no", "fish": "no", "person": "two"}  # fmt: skip

OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("day", "night"), ("happy", "sad"), ("fast", "slow"),
    ("old", "new"), ("good", "bad"), ("light", "dark"), ("hard", "soft"), ("wet", "dry"), ("full", "empty"),
    ("open", "closed"), ("left", "right"), ("high", "low"), ("loud", "quiet"), ("rich", "poor"), ("strong", "weak"),
    ("early", "late"), ("near", "far"), ("long", "short"), ("clean", "dirty"), ("first", "last"), ("black", "white"),
    ("inside", "outside"), ("brave", "afraid"), ("sweet", "sour"), ("thick", "thin"), ("begin", "end"), ("yes", "no"),
]  # fmt: skip

KINDS = {
    "fruit": ["apple", "banana", "pear", "plum", "cherry", "lemon", "orange", "grape"],
    "vegetable": ["carrot", "potato", "onion", "cabbage", "bean", "cucumber"],
    "animal": ["dog", "cat", "horse", "fox", "bear", "lion", "rabbit", "mouse"],
    "bird": ["owl", "duck", "robin", "swan", "crow", "eagle"],
    "colour": ["red", "blue", "green", "yellow", "white", "black"],
    "tool": ["hammer", "saw", "knife", "needle", "spade", "rake"],
    "drink": ["water", "milk", "tea", "juice", "coffee", "lemonade"],
    "flower": ["rose", "tulip", "daisy", "lily", "poppy", "violet"],
    "tree": ["oak", "birch", "pine", "willow", "maple", "elm"],
    "metal": ["iron", "gold", "silver", "copper", "tin", "lead"],
    "planet": ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn"],
    "season": ["spring", "summer", "autumn", "winter"],
}
PLURALS = {"cherry": "cherries", "potato": "potatoes", "mouse": "mice", "knife": "knives", "daisy": "daisies",
           "lily": "lilies", "poppy": "poppies", "fox": "foxes"}  # fmt: skip
MASS = {"colour", "drink", "metal", "planet", "season"}

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December"]  # fmt: skip
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

DEFINITIONS = {
    "candle": "A candle is a stick of wax with a wick that burns and gives light.",
    "wick": "A wick is the string in a candle that carries the flame.",
    "river": "A river is a long stream of water that flows to the sea.",
    "mountain": "A mountain is a very high hill of rock.",
    "island": "An island is land with water all around it.",
    "forest": "A forest is a large place with many trees.",
    "desert": "A desert is a dry place where it almost never rains.",
    "cloud": "A cloud is made of tiny drops of water in the sky.",
    "star": "A star is a ball of hot gas that shines in the sky.",
    "teacher": "A teacher is a person who helps others to learn.",
    "doctor": "A doctor is a person who helps sick people.",
    "baker": "A baker is a person who makes bread and cakes.",
    "farmer": "A farmer is a person who grows food and keeps animals.",
    "library": "A library is a house full of books that people may borrow.",
    "bridge": "A bridge is a way over water or over a road.",
    "clock": "A clock is a machine that shows the time.",
    "map": "A map is a drawing that shows where places are.",
    "mirror": "A mirror is a piece of glass that shows your face.",
    "rainbow": "A rainbow is a bow of colours that comes with sun and rain.",
    "volcano": "A volcano is a mountain that can throw out fire and ash.",
    "computer": "A computer is a machine that works with numbers and words.",
    "language model": "A language model is a program that guesses the next word, again and again.",
    "friend": "A friend is a person who likes you and helps you.",
    "story": "A story is a tale about things that happened or that could happen.",
    "lighthouse": "A lighthouse is a tower with a bright lamp that guides ships.",
    "garden": "A garden is a place where flowers and vegetables grow.",
    "school": "A school is a place where children learn.",
    "ship": "A ship is a big boat that sails on the sea.",
    "moon": "The moon is a ball of rock that moves around the earth.",
    "winter": "Winter is the cold time of the year, when snow may fall.",
}

USES = {
    "spoon": "eat soup", "knife": "cut bread", "umbrella": "stay dry in the rain", "key": "open a door",
    "pen": "write", "broom": "sweep the floor", "needle": "sew clothes", "bed": "sleep", "lamp": "see in the dark",
    "hammer": "hit nails", "cup": "drink tea", "towel": "get dry", "map": "find the way",
    "clock": "tell the time", "oven": "bake bread", "boat": "cross the water", "candle": "make light",
    "book": "read", "coat": "keep warm", "bucket": "carry water", "rope": "tie things", "ladder": "climb up high",
}  # fmt: skip

WHY = {
    "Why is the sky blue?": "The sky is blue because the air scatters blue light more than red light.",
    "Why does it rain?": "It rains because drops of water in the clouds grow heavy and fall.",
    "Why do birds fly south?": "Birds fly south because it is warm there in winter.",
    "Why do we sleep?": "We sleep because our body and our mind need rest.",
    "Why is the sea salty?": "The sea is salty because rivers carry salt from the rocks into it.",
    "Why do leaves fall?": "Leaves fall because trees save water in autumn.",
    "Why does ice float?": "Ice floats because it is lighter than water.",
    "Why do we eat?": "We eat because food gives us strength.",
    "Why do cats purr?": "Cats purr because they feel safe and happy.",
    "Why is snow white?": "Snow is white because it scatters all the light that falls on it.",
    "Why do bees visit flowers?": "Bees visit flowers because they gather sweet nectar there.",
    "Why do stars twinkle?": "Stars twinkle because the air moves in front of them.",
}

COUNTS = {
    "days are in a week": ("seven", "There are seven days in a week."),
    "months are in a year": ("twelve", "There are twelve months in a year."),
    "seasons are in a year": ("four", "There are four seasons in a year."),
    "hours are in a day": ("twenty-four", "There are twenty-four hours in a day."),
    "fingers are on one hand": ("five", "There are five fingers on one hand."),
    "wheels does a car have": ("four", "A car has four wheels."),
    "wheels does a bicycle have": ("two", "A bicycle has two wheels."),
    "sides does a triangle have": ("three", "A triangle has three sides."),
    "sides does a square have": ("four", "A square has four sides."),
    "arms does a starfish have": ("five", "A starfish has five arms."),
}


@dataclass(frozen=True)
class Fact:
    """One thing to know: the questions that ask for it, the sentence that says it, the bare answer."""

    questions: tuple[str, ...]
    statement: str
    short: str


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiouAEIOU" else f"a {noun}"


def plural(noun: str) -> str:
    return PLURALS.get(noun, noun + "s")


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def place_facts() -> list[Fact]:
    out = []
    for country, city in CAPITALS.items():
        out.append(Fact((f"What is the capital of {country}?", f"Which city is the capital of {country}?",
                         f"Tell me the capital of {country}.", f"Name the capital of {country}."),
                        f"The capital of {country} is {city}.", city))  # fmt: skip
        out.append(Fact((f"Where is {city}?", f"In which country is {city}?"), f"{city} is in {country}.", country))
    for country, language in LANGUAGES.items():
        out.append(Fact((f"What language do people speak in {country}?", f"Which language is spoken in {country}?"),
                        f"People in {country} speak {language}.", language))  # fmt: skip
    for language, word in HELLO.items():
        out.append(Fact((f"How do you say hello in {language}?", f"What is hello in {language}?"),
                        f"Hello in {language} is {word}.", capitalised(word)))  # fmt: skip
    return out


def thing_facts() -> list[Fact]:
    out = []
    for thing, colour in COLOURS.items():
        out.append(Fact((f"What colour is {thing}?", f"What color is {thing}?", f"Which colour has {thing}?"),
                        f"{capitalised(thing)} is {colour}.", capitalised(colour)))  # fmt: skip
    for name, text in DEFINITIONS.items():
        the = "the moon" if name == "moon" else name if name == "winter" else article(name)
        out.append(Fact((f"What is {the}?", f"Explain what {the} is.", f"What does the word {name} mean?"), text, text))
    for thing, use in USES.items():
        out.append(Fact((f"What do you use {article(thing)} for?", f"What is {article(thing)} for?",
                         f"Why do people need {article(thing)}?"),
                        f"You use {article(thing)} to {use}.", f"To {use}"))  # fmt: skip
    for question, answer in WHY.items():
        out.append(Fact((question, "Tell me: " + question[0].lower() + question[1:]), answer, answer))
    for question, (short, answer) in COUNTS.items():
        out.append(Fact((f"How many {question}?",), answer, capitalised(short)))
    return out


def animal_facts() -> list[Fact]:
    out = []
    for animal, sound in SOUNDS.items():
        out.append(Fact((f"What sound does {article(animal)} make?", f"What does {article(animal)} do when it calls?"),
                        f"{capitalised(article(animal))} {sound}.", f"It {sound}"))  # fmt: skip
    for animal, young in YOUNG.items():
        out.append(Fact((f"What is a baby {animal} called?", f"What do you call a young {animal}?"),
                        f"A baby {animal} is called {article(young)}.", capitalised(article(young))))  # fmt: skip
    for animal, home in HOMES.items():
        out.append(Fact((f"Where does {article(animal)} live?", f"What is the home of {article(animal)}?"),
                        f"{capitalised(article(animal))} lives in {home}.", f"In {home}"))  # fmt: skip
    for animal, legs in LEGS.items():
        out.append(Fact((f"How many legs does {article(animal)} have?",),
                        f"{capitalised(article(animal))} has {legs} legs.", capitalised(legs)))  # fmt: skip
    return out


def word_facts() -> list[Fact]:
    out = []
    for pair in OPPOSITES:
        for word, other in (pair, pair[::-1]):
            out.append(Fact((f"What is the opposite of {word}?", f"What is the opposite of the word {word}?",
                             f"Give me the opposite of {word}."),
                            f"The opposite of {word} is {other}.", capitalised(other)))  # fmt: skip
    for names, what in ((DAYS, "day"), (MONTHS, "month")):
        for i, name in enumerate(names):
            after = names[(i + 1) % len(names)]
            out.append(Fact((f"Which {what} comes after {name}?", f"What comes after {name}?"),
                            f"After {name} comes {after}.", after))  # fmt: skip
            out.append(Fact((f"Which {what} comes before {after}?",), f"Before {after} comes {name}.", name))
    for kind, members in KINDS.items():
        if kind in ("season", "colour"):
            continue
        for member in members:
            of = "" if kind in MASS else ("an " if member[0] in "aeiou" else "a ")
            out.append(Fact((f"What is {of}{member}?", f"What kind of thing is {of}{member}?"),
                            f"{capitalised(of + member)} is {article(kind)}.", capitalised(article(kind))))  # fmt: skip
    return out


def sums() -> list[Fact]:
    out = []
    for a in range(11):
        for b in range(11):
            out.append(Fact((f"What is {a} plus {b}?", f"What is {a} + {b}?", f"How much is {a} and {b}?"),
                            f"{a} plus {b} is {a + b}.", str(a + b)))  # fmt: skip
            if a >= b:
                out.append(Fact((f"What is {a} minus {b}?", f"What is {a} - {b}?"),
                                f"{a} minus {b} is {a - b}.", str(a - b)))  # fmt: skip
    return out


GROUPS: list[list[Fact]] = [place_facts(), thing_facts(), animal_facts(), word_facts(), sums()]
