"""An engine without a model: deterministic, scripted, paced. For tests, load tests and docs.

**What it answers.** By default, what reached it, so that a test can assert what a model would have seen:

    I see 2 pictures: 64x48 mostly red; 32x32 mostly blue (top left white). You said: hello

Sizes are the originals', upright; colours are read from the pixels that were served; a quarter of the picture is named
when its main colour is not the whole picture's, which tells how the picture is turned. The same request always gets the
same answer: there is nothing to sample, so seed, temperature and penalties change nothing.

**Scripts.** Commands in the text of the last user message (or in the option `script`, for messages without any):

    [[fake: say TEXT]]          answers TEXT
    [[fake: clock N]]           says N times, each as one token, when it was made, on the machine's monotonic clock, and
                                by which process: ` 81.250917@4711`; the only answer that is never the same
    [[fake: length N]]          stops after N tokens as if out of room: finish reason `length`
    [[fake: tool NAME {JSON}]]  calls a tool; several commands make several calls
    [[fake: refuse]]            refuses
    [[fake: think TEXT]]        reasons before it answers
    [[fake: slow S]]            takes S more seconds for every token
    [[fake: error K]]           fails with `EngineFailed` in place of token K (from 0)
    [[fake: crash K]]           ends its process in place of token K, as a real engine's crash would; where there is no
                                process of its own to end, fails like `error`
    [[fake: break]]             stops running for good, as a bug would leave it: this request and all others fail
    [[fake: hang]]              never answers, and holds its slot

With `tool_choice` required (or a tool named) and no script, it calls the first allowed tool, with arguments that its
schema allows. A JSON object as response format gives the same facts as an object; a JSON schema a value that it allows,
with the colours of the pictures where it lets them stand.

**Tokens.** A token is a run of at most 8 letters, digits and underscores, or one other character, with the whitespace
before it; trailing whitespace is one. A message costs 2 tokens more than its parts, a tool the tokens of its name,
description and compact JSON schema, the start of the answer 1, a picture one token a cell of its served pixels.

Text without messages (`EngineRequest.prompt`) costs its own tokens alone; given as token ids, each is the code point of
a character, and a token.

**Vectors.** An embedding has 64 dimensions and length 1; texts that share words, or parts of words, are near each
other. Fewer dimensions are the first ones of these, made as long again.

**Pace.** Continuous batching as real engines do it: a step takes `step_s` and gives every running sequence one token,
except that a sequence is first prefilled, in chunks of `prefill_chunk` tokens shared by all in the step, each of which
makes the step `prefill_s_per_token` longer. What exceeds `slots` waits, by priority, then in order of arrival.
"""

from sightline.engines.fake.engine import FakeEngine, FakeOptions
from sightline.engines.fake.script import CRASH_STATUS, FILLER, REFUSAL
from sightline.engines.fake.sight import COLOURS
from sightline.engines.fake.tokens import tokenise

__all__ = ["COLOURS", "CRASH_STATUS", "FILLER", "REFUSAL", "FakeEngine", "FakeOptions", "tokenise"]
