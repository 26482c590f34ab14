// Anthropic's JavaScript SDK as a client of ours. Run by test_javascript.py: node anthropic_client.mjs URL PICTURE
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import Anthropic from "@anthropic-ai/sdk";

const [url, picture] = process.argv.slice(2);
const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const data = (await readFile(picture)).toString("base64");
const ask = (model, text, more = {}) => ({
  model,
  max_tokens: 64,
  messages: [
    {
      role: "user",
      content: [
        { type: "image", source: { type: "base64", media_type: "image/png", data } },
        { type: "text", text },
      ],
    },
  ],
  ...more,
});

const whole = await client.messages.create(ask("peek", "What colour is the circle?"));
assert.deepEqual([whole.content[0].text, whole.stop_reason], ["red", "end_turn"]);
const { max_tokens, ...prompt } = ask("peek", "What colour is the circle?");
const counted = await client.messages.countTokens(prompt);
assert.equal(counted.input_tokens, whole.usage.input_tokens + whole.usage.cache_read_input_tokens);

let streamed = "";
const stream = client.messages.stream(ask("peek", "What shape is it?"));
stream.on("text", (text) => (streamed += text));
const final = await stream.finalMessage();
assert.deepEqual([streamed, final.content[0].text, final.stop_reason], ["circle", "circle", "end_turn"]);

const tools = [{ name: "look", input_schema: { type: "object", properties: {} } }];
const called = await client.messages.create(ask("fake", '[[fake: tool look {"at": "left"}]]', { tools }));
assert.deepEqual([called.content[0].input, called.stop_reason], [{ at: "left" }, "tool_use"]);

const models = [];
for await (const model of client.models.list({ limit: 1 })) models.push(model.id);
assert.ok(models.includes("peek") && models.length > 1);

await assert.rejects(
  client.messages.create(ask("nobody", "?")),
  (error) => error instanceof Anthropic.NotFoundError && error.error.error.type === "not_found_error",
);
await assert.rejects(async () => {
  for await (const _ of await client.messages.create(ask("fake", "[[fake: error 2]]", { stream: true })));
}, Anthropic.APIError);

console.log("all right");
