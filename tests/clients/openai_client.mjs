// OpenAI's JavaScript SDK as a client of ours. Run by test_javascript.py: node openai_client.mjs URL PICTURE
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import OpenAI from "openai";

const [url, picture] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const data = (await readFile(picture)).toString("base64");
const ask = (model, text, more = {}) => ({
  model,
  temperature: 0,
  messages: [
    {
      role: "user",
      content: [
        { type: "image_url", image_url: { url: `data:image/png;base64,${data}` } },
        { type: "text", text },
      ],
    },
  ],
  ...more,
});

const whole = await client.chat.completions.create(ask("peek", "What colour is the circle?"));
assert.equal(whole.choices[0].message.content, "red");
assert.ok(whole.usage.prompt_tokens_details.image_tokens > 0);

let streamed = "";
const stream = await client.chat.completions.create(
  ask("peek", "What shape is it?", { stream: true, stream_options: { include_usage: true } }),
);
let usage = null;
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, "circle");
assert.ok(usage.total_tokens > 0);

const helper = client.chat.completions.stream(ask("peek", "What colour is the circle?"));
assert.equal((await helper.finalChatCompletion()).choices[0].message.content, "red");

const response = await client.responses.create({
  model: "peek",
  temperature: 0,
  input: [
    {
      role: "user",
      content: [
        { type: "input_image", image_url: `data:image/png;base64,${data}`, detail: "auto" },
        { type: "input_text", text: "What colour is the circle?" },
      ],
    },
  ],
});
assert.equal(response.output_text, "red");

const types = [];
for await (const event of await client.responses.create({ model: "fake", input: "hello", stream: true })) {
  types.push(event.type);
}
assert.equal(types[0], "response.created");
assert.equal(types.at(-1), "response.completed");

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.ok(models.includes("peek"));

await assert.rejects(
  client.chat.completions.create({ model: "nobody", messages: [{ role: "user", content: "?" }] }),
  (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
);

// A stream that its reader leaves ends, and the server goes on.
const left = await client.chat.completions.create(
  { model: "fake", stream: true, messages: [{ role: "user", content: "[[fake: slow 0.01]] [[fake: length 1000]]" }] },
);
for await (const chunk of left) if (chunk.choices[0]?.delta?.content) break;
assert.equal((await client.chat.completions.create(ask("peek", "What colour is the circle?"))).choices.length, 1);

console.log("all right");
