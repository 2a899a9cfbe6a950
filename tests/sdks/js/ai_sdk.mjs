// Streams that break, as the AI SDK reports them; prints the errors of each provider as a JSON object.
// Usage: node ai_sdk.mjs BASE_URL SIMULATE
import { createCerebras } from "@ai-sdk/cerebras";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

const [baseURL, simulate] = process.argv.slice(2);
const options = { name: "any", apiKey: "any", baseURL: `${baseURL}/v1` };
const headers = { "x-simulate": `ttft=0.01, rate=10000, ${simulate}` };
const providers = {
  cerebras: createCerebras(options),
  compatible: createOpenAICompatible(options),
};

async function errorsOf(provider) {
  const model = provider("gpt-oss-120b");
  const errors = [];
  try {
    const stream = streamText({ model, prompt: "Hello!", headers, maxRetries: 0, onError() {} });
    for await (const part of stream.fullStream) {
      if (part.type === "error") errors.push(part.error.message);
    }
  } catch (error) {
    errors.push(error.message);
  }
  return errors;
}

const named = Object.entries(providers);
const found = await Promise.all(named.map(async ([name, each]) => [name, await errorsOf(each)]));
console.log(JSON.stringify(Object.fromEntries(found)));
