// The Vercel AI SDK against the server at PARALLM_URL: the same through each of its ways to speak to a server.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError, Output, ToolLoopAgent, generateObject, generateText, isStepCount, jsonSchema, streamObject, streamText, tool,
} from "ai";
import { z } from "zod";

const baseURL = process.env.PARALLM_URL;
const id = (await (await fetch(`${baseURL}/models`)).json()).data[0].id;
const openai = createOpenAI({ baseURL, apiKey: "none" });
const compatible = createOpenAICompatible({
  name: "parallm", baseURL, includeUsage: true, supportsStructuredOutputs: true,
});
const MODELS = {
  "openai.responses": openai.responses(id),
  "openai.chat": openai.chat(id),
  "openai-compatible": compatible(id),
};
const Person = z.object({ name: z.string(), age: z.number().int() });
const weather = () => {
  const asked = [];
  const tools = {
    get_weather: tool({
      description: "Get the current weather of a city",
      // As it is in other clients' tests: the bundled model has seen no other words in a schema.
      inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"] }),
      execute: async ({ city }) => (asked.push(city), { temperature: 21 }),
    }),
  };
  return { asked, tools };
};
const hello = { prompt: "Hello!", temperature: 0, maxRetries: 0 };
const paris = { prompt: "What is the weather in Paris?", temperature: 0, maxRetries: 0 };

for (const [name, model] of Object.entries(MODELS)) {
  test(`${name}: a text, whole and streamed alike`, async () => {
    const whole = await generateText({ model, ...hello });
    const stream = streamText({ model, ...hello });
    let text = "";
    for await (const part of stream.textStream) text += part;
    assert.equal(text, whole.text);
    assert.ok(text.length > 0);
    assert.equal(await stream.finishReason, "stop");
    assert.deepEqual(
      [(await stream.usage).inputTokens, (await stream.usage).outputTokens],
      [whole.usage.inputTokens, whole.usage.outputTokens],
    );
    assert.ok(whole.usage.outputTokens > 0);
  });

  test(`${name}: a tool is called, and its result answered, in steps`, async () => {
    const { asked, tools } = weather();
    const result = await generateText({ model, ...paris, tools, stopWhen: isStepCount(3) });
    assert.deepEqual(asked, ["Paris"]);
    assert.equal(result.steps.length, 2);
    assert.equal(result.steps[0].finishReason, "tool-calls");
    assert.ok(result.text.length > 0);
  });

  test(`${name}: streamed steps have the parts of calls in order`, async () => {
    const { asked, tools } = weather();
    const kinds = [];
    for await (const part of streamText({ model, ...paris, tools, stopWhen: isStepCount(3) }).fullStream) {
      assert.notEqual(part.type, "error", String(part.error));
      if (kinds.at(-1) !== part.type) kinds.push(part.type);
    }
    assert.deepEqual(asked, ["Paris"]);
    const order = ["tool-input-start", "tool-input-delta", "tool-input-end", "tool-call", "tool-result", "text-start"];
    assert.deepEqual(kinds.filter((kind) => order.includes(kind)), order);
    assert.equal(kinds.at(-1), "finish");
  });

  test(`${name}: a tool can be required`, async () => {
    const { tools } = weather();
    const { toolCalls } = await generateText({ model, ...hello, tools, toolChoice: "required", stopWhen: isStepCount(1) });
    assert.equal(toolCalls[0].toolName, "get_weather");
    assert.equal(typeof toolCalls[0].input.city, "string");
  });

  test(`${name}: an object of a schema, whole and streamed`, async () => {
    const asked = { model, ...hello, maxOutputTokens: 300 };
    const { object } = await generateObject({ ...asked, schema: Person });
    assert.ok(Person.safeParse(object).success);
    const { output } = await generateText({ ...asked, output: Output.object({ schema: Person }) });
    assert.deepEqual(output, object);
    const stream = streamObject({ ...asked, schema: Person });
    const partial = [];
    for await (const part of stream.partialObjectStream) partial.push(part);
    assert.deepEqual(await stream.object, object);
    assert.deepEqual(partial.at(-1), object);
  });

  test(`${name}: one of several words`, async () => {
    const output = Output.choice({ options: ["sunny", "rainy"] });
    const answer = await generateText({ model, ...hello, maxOutputTokens: 60, output });
    assert.ok(["sunny", "rainy"].includes(answer.output));
  });

  test(`${name}: a conversation goes on`, async () => {
    const messages = [{ role: "user", content: "What is the weather in Paris?" }];
    const { tools } = weather();
    const first = await generateText({ model, temperature: 0, messages, tools, stopWhen: isStepCount(3) });
    messages.push(...first.response.messages, { role: "user", content: "Thank you!" });
    const second = await generateText({ model, temperature: 0, messages, tools, instructions: "Be brief." });
    assert.ok(second.text.length > 0);
  });

  test(`${name}: a stream that is aborted ends`, async () => {
    const controller = new AbortController();
    const stream = streamText({
      model, prompt: "Tell me a long story.", maxRetries: 0, abortSignal: controller.signal,
    });
    const kinds = [];
    for await (const part of stream.fullStream) {
      kinds.push(part.type);
      if (part.type === "text-delta") controller.abort();
    }
    assert.equal(kinds.at(-1), "abort");
  });

  test(`${name}: an error has its status and its message`, async () => {
    await assert.rejects(generateText({ model, ...hello, temperature: 9 }), (error) => {
      assert.ok(APICallError.isInstance(error));
      assert.equal(error.statusCode, 400);
      assert.match(error.message, /temperature/);
      return !error.isRetryable;
    });
    const parts = [];
    const stream = streamText({ model, ...hello, temperature: 9, onError: ({ error }) => parts.push(error.message) });
    await stream.consumeStream();
    assert.match(parts[0], /temperature/);
  });
}

test("an agent runs its loop", async () => {
  const { asked, tools } = weather();
  const agent = new ToolLoopAgent({ model: MODELS["openai.responses"], tools, temperature: 0 });
  const { text } = await agent.generate({ prompt: paris.prompt });
  assert.deepEqual(asked, ["Paris"]);
  assert.ok(text.length > 0);
});

test("a completion", async () => {
  const { text } = await generateText({
    model: compatible.completionModel(id), prompt: "Once upon a time", maxOutputTokens: 8, maxRetries: 0,
  });
  assert.ok(text.length > 0);
});

test("a response goes on from a stored one", async () => {
  const model = MODELS["openai.responses"];
  const first = await generateText({ model, ...hello });
  const previousResponseId = first.providerMetadata.openai.responseId;
  const second = await generateText({
    model, prompt: "And you?", temperature: 0, providerOptions: { openai: { previousResponseId } },
  });
  assert.ok(second.usage.inputTokens > first.usage.inputTokens);
});
