// Ollama's JavaScript library as a client of ours. Run by test_javascript.py: node ollama_client.mjs URL PICTURE
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { Ollama } from "ollama";

const [url, picture] = process.argv.slice(2);
const client = new Ollama({ host: url });
const images = [(await readFile(picture)).toString("base64")];
const options = { temperature: 0 };
const ask = (model, content, more = {}) => ({ model, options, messages: [{ role: "user", content, images }], ...more });

const whole = await client.chat(ask("peek", "What colour is the circle?"));
assert.deepEqual([whole.message.content, whole.done_reason], ["red", "stop"]);
assert.ok(whole.eval_count > 0 && whole.eval_duration > 0);

let streamed = "";
for await (const part of await client.chat(ask("peek", "What shape is it?", { stream: true }))) {
  streamed += part.message.content;
}
assert.equal(streamed, "circle");

const generated = await client.generate({ model: "peek", prompt: "What colour is the circle?", images, options });
assert.equal(generated.response, "red");

const tools = [{ type: "function", function: { name: "look", parameters: { type: "object", properties: {} } } }];
const called = await client.chat(ask("fake", '[[fake: tool look {"at": "left"}]]', { tools }));
assert.deepEqual(called.message.tool_calls[0].function.arguments, { at: "left" });

assert.ok((await client.list()).models.some((model) => model.name === "peek:latest"));
assert.ok((await client.show({ model: "peek" })).capabilities.includes("vision"));
assert.ok((await client.ps()).models.length > 0);
assert.equal((await client.embed({ model: "fake", input: ["a", "b"] })).embeddings.length, 2);

await assert.rejects(client.chat(ask("nobody", "?")), /model 'nobody' not found/);
await assert.rejects(async () => {
  for await (const _ of await client.chat(ask("fake", "[[fake: error 2]]", { stream: true })));
}, /told to fail/);

console.log("all right");
