// The JavaScript SDKs, asked the same questions. Reads a JSON object on each line, {url, scenarios}
// for the official SDKs or {url, breaks} for the AI SDK, and prints one JSON line for each: a list
// of what each official SDK answered to each scenario, or the AI SDK's errors. Ends with its input.
import { createInterface } from "node:readline";
import Cerebras from "@cerebras/cerebras_cloud_sdk";
import OpenAI from "openai";
import { errorsOfAll } from "./ai_sdk.mjs";

function clientsOf(baseURL) {
  const options = { apiKey: "any-key", maxRetries: 0 };
  return {
    openai: new OpenAI({ ...options, baseURL: `${baseURL}/v1` }),
    cerebras: new Cerebras({ ...options, baseURL }),
  };
}

const question = { model: "gpt-oss-120b", messages: [{ role: "user", content: "Hello!" }] };
const tool = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: { type: "object", properties: { city: { type: "string" } } },
  },
};

function told(simulate) {
  return { headers: { "x-simulate": ["ttft=0.01", "rate=10000", ...simulate].join(", ") } };
}

function ask(client, more = {}, ...simulate) {
  return client.chat.completions.create({ ...question, ...more }, told(simulate));
}

// What a stream says, put together; `seen` counts the events, also of a stream that fails.
async function read(stream, seen) {
  const whole = { text: "", reasoning: "", tool: "", arguments: "" };
  for await (const event of stream) {
    seen.events += 1;
    const choice = event.choices[0];
    whole.text += choice.delta.content ?? "";
    whole.reasoning += choice.delta.reasoning ?? "";
    const call = choice.delta.tool_calls?.[0];
    whole.tool += call?.function.name ?? "";
    whole.arguments += call?.function.arguments ?? "";
    whole.finish = choice.finish_reason ?? whole.finish;
    whole.tokens = event.usage?.completion_tokens ?? whole.tokens;
  }
  return whole;
}

function message({ choices: [{ message, finish_reason: finish }], usage }) {
  const call = message.tool_calls?.[0].function;
  return {
    text: message.content ?? "",
    reasoning: message.reasoning ?? "",
    tool: call?.name ?? "",
    arguments: call?.arguments ?? "",
    finish,
    tokens: usage.completion_tokens,
  };
}

const stream = { stream: true };
const scenarios = {
  plain: async (client) => message(await ask(client)),
  stream: async (client, seen) => read(await ask(client, stream), seen),
  tool: async (client) => message(await ask(client, { tools: [tool] })),
  toolStream: async (client, seen) =>
    read(await ask(client, { ...stream, tools: [tool] }, "tokens_per_chunk=1"), seen),
  models: async (client) => (await client.models.list()).data.map((model) => model.id),
  model: async (client) => (await client.models.retrieve("gpt-oss-120b")).id,
  unknownModel: (client) => client.models.retrieve("nobody"),
  modelNotFound: (client) => ask(client, { model: "nobody" }),
  upstreamKey: (client) => ask(client, {}, "fault=wrong_api_key"),
  rateLimit: (client) => ask(client, {}, "fault=429"),
  serverError: (client) => ask(client, {}, "fault=500"),
  refused: (client) => ask(client, { model: 5 }),
  errorEvent: async (client, seen) =>
    read(await ask(client, stream, "fault=error_event", "at=4"), seen),
  cut: async (client, seen) => read(await ask(client, stream, "fault=cut", "at=4"), seen),
  cutInside: async (client, seen) =>
    read(await ask(client, stream, "fault=cut_inside", "at=4"), seen),
};

function header(error, name) {
  const headers = error.headers ?? {};
  return typeof headers.get === "function" ? headers.get(name) : headers[name];
}

function failure(error) {
  const { message, status, type, code, param, error: body } = error;
  const retryAfter = header(error, "retry-after");
  return { name: error.constructor.name, message, status, type, code, param, body, retryAfter };
}

async function answers(url, wanted) {
  const clients = Object.entries(clientsOf(url));
  const lines = [];
  for (const scenario of wanted) {
    for (const [sdk, client] of clients) {
      const seen = { events: 0 };
      const line = { sdk, scenario };
      try {
        line.response = await scenarios[scenario](client, seen);
      } catch (error) {
        line.error = failure(error);
      }
      lines.push({ ...line, ...seen });
    }
  }
  return lines;
}

for await (const text of createInterface({ input: process.stdin })) {
  const { url, scenarios: wanted, breaks } = JSON.parse(text);
  const found = wanted ? await answers(url, wanted) : await errorsOfAll(url, breaks);
  console.log(JSON.stringify(found));
}
