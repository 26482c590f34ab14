"""Questions about words and charts."""

from __future__ import annotations

from typing import Final

from training.peek.wording import Question, Rng, Scope, dress, pick
from training.peek.world import Scene

READ: Final = (
    "what does it say", "read the text", "what is written here", "what is written", "what does the text say",
    "what text is shown", "what is the text", "read it", "what text do you see", "what can you read",
    "transcribe the text",
    "read what is written", "please read the text", "tell me what it says", "what does the {picture} say",
    "what is written in the {picture}", "read the {picture}", "can you read this", "what text is in the {picture}",
    "which text do you see", "what does this say", "say what is written", "spell out the text", "give the text",
    "what is printed here", "copy the text", "what is spelled here", "can you read the text", "ocr",
)  # fmt: skip
READ_WORD: Final = (
    "which word is shown", "what letters do you see", "what word is this", "what word do you see", "read the word",
    "which word is written", "what is the word", "what word is written here", "which letters are shown",
    "what characters do you see", "which letters do you see", "which characters are shown", "what word is shown",
    "read the letters", "what does the word say", "tell me the word", "name the word", "which word is it",
    "what letters are these", "which word do you see", "spell the word", "read the characters",
)  # fmt: skip
READ_BOTH: Final = (
    "read both lines", "what do both lines say", "read the two lines", "what do the two lines say", "read both words",
    "which two words are shown", "what are the two words", "what two words do you see", "tell me both words",
    "what words are written", "which words do you see", "read the words", "what is written on the two lines",
)  # fmt: skip
READ_LINE: Final = (
    "what is the {line} line", "what is on the {line} line", "read the {line} line", "what does the {line} line say",
    "which word is on the {line} line", "what is written on the {line} line", "what word is on the {line} line",
    "tell me the {line} line", "which word is in the {line} line", "what is the word on the {line} line", "{line} line",
    "what is the {line} word", "read the {line} word", "what text is on the {line} line",
    "say what the {line} line says",
)  # fmt: skip
LINES: Final = (("first", "first", "top", "upper"), ("second", "second", "bottom", "lower"))

TALLEST: Final = (
    "which bar is {most}", "which bar is the {most}", "what is the {most} bar", "name the {most} bar",
    "what is the {most} bar called", "which bar is the {most} one", "which is the {most} bar", "tell me the {most} bar",
    "what is the label of the {most} bar", "label of the {most} bar", "identify the {most} bar",
    "which label has the {most} bar", "which letter or digit is below the {most} bar", "give the {most} bar's label",
)  # fmt: skip
HIGHEST_VALUE: Final = (
    "which bar has the {extreme} value", "what bar has the {extreme} value", "which label has the {extreme} value",
    "which bar shows the {extreme} value", "which bar has the {extreme} number",
)  # fmt: skip
VALUE: Final = (
    "what value is printed above {bar}", "what is the value of {bar}", "which value does {bar} have", "value of {bar}",
    "what number is above {bar}", "what is printed above {bar}", "which number is printed above {bar}",
    "how high is {bar}", "how tall is {bar}", "what value does {bar} have", "tell me the value of {bar}",
    "what is the number above {bar}", "read the value of {bar}", "what value does {bar} show",
    "give the value of {bar}",
    "what number is printed over {bar}", "which value is above {bar}", "what value stands above {bar}",
)  # fmt: skip
BAR_COUNT: Final = (
    "how many bars are there", "how many bars do you see", "how many bars are shown", "count the bars", "how many bars",
    "what is the number of bars", "number of bars", "how many bars does the chart have", "how many columns are there",
    "how many bars can you see", "tell me how many bars there are", "say how many bars there are",
)  # fmt: skip
_EXTREMES: Final = {
    True: (("tallest", "highest", "tallest", "longest", "biggest", "largest"), ("highest", "largest", "biggest")),
    False: (("shortest", "lowest", "shortest", "smallest"), ("lowest", "smallest")),
}


def ask_read(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    """All that is written: one word, or two joined by a space."""
    if scene.chart or not 1 <= len(scene.lines) <= 2:
        return None
    both = len(scene.lines) == 2
    draw = rng.random()
    template = pick(rng, READ if draw < 0.6 else READ_BOTH if both else READ_WORD)
    text = dress(rng, template, scope)
    return Question("two lines" if both else "reading", text, " ".join(line.text for line in scene.lines))


def ask_line(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    """One of two lines."""
    if scene.chart or len(scene.lines) != 2:
        return None
    number = int(rng.integers(2))
    text = dress(rng, pick(rng, READ_LINE), scope, line=pick(rng, LINES[number]))
    return Question("two lines", text, scene.lines[number].text)


def ask_chart(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    """The value of a bar, which bar is the highest or lowest, or how many there are."""
    if scene.chart is None:
        return None
    bars, draw = scene.chart.bars, rng.random()
    if draw < 0.1:
        return Question("chart", dress(rng, pick(rng, BAR_COUNT), scope), str(len(bars)))
    if draw < 0.5:
        high = bool(rng.random() < 0.5)
        ranked = sorted(bars, key=lambda bar: bar.value, reverse=high)
        if ranked[0].value == ranked[1].value:
            return None
        most, extreme = _EXTREMES[high]
        template = pick(rng, TALLEST if rng.random() < 0.85 else HIGHEST_VALUE)
        text = dress(rng, template, scope, most=pick(rng, most), extreme=pick(rng, extreme))
        return Question("chart", text, ranked[0].label)
    bar = bars[int(rng.integers(len(bars)))]
    name = bar.label if rng.random() < 0.93 else bar.label.lower()
    ref = pick(rng, ("bar {}", "bar {}", "bar {}", "the bar {}", "the bar labelled {}", "the bar called {}", "{}"))
    text = dress(rng, pick(rng, VALUE), scope, bar=ref.format(name))
    return Question("chart", text, str(bar.value))
