// The official openai SDK for Node against the server at PARALLM_URL.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.env.PARALLM_URL, apiKey: "none", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const hello = [{ role: "user", content: "Hello!" }];
const weather = [{ role: "user", content: "What is the weather in Paris?" }];
const tool = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the current weather of a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

test("a chat answers, whole and streamed alike", async () => {
  const body = { model, messages: hello, temperature: 0 };
  const whole = await client.chat.completions.create(body);
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.ok(text.length > 0);
});

test("the stream helper gathers the final answer and its usage", async () => {
  const stream = client.chat.completions.stream({
    model, messages: hello, temperature: 0, stream_options: { include_usage: true },
  });
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].finish_reason, "stop");
  assert.ok(final.usage.total_tokens > 0);
});

test("tools are called, and run by the runner", async () => {
  const runner = client.chat.completions.runTools({
    model,
    messages: weather,
    temperature: 0,
    tools: [{ ...tool, function: { ...tool.function, parse: JSON.parse, function: () => ({ temperature: 21 }) } }],
  });
  const calls = [];
  runner.on("functionToolCall", (call) => calls.push(call));
  const text = await runner.finalContent();
  assert.deepEqual(JSON.parse(calls[0].arguments), { city: "Paris" });
  assert.ok(text.length > 0);
});

test("answers parse into a zod schema", async () => {
  const Person = z.object({ name: z.string(), age: z.number().int() });
  const answer = await client.chat.completions.parse({
    model, messages: hello, temperature: 0, max_tokens: 300, response_format: zodResponseFormat(Person, "person"),
  });
  assert.equal(typeof answer.choices[0].message.parsed.age, "number");
});

test("completions and responses answer too", async () => {
  const completion = await client.completions.create({ model, prompt: "1, 2, 3,", max_tokens: 4, temperature: 0 });
  assert.equal(completion.object, "text_completion");
  const kinds = [];
  for await (const event of await client.responses.create({ model, input: "Hello!", stream: true })) {
    kinds.push(event.type);
  }
  assert.equal(kinds.at(0), "response.created");
  assert.match(kinds.at(-1), /^response\.(completed|incomplete)$/);
});

test("errors are the SDK's own classes", async () => {
  await assert.rejects(client.chat.completions.create({ model: "none", messages: hello }), OpenAI.NotFoundError);
  await assert.rejects(
    client.chat.completions.create({ model, messages: hello, temperature: 9 }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
  );
});
