// Streams that break, as the AI SDK reports them.
import { createCerebras } from "@ai-sdk/cerebras";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

async function errorsOf(provider, simulate) {
  const model = provider("gpt-oss-120b");
  const headers = { "x-simulate": `ttft=0.01, rate=10000, ${simulate}` };
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

// The errors by the name of the provider.
export async function errorsOfAll(url, simulate) {
  const options = { name: "any", apiKey: "any", baseURL: `${url}/v1` };
  const providers = {
    cerebras: createCerebras(options),
    compatible: createOpenAICompatible(options),
  };
  const found = Object.entries(providers).map(async ([name, each]) => [
    name,
    await errorsOf(each, simulate),
  ]);
  return Object.fromEntries(await Promise.all(found));
}
