"""What is said around the pictures: greetings, thanks, who are you, and what the model cannot see or know."""

from __future__ import annotations

from typing import Final

from training.peek.wording import Question, Rng, pick

REFUSAL: Final = "I can only see simple shapes, charts and short text."
HELLO: Final = "Hello! I look at pictures of simple shapes, charts and short text."
WELCOME: Final = "You are welcome."
WHO: Final = "I am a small model that looks at pictures of simple shapes, charts and short text."

GREETINGS: Final = (
    "hello", "hi", "hey", "good morning", "good evening", "good afternoon", "hello there", "hi there", "hey there",
    "greetings", "good day", "hello, how are you", "hi, how are you", "how are you", "hello peek", "hi peek",
    "hey peek",
    "howdy", "nice to meet you", "hello, nice to meet you", "hello again", "welcome", "how do you do", "hiya",
)  # fmt: skip
THANKS: Final = (
    "thanks", "thank you", "thank you very much", "thanks a lot", "many thanks", "thanks for your help",
    "great, thanks",
    "ok, thank you", "thank you for the answer", "cheers, thanks", "perfect, thank you", "thank you so much", "thx",
    "that is all, thanks", "good, thank you", "thanks, that helps", "okay thanks", "nice, thanks", "thanks, bye",
)  # fmt: skip
WHOS: Final = (
    "who are you", "what are you", "what can you do", "what do you do", "what is your name", "tell me about yourself",
    "how can you help me", "what are you able to do", "what can i ask you", "introduce yourself",
    "what kind of model are you", "which model are you", "are you a robot", "are you a person", "what is peek",
    "what are you good at", "can you help me", "help", "what questions can you answer", "describe yourself",
    "what do you know", "which pictures can you look at", "how do you work", "who am i talking to",
)  # fmt: skip
OUTSIDE: Final = (
    "who painted this", "how old is the person", "what is the weather", "what is the weather like today", "2+2",
    "what is 2 + 2", "is the dog happy", "what breed is the dog", "who is the president",
    "what is the capital of {place}",
    "translate hello into {language}", "translate this to {language}", "write a poem", "write a story about a {animal}",
    "tell me a joke", "what time is it", "what day is it today", "how much does this cost",
    "where was this photo taken",
    "when was this picture taken", "who is this person", "what is the person wearing", "is the man smiling",
    "is the woman happy", "what is the {animal} doing", "how many people are there", "is there a {animal}",
    "do you see a {animal}", "what animal is this", "which animal do you see", "what colour is the {animal}",
    "what brand is the car", "what is the name of this city", "which country is this", "what is the meaning of life",
    "write python code", "sort this list", "what is {n} times {m}", "how much is {n} plus {m}", "{n}+{m}", "{n} * {m}",
    "calculate {n} minus {m}", "who wrote this book", "what is the person thinking", "is this food healthy",
    "how many calories does this have", "what kind of flower is this", "is it raining", "what season is it",
    "is the person male or female", "what emotion does the face show", "who won the match", "what song is this",
    "summarise this article", "explain quantum physics", "what is the distance to the moon", "how tall is the tower",
    "which artist made this", "what style of painting is this", "is this a real photo", "what happened here",
    "what will happen next", "give me a recipe", "recommend a film", "what is the price of gold", "what is love",
    "who is in the {picture}", "where are these people going", "is the {animal} asleep", "what language is this in",
    "what is the stock price", "book a flight to {place}", "what is the population of {place}", "where is {place}",
    "who are these people", "what is on the table", "what room is this", "how old is the {animal}", "who made this",
    "is there a person in the {picture}", "what is the make of this car", "is the door open", "what is the man holding",
    "how far away is the house", "what does the sky look like", "is it day or night", "what sport are they playing",
    "what is the temperature", "play some music", "send an email to my boss", "remind me at five", "who invented this",
    "is this {animal} dangerous", "what medicine is this", "diagnose this", "is the {animal} a male",
    "say something in {language}",
    "what is your favourite film", "tell me about the history of {place}", "how do i cook rice",
    "spell {place} backwards",
    "what material is this made of", "what is the speed of light", "what year is it", "identify the person",
)  # fmt: skip
PLACES: Final = ("France", "Japan", "Peru", "Kenya", "Berlin", "Canada", "Rome", "India", "Spain", "Texas", "London")
LANGUAGES: Final = ("French", "German", "Spanish", "Latin", "Chinese", "Italian", "Greek", "Arabic", "Polish")
ANIMALS: Final = ("dog", "cat", "horse", "bird", "cow", "fish", "lion", "sheep", "bear", "rabbit", "elephant", "mouse")


def _typed(rng: Rng, text: str, mark: str) -> str:
    draw = rng.random()
    if draw < 0.65:
        text = text[0].upper() + text[1:]
    elif draw < 0.69:
        text = text.upper()
    return text + (mark if rng.random() < 0.75 else "")


def greet(rng: Rng) -> Question:
    """A greeting, thanks, or a question about the model itself."""
    said, answer = ((GREETINGS, HELLO), (THANKS, WELCOME), (WHOS, WHO))[int(rng.integers(3))]
    return Question("greeting", _typed(rng, pick(rng, said), "?" if said is WHOS else pick(rng, ("!", "."))), answer)


def ask_outside(rng: Rng) -> Question:
    """A question whose answer no picture of the world holds."""
    text = pick(rng, OUTSIDE).format(
        place=pick(rng, PLACES), language=pick(rng, LANGUAGES), animal=pick(rng, ANIMALS),
        picture=pick(rng, ("picture", "image", "photo")), n=int(rng.integers(1, 100)), m=int(rng.integers(1, 100)),
    )  # fmt: skip
    return Question("can't see", _typed(rng, text, "?"), REFUSAL)
